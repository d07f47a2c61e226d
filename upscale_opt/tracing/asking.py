"""Questions for sizes of tensors whose channels lie along several axes, asked of others instead.

Such a tensor need not be in the pruned program at all: what multiplies queries and keys there may
be made of what lies before them. Its sizes, but for numbers of heads and channels, are those of
the tensors that it was made of.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from upscale_opt.tracing.heads import channel_axes
from upscale_opt.tracing.queries import asked
from upscale_opt.tracing.values import Traced

SIZES = ("size", "shape")
"""Names of questions for sizes."""

Find = Callable[[Traced], fx.Node | None]
"""The call whose result is a tensor, if one is."""


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
    if len(node.args) > 1 and node.target is not getattr:
        asking = {node: node.args[1]} if isinstance(node.args[1], int) else {}
    else:
        asking = dict(_picks(node, list(range(len(x.shape)))))
    changed = []
    varying = channel_axes(x)
    for call, axis in asking.items():
        place = int(axis) % len(x.shape)  # type: ignore[call-overload]
        if place in varying:
            continue
        origin = _origin(x, place, find)
        if origin is None:
            continue
        call.op, call.target, call.args, call.kwargs = "call_method", "size", origin, {}
        changed.append((call, place))
    return changed


def _picks(node: fx.Node, axes: list[int]) -> list[tuple[fx.Node, int]]:
    """The calls that pick one of several sizes, and the axis that it is the size of."""
    found = []
    for user in node.users:
        index: Any = user.args[1] if user.target is operator.getitem else None
        if isinstance(index, int):
            found.append((user, axes[index]))
        elif isinstance(index, slice) and all(
            n is None or isinstance(n, int) for n in (index.start, index.stop, index.step)
        ):
            found += _picks(user, axes[index])
    return found


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
