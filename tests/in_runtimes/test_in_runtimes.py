"""Models in other programs: nodes of their profiles, prices, times in turn, the benchmark."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import call as command
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt import in_runtimes
from upscale_opt.errors import DeployError, SolverError
from upscale_opt.experiments.bench.benching import Task, bench
from upscale_opt.experiments.bench.names import RUNTIME_VARIANTS
from upscale_opt.experiments.bench.records import BenchRecord, Settings
from upscale_opt.experiments.bench.tables import best_other, verdicts
from upscale_opt.in_runtimes import openvino
from upscale_opt.in_runtimes.backends import BACKENDS
from upscale_opt.in_runtimes.calibrating import _pass
from upscale_opt.in_runtimes.nodes import Node, file_of, whole
from upscale_opt.in_runtimes.onnxruntime import Session, block_here, node_of
from upscale_opt.in_runtimes.timing import Comparison, model_clock
from upscale_opt.ir.cost_model import BLOCKED_KINDS, KINDS, CostModel, KernelCost, Runtime
from upscale_opt.ir.profiles import profile
from upscale_opt.measuring.calibrating import Subject
from upscale_opt.pruning import by_clock
from upscale_opt.solver.forecast import forecast

SMALL = "topology/residual_stage"


class Stream(nn.Module):
    """Three readers of 32 channels, each of another half of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.readers = nn.ModuleList(nn.Conv2d(32, 16, 3, padding=1) for _ in range(3))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for layer in self.readers:
                assert isinstance(layer, nn.Conv2d)
                layer.weight[:, torch.randperm(32, generator=generator)[:16]] = 0

    def forward(self, x: Tensor) -> Tensor:
        """Of shape (N, 48, H, W)."""
        y = torch.relu(self.stem(x))
        return torch.cat([layer(y) for layer in self.readers], 1)


def stream() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Stream().eval(), torch.randn(1, 3, 24, 24)


def shapes(*found: list[int]) -> list[dict[str, list[int]]]:
    return [{"float": shape} for shape in found]


NODES: dict[str, tuple[str, dict[str, Any], tuple[str, int, int]]] = {
    "in blocks": (
        "relu_nchwc",
        {"op_name": "Conv", "in": ([1, 20, 8, 8], [10, 20, 3, 3], [10]), "out": ([1, 10, 8, 8],)},
        ("conv", 64 * 9 * 16 * 32, 4 * (1280 + 1800 + 10 + 640)),
    ),
    "of an image's three channels": (
        "relu_nchwc_token_3",
        {"op_name": "Conv", "in": ([1, 3, 8, 8], [10, 3, 3, 3]), "out": ([1, 10, 8, 8],)},
        ("conv", 64 * 9 * 16 * 3, 4 * (192 + 270 + 640)),
    ),
    "outside": (
        "node_conv2d",
        {"op_name": "FusedConv", "in": ([1, 6, 8, 8], [10, 6, 1, 1]), "out": ([1, 10, 8, 8],)},
        ("plain1x1", 64 * 10 * 6, 4 * (384 + 60 + 640)),
    ),
    "depthwise": (
        "node_conv2d",
        {"op_name": "Conv", "in": ([1, 6, 8, 8], [6, 1, 3, 3]), "out": ([1, 6, 8, 8],)},
        ("plain_depthwise", 64 * 9 * 6, 4 * (384 + 54 + 384)),
    ),
    "a norm": (
        "x_nchwc",
        {"op_name": "Conv", "in": ([1, 16, 8, 8], [16, 1, 1, 1]), "out": ([1, 16, 8, 8],)},
        ("norm", 0, 4 * (1024 + 16 + 1024)),
    ),
    "a slice": (
        "node_slice",
        {"op_name": "Slice", "in": ([1, 9, 8, 8], [1]), "out": ([1, 4, 8, 8],)},
        ("slice", 0, 8 * 256),
    ),
    "a product": (
        "node_linear",
        {"op_name": "Gemm", "in": ([2, 30], [10]), "out": ([2, 10],)},
        ("linear", 600, 4 * (60 + 10 + 20 + 300)),
    ),
    "unknown": ("x", {"op_name": "Einsum", "in": ([4],), "out": ([4],)}, ("other", 0, 32)),
}


@pytest.mark.parametrize("case", NODES)
def test_nodes_by_hand(case: str) -> None:
    name, said, (kind, macs, moved) = NODES[case]
    args = {
        "op_name": said["op_name"],
        "input_type_shape": shapes(*said["in"]),
        "output_type_shape": shapes(*said["out"]),
    }
    node = node_of(name, args, 5.0, 16)
    assert (node.kind, node.macs, node.bytes) == (kind, macs, moved)


OPENVINO_NODES: dict[str, tuple[str, tuple[list[int], ...], list[int], tuple[str, int, int]]] = {
    "a convolution": (
        "Convolution",
        ([1, 20, 8, 8], [10, 20, 3, 3]),
        [1, 10, 8, 8],
        ("conv", 64 * 9 * 16 * 20, 4 * (1280 + 1800 + 640)),
    ),
    "a pointwise one": (
        "Convolution",
        ([1, 20, 8, 8], [16, 20, 1, 1]),
        [1, 16, 8, 8],
        ("conv1x1", 64 * 16 * 20, 4 * (1280 + 320 + 1024)),
    ),
    "depthwise": (
        "Convolution",
        ([1, 6, 8, 8], [6, 1, 1, 3, 3]),
        [1, 6, 8, 8],
        ("depthwise", 64 * 9 * 6, 4 * (384 + 54 + 384)),
    ),
    "in groups": (
        "Convolution",
        ([1, 8, 8, 8], [2, 3, 4, 3, 3]),
        [1, 6, 8, 8],
        ("grouped", 64 * 9 * 6 * 4, 4 * (512 + 216 + 384)),
    ),
    "a transposed one in groups": (
        "Deconvolution",
        ([1, 16, 8, 8], [4, 4, 4, 3, 3]),
        [1, 16, 10, 10],
        ("transposed", 64 * 16 * 4 * 9, 4 * (1024 + 576 + 1600)),
    ),
    "a product": ("FullyConnected", ([2, 30], [10, 30]), [2, 10], ("linear", 600, 1520)),
    "a slice": ("StridedSlice", ([1, 9, 8, 8], [1]), [1, 4, 8, 8], ("slice", 0, 8 * 256)),
    "a gather": ("Gather", ([1, 9, 8, 8], [4]), [1, 4, 8, 8], ("gather", 0, 8 * 256)),
    "a way out": ("Reorder", ([1, 9, 8, 8],), [1, 9, 8, 8], ("reorder_out", 0, 8 * 576)),
    "unknown": ("Einsum", ([4],), [4], ("other", 0, 32)),
}


@pytest.mark.parametrize("case", OPENVINO_NODES)
def test_nodes_of_openvino_by_hand(case: str) -> None:
    what, given, result, (kind, macs, moved) = OPENVINO_NODES[case]
    info = {"layerType": what, "outputLayouts": "abcd"}
    node = openvino.node_of("x", info, given, [result], 5.0, 16)
    assert (node.kind, node.macs, node.bytes) == (kind, macs, moved)
    inside = openvino.node_of("x", {**info, "outputLayouts": "acdb"}, given, [result], 5.0, 16)
    assert inside.kind == ("reorder_in" if what == "Reorder" else kind)


class Selecting(nn.Module):
    """A part of what a convolution writes, for another one: a slice or a gather."""

    def __init__(self, channels: list[int] | slice) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Of shape (N, 32, H, W)."""
        y: Tensor = self.second(torch.relu(self.first(x))[:, self.channels])
        return y


def test_what_prices_say_of_openvino_is_what_it_does() -> None:
    """A gather is put between reorders there, a slice is not."""
    x = torch.randn(1, 3, 24, 24)
    kinds = {}
    channels: dict[str, list[int] | slice] = {"slice": slice(4, 20), "gather": [*range(0, 32, 2)]}
    for name, chosen in channels.items():
        one = openvino.Session(file_of(Selecting(chosen).eval(), x), x, 1)
        one.run()
        kinds[name] = Counter(node.kind for node in one.nodes(16))
    assert kinds["slice"]["conv"] == kinds["gather"]["conv"] == 2
    assert kinds["slice"]["slice"] == kinds["gather"]["gather"] == 1
    reorders = {name: own["reorder_in"] + own["reorder_out"] for name, own in kinds.items()}
    assert reorders["gather"] == reorders["slice"] + 2


def test_widths_in_blocks() -> None:
    assert [whole(width, 16) for width in (1, 16, 17)] == [16, 16, 32]
    assert block_here() in (1, 4, 8, 16)


def test_a_whole_tensor_leaves_no_slice_and_no_gather() -> None:
    """What the plan says of reads is what onnxruntime runs."""
    model, x = stream()
    graph = uo.trace(model, x)
    masks = uo.masks_of(model, graph)
    built_in = profile("onnxruntime")
    free = {"conv": built_in.kernels["conv"].model_copy(update={"ns_per_mac": 0.0})}
    cheap = built_in.model_copy(update={"kernels": {**built_in.kernels, **free}})
    kinds = {}
    both: dict[str, str | CostModel] = {"eager": "cpu", "whole": cheap}
    for name, prices in both.items():
        solution = uo.solve(graph, masks, objective="latency", cost_model=prices)
        pruned = uo.materialize(model, solution)
        uo.verify(model, pruned, x)
        one = Session(file_of(pruned, x), x, 1)
        one.run()
        kinds[name] = [node.kind for node in one.nodes(1)]
    moves = {"slice", "gather"}
    assert moves & set(kinds["eager"])
    assert not moves & set(kinds["whole"])


def counting(kind: str, block: int) -> CostModel:
    """A cost model by which a kernel of one kind takes a nanosecond, and all others nothing."""
    built_in = profile("onnxruntime")
    free = KernelCost(launch=0, ns_per_byte=0)
    kernels = dict.fromkeys(built_in.kernels, free) | {kind: KernelCost(launch=1, ns_per_byte=0)}
    steps = {"block": block, "align": min(block, 4)}
    return built_in.model_copy(update={"kernels": kernels, **steps})


@pytest.mark.parametrize("prices", ["cpu", "openvino"])
def test_the_forecast_of_openvino_has_the_moves_that_run(prices: str) -> None:
    """Slices and gathers, and the ways into the layout and out of it: as many as there are."""
    model, x = stream()
    graph = uo.trace(model, x)
    solution = uo.solve(graph, uo.masks_of(model, graph), objective="latency", cost_model=prices)
    one = openvino.Session(file_of(uo.materialize(model, solution), x), x, 1)
    one.run()
    ran = Counter(node.kind for node in one.nodes(16))
    built_in = profile("openvino")
    free = KernelCost(launch=0, ns_per_byte=0)
    for kind in ("slice", "gather", "conv", "reorder_in"):
        kernels = dict.fromkeys(built_in.kernels, free) | {
            kind: KernelCost(launch=1, ns_per_byte=0)
        }
        counted = built_in.model_copy(update={"kernels": kernels})
        assert forecast(graph, solution, counted) == ran[kind], kind


@pytest.mark.parametrize("prices", ["cpu", "onnxruntime"])
def test_the_forecast_has_the_nodes_that_run(prices: str) -> None:
    """Convolutions in the layout and outside, slices, gathers, reorders: as many as there are."""
    block = block_here()
    model, x = stream()
    graph = uo.trace(model, x)
    solution = uo.solve(graph, uo.masks_of(model, graph), objective="latency", cost_model=prices)
    one = Session(file_of(uo.materialize(model, solution), x), x, 1)
    one.run()
    ran = Counter(node.kind for node in one.nodes(block))
    seen = ("conv", "conv1x1", "plain", "plain1x1", "slice", "gather", "reorder_in", "reorder_out")
    for kind in seen:
        assert forecast(graph, solution, counting(kind, block)) == ran[kind], kind
    assert ran["conv"] + ran["plain"] == 4


# Calibrating.


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


# Times in turn.


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


# The benchmark.


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
    own, floor = cell.time_of("latency"), cell.time_of("floor")
    assert own is not None
    assert floor is not None
    assert set(own.ratios) == {*record.settings.variants} - {"latency"}
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
