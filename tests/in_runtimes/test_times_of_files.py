"""Times of files in other programs, in turn; verdicts; and clocks that budgets are kept by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import call as command
from three_readers import stream
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt import in_runtimes
from upscale_opt.errors import DeployError
from upscale_opt.in_runtimes import openvino
from upscale_opt.in_runtimes.backends import BACKENDS
from upscale_opt.in_runtimes.nodes import file_of
from upscale_opt.in_runtimes.timing import Comparison, model_clock
from upscale_opt.pruning import by_clock

SMALL = "topology/residual_stage"


@pytest.mark.parametrize("runtime", BACKENDS)
def test_models_beside_each_other(runtime: str) -> None:
    model, x = stream()
    models = {"one": model, "two": nn.Conv2d(3, 8, 3)}
    found = in_runtimes.beside(models, x, runtime=runtime, seconds=0.05)
    assert found.runtime == runtime
    assert found.ratio("one", "one") == 1
    assert found.milliseconds.keys() == {"one", "two"}
    assert 0 < found.computing("one") <= 1
    with pytest.raises(DeployError, match="'three' was not timed"):
        found.ratio("one", "three")
    with pytest.raises(uo.TraceError):
        in_runtimes.beside({"none": 3}, x)  # type: ignore[dict-item]


def test_verdicts_name_the_way_out() -> None:
    times = {"unpruned": [1.0, 2.0], "pruned": [1.1, 2.2], "other": [0.5, 1.0]}
    found = Comparison("onnxruntime", times)
    assert found.fastest() == "other"
    assert "pruned is slower than unpruned" in found.verdict("pruned")
    assert "take other, which takes 0.500" in found.verdict("pruned")
    assert found.verdict("other") == "other takes 0.500 of the time of unpruned in onnxruntime"


def test_a_slower_export_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the plan that is made for onnxruntime is put beside it."""
    model, x = stream()
    graph = uo.trace(model, x)
    masks = uo.masks_of(model, graph)
    solution = uo.solve(graph, masks)
    pruned = uo.materialize(model, solution)
    asked: list[list[str]] = []

    def beside(models: dict[str, nn.Module], *_: object, **__: object) -> Comparison:
        asked.append(list(models))
        times = {"the unpruned network": [1.0], "the export": [1.5]}
        return Comparison("onnxruntime", {**times, **{name: [0.75] for name in [*models][2:]}})

    monkeypatch.setattr("upscale_opt.in_runtimes.judging.beside", beside)
    said = in_runtimes.judge(model, pruned, graph, masks, solution, x)
    assert "the export is slower than the unpruned network" in said
    assert "take the plan of objective latency and cost model onnxruntime, which takes 0.75" in said
    assert [len(models) for models in asked] == [2, 3]


def test_files_are_judged_where_their_plan_is_for() -> None:
    model, x = stream()
    graph = uo.trace(model, x)
    masks = uo.masks_of(model, graph)
    for prices, runtime in (("openvino", "openvino"), ("cpu", "onnxruntime")):
        solution = uo.solve(graph, masks, objective="latency", cost_model=prices)
        assert in_runtimes.runtime_for(solution) == runtime
        pruned = uo.materialize(model, solution)
        said = in_runtimes.judge(model, pruned, graph, masks, solution, x, seconds=0.05)
        assert f"in {runtime}" in said


def test_what_cannot_be_timed_is_not() -> None:
    model, x = stream()
    graph = uo.trace(model, x)
    masks, solution = uo.masks_of(model, graph), uo.solve(graph, uo.masks_of(model, graph))
    said = in_runtimes.judge(model, nn.Linear(2, 2), graph, masks, solution, x)
    assert said.startswith("not timed in onnxruntime: ")


def test_a_run_says_what_the_file_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("run", SMALL, "--export", "onnx", "--out", str(tmp_path)) == 0
    assert "Time: on one thread, the export " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("runtime", BACKENDS)
def test_pruned_models_are_timed_where_their_prices_are_from(
    runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_clock, "_SECONDS", 0.1)
    monkeypatch.setattr(by_clock, "_AGAIN", 0)
    model, inputs = stream()
    given = uo.prune(model, inputs, measure=True, objective="latency", cost_model=runtime)
    budget = uo.Budget(latency=0.7, cost_model=runtime)
    chosen = uo.prune(model, inputs, budget=budget, measure=True, time_limit=0.5)
    for found in (given, chosen):
        assert found.times is not None
        assert found.times.device == runtime
        assert set(found.times.milliseconds) >= {"unpruned", "pruned"}
    eager = uo.prune(model, inputs, measure=True)
    assert eager.times is not None
    assert eager.times.device == "cpu"


@pytest.mark.parametrize("runtime", BACKENDS)
def test_clocks_of_other_programs_run_the_file(runtime: str) -> None:
    model, inputs = stream()
    clock = model_clock(model, inputs, runtime)
    assert clock() > 0
    with pytest.raises(DeployError, match=r"ONNX cannot hold this model|cannot run this model"):
        model_clock(model.bfloat16(), inputs.bfloat16(), runtime)


@pytest.mark.parametrize("runtime", BACKENDS)
def test_clocks_leave_numbers_next_to_zero_alone(runtime: str) -> None:
    """Programs that take them for zero, to be fast, leave the thread so."""

    def tiny() -> float:
        return float(torch.tensor(1e-310, dtype=torch.float64) * 1.0)

    model, inputs = nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 3, 8, 8)
    torch.set_flush_denormal(False)
    model_clock(model, inputs, runtime)()
    in_runtimes.beside({"one": model}, inputs, runtime=runtime, seconds=0.01)
    assert tiny() > 0
    torch.set_flush_denormal(True)
    try:
        model_clock(model, inputs, runtime)()
        assert tiny() == 0
    finally:
        torch.set_flush_denormal(False)


class Unused(nn.Module):
    """Has an input that does not matter, and one of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, other: Tensor, x: Tensor, count: Tensor) -> Tensor:
        """Of shape (N, 4, H - 2, W - 2)."""
        y: Tensor = self.conv(x) * count
        return y


@pytest.mark.parametrize("runtime", BACKENDS)
def test_inputs_that_are_not_used_are_not_asked_for(runtime: str) -> None:
    x, count = torch.randn(1, 3, 8, 8), torch.tensor([3])
    assert model_clock(Unused().eval(), (torch.ones(1, 2), x, count), runtime)() > 0


def test_openvino_computes_what_the_model_does() -> None:
    model, x = stream()
    graph = uo.trace(model, x)
    solution = uo.solve(
        graph, uo.masks_of(model, graph), objective="latency", cost_model="openvino"
    )
    pruned = uo.materialize(model, solution)
    results: Any = openvino.call_of(file_of(pruned, x), x, 1)()
    (found,) = results.values()
    wanted = model(x).detach()
    assert (torch.from_numpy(found) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_what_cannot_be_timed_there_is_refused_before_the_work() -> None:
    model, inputs = stream()
    told: list[str] = []
    asked = {"objective": "latency", "cost_model": "onnxruntime"}
    with pytest.raises(DeployError, match="--no-measure"):
        uo.prune(
            model.double(),
            inputs.double(),
            measure=True,
            progress=lambda event: told.append(event.step),
            **asked,  # type: ignore[arg-type]
        )
    assert told == ["trace"]
    assert uo.prune(model, inputs.double(), **asked).times is None  # type: ignore[arg-type]
