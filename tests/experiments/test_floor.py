"""The floor: an export with the copies taken out, which no export can beat."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from comparing import call
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import upscale_opt as uo
from upscale_opt.experiments.bench.floor import floor
from upscale_opt.experiments.bench.records import Settings
from upscale_opt.experiments.bench.variants import Subject
from upscale_opt.runtime.arena import ArenaRead, ArenaWrite
from upscale_opt.runtime.modules import Gather, PlacedSum

SMALL = "topology/residual_stage"

_LAYERS = (
    "convolution",
    "addmm",
    "mm",
    "native_batch_norm",
    "_native_batch_norm_legit_no_training",
)
_SHARED = ("relu", "relu_", "max_pool2d_with_indices", "mean", "avg_pool2d")


class Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts calls of layers and the like, by their results' shapes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[tuple[str, torch.Size]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _LAYERS + _SHARED:
            first = result[0] if isinstance(result, tuple) else result
            self.found[name, first.shape] += 1
        return result


def calls(model: nn.Module, inputs: Any) -> Counter[tuple[str, torch.Size]]:
    mode = Calls()
    with mode:
        call(model, inputs)
    return mode.found


def export_of(name: str, side: str = "input") -> tuple[Subject, Any, uo.ChannelGraph]:
    subject = Subject(name, Settings.model_validate({"side": side, "variants": ("copies",)}))
    built = subject.built("copies", 1, "contiguous")
    assert built.model is not None, built.export.problem
    assert built.graph is not None
    return subject, built.model, built.graph


@pytest.mark.parametrize(
    ("name", "side"),
    [
        (SMALL, "input"),
        (SMALL, "both"),
        ("topology/dense_block", "input"),
        ("topology/inplace_add", "both"),
        ("topology/inplace_add_aliased", "both"),
        ("topology/inplace_between_reads", "input"),
    ],
)
def test_the_floor_computes_the_same_layers_and_moves_nothing(name: str, side: str) -> None:
    subject, pruned, graph = export_of(name, side)
    inputs = subject.inputs(2)
    before = call(pruned, inputs)
    free = floor(pruned, graph)
    call(free, inputs)  # moves data once
    assert calls(free, inputs) == calls(pruned, inputs)
    assert sum(calls(free, inputs).values()) > 0
    assert uo.measuring.moved_bytes(pruned, inputs).total > 0
    assert uo.measuring.moved_bytes(free, inputs).total == 0
    assert torch.equal(call(pruned, inputs), before), "the export itself is changed"


def test_the_floor_takes_other_batches_and_memory_formats() -> None:
    subject, pruned, graph = export_of("topology/dense_block")
    free = floor(pruned, graph)
    for batch in (1, 3, 1):
        inputs: Any = subject.inputs(batch)
        assert call(free, inputs).shape == call(pruned, inputs).shape
    last = floor(pruned.to(memory_format=torch.channels_last), graph)
    inputs = subject.inputs(2).to(memory_format=torch.channels_last)  # type: ignore[union-attr]
    call(last, inputs)
    assert uo.measuring.moved_bytes(last, inputs).total == 0


def test_arenas_are_free() -> None:
    subject = Subject("topology/dense_block", Settings(variants=("copies",)))
    graph, inputs = subject.graph(), subject.inputs(2)
    masks = uo.masks_of(subject.masked, graph)
    pruned = uo.materialize(subject.masked, uo.solve(graph, masks, selection="arena"))
    assert {ArenaRead, ArenaWrite} <= {type(module) for module in pruned.modules()}
    free = floor(pruned, graph)
    call(free, inputs)
    assert calls(free, inputs) == calls(pruned, inputs)
    assert uo.measuring.moved_bytes(free, inputs).total == 0


class Joins(nn.Module):
    """Concatenates channels, and rows."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        channels = torch.cat([self.left(x), self.right(x)], 1)
        out: Tensor = self.last(torch.cat([channels, channels], 2))
        return out


def test_only_concatenations_of_channels_are_free() -> None:
    model, inputs = Joins().eval(), torch.randn(2, 3, 4, 4)
    graph = uo.trace(model, inputs)
    pruned = uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))
    free = floor(pruned, graph)
    call(free, inputs)
    rows = 2 * 8 * 8 * 4 * 4
    assert uo.measuring.moved_bytes(free, inputs).by_op == {"cat": rows}


class Placing(nn.Module):
    """Gathers channels and places them into a sum."""

    def __init__(self, placements: list[Any]) -> None:
        super().__init__()
        self.gather = Gather([4, 0, 2], 1, torch.device("cpu"))
        self.sum = PlacedSum(placements, 6, 1, 4, torch.device("cpu"))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.sum(x, self.gather(x))
        return out


@pytest.mark.parametrize("place", [(1, 3), [0, 2, 5]])
def test_placing_is_free_and_adding_is_not(place: Any) -> None:
    pruned = torch.fx.GraphModule(Placing([None, place]), traced(Placing([None, place])))
    x = torch.randn(2, 6, 4, 4)
    graph = uo.trace(nn.Conv2d(6, 1, 1), x)
    free = floor(pruned, graph)
    assert torch.equal(call(free, x), call(pruned, x))
    assert uo.measuring.moved_bytes(pruned, x).total > 0
    assert uo.measuring.moved_bytes(free, x).total == 0
    with torch.profiler.profile() as profile:
        call(free, x)
    assert "aten::add" in {event.key for event in profile.key_averages()}


def traced(model: nn.Module) -> torch.fx.Graph:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    gathered = graph.call_module("gather", (x,))
    graph.output(graph.call_module("sum", (x, gathered)))
    return graph
