"""The benchmark where exports will run: compiled, or in other programs."""

from __future__ import annotations

import pytest
import torch
from command_line import call as command
from torch import nn

from upscale_opt.experiments.bench.benching import Task, bench
from upscale_opt.experiments.bench.names import RUNTIME_VARIANTS
from upscale_opt.experiments.bench.records import BenchRecord, Settings
from upscale_opt.experiments.bench.tables import best_other, verdicts
from upscale_opt.in_runtimes.backends import BACKENDS
from upscale_opt.ir.cost_model import (
    Runtime,
)

SMALL = "topology/residual_stage"


@pytest.fixture(scope="module", params=BACKENDS)
def record(request: pytest.FixtureRequest) -> BenchRecord:
    return benched(request.param)


def benched(runtime: Runtime) -> BenchRecord:
    """The record of a small network."""
    settings = Settings(runtime=runtime, rounds=2, variants=RUNTIME_VARIANTS[runtime])
    return bench(Task(SMALL, settings))


def test_the_benchmark_of_compiled_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """All variants compiled, ours by the prices for it, each beside each."""
    compiled = []

    def compile(model: nn.Module) -> nn.Module:
        compiled.append(model)
        return model

    monkeypatch.setattr(torch, "compile", compile)
    record = benched("compiled")
    assert record.problem == ""
    (cell,) = record.cells
    assert cell.key == (1, "contiguous", "compiled")
    assert len(compiled) == len(record.settings.variants)
    own = cell.time_of("latency")
    assert own is not None
    assert set(own.ratios) == {*record.settings.variants} - {"latency"}
    (said,) = verdicts([record])
    assert "takes" in said


def test_the_benchmark_in_other_programs(record: BenchRecord) -> None:
    assert record.problem == ""
    (cell,) = record.cells
    assert cell.key == (1, "contiguous", record.settings.runtime)
    for variant in record.settings.variants:
        time = cell.time_of(variant)
        assert time is not None
        assert time.problem == ""
        assert time.milliseconds
        assert time.computing is not None
        assert 0 < time.computing <= 1
    own, floor = cell.time_of("latency"), cell.time_of("floor")
    assert own is not None
    assert floor is not None
    assert set(own.ratios) == {*record.settings.variants} - {"latency"}
    assert own.ratios["floor"].median * (own.computing or 0) == pytest.approx(1)
    export = record.export("latency", cell)
    assert export is not None
    assert export.deviation is not None
    assert export.deviation < 1e-10
    assert BenchRecord.from_json(record.to_json()) == record


def test_verdicts_of_records(record: BenchRecord) -> None:
    (cell,) = record.cells
    name, ratio = best_other(cell) or ("", 0.0)
    (line,) = verdicts([record])
    export = record.export("latency", cell)
    assert export is not None
    assert line.startswith(f"{SMALL}, batch 1: the plan ({export.plan}) ")
    assert f"{ratio:.3f} of the time of the best other, {name}" in line


@pytest.mark.parametrize(
    "options", [["--device", "cuda"], ["--compile"], ["--format", "channels-last"]]
)
@pytest.mark.parametrize("runtime", BACKENDS)
def test_what_other_programs_are_not_timed_with(
    runtime: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("bench", SMALL, "--runtime", runtime, *options) == 1
    assert f"{runtime} is timed on a CPU" in capsys.readouterr().err
