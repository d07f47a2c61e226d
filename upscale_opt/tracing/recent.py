"""Remember the last trace of each living model, so that materialising need not trace again."""

from __future__ import annotations

import enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from upscale_opt.ir.graph import Example
from upscale_opt.tracing.capture import Capture
from upscale_opt.tracing.numbering import content
from upscale_opt.tracing.program import Program

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


class _NotComparableError(Exception):
    """An attribute of which one cannot tell whether it has changed."""


def _signature(model: nn.Module) -> Any:
    """All that can influence a trace, short of code that is edited at run time.

    ``None`` if the model has attributes of which one cannot tell.
    """
    try:
        return [
            (
                name,
                id(module),
                [_registered(t) for t in (module._parameters, module._buffers)],
                _frozen({k: v for k, v in vars(module).items() if k not in _APART}),
            )
            for name, module in model.named_modules(remove_duplicate=False)
        ]
    except _NotComparableError:
        return None


_APART = {"_modules", "_parameters", "_buffers"}


def _registered(table: dict[str, Any]) -> Any:
    """Parameters and buffers: a program reads them, whatever they hold."""
    return [
        (name, t if t is None else (id(t), t.shape, t.dtype, t.device)) for name, t in table.items()
    ]


def _frozen(value: Any) -> Any:
    """An immutable stand-in for ``value``, equal for equal values."""
    if value is None or isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, torch.Tensor):
        return id(value), value.shape, value.dtype, value.device, content(value)
    if isinstance(value, _CODE):
        return id(value)
    if isinstance(value, dict):
        return type(value), tuple((_frozen(k), _frozen(v)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return type(value), tuple(_frozen(item) for item in value)
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(_frozen(item) for item in value)
    raise _NotComparableError


_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, enum.Enum, range)
_CODE = (type, nn.Module, FunctionType, BuiltinFunctionType, MethodType, partial)
