"""Prices of the ways to serve a read in onnxruntime and others, beside brute force and by hand."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from comparing import EXACT, call, deviation
from runtime_prices import BETWEEN, DEAR_MACS, FREE_MACS, MOVES, model_of, openvino
from sample_networks import keep
from torch import Tensor, nn
from window_networks import X, dense, posed, stream

import upscale_opt as uo
from upscale_opt.ir.cost_model import CostModel, KernelCost, Runtime
from upscale_opt.ir.profiles import profile
from upscale_opt.solver.forecast import forecast
from upscale_opt.solver.network.blocked_prices import BlockedPricing
from upscale_opt.solver.network.objectives import bytes_per_channel
from upscale_opt.solver.network.posing import pose
from upscale_opt.solver.network.windows import Windows
from upscale_opt.solver.problem.instance import holds


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
