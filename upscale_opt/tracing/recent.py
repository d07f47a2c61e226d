"""Remember the last trace of each living model, so that materialising need not trace again."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Set
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from upscale_opt.ir.base import Record
from upscale_opt.ir.graph import ChannelGraph, Example
from upscale_opt.tracing.capture import Capture
from upscale_opt.tracing.copying import copied
from upscale_opt.tracing.numbering import content
from upscale_opt.tracing.program import Program
from upscale_opt.tracing.running import run_as

_programs: WeakKeyDictionary[nn.Module, tuple[Any, Program]] = WeakKeyDictionary()


def remember(model: nn.Module, program: Program) -> None:
    """Keep ``program`` for as long as ``model`` lives."""
    _programs[model] = _signature(model), program


def recall(model: nn.Module, example: Example, capture: Capture) -> Program | None:
    """The model's last trace, if it was such a one and nothing a trace depends on has changed."""
    known = _programs.get(model)
    if known is None:
        return None
    signature, program = known
    same = program.graph.example == example and program.captured.kind == capture
    return program if same and signature is not None and signature == _signature(model) else None


def recalled_or_run(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    example: Example,
    by: Capture,
) -> Program:
    """The model's last trace, if it is still that of these inputs, or a new one, to be remembered.

    Args:
        model: the model.
        args: positional arguments.
        kwargs: keyword arguments.
        example: what these are.
        by: the tracer.

    Raises:
        TraceError: if the tracer cannot capture the model, or it does not run on the inputs.
    """
    program = recall(model, example, by)
    if program is None:
        program = run_as(model, args, kwargs, by)
        remember(model, program)
    return program


def copied_with_trace(model: nn.Module, graph: ChannelGraph) -> nn.Module:
    """A deep copy of a model, that has its last trace as its own if that is ``graph``'s."""
    memo: dict[int, Any] = {}
    copy = copied(model, memo)
    program = recall(model, graph.example, graph.capture)
    if program is not None and program.graph.fingerprint == graph.fingerprint:
        other = _among(memo, program)
        if other is not None:
            remember(copy, other)
    return copy


def _among(memo: dict[int, Any], program: Program) -> Program | None:
    """The program with the copies of a model's modules and tensors for them.

    ``None`` if it may name the originals elsewhere: a copy that has a hand of its own in how it is
    copied, or a bound method, is better traced.
    """
    captured = program.captured
    own = {name: t for name, t in captured.tensors.items() if name not in captured.constants}
    if any(id(thing) not in memo for thing in (*captured.modules.values(), *own.values())):
        return None
    for node in captured.graph.nodes:
        callable_ = node.target if node.op == "call_function" else None
        held = (*pytree.tree_leaves((node.args, node.kwargs)), callable_)
        if any(isinstance(x, (nn.Module, torch.Tensor, MethodType, partial)) for x in held):
            return None
        if getattr(callable_, "__closure__", None):
            return None
    modules = {name: memo[id(module)] for name, module in captured.modules.items()}
    tensors = {name: memo.get(id(tensor), tensor) for name, tensor in captured.tensors.items()}
    constants = {name: tensors[name] for name in captured.constants}
    there = dataclasses.replace(captured, modules=modules, tensors=tensors, constants=constants)
    return dataclasses.replace(program, captured=there)


class _NotComparableError(Exception):
    """An attribute of which one cannot tell whether it has changed."""


def _signature(model: nn.Module) -> Any:
    """All that can influence a trace, short of code that is edited at run time.

    ``None`` if the model has attributes of which one cannot tell.
    """
    own = {id(parameter) for parameter in model.parameters()}
    try:
        return [
            (
                name,
                id(module),
                [_registered(t) for t in (module._parameters, module._buffers)],
                _frozen({k: v for k, v in vars(module).items() if k not in _APART}, own),
            )
            for name, module in model.named_modules(remove_duplicate=False)
        ]
    except (_NotComparableError, RecursionError):  # of things that hold each other
        return None


_APART = {"_modules", "_parameters", "_buffers"}


def _registered(table: dict[str, Any]) -> Any:
    """Parameters and buffers: a program reads them, whatever they hold."""
    return [
        (name, t if t is None else (id(t), t.shape, t.dtype, t.device)) for name, t in table.items()
    ]


def _frozen(value: Any, own: Set[int]) -> Any:
    """An immutable stand-in for ``value``, equal for equal values.

    Args:
        value: an attribute, or what is in it.
        own: the model's parameters, by ``id``, whose values do not matter.
    """
    if value is None or isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, torch.Tensor):
        kind = id(value), value.shape, value.dtype, value.device
        return kind if id(value) in own else (*kind, content(value))
    if isinstance(value, ref):
        return ref, id(value())
    if isinstance(value, _CODE):
        return id(value)
    if isinstance(value, fx.Graph):  # whose code is another attribute; but names are not functions
        return fx.Graph, tuple(id(n.target) if callable(n.target) else n.op for n in value.nodes)
    if isinstance(value, Record):
        return _Same(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value)}
        return type(value), _frozen({**fields, **getattr(value, "__dict__", {})}, own)
    if isinstance(value, dict):
        return type(value), tuple((_frozen(k, own), _frozen(v, own)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return type(value), tuple(_frozen(item, own) for item in value)
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(_frozen(item, own) for item in value)
    raise _NotComparableError


class _Same:
    """Stands for an object that never changes: equal to what stands for the same one."""

    def __init__(self, value: Record) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, enum.Enum, range)
_CODE = (type, nn.Module, FunctionType, BuiltinFunctionType, MethodType, partial)
