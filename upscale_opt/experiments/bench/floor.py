"""The floor: an export's layers, with everything free that only selects channels.

No plan can be faster than its layers. In the floor each of them runs on tensors of the same shapes,
but gathers, views, concatenations and the like return what they returned at the first run: so the
time of an export beyond its floor's is what its copies cost. What it computes is meaningless.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._prims_common import suggest_memory_format

from upscale_opt.ir.graph import ChannelGraph, Concat
from upscale_opt.runtime.arena import ArenaRead, ArenaWrite
from upscale_opt.runtime.modules import Gather, PlacedSum
from upscale_opt.tracing.examples import map_tensors


def floor(pruned: fx.GraphModule, graph: ChannelGraph) -> fx.GraphModule:
    """A copy of an export in which moving data to select channels is free.

    What it returns depends on the shapes of the inputs alone: at the first run for a shape, it
    moves data as the export does.

    Args:
        pruned: from :func:`upscale_opt.materialize`. It is not changed.
        graph: the channel graph of its original: it says which concatenations are of channels.
    """
    found = copy.deepcopy(pruned)
    channels = {op.name for op in graph.operations if isinstance(op, Concat)}
    for number, node in enumerate(list(found.graph.nodes)):
        free = _free(found, node, channels)
        if free is None:
            continue
        if node.op == "call_module":
            _replace(found, str(node.target), free)
            continue
        name = f"free_{number}"
        while hasattr(found, name):
            name += "_"
        found.add_module(name, free)
        with found.graph.inserting_before(node):
            call = found.graph.call_module(name, node.args, node.kwargs)
        node.replace_all_uses_with(call)
        found.graph.erase_node(node)
    found.graph.lint()
    result = fx.GraphModule(found, found.graph)
    result.train(pruned.training)
    return result


class Held(nn.Module):
    """Returns what ``move`` returned at the first call with tensors of these shapes, contiguous.

    Args:
        move: what moves data: a function of tensors, or of lists of them.
    """

    def __init__(self, move: Callable[..., Any]) -> None:
        super().__init__()
        self.move = move
        self.held: dict[torch.Size, Any] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the result that is held for the shape of the first argument."""
        first = args[0] if args else next(iter(kwargs.values()))
        example = first[0] if isinstance(first, (tuple, list)) else first
        held = self.held.get(example.shape)
        if held is None:
            held = _alone(self.move(*args, **kwargs), example)
            self.held[example.shape] = held
        return held


class HeldSum(nn.Module):
    """A :class:`~upscale_opt.runtime.modules.PlacedSum` that adds as many numbers, but places none.

    Args:
        placed: the sum that it stands for.
    """

    def __init__(self, placed: PlacedSum) -> None:
        super().__init__()
        self.whole = list(placed.whole)
        self.result = Held(placed)
        self.parts = nn.ModuleList(Held(torch.clone) for _ in placed.whole)

    def forward(self, *summands: Tensor) -> Tensor:
        """A tensor of the sum's shape."""
        whole = [x for x, everywhere in zip(summands, self.whole, strict=True) if everywhere]
        placed = [number for number, everywhere in enumerate(self.whole) if not everywhere]
        # Where there is nothing yet, the first part is only placed, and not added to anything.
        for number in placed if whole else placed[1:]:
            torch.add(summands[number], self.parts[number](summands[number]))
        if len(whole) < 2:
            held: Tensor = self.result(*summands)
            return held
        total = whole[0] + whole[1]
        for x in whole[2:]:
            total = total + x
        return total


def _alone(result: Any, example: Tensor) -> Any:
    """A copy of tensors, each contiguous in the memory format of ``example`` if it has its axes."""

    def copied(tensor: Tensor) -> Tensor:
        form = suggest_memory_format(example) if example.ndim == tensor.ndim else None
        return tensor.detach().clone(memory_format=form or torch.contiguous_format)

    return map_tensors(result, copied)


# Data movement that is free. A new kind is a line here.

FREE_MODULES: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    Gather: Held,
    ArenaWrite: Held,
    ArenaRead: Held,
    PlacedSum: HeldSum,
}
"""The class of a module, and what makes of it one that takes no time."""

FREE_FUNCTIONS: frozenset[Any] = frozenset({torch.narrow, "narrow", "clone"})
"""Functions, and names of methods, that are free wherever an export calls them. It clones what is
to be modified in place but may be a view of what others read."""

FREE_CONCATENATIONS: frozenset[Any] = frozenset(
    {torch.cat, torch.concat, torch.concatenate, torch.ops.aten.cat.default}
)
"""Functions that are free where they concatenate channels."""


def _free(module: fx.GraphModule, node: fx.Node, channels: set[str]) -> nn.Module | None:
    """A stand-in for a call, if it only moves data to select channels."""
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        make = next((FREE_MODULES[k] for k in type(called).__mro__ if k in FREE_MODULES), None)
        return None if make is None else make(called)
    if node.op == "call_method" and node.target in FREE_FUNCTIONS:
        return Held(getattr(torch.Tensor, str(node.target)))
    if node.op != "call_function":
        return None
    if node.target in FREE_FUNCTIONS or (
        node.target in FREE_CONCATENATIONS and node.name in channels
    ):
        function: Any = node.target
        return Held(function)
    return None


def _replace(root: nn.Module, target: str, module: nn.Module) -> None:
    parent, _, name = target.rpartition(".")
    root.get_submodule(parent)._modules[name] = module
