"""Questions for sizes, asked in another way, so that pruning need not change the answers.

A tensor whose channels lie along several axes need not be in the pruned program at all: what
multiplies queries and keys there may be made of what lies before them. Its sizes, but for numbers
of heads and channels, are those of the tensors that it was made of.

And where the code looks at all sizes at once, though only to compare them or to count elements, it
can be given one size after the other, of which that of the channel axis is known.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import torch
from torch import fx

from upscale_opt.tracing.heads import channel_axes
from upscale_opt.tracing.queries import asked, sizes_picked
from upscale_opt.tracing.values import Traced

SIZES = ("size", "shape")
"""Names of questions for sizes."""

Find = Callable[[Traced], fx.Node | None]
"""The call whose result is a tensor, if one is."""


_COMPARISONS = (operator.eq, operator.ne)


def ask_singly(node: fx.Node, rank: int) -> list[fx.Node]:
    """Let what compares all sizes of a tensor, or counts its elements, ask for one at a time.

    Args:
        node: a call that asks a tensor.
        rank: the number of its axes.

    Returns:
        The calls that are new, which ask for single sizes; in the program they stand before the
        first call that uses them.
    """
    if asked(node) == "numel" and len(node.args) == 1:
        with node.graph.inserting_before(node):
            sizes = [node.graph.call_method("size", (node.args[0], a)) for a in range(rank)]
        node.op, node.target, node.args = "call_function", math.prod, (tuple(sizes),)
        return sizes
    users = [user for user in node.users if user.target in _COMPARISONS]
    whole = asked(node) == "shape" or len(node.args) == 1
    if not users or not whole or asked(node) not in SIZES or node.kwargs:
        return []
    with node.graph.inserting_after(node):
        sizes = [node.graph.call_method("size", (node.args[0], a)) for a in range(rank)]
    for user in users:
        user.args = fx.node.map_arg(user.args, lambda n: tuple(sizes) if n is node else n)
    return sizes


def ask_others(node: fx.Node, x: Traced, find: Find) -> list[tuple[fx.Node, int]]:
    """Let ``node``, and what picks from its result, ask what ``x`` was made of.

    Args:
        node: a call that asks for sizes of ``x``.
        x: a tensor whose channels lie along several axes.
        find: finds the calls of tensors.

    Returns:
        The calls that ask another tensor now, with the axis of ``x`` whose size they ask for.
    """
    if asked(node) not in SIZES or x.spread is None:
        return []
    asking: dict[fx.Node, int | None]
    if len(node.args) > 1 and node.target is not getattr:
        asking = {node: node.args[1] if isinstance(node.args[1], int) else None}
    else:
        asking = dict(sizes_picked(node, range(len(x.shape))))
    changed = []
    varying = channel_axes(x)
    for call, axis in asking.items():
        place = -1 if axis is None else axis % len(x.shape)
        origin = None if axis is None or place in varying else _origin(x, place, find)
        if origin is not None:
            call.op, call.target, call.args, call.kwargs = "call_method", "size", origin, {}
            changed.append((call, place))
    return changed


def _origin(x: Traced, axis: int, find: Find) -> tuple[fx.Node, int] | None:
    """A call whose result has the size of ``x`` along ``axis``, and along which axis of its own."""
    if x.spread is not None:
        place = _axis_of_source(x, axis)
        return None if place is None else _origin(x.spread.source, place, find)
    node = find(x)
    if node is not None:
        return node, axis
    origin = x.like[axis] if x.like else None
    return None if origin is None else _origin(*origin, find)


def _axis_of_source(x: Traced, axis: int) -> int | None:
    """The axis of what ``x`` was made of that its ``axis`` is, elements in the same sequence."""
    assert x.spread is not None
    source = x.spread.source
    every = torch.arange(source.fake.numel(), dtype=torch.int64).reshape(source.shape)
    moved = x.spread.move(every)
    size = x.shape[axis]
    if size < 2:
        return None
    first = moved.narrow(axis, 0, 1)
    step = int(moved.select(axis, 1).flatten()[0] - first.flatten()[0])
    for place, stride in enumerate(every.stride()):
        if place != source.axis and stride == step and source.shape[place] == size:
            shape = [-1 if a == axis else 1 for a in range(moved.ndim)]
            line = first + step * torch.arange(size).reshape(shape)
            return place if torch.equal(moved, line) else None
    return None
