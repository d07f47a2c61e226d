"""Rotary embeddings in a captured program: several calls, of which one is made.

Rotating pairs of channels takes half of the channels and joins them in another sequence. Call by
call, with heads on an axis of their own, it does not show that only pairs are mixed.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from upscale_opt.runtime.rotary import rotate
from upscale_opt.tracing.queries import asked


def fold_rotations(graph: fx.Graph, kept: set[fx.Node]) -> None:
    """Let one call stand for each rotation, which computes the same by the same operations.

    Args:
        graph: a captured program.
        kept: calls that must stay what they are.
    """
    for node in list(graph.nodes):
        found = _rotation(node)
        if found is None or not kept.isdisjoint(found[1]):
            continue
        operands, calls = found
        with graph.inserting_before(node):
            new = graph.call_function(rotate, operands)
        node.replace_all_uses_with(new)
        for call in calls:
            graph.erase_node(call)


def _rotation(node: fx.Node) -> tuple[tuple[fx.Node, ...], list[fx.Node]] | None:
    """Find what is rotated, cosines and sines; and the calls that do it, the last one first."""
    straight, crossed = _arguments(node, operator.add)
    x, cos = _arguments(straight, operator.mul)
    turned, sin = _arguments(crossed, operator.mul)
    second, first = _joined(turned)
    (behind,) = _arguments(second, operator.neg, 1)
    if None in (x, cos, sin) or not (_takes(first, x, False) and _takes(behind, x, True)):
        return None
    calls = [node, straight, crossed, turned, second, first, behind]
    if any(len(call.users) != 1 for call in calls[1:]):
        return None
    return (x, cos, sin), calls


def _arguments(node: Any, target: Any, count: int = 2) -> tuple[Any, ...]:
    """The calls that ``node`` reads, if it calls ``target``; else as many times ``None``."""
    called = isinstance(node, fx.Node) and node.target is target and not node.kwargs
    if called and [isinstance(arg, fx.Node) for arg in node.args] == [True] * count:
        return tuple(node.args)
    return (None,) * count


def _joined(node: Any) -> tuple[Any, Any]:
    """The two calls whose results are joined along the last axis, if that is so."""
    if not isinstance(node, fx.Node) or node.target is not torch.cat:
        return None, None
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    parts = node.args[0]
    if dim != -1 or not isinstance(parts, (tuple, list)) or len(parts) != 2:
        return None, None
    return parts[0], parts[1]


def _takes(node: Any, x: Any, behind: bool) -> bool:
    """Tell whether a call takes the first half of the last axis of ``x``, or what is behind."""
    if (
        not isinstance(node, fx.Node)
        or node.target is not operator.getitem
        or node.args[0] is not x
    ):
        return False
    index: Any = node.args[1]
    if not isinstance(index, tuple) or len(index) != 2 or index[0] is not Ellipsis:
        return False
    part = index[1]
    if not isinstance(part, slice) or part.step is not None:
        return False
    half, other = (part.start, part.stop) if behind else (part.stop, part.start)
    return other is None and _is_half(half, x)


def _is_half(node: Any, x: Any) -> bool:
    """Tell whether a number is half of the size of the last axis of ``x``."""
    if not isinstance(node, fx.Node) or node.target is not operator.floordiv or node.args[1] != 2:
        return False
    size: Any = node.args[0]
    if not isinstance(size, fx.Node) or size.target is not operator.getitem or size.args[1] != -1:
        return False
    shape: Any = size.args[0]
    return isinstance(shape, fx.Node) and asked(shape) == "shape" and shape.args[0] is x
