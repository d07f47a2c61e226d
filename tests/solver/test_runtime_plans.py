"""Plans for onnxruntime and others: slices, gathers, whole tensors by price; widths in blocks."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from cat_networks import cat_network, image
from comparing import EXACT, call, complaint, deviation
from sample_networks import keep, random_masks
from torch import Tensor, nn
from window_networks import X, dense, posed, stream

import upscale_opt as uo
from upscale_opt.errors import SchemaError, SolverError, UpscaleError
from upscale_opt.ir.cost_model import BLOCKED_KINDS, KINDS, CostModel, KernelCost, Runtime
from upscale_opt.ir.profiles import COMPILED, OPENVINO, PROFILES, profile
from upscale_opt.ir.solution import Widths
from upscale_opt.solver.api import _WIDTHS_PAY, _Task
from upscale_opt.solver.checking.removal import removal
from upscale_opt.solver.comparing import with_gaps
from upscale_opt.solver.forecast import forecast
from upscale_opt.solver.network.blocked_prices import BlockedPricing
from upscale_opt.solver.network.objectives import bytes_per_channel
from upscale_opt.solver.network.posing import pose
from upscale_opt.solver.network.windows import Windows
from upscale_opt.solver.options import SolveOptions
from upscale_opt.solver.problem.instance import holds


def model_of(block: int = 1, align: int = 1, **prices: tuple[float, float, float]) -> CostModel:
    """A cost model of onnxruntime: launch, per byte, per multiply-add; else all is free."""
    kernels = {
        kind: KernelCost(launch=p[0], ns_per_byte=p[1], ns_per_mac=p[2])
        for kind in (*KINDS, *BLOCKED_KINDS)
        for p in [prices.get(kind, (0, 0, 0))]
    }
    return CostModel(
        device="cpu",
        device_name="a test",
        runtime="onnxruntime",
        block=block,
        align=align,
        kernels=kernels,
    )


MOVES: dict[str, Any] = {"slice": (50, 0.1, 0), "gather": (90, 0.3, 0), "reorder_in": (20, 0.1, 0)}
FREE_MACS = model_of(**MOVES, reorder_out=(100, 0.1, 0))
DEAR_MACS = model_of(**MOVES, conv=(0, 0, 1e3), conv1x1=(0, 0, 1e3))
BETWEEN = model_of(**MOVES, conv=(0, 0, 0.3), conv1x1=(0, 0, 0.3))
BLOCKS = model_of(4, 4, **MOVES, conv=(0, 0, 0.3), conv1x1=(0, 0, 0.3))


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


@pytest.mark.parametrize("cost_model", [FREE_MACS, DEAR_MACS, BETWEEN])
@pytest.mark.parametrize("seed", range(3))
def test_beside_all_orders_and_all_ways(seed: int, cost_model: CostModel) -> None:
    """No order, and no way to serve any read under it, costs less than the answer's."""
    torch.manual_seed(seed)
    model = stream(seed, readers=4, width=6)
    graph = uo.trace(model, X)
    masks = uo.masks_of(model, graph)
    solution = uo.solve(graph, masks, objective="latency", cost_model=cost_model)
    problem = pose(graph, masks, "latency", cost_model=cost_model, widths=solution.widths)
    instance, formulation = problem.formulation.instance, problem.formulation
    ways = BlockedPricing(graph, cost_model).ways(
        problem.segments, Windows(graph, problem.sets, problem.segments)
    )
    (number,) = [i for i, space in enumerate(instance.spaces) if len(space.channels) == 6]

    def served(order: tuple[int, ...]) -> float:
        place = {channel: at for at, channel in enumerate(order)}
        total = 0.0
        for read, edge in zip(instance.reads, formulation.reads, strict=True):
            if edge in ways:
                demands = [instance.demands[d] for d in read.view or ()]
                together = all(holds(demand, place, len(order)) for demand in demands)
                way = ways[edge]
                total += min(way.view if together else way.gather, way.whole or 0.0)
        return total

    best = min(map(served, itertools.permutations(instance.spaces[number].channels)))
    assert served(solution.orders[number]) == pytest.approx(best, abs=len(ways))
    assert solution.status == "optimal"


DEAR_COPIES = model_of(**MOVES, reorder_out=(100, 0.1, 0), copy=(30, 0.5, 0), norm=(0, 0.4, 0))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "compiled"])
@pytest.mark.parametrize("seed", range(2))
def test_beside_all_orders_in_front_of_concatenations_and_behind(
    seed: int, runtime: Runtime
) -> None:
    _, graph, masks = posed(seed, dense)
    cost_model = DEAR_COPIES.model_copy(update={"runtime": runtime})
    problem = pose(graph, masks, "latency", cost_model=cost_model)
    instance = problem.formulation.instance
    ways = BlockedPricing(graph, cost_model).ways(
        problem.segments, Windows(graph, problem.sets, problem.segments)
    )

    def served(orders: tuple[tuple[int, ...], ...]) -> float:
        places = [{channel: at for at, channel in enumerate(order)} for order in orders]

        def is_view(view: tuple[int, ...] | None) -> bool:
            demands = [instance.demands[d] for d in view or ()]
            held = (holds(d, places[d.space], len(places[d.space])) for d in demands)
            return view is not None and all(held)

        total = 0.0
        for read, edge in zip(instance.reads, problem.formulation.reads, strict=True):
            way = ways.get(edge)
            if way is None:
                continue  # it takes all that is stored
            found = [way.view if is_view(read.view) else way.gather]
            found += [] if way.whole is None else [way.whole]
            gathered = [piece.weight for piece in read.pieces if not is_view(piece.view)]
            if way.ahead is not None and read.pieces and len(gathered) <= read.max_gathers:
                found.append(way.ahead + sum(gathered))
            total += min(found)
        return total

    every = [list(itertools.permutations(space.channels)) for space in instance.spaces]
    best = min(map(served, itertools.product(*every)))
    solution = uo.solve(graph, masks, objective="latency", cost_model=cost_model)
    least = sum(way.least for way in ways.values())
    assert solution.objective_value + least == pytest.approx(best, abs=len(ways))
    assert any(way.ahead is not None for way in ways.values()) == (runtime != "compiled")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "compiled"])
def test_concatenations_join_the_less_the_dearer_copies_are(runtime: str) -> None:
    """Parts are taken in front of them, but in compiled models, which select in the next loop."""
    model, graph, masks = posed(1, dense)
    joined = [op.outputs[0] for op in graph.operations if op.kind == "concat"]
    built_in = profile(runtime).model_copy(update={"block": 1, "align": 1})
    stored = []
    for each in (0, 1e3):
        kernels = {**built_in.kernels, "copy": KernelCost(launch=0, ns_per_byte=each)}
        cost_model = built_in.model_copy(update={"kernels": kernels})
        solution = uo.solve(graph, masks, objective="latency", cost_model=cost_model)
        uo.check(solution, graph, masks)
        assert deviation(call(model, X), call(uo.materialize(model, solution), X)) < EXACT
        stored.append([len(solution.tensors[name]) for name in joined])
    cheap, dear = stored
    wanted = [-(-len(graph.tensors[name].channels) // 2) for name in joined]
    assert all(map(int.__gt__, cheap, wanted))
    assert dear == (cheap if runtime == "compiled" else wanted)


def test_the_price_of_slices_in_front_of_a_concatenation() -> None:
    """The slices, the ways out of the layout that it stays in else, and back, less the copying."""
    _, graph, masks = posed(1, dense)
    made = {"slice": (50, 0, 0), "reorder_in": (7, 0, 0), "reorder_out": (0, 1, 0)}
    for block, copied in itertools.product((1, 4), (0.0, 0.5)):
        cost_model = model_of(block, 1, **made, copy=(0, copied, 0))
        problem = pose(graph, masks, "latency", cost_model=cost_model, widths="trimmed")
        segments = problem.segments
        ways = BlockedPricing(graph, cost_model).ways(
            segments, Windows(graph, problem.sets, segments)
        )
        for name, edge in segments.sole_reader.items():
            (cat,) = (op for op in graph.operations if name in op.outputs)
            ids, held = segments.selects[edge], [segments.stored[part] for part in cat.inputs]
            cut = [part for part in held if part & ids and not part <= ids]
            out = 0.0
            if all(len(part) % block == 0 for part in held):  # it would join blocks
                for part, source in zip(held, cat.inputs, strict=True):
                    readers = sum(source in op.inputs for op in graph.operations)
                    moved = 2 * len(part) * bytes_per_channel(graph.tensors[source])
                    out += moved / readers
            spared = len(segments.stored[name]) - len(ids)
            spared *= 2 * bytes_per_channel(graph.tensors[name])
            price = 50 * len(cut) + 7 + out - copied * spared
            assert ways[edge].ahead == pytest.approx(price)


def deep(seed: int) -> nn.Module:
    """A convolution for each channel, a norm, and a layer that wants every second channel."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
            self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.part, self.rest = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
            keep(self.part.weight, 1, [0, 2, 4, 6])

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            return torch.cat([self.part(self.norm(self.deep(y))), self.rest(y)], 1)

    return Deep().double().eval()


def test_convolutions_behind_gathers_are_in_the_layout() -> None:
    """Also those for each channel, in OpenVINO: the way back in is in front of them."""
    _, graph, masks = posed(0, deep)
    built_in = openvino()
    problem = pose(graph, masks, "latency", cost_model=built_in)
    windows = Windows(graph, problem.sets, problem.segments)
    way = BlockedPricing(graph, built_in).ways(problem.segments, windows)["deep", 0]
    assert way.gather - way.view == 1


def test_gathers_in_openvino_are_dearer_where_channels_are_scaled_behind_them() -> None:
    """There images go row by row: the narrower they are, the more rows for the same numbers."""
    _, graph, masks = posed(1, dense)
    built_in = openvino()
    problem = pose(graph, masks, "latency", cost_model=built_in)
    windows = Windows(graph, problem.sets, problem.segments)
    ways = BlockedPricing(graph, built_in).ways(problem.segments, windows)
    for edge, way in ways.items():
        count = len(problem.segments.selects[edge])
        scaled = next(op for op in graph.operations if op.name == edge[0]).kind == "channelwise"
        rows = count * X.shape[0] * X.shape[2] * scaled
        assert way.gather - way.view == pytest.approx(1 + 6.4 * rows)


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


def openvino(**launches: float) -> CostModel:
    """Prices of OpenVINO by which kernels of these kinds cost so much, and all others nothing."""
    built_in = profile("openvino")
    free = KernelCost(launch=0, ns_per_byte=0)
    paid = {kind: KernelCost(launch=launch, ns_per_byte=0) for kind, launch in launches.items()}
    kernels = dict.fromkeys(built_in.kernels, free) | paid
    return built_in.model_copy(update={"kernels": kernels, "block": 1})


def test_a_gather_in_openvino_pays_for_the_ways_out_and_in() -> None:
    """A slice stays in the layout: with reorders dear, slices are none the dearer."""
    _, graph, masks = posed(2, stream)
    solution = uo.solve(graph, masks, solver="identity")
    counts = Counter(r.plan for r in solution.reads if r.kind == "select")
    gathered = {r.tensor for r in solution.reads if r.plan == "gather"}
    assert counts["gather"] > 1
    alone = forecast(graph, solution, openvino(slice=1, gather=10))
    around = forecast(graph, solution, openvino(slice=1, gather=10, reorder_in=100))
    both = openvino(slice=1, gather=10, reorder_in=100, reorder_out=1000)
    assert around - alone == 100 * (counts["gather"] + 1)  # the images come in, too
    results = len(graph.operations[-1].inputs)
    assert forecast(graph, solution, both) - around == 1000 * (len(gathered) + results)


def test_a_gather_in_openvino_takes_the_whole_tensor_out() -> None:
    """Once for all that read a part of it, however little they take."""
    _, graph, masks = posed(2, stream)
    way_out = model_of().model_copy(update={"runtime": "openvino"})
    per_byte = {"reorder_out": KernelCost(launch=0, ns_per_byte=1)}
    prices = way_out.model_copy(update={"kernels": {**way_out.kernels, **per_byte}})
    problem = pose(graph, masks, "latency", cost_model=prices)
    segments = problem.segments
    ways = BlockedPricing(graph, prices).ways(segments, Windows(graph, problem.sets, segments))
    assert len(ways) > 1
    every = 2 * len(segments.stored["relu"]) * bytes_per_channel(graph.tensors["relu"])
    assert [way.view for way in ways.values()] == [0] * len(ways)
    assert sum(way.gather for way in ways.values()) == pytest.approx(every, abs=len(ways))


def test_weights_of_ones_own_count_in_openvino() -> None:
    _, graph, masks = posed(2, stream)
    prices = DEAR_MACS.model_copy(update={"runtime": "openvino"})
    heavy, light = (
        pose(graph, masks, "latency", cost_model=prices, weights=weights).formulation
        for weights in ({"r1": 5}, None)
    )
    assert not light.wholes
    pairs = zip(heavy.instance.reads, light.instance.reads, strict=True)
    factors = {
        edge[0]: more.weight / plain.weight
        for edge, (more, plain) in zip(light.reads, pairs, strict=True)
        if plain.weight
    }
    assert factors.pop("r1") == pytest.approx(5, rel=0.01)
    assert {*factors.values()} == {1}


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
