"""Prices of other programs by the clock."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from command_line import call as command
from three_readers import stream

import upscale_opt as uo
from upscale_opt import in_runtimes
from upscale_opt.errors import SolverError
from upscale_opt.in_runtimes.backends import BACKENDS
from upscale_opt.in_runtimes.calibrating import _pass
from upscale_opt.in_runtimes.nodes import Node
from upscale_opt.ir.cost_model import (
    BLOCKED_KINDS,
    KINDS,
    CostModel,
)
from upscale_opt.measuring.calibrating import Subject

SMALL = "topology/residual_stage"


@pytest.mark.parametrize("runtime", BACKENDS)
def test_calibrating(runtime: str) -> None:
    model, x = stream()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    told: list[str] = []
    found = in_runtimes.calibrate(
        [Subject(model, uo.trace(model, x), x, "small")],
        runtime=runtime,
        seconds=0.05,
        progress=lambda event: told.append(event.step),
    )
    assert found.runtime == runtime
    assert set(found.kernels) == {*KINDS, *BLOCKED_KINDS}
    assert {"conv", "plain"} & set(found.error)
    assert [check.network for check in found.checks] == ["small", "small, half of its channels"]
    assert all(check.predicted > 0 and check.measured > 0 for check in found.checks)
    assert found.block % found.align == 0
    assert CostModel.from_json(found.to_json()) == found
    assert any("half" in step for step in told)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_nodes_take_no_longer_than_all_of_them() -> None:
    """A profile counts what other programs take in between; the clock of one thread does not."""
    nodes = [Node("a", "conv", 1, 1, 300.0), Node("b", "norm", 1, 0, 100.0)]
    crowded, quiet = _pass("x", nodes, 200.0), _pass("x", nodes, 500.0)
    assert [node.nanoseconds for node in crowded.nodes] == [150, 50]
    assert (crowded.overhead, quiet.overhead) == (0, 50)
    assert list(quiet.nodes) == nodes


def test_calibrating_needs_models_and_time() -> None:
    with pytest.raises(SolverError, match="no model"):
        in_runtimes.calibrate([])
    model, x = stream()
    subject = Subject(model, uo.trace(model, x), x)
    with pytest.raises(SolverError, match="more than 0"):
        in_runtimes.calibrate([subject], seconds=0)
    with pytest.raises(SolverError, match="onnxruntime, openvino"):
        in_runtimes.calibrate([subject], runtime="tvm")


def test_the_command_calibrates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "prices.json"
    arguments = ["--runtime", "onnxruntime", "--seconds", "0.01", "-o", str(out)]
    assert command("calibrate", SMALL, *arguments) == 0
    assert "predicted / measured" in capsys.readouterr().out
    assert CostModel.load(out).runtime == "onnxruntime"
    assert command("calibrate", SMALL, *arguments, "--dtype", "float64") == 2
    assert "leave out" in " ".join(capsys.readouterr().err.split())


def test_the_command_calibrates_at_several_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "prices.json"
    arguments = ["--runtime", "openvino", "--seconds", "0.01", "-o", str(out)]
    assert command("calibrate", SMALL, *arguments, "--batch", "1", "4") == 0
    assert [check.network for check in CostModel.load(out).checks] == [
        f"{SMALL} at batch {size}{half}"
        for size in (1, 4)
        for half in ("", ", half of its channels")
    ]
    assert command("calibrate", SMALL, *arguments, "--batch", "0") == 2
    assert "at least 1 image" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["calibrate", "bench"])
@pytest.mark.parametrize("runtime", BACKENDS)
def test_without_the_program_nothing_begins(
    name: str,
    runtime: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, runtime, None)
    out = str(tmp_path / "out")
    assert command(name, SMALL, "--runtime", runtime, "-o", out) == 1
    error = capsys.readouterr().err
    extra = "onnx" if runtime == "onnxruntime" else runtime
    assert f"upscale-opt[{extra}]" in "".join(error.split())
    assert "trace" not in error
