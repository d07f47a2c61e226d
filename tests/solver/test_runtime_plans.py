"""Plans for onnxruntime and others: slices, gathers, whole tensors by price; widths in blocks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from cat_networks import cat_network, image
from comparing import EXACT, call, complaint, deviation
from runtime_prices import BETWEEN, BLOCKS, DEAR_MACS, FREE_MACS, MOVES, model_of
from sample_networks import keep, random_masks
from torch import Tensor, nn
from window_networks import X, dense, posed, stream

import upscale_opt as uo
from upscale_opt.errors import SchemaError, SolverError, UpscaleError
from upscale_opt.ir.cost_model import BLOCKED_KINDS, KINDS, CostModel, Runtime
from upscale_opt.ir.profiles import COMPILED, OPENVINO, PROFILES, profile
from upscale_opt.ir.solution import Widths
from upscale_opt.solver.api import _WIDTHS_PAY, _Task
from upscale_opt.solver.checking.removal import removal
from upscale_opt.solver.comparing import with_gaps
from upscale_opt.solver.forecast import forecast
from upscale_opt.solver.options import SolveOptions


def checked(seed: int, make: Callable[[int], nn.Module], cost_model: CostModel) -> uo.Solution:
    """A solution that was checked, and whose export was run at several batches."""
    model, graph, masks = posed(seed, make)
    solution = uo.solve(graph, masks, objective="latency", cost_model=cost_model)
    assert uo.Solution.from_json(solution.to_json()) == solution
    report = uo.check(solution, graph, masks)
    assert report.objective_value == solution.objective_value >= solution.lower_bound
    pruned = uo.materialize(model, solution)
    for x in (X, X[:1], torch.cat([X, X, X])):
        assert deviation(call(model, x), call(pruned, x)) < EXACT
    return solution


@pytest.mark.parametrize("make", [stream, dense])
@pytest.mark.parametrize("cost_model", [FREE_MACS, DEAR_MACS, BETWEEN, BLOCKS, COMPILED, OPENVINO])
def test_lossless_and_nothing_in_place(
    make: Callable[[int], nn.Module], cost_model: CostModel
) -> None:
    for seed in (1, 2):
        solution = checked(seed, make, cost_model)
        assert not solution.arenas
        cut = [read for read in solution.reads if read.kind == "place" or read.optional]
        assert solution.widths == "trimmed" or not cut


def partial(solution: uo.Solution) -> list[str]:
    """The plans of reads that take a part of what is stored."""
    return [r.plan for r in solution.reads if set(r.channels) != set(solution.tensors[r.tensor])]


def test_prices_decide() -> None:
    free, dear = checked(2, stream, FREE_MACS), checked(2, stream, DEAR_MACS)
    assert partial(free) == []
    assert free.windows > 0 < free.extra_macs
    assert dear.windows == 0 == dear.extra_macs
    assert set(partial(dear)) == {"view", "gather"}
    plans = {read.plan for read in checked(2, stream, BETWEEN).reads}
    assert "window" in plans
    assert plans & {"view", "gather"}


def widths(graph: uo.ChannelGraph, solution: uo.Solution) -> list[tuple[int, int]]:
    """For each convolution, the channels that it reads, and those that its tensor has at all."""
    found = []
    for read in solution.reads:
        op = next(op for op in graph.operations if op.name == read.op)
        if op.kind == "layer":
            found.append((len(read.channels), len(graph.tensors[read.tensor].channels)))
    return found


def test_convolutions_read_whole_steps() -> None:
    model, graph, masks = posed(1, wide)
    before = uo.solve(graph, masks, objective="latency", cost_model=DEAR_MACS)
    assert any(count % 4 for count, _ in widths(graph, before))
    outside = {"plain": (1e9, 0, 0), "plain1x1": (1e9, 0, 0)}
    blocks = model_of(8, 4, **MOVES, **outside, conv=(0, 0, 1e3), conv1x1=(0, 0, 1e3))
    solution = checked(1, wide, blocks)
    assert solution.widths == "blocks"
    assert all(count % 4 == 0 or size < 4 for count, size in widths(graph, solution))
    stored = [len(layout) for name, layout in solution.tensors.items() if len(layout) > 3]
    assert stored
    assert all(count % 8 == 0 for count in stored)
    assert deviation(call(model, X), call(uo.materialize(model, solution), X)) < EXACT


def wide(seed: int) -> nn.Module:
    """A residual network of 24 channels, of which its layers read 10 and 11."""
    made = Residual()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for number, layer in enumerate((made.first, made.second, made.third)):
            layer.weight[:, torch.randperm(24, generator=generator)[: 13 + number % 2]] = 0
    return made.double().eval()


class Residual(nn.Module):
    """Three convolutions on one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 1)
        self.first, self.second = (nn.Conv2d(24, 24, 3, padding=1) for _ in range(2))
        self.third = nn.Conv2d(24, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of shape (N, 8, H, W)."""
        y = torch.relu(self.stem(x))
        y = torch.relu(y + self.first(y))
        z: torch.Tensor = self.third(torch.relu(y + self.second(y)))
        return z


def test_the_widths_of_the_least_forecast_are_taken() -> None:
    """By the forecast nothing spares more than its error: other widths, orders, or none."""
    for seed, cost_model in ((1, BLOCKS), (2, DEAR_MACS), (3, profile("onnxruntime"))):
        for make in (wide, dense):
            _, graph, masks = posed(seed, make)
            solution = uo.solve(graph, masks, objective="latency", cost_model=cost_model)
            own = forecast(graph, solution, cost_model)
            task = _Task(
                graph, masks, SolveOptions(objective="latency", cost_model=cost_model), None
            )
            others = [task.solve("tensor", 5, one) for one in get_args(Widths)]
            others += [uo.solve(graph, masks, solver="identity"), uo.solve(graph, masks)]
            least = min(forecast(graph, other, cost_model) for other in others)
            assert own <= (1 + _WIDTHS_PAY) * least


class OnTheInput(nn.Module):
    """Two convolutions of the input, one of which reads nothing, and the other few channels."""

    def __init__(self) -> None:
        super().__init__()
        self.none, self.few = nn.Conv2d(9, 4, 1), nn.Conv2d(9, 4, 1)
        keep(self.none.weight, 1, [])
        keep(self.few.weight, 1, [3, 4])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of shape (N, 8, H, W)."""
        return torch.cat([self.none(x), self.few(x)], 1)


def test_a_layer_that_reads_nothing_may_read_the_whole_tensor() -> None:
    """With the one channel that it has because it needs any."""
    model, x = OnTheInput().double().eval(), torch.randn(2, 9, 6, 6, dtype=torch.float64)
    graph = uo.trace(model, x)
    masks = uo.masks_of(model, graph)
    for cost_model in (FREE_MACS, BLOCKS):
        solution = uo.solve(graph, masks, objective="latency", cost_model=cost_model)
        assert [len(read.channels) for read in solution.reads if read.op == "none"] == [9]
        uo.check(solution, graph, masks)
        assert deviation(call(model, x), call(uo.materialize(model, solution), x)) < EXACT


class SummedWhole(nn.Module):
    """A sum is read as a whole, for a channel that is zero in an operand, which is so, too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1)
        self.sum, self.part, self.rest, self.other = (nn.Conv2d(3, 4, 1) for _ in range(4))
        keep(self.a.weight, 0, [0, 2])
        keep(self.part.weight, 1, [0])
        keep(self.sum.weight, 1, [1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of shape (N, 4, H, W)."""
        a, b = self.a(x), self.b(x)
        return torch.as_tensor(self.sum(b + a) + self.part(a) + self.rest(a) + self.other(b))


def test_a_whole_tensor_that_another_makes_wider() -> None:
    """The sum's reader takes all three channels of it, so that the operand stores all, too."""
    model, x = SummedWhole().double().eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    graph = uo.trace(model, x)
    masks = uo.masks_of(model, graph)
    for cost_model in (FREE_MACS, OPENVINO, COMPILED):
        solution = uo.solve(graph, masks, objective="latency", cost_model=cost_model)
        uo.check(solution, graph, masks)
        assert deviation(call(model, x), call(uo.materialize(model, solution), x)) < EXACT


def test_random_networks() -> None:
    plans: set[str] = set()
    for seed in range(8):
        model = cat_network(seed, 5, dense=bool(seed % 2))
        graph = uo.trace(model, image())
        uo.apply_masks(model, graph, random_masks(graph, seed))
        masks = uo.masks_of(model, graph)
        cost_model = [FREE_MACS, DEAR_MACS, BETWEEN, BLOCKS][seed % 4]
        solution = uo.solve(graph, masks, objective="latency", cost_model=cost_model, time_limit=3)
        uo.check(solution, graph, masks)
        pruned = uo.materialize(model, solution)
        for x in (image(2), image(7, 1)):
            assert deviation(call(model, x), call(pruned, x)) < EXACT
        plans |= {read.plan for read in solution.reads}
    assert plans == {"view", "gather", "window"}


# The cost model.


def test_old_cost_models_are_of_eager_mode() -> None:
    kernels = {kind: {"launch": 1, "ns_per_byte": 1} for kind in KINDS}
    old = CostModel.from_json(
        json.dumps({"schema_version": 1, "device": "cpu", "device_name": "x", "kernels": kernels})
    )
    assert (old.runtime, old.block, old.align) == ("eager", 1, 1)
    assert "runtime" not in old.to_json()


@pytest.mark.parametrize("runtime", ["onnxruntime", "compiled", "openvino"])
def test_the_runtime_travels(runtime: str) -> None:
    built_in = profile(runtime)
    assert built_in.runtime == runtime
    assert runtime in repr(built_in)
    assert CostModel.from_json(built_in.to_json()) == built_in
    assert set(built_in.kernels) == {*KINDS, *BLOCKED_KINDS}
    _, graph, masks = posed(2, stream)
    solution = uo.solve(graph, masks, objective="latency", cost_model=runtime)
    assert solution.cost_model == built_in


def test_every_runtime_has_prices() -> None:
    others = {name for name, one in PROFILES.items() if one.runtime != "eager"}
    assert others == {*get_args(Runtime)} - {"eager"}
    assert all(profile(runtime).runtime == runtime for runtime in others)


def test_openvinos_layers_write_blocks_and_read_what_they_need() -> None:
    prices = profile("openvino")
    assert (prices.block, prices.read_block, prices.align) == (16, 1, 1)
    blocks = prices.blocks("conv")
    assert (blocks.of_read.counted(17), blocks.of_written.counted(17)) == (17, 32)
    assert profile("onnxruntime").read_block == 16


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no such runtime": (lambda d: d.update(runtime="tvm"), "runtime"),
    "a kind missing": (lambda d: d["kernels"].pop("slice"), "slice"),
    "steps that do not fit": (lambda d: d.update(block=6, align=4), "no multiple of 4"),
    "no steps": (lambda d: d.update(align=0), "align"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_cost_models_that_make_no_sense(edit: str) -> None:
    data = json.loads(BLOCKS.to_json())
    change, names = EDITS[edit]
    change(data)
    assert names in complaint(SchemaError, lambda: CostModel.from_json(json.dumps(data)))


def test_a_plan_for_another_runtime_is_not_this_one() -> None:
    """Neither a plan for eager mode nor one of other prices passes for one of these."""
    _, graph, masks = posed(2, stream)
    solution = checked(2, stream, FREE_MACS)
    for other in (profile("cpu"), DEAR_MACS):
        false = solution.model_copy(update={"cost_model": other})
        with pytest.raises(UpscaleError):
            uo.check(false, graph, masks)


def test_endless_prices_are_refused() -> None:
    _, graph, masks = posed(2, stream)
    endless = model_of(slice=(1e300, 0, 0))
    complaint(SolverError, lambda: uo.solve(graph, masks, objective="latency", cost_model=endless))


def test_buffers_are_not_shared() -> None:
    graph = uo.trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)), torch.zeros(1, 3, 8, 8))
    with pytest.raises(
        SolverError, match="selection 'arena' shares buffers, which onnxruntime programs"
    ):
        uo.solve(
            graph,
            uo.Masks(kept={}),
            objective="latency",
            cost_model="onnxruntime",
            selection="arena",
        )


@pytest.mark.parametrize("block", [4, 8])
def test_zeros_kept_for_the_runtimes_widths_are_called_so(block: int) -> None:
    """A reader of 6 channels reads 8, and so many are stored, as widths are multiples of 4."""
    stem, reader = nn.Conv2d(3, 16, 1, bias=False), nn.Conv2d(16, 3, 1)
    stem.weight.data[2:12] = 0
    reader.weight.data[:, 2:12] = 0
    model = nn.Sequential(stem, nn.ReLU(), reader).double().eval()
    graph = uo.trace(model, X)
    masks = uo.masks_of(model, graph)
    options = SolveOptions(objective="latency", cost_model=model_of(block, 4))
    report = removal(
        graph, masks, _Task(graph, masks, options, None).solve("tensor", 5, widths="blocks")
    )
    left = [one for p in report.parameters for axis in p.axes for one in axis.left]
    assert {(one.op, one.cause, len(one.slices)) for one in left} == {
        ("_0", "widths", 2),
        ("_2", "widths", 2),
    }
    assert {one.detail for one in left} == {f"multiples of {block}", "multiples of 4"}


def test_rows_that_compare_solvers_name_the_widths() -> None:
    _, graph, masks = posed(1, stream)
    options = SolveOptions(objective="latency", cost_model=BLOCKS, time_limit=3)
    rows = uo.solver.compare(graph, masks, ["greedy", "cp-sat"], options=options)
    for row in rows:
        solution = uo.solve(graph, masks, options=options, solver=row.solver)
        assert (row.widths, row.selection) == (solution.widths, "tensor")
    (plain,) = uo.solver.compare(graph, masks, ["greedy"])
    assert plain.widths == "trimmed"


def test_bounds_hold_for_plans_of_the_same_widths_alone() -> None:
    _, graph, masks = posed(2, stream)
    greedy, exact = uo.solver.compare(graph, masks, ["greedy", "cp-sat"])
    assert with_gaps([greedy, exact])[0].gap is not None
    found = with_gaps([greedy.model_copy(update={"widths": "exact", "gap": None}), exact])
    assert found[0].gap is None


def test_zeros_within_windows_are_called_so() -> None:
    _, graph, masks = posed(2, stream)
    solution = uo.solve(graph, masks, max_extra_macs=1.0)
    assert solution.windows
    report = removal(graph, masks, solution)
    found = {one.cause for p in report.parameters for a in p.axes for one in a.left}
    assert found == {"window"}


class Squeezed(nn.Module):
    """Grouped convolutions with squeeze and excitation, as RegNets have."""

    def __init__(self, width: int = 48, groups: int = 6) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, width, 1)
        self.b = nn.Conv2d(width, width, 3, padding=1, groups=groups)
        self.down, self.up = nn.Conv2d(width, 8, 1), nn.Conv2d(8, width, 1)
        self.c = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.a(x))
        y = torch.relu(self.b(first))
        gate = torch.sigmoid(self.up(torch.relu(self.down(y.mean((2, 3), keepdim=True)))))
        result: Tensor = self.c(y * gate) + first
        return result


def squeezed(seed: int) -> nn.Module:
    """It masked by half."""
    model = Squeezed().double().eval()
    graph = uo.trace(model, X)
    uo.apply_masks(model, graph, uo.choose_masks(model, graph, 0.5))
    return model


class Groups(nn.Module):
    """A convolution with groups between two without."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 8, 1)
        self.b = nn.Conv2d(32, 32, 3, padding=1, groups=8)
        with torch.no_grad():  # three groups of four are gone
            for values in (self.b.weight, self.b.bias):
                assert values is not None
                values.view(8, 4, -1)[[0, 3, 5]] = 0
            self.c.weight.view(8, 8, 4)[:, [0, 3, 5]] = 0

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.c(torch.relu(self.b(torch.relu(self.a(x)))))
        return result


@pytest.mark.parametrize("cost_model", [BLOCKS, COMPILED, profile("onnxruntime"), OPENVINO])
def test_nothing_is_stored_that_a_convolution_with_groups_must_cut_off(
    cost_model: CostModel,
) -> None:
    """Its input was filled up to whole blocks, and gathered from."""
    torch.manual_seed(0)
    model = Groups().double().eval()
    graph = uo.trace(model, X)
    task = _Task(graph, uo.masks_of(model, graph), SolveOptions(cost_model=cost_model), None)
    for widths in get_args(Widths):
        solution = task.solve("tensor", 5, widths)
        assert solution.widths == widths
        assert {read.plan for read in solution.reads} == {"view"}
        assert len(solution.tensors["a"]) == 20
        assert deviation(call(model, X), call(uo.materialize(model, solution), X)) < EXACT


@pytest.mark.parametrize("cost_model", [BLOCKS, COMPILED, profile("onnxruntime")])
def test_a_factor_that_is_widened_asks_the_other_for_as_much(cost_model: CostModel) -> None:
    """A gate was given more channels than the grouped layer beside it had: a crash."""
    for seed in range(6):
        solution = checked(seed, squeezed, cost_model)
        assert solution.widths in get_args(Widths)
