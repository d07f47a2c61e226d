"""Calls with other numbers and other sizes: is what they do to channels the same?"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from types import BuiltinFunctionType, BuiltinMethodType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from upscale_opt.disjoint_sets import UnionFind
from upscale_opt.ir import graph as ir
from upscale_opt.tracing.channels import Array, Channels
from upscale_opt.tracing.record import MOVEMENT, Call
from upscale_opt.tracing.values import Traced


class Overlay(Channels):
    """Channels to try calls on; what is learned stays here.

    Args:
        below: those of the program.
        first: the first new id.
    """

    def __init__(self, below: Channels, first: int) -> None:
        super().__init__()
        self._below = below
        self._known = below.count
        self._count = first
        self._own = UnionFind()

    def tie(self, left: Array, right: Array) -> None:
        """From now on ``left[i]`` and ``right[i]`` are the same channel."""
        self._own.tie(self._through(left).tolist(), self._through(right).tolist())

    def resolve(self, ids: Array) -> Array:
        """The representative of each id."""
        return np.array([self._own.find(i) for i in self._through(ids).tolist()], dtype=np.int64)

    def _through(self, ids: Array) -> Array:
        found: Array = ids.copy()
        known = ids < self._known
        found[known] = self._below.resolve(ids[known])
        return found


# Other numbers.


def others(value: Any, calls: Sequence[Call], *, moves: bool) -> Iterator[Any]:
    """The values that a number may have in another call of the model.

    Args:
        value: what it is in this one.
        calls: what is done with it.
        moves: it is part of a call that only moves data.
    """
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        divides = any("div" in call.name or "rem" in call.name for call in calls)
        near = (value + 1, value + 2, value - 1)
        found = near if moves else (*near, *(() if divides else (0,)), 1, -1, 2 * value + 3)
        yield from dict.fromkeys(n for n in found if n != value and (n > 0 or not moves))
    elif isinstance(value, float):
        yield from dict.fromkeys(n for n in (value + 1.0, 0.5, -0.5, 1.0) if n != value)
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            for other in others(item, calls, moves=moves):
                yield (*value[:index], other, *value[index + 1 :])


def text(node: Any) -> str:
    """A number as the model's code may have it: ``x.shape[2] - 8``."""
    if not isinstance(node, fx.Node):
        return repr(node)
    if node.target is getattr:
        return f"{text(node.args[0])}.{node.args[1]}"
    if node.target is operator.getitem:
        return f"{text(node.args[0])}[{text(node.args[1])}]"
    if node.op == "call_method":
        return f"{text(node.args[0])}.{node.target}({', '.join(map(text, node.args[1:]))})"
    sign = _SIGNS.get(getattr(node.target, "__name__", ""))
    if node.op == "call_function" and sign is not None and len(node.args) == 2:
        return f"({text(node.args[0])} {sign} {text(node.args[1])})"
    return str(node.target).lstrip("*") if node.op == "placeholder" else node.name


_SIGNS = {
    **{"add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%"},
    **{"pow": "**", "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="},
}


# Comparisons.


def same_channels(one: Sequence[Traced], other: Sequence[Traced]) -> bool:
    """Tell whether tensors have the same channels along the same axes."""
    return len(one) == len(other) and all(
        a.axis == b.axis
        and (a.spread is None) is (b.spread is None)
        and (
            (a.ids is None and b.ids is None)
            or (a.ids is not None and b.ids is not None and np.array_equal(a.ids, b.ids))
        )
        for a, b in zip(one, other, strict=True)
    )


def same_operations(one: Sequence[ir.Operation], other: Sequence[ir.Operation]) -> bool:
    """Tell whether two calls amount to the same, whatever becomes of zeros."""
    return [weakest(op, None) for op in one] == [weakest(op, None) for op in other]


def weakest(op: ir.Operation, other: ir.Operation | None) -> ir.Operation:
    """``op``, with no more said of zeros than ``other`` says, an operation of the same kind."""
    if isinstance(op, (ir.ChannelWise, ir.Symmetric)):
        roles = {use.name: use.role for use in getattr(other, "parameters", ())}
        same = all(roles.get(use.name) == use.role for use in op.parameters)
        changed: dict[str, Any] = {}
        if not same:
            changed["parameters"] = tuple(map(_neutral, op.parameters))
        if isinstance(op, ir.ChannelWise):
            changed["keeps_zero"] = same and op.keeps_zero and getattr(other, "keeps_zero", False)
        return op.model_copy(update=changed)
    if isinstance(op, ir.Elementwise):
        rules = ("never", "all", "any")
        least = min(op.zero_if, getattr(other, "zero_if", "never"), key=rules.index)
        additive = op.additive and getattr(other, "additive", False)
        return op.model_copy(update={"zero_if": least, "additive": additive})
    return op


def _neutral(use: ir.PerChannel) -> ir.PerChannel:
    return use.model_copy(update={"role": "neutral"})


# Other numbers of channels.


def counts(count: int) -> list[int]:
    """Other numbers of channels to try a call with, the last one of which is one."""
    found = {2, max(2, count - 1), max(2, (count + 1) // 2), count + 1, 2 * count} - {count, 1}
    return [*sorted(found), *([1] if count > 1 else [])]


def resized_fake(tensor: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """A tensor without data like ``tensor``, of another size along ``axis``."""
    return tensor.new_empty([size if a == axis else int(s) for a, s in enumerate(tensor.shape)])


def is_foreign(node: fx.Node, module: nn.Module | None) -> bool:
    """Tell whether a call runs code that is neither PyTorch's nor that of pruned models."""
    if module is not None:
        return not _is_known(type(module).__module__)
    if node.op != "call_function" or isinstance(node.target, torch._ops.OpOverload):
        return False
    target: Any = node.target
    if isinstance(target, (BuiltinFunctionType, BuiltinMethodType)):
        return False
    kind = target if isinstance(target, (FunctionType, type)) else type(target)
    return not _is_known(kind.__module__ or "torch")


def _is_known(name: str) -> bool:
    if name.startswith("upscale_opt.runtime."):
        return True
    return name.split(".")[0] in ("torch", "builtins", "operator", "_operator", "math")


def same_calls(one: Sequence[Call], other: Sequence[Call]) -> bool:
    """Tell whether the same operations are executed with the same numbers, sizes aside."""
    if [call.func for call in one] != [call.func for call in other]:
        return False
    return all(
        call.name in MOVEMENT
        or call.name.startswith(("new_", "native_", "rand", "zeros", "ones", "empty"))
        or _numbers(call) == _numbers(twin)
        for call, twin in zip(one, other, strict=True)
    )


def _numbers(call: Call) -> list[Any]:
    leaves = pytree.tree_leaves((call.args, call.kwargs))
    return [leaf for leaf in leaves if not isinstance(leaf, torch.Tensor)]
