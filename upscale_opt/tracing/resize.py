"""Adapt explicit sizes in calls such as ``x.view(-1, 400)`` to another number of channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_FUNCTIONS = {torch.reshape}


def takes_sizes(node: fx.Node) -> bool:
    """Whether the call lists the sizes of its result."""
    if node.op == "call_method":
        return str(node.target) in ("view", "reshape", "expand", "sum_to_size")
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[1] in (
            "view",
            "reshape",
            "expand",
            "_unsafe_view",
        )
    return node.op == "call_function" and node.target in _FUNCTIONS


def resized(
    node: fx.Node, arguments: tuple[tuple[Any, ...], dict[str, Any]], axis: int, size: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call's arguments with ``size`` as the size of its result along ``axis``.

    Calls that list no sizes, or leave this one open (``-1``), stay as they are.

    Args:
        node: the call.
        arguments: its positional and keyword arguments; the first is the tensor.
        axis: an axis of the result.
        size: the wanted number of elements.
    """
    args, kwargs = arguments
    if not takes_sizes(node):
        return arguments
    if len(args) > 1:
        listed = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
        sizes = _with(list(listed), axis, size)
        if isinstance(args[1], (tuple, list)):
            return (args[0], tuple(sizes), *args[2:]), kwargs
        return (args[0], *sizes), kwargs
    for key in ("shape", "size"):
        if isinstance(kwargs.get(key), (tuple, list)):
            return args, {**kwargs, key: tuple(_with(list(kwargs[key]), axis, size))}
    return arguments


def listed_size(node: fx.Node, arguments: tuple[tuple[Any, ...], dict[str, Any]], axis: int) -> Any:
    """The size that a call lists for its result along ``axis``; ``None`` if it lists none."""
    args, kwargs = arguments
    if not takes_sizes(node):
        return None
    listed: Any
    if len(args) > 1:
        listed = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
    else:
        listed = kwargs.get("shape", kwargs.get("size"))
    return listed[axis] if isinstance(listed, (tuple, list)) and axis < len(listed) else None


def _with(sizes: list[Any], axis: int, size: Any) -> list[Any]:
    if axis < len(sizes) and not (isinstance(sizes[axis], int) and sizes[axis] == -1):
        sizes[axis] = size
    return sizes
