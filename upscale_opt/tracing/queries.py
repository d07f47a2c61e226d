"""Queries that calls make, and parts of a result that are used."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx


def picked(node: fx.Node, result: Any) -> set[int] | None:
    """The numbers of those of several results that are used at all, if that can be told."""
    if not isinstance(result, (tuple, list)) or not all(
        isinstance(item, torch.Tensor) for item in result
    ):
        return None
    if not all(picks_item(user) for user in node.users):
        return None
    picks = [user.args[1] for user in node.users]
    return {pick % len(result) for pick in picks if isinstance(pick, int)}


def asked(node: fx.Node) -> str:
    """The name of what the call asks a tensor for."""
    if node.target is getattr and isinstance(node.args[1], str):
        return node.args[1]
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target._schema.name).split("::")[1]
    return str(getattr(node.target, "__name__", node.target))


def asks_rank(node: fx.Node) -> bool:
    """Tell whether a call asks a tensor how many axes it has."""
    return asked(node) in ("dim", "ndim", "ndimension")


def picks_item(user: fx.Node) -> bool:
    """Tell whether the call takes one item, by number, out of a result."""
    return user.target is operator.getitem and isinstance(user.args[1], int)


def squeezes_all(node: fx.Node) -> bool:
    """Tell whether a call removes all axes of size one, whichever these are."""
    named = node.op == "call_method" and node.target in ("squeeze", "squeeze_")
    known = named or node.target in (torch.squeeze, torch.ops.aten.squeeze.default)
    return known and len(node.args) == 1 and not node.kwargs


def axes_squeezed(node: fx.Node) -> tuple[int, ...]:
    """The axes that a call removes by name if they are of size one."""
    named = node.op == "call_method" and node.target in ("squeeze", "squeeze_")
    operators = torch.ops.aten.squeeze.dim, torch.ops.aten.squeeze.dims
    axes: Any = node.args[1] if len(node.args) == 2 else node.kwargs.get("dim", ())
    if not named and node.target not in (torch.squeeze, *operators):
        return ()
    axes = axes if isinstance(axes, (tuple, list)) else (axes,)
    return tuple(axis for axis in axes if isinstance(axis, int))


def sizes_asked(node: fx.Node, rank: int) -> set[int]:
    """The axes whose sizes are used, of a call that asks for sizes; -1 if that cannot be told."""
    if len(node.args) > 1 and asked(node) != "shape":
        axes: list[object] = [node.args[1]]
    elif not node.kwargs:
        axes = [axis for _, axis in sizes_picked(node, range(rank))]
    else:
        return {-1}
    return {axis % rank if isinstance(axis, int) else -1 for axis in axes}


def sizes_picked(node: fx.Node, axes: Sequence[int]) -> list[tuple[fx.Node, int | None]]:
    """The calls that use single ones of several sizes, and the axes that these are of.

    Args:
        node: a call that gives several sizes.
        axes: the axes that they are the sizes of.

    Returns:
        What picks one by its number, from a slice of them, too; without an axis, what uses them in
        another way.
    """
    found: list[tuple[fx.Node, int | None]] = []
    for user in node.users:
        index: Any = user.args[1] if user.target is operator.getitem else None
        if isinstance(index, int):
            found.append((user, axes[index]))
        elif isinstance(index, slice) and is_plain(index):
            found += sizes_picked(user, axes[index])
        else:
            found.append((user, None))
    return found


def is_plain(index: slice) -> bool:
    """Tell whether no part of a slice is computed."""
    return not any(isinstance(x, fx.Node) for x in (index.start, index.stop, index.step))
