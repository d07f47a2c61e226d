"""Concatenations that hold a channel more than once: each time by itself, and always lossless."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparing import EXACT, assert_lossless, call, deviation
from sample_networks import Net, random_masks
from torch import Tensor, nn
from torch.nn import functional

import upscale_opt as uo
from upscale_opt.errors import SchemaError
from upscale_opt.ir.cost_model import CostModel
from upscale_opt.ir.graph import Twins
from upscale_opt.ir.profiles import COMPILED, ONNXRUNTIME, OPENVINO
from upscale_opt.models import catalogue
from upscale_opt.solver.network.segments import SELECTIONS, Selection

X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LARGER = torch.randn(3, 3, 12, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def conv(read: int, written: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(read, written, 1, **options)


def pool(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, 1, 1)


def pyramid() -> Net:
    """Pools of pools beside what they pool (SPPF, in every YOLO)."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.a(x).relu()
        once = pool(x)
        twice = pool(once)
        return torch.as_tensor(m.c(m.b(torch.cat([x, once, twice], 1)).relu()))

    return Net(run, a=conv(3, 8), b=conv(24, 5), c=conv(5, 4))


def shortcuts() -> Net:
    """Halves, and sums with the second half (C2f, in YOLOv8)."""

    def run(m: Any, x: Tensor) -> Tensor:
        parts = list(m.a(x).chunk(2, 1))
        for block in (m.b, m.c):
            parts.append(parts[-1] + block(parts[-1]).relu())
        return torch.as_tensor(m.d(torch.cat(parts, 1)))

    return Net(run, a=conv(3, 12), b=conv(6, 6), c=conv(6, 6), d=conv(24, 4))


def itself() -> Net:
    """The same tensor three times, read by two layers, and returned."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        joined = torch.cat([x, x, x], 1)
        return torch.as_tensor(m.b(joined) + m.c(joined.relu()))

    return Net(run, a=conv(3, 5), b=conv(15, 4), c=conv(15, 4))


def nested() -> Net:
    """Concatenations of concatenations that hold channels twice."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.a(x).relu()
        one = torch.cat([x, pool(x)], 1)
        return torch.as_tensor(m.b(torch.cat([pool(one), one, x], 1)))

    return Net(run, a=conv(3, 4), b=conv(20, 4))


def tied_again() -> Net:
    """What is cut out of the concatenation again is added to what it was made of."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.a(x).relu()
        joined = torch.cat([x, pool(x)], 1)
        return torch.as_tensor(m.b(joined) + m.c(joined[:, :6] + x))

    return Net(run, a=conv(3, 6), b=conv(12, 4), c=conv(6, 4))


def tied_in_reverse() -> Net:
    """The same, in another sequence."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.a(x).relu()
        joined = torch.cat([x, pool(x)], 1)
        return torch.as_tensor(m.b(joined) + m.c(joined[:, :6].flip(1) + x))

    return Net(run, a=conv(3, 6), b=conv(12, 4), c=conv(6, 4))


def tied_shifted() -> Net:
    """A channel is added to the twin of the next one."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.a(x).relu()
        joined = torch.cat([x, pool(x)], 1)
        return torch.as_tensor(m.b(joined) + m.c(joined[:, 1:7] + x))

    return Net(run, a=conv(3, 6), b=conv(12, 4), c=conv(6, 4))


def two_made_of_two() -> Net:
    """Twins of one tensor are added to twins of another."""

    def run(m: Any, x: Tensor) -> Tensor:
        x, y = m.a(x).relu(), m.b(x).relu()
        joined = torch.cat([x, pool(x)], 1) + torch.cat([y, pool(y)], 1)
        return torch.as_tensor(m.c(joined) + m.d(x) + m.e(y))

    layers = {"a": conv(3, 5), "b": conv(3, 5), "c": conv(10, 4), "d": conv(5, 4), "e": conv(5, 4)}
    return Net(run, **layers)


def written_beside() -> Net:
    """A layer writes the same channels as a concatenation, and a norm scales them."""

    def run(m: Any, x: Tensor) -> Tensor:
        a = m.a(x).relu()
        joined = m.n(torch.cat([a, pool(a)], 1) + m.b(x))
        return torch.as_tensor(m.c(joined.relu()) + m.d(a))

    layers = {"a": conv(3, 5), "b": conv(3, 10), "c": conv(10, 4), "d": conv(5, 4)}
    return Net(run, **layers, n=nn.BatchNorm2d(10))


def in_groups() -> Net:
    """A convolution with groups reads the concatenation."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.a(x).relu()
        return torch.as_tensor(m.c(m.b(torch.cat([x, pool(x)], 1))) + m.d(x))

    return Net(run, a=conv(3, 6), b=conv(12, 8, groups=4), c=conv(8, 4), d=conv(6, 4))


def normalised() -> Net:
    """A group norm's groups reach across what is joined."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.a(x).relu()
        return torch.as_tensor(m.c(m.n(torch.cat([x, pool(x), x], 1))))

    return Net(run, a=conv(3, 4), n=nn.GroupNorm(2, 12), c=conv(12, 4))


def flattened() -> Net:
    """Several features to a channel."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = functional.adaptive_avg_pool2d(m.a(x).relu(), 2)
        return torch.as_tensor(m.b(torch.cat([x.flatten(1), x.sqrt().flatten(1)], 1)))

    return Net(run, a=conv(3, 6), b=nn.Linear(48, 4))


def returned() -> Net:
    """The concatenation is an output; its channels keep their order."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.b(m.a(x).relu())
        return torch.cat([x, pool(x)], 1)

    return Net(run, a=conv(3, 6), b=conv(6, 4))


def taken_apart() -> Net:
    """The concatenation is cut between its parts, and its parts are read."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.a(x).relu()
        one, other = torch.split(torch.cat([x, pool(x)], 1), [7, 5], 1)
        return torch.as_tensor(m.b(one) + m.c(other) + m.d(x))

    return Net(run, a=conv(3, 6), b=conv(7, 4), c=conv(5, 4), d=conv(6, 4))


def shuffled() -> Net:
    """The concatenation is only read to be rearranged, which it then does itself."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.a(x).relu()
        joined = functional.channel_shuffle(torch.cat([x, pool(x)], 1), 2)
        return torch.as_tensor(m.b(joined) + m.c(x))

    return Net(run, a=conv(3, 6), b=conv(12, 4), c=conv(6, 4))


def shared() -> Net:
    """One layer reads what was joined and a part of what it was joined to."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.a(x).relu()
        joined = torch.cat([x, pool(x)], 1)
        return torch.as_tensor(m.b(joined[:, 6:]) + m.b(x) + m.c(joined))

    return Net(run, a=conv(3, 6), b=conv(6, 4), c=conv(12, 4))


def joined_unlike() -> Net:
    """Twins that are one in one place were made of channels that are not, in another."""

    def run(m: Any, x: Tensor) -> Tensor:
        a, b = m.a(x), m.b(x)
        one = torch.cat([b, b, a], 1).relu()
        other = torch.cat([torch.cat([b, b, a + b], 1), a], 1)
        return torch.as_tensor(m.c(other + torch.cat([one, a], 1)) + m.d(one))

    return Net(run, a=conv(3, 5), b=conv(3, 5), c=conv(20, 4), d=conv(15, 4))


NETWORKS = (
    *(pyramid, shortcuts, itself, nested, tied_again, tied_in_reverse, tied_shifted),
    *(two_made_of_two, written_beside, in_groups, normalised, flattened, returned),
    *(taken_apart, shuffled, shared, joined_unlike),
)
APART = (pyramid, shortcuts, itself, nested, shuffled)
"""Networks in which nothing keeps an entry of a concatenation but its readers."""

Build = Callable[[], Net]


def case(build: Build, seed: int) -> tuple[nn.Module, uo.ChannelGraph, uo.Masks]:
    """A network with random masks, most of the time on both sides of its layers."""
    torch.manual_seed(seed)
    model = build().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    graph = uo.trace(model, X)
    uo.apply_masks(model, graph, random_masks(graph, seed))
    return model, graph, uo.masks_of(model, graph)


def assert_right(
    model: nn.Module, graph: uo.ChannelGraph, masks: uo.Masks, **options: Any
) -> uo.Solution:
    solution = uo.solve(graph, masks, time_limit=5, **options)
    uo.check(solution, graph, masks)
    assert uo.Solution.from_json(solution.to_json()) == solution
    pruned = uo.materialize(model, solution)
    assert_lossless(model, pruned, X)
    if not any(isinstance(m, nn.Linear) for m in model.modules()):
        assert_lossless(model, pruned, LARGER)
    return solution


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("build", NETWORKS)
def test_copied_channels(build: Build, selection: Selection) -> None:
    for seed in range(4):
        model, graph, masks = case(build, seed)
        solution = assert_right(model, graph, masks, selection=selection)
        uo.solver.removal(graph, masks, solution)
        uo.explain(solution)


@pytest.mark.parametrize("build", NETWORKS)
def test_latency_and_windows(build: Build) -> None:
    for seed in range(3):
        model, graph, masks = case(build, seed)
        assert_right(model, graph, masks, objective="latency")
        assert_right(model, graph, masks, max_extra_macs=0.5)
        assert_right(model, graph, masks, objective="blocks")


@pytest.mark.parametrize("prices", [ONNXRUNTIME, OPENVINO, COMPILED], ids=lambda p: p.runtime)
@pytest.mark.parametrize("build", NETWORKS)
def test_in_runtimes(build: Build, prices: CostModel) -> None:
    model, graph, masks = case(build, 1)
    assert_right(model, graph, masks, objective="latency", cost_model=prices)


@pytest.mark.parametrize("build", NETWORKS)
def test_the_graph_survives_json_and_constrained_masks_copy_nothing(build: Build) -> None:
    model = build().double().eval()
    graph = uo.trace(model, X)
    assert uo.ChannelGraph.from_json(graph.to_json()) == graph
    uo.apply_masks(model, graph, uo.constrain(graph, random_masks(graph, 2)))
    solution = assert_right(model, graph, uo.masks_of(model, graph))
    assert solution.copied == 0 or build in (tied_in_reverse, tied_shifted)


@pytest.mark.parametrize("build", APART)
def test_all_that_readers_drop_is_removed(build: Build) -> None:
    torch.manual_seed(0)
    model = build().double().eval()
    graph = uo.trace(model, X)
    assert graph.twins
    cat = next(op for op in reversed(graph.operations) if op.kind == "concat")
    readers = [op for op in graph.operations if op.kind == "layer" and op.inputs == cat.outputs]
    masks = random_masks(graph, 3)
    only = {op.weight: {op.in_axis: masks.kept[op.weight][op.in_axis]} for op in readers}
    uo.apply_masks(model, graph, uo.Masks(kept=only, graph_fingerprint=graph.masks_fingerprint))
    masks = uo.masks_of(model, graph)
    solution = assert_right(model, graph, masks)
    report = uo.solver.removal(graph, masks, solution)
    assert report.masked
    assert report.left == 0


def test_what_is_tied_to_what_it_was_made_of_is_one_channel() -> None:
    graph = uo.trace(tied_again().eval(), X.float())
    (cat,) = [op for op in graph.operations if op.kind == "concat"]
    channels = graph.tensors[cat.outputs[0]].channels
    stored = graph.tensors[cat.inputs[0]].channels
    assert channels[:6] == stored
    assert set(channels[6:]) == set(graph.originals)
    assert tuple(map(graph.original, channels[6:])) == stored
    assert not uo.trace(tied_in_reverse().eval(), X.float()).originals.keys() & set(stored)


def test_without_repeats_there_are_no_twins() -> None:
    for name in ("topology/dense_block", "topology/unet", "topology/slices"):
        graph = uo.trace(catalogue.build(name).eval(), catalogue.example_inputs(name))
        assert graph.twins == ()


@pytest.mark.parametrize(
    ("twins", "message"),
    [
        (Twins(channels=(90, 91), of=(0,)), "2 twins were made of 1 channels"),
        (Twins(channels=(0,), of=(1,)), "channel 0 is a twin, and something else besides"),
        (Twins(channels=(90, 90), of=(0, 1)), "channel 90 is a twin, and something else besides"),
        (Twins(channels=(90,), of=(170,)), "twin 90 was made of channel 170, of no space"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_twins_that_cannot_be(twins: Twins, message: str) -> None:
    graph = uo.trace(catalogue.build("topology/unet").eval(), torch.randn(1, 3, 8, 8))
    with pytest.raises(SchemaError, match=message):
        graph.model_validate({**graph.model_dump(), "twins": [twins.model_dump()]})


def test_budgets_drop_entries_one_by_one() -> None:
    """Of a channel that is read in two places, one may go without the other."""
    torch.manual_seed(0)
    model = pyramid().double().eval()
    data = [torch.randn(16, 3, 8, 8).double()]
    result = uo.prune(model, X, budget=uo.Budget(macs=0.6), data=data)
    graph = uo.trace(model, X)
    kept = result.masks.kept["b.weight"][1]
    assert 0 < len(kept) < 24
    assert result.choice is not None
    assert result.choice.lower_bound <= result.choice.loss
    masks = uo.masks_of(result.masked, graph)
    assert uo.solver.removal(graph, masks, result.solution).left == 0
    assert deviation(call(result.masked, LARGER), call(result.model, LARGER)) < EXACT


def test_one_channel_of_an_operand_has_one_twin() -> None:
    """Or a part of it could not be read as the concatenation stores it."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        return torch.as_tensor(m.b(torch.cat([x.repeat(1, 2, 1, 1), x], 1)))

    graph = uo.trace(Net(run, a=conv(3, 2), b=conv(6, 4)).eval(), X.float())
    data = graph.model_dump()
    (cat,) = [op for op in graph.operations if op.kind == "concat"]
    first, second, *others = graph.tensors[cat.outputs[0]].channels
    assert others[:2] == [first, second]
    assert graph.original(others[2]) == graph.original(first)
    data["tensors"][cat.outputs[0]]["channels"] = (others[2], second, *others)
    with pytest.raises(SchemaError, match="makes two twins of channel"):
        uo.ChannelGraph.model_validate(data)
