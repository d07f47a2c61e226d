"""The check of inputs that a pruned model makes: its trace holds for these alone."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from upscale_opt.errors import ArgumentError

Wanted = Any
"""The demands on an input.

A tuple is a tensor of these sizes: ``None`` is any, and a name is one that other axes of that name
have, too. A list is a sequence of as many such, a dict a mapping
with these keys. ``...`` is any number, and everything else is the value itself.
"""

DEFAULT = "<the default>"
"""Stands for an argument that is not given, where its default is nothing that code can spell."""


def require_inputs(
    inputs: Sequence[Any],
    names: Sequence[str],
    wanted: Sequence[Wanted],
    tracer: str = "torch.export",
) -> Any:
    """Refuse inputs that a program was not captured for.

    Args:
        inputs: the inputs.
        names: their names.
        wanted: what they must be.
        tracer: what captured the program.

    Raises:
        ArgumentError: naming the first input that differs, and the way out.
    """
    proxies = [x for x in inputs if isinstance(x, fx.Proxy)]
    if proxies:  # traced again: then it shall be part of the program
        arguments = (tuple(inputs), tuple(names), tuple(wanted), tracer)
        return proxies[0].tracer.create_proxy("call_function", require_inputs, arguments, {})
    known: dict[str, tuple[Any, str]] = {}
    for x, name, want in zip(inputs, names, wanted, strict=True):
        _require(x, name, want, known, tracer)
    return None


def _require(
    x: Any, name: str, want: Wanted, known: dict[str, tuple[Any, str]], tracer: str
) -> None:
    if want is ...:
        single = isinstance(x, torch.Tensor) and not x.ndim
        if not (single or isinstance(x, numbers.Number)):
            raise _refusal(f"input {name!r} is {_text(x)}", "a number", "with this value", tracer)
        return
    if isinstance(want, list):
        _require_sequence(x, name, want, known, tracer)
    elif isinstance(want, dict):
        _require_mapping(x, name, want, known, tracer)
    elif isinstance(want, tuple):
        if not isinstance(x, torch.Tensor):
            raise _refusal(f"input {name!r} is {_text(x)}", "a tensor", "with this value", tracer)
        _require_sizes(x, name, want, known, tracer)
    elif x is not want and not _equal(x, want):
        raise _refusal(f"input {name!r} is {_text(x)}", _text(want), "with this value", tracer)


def _require_sequence(
    x: Any, name: str, want: list[Wanted], known: dict[str, tuple[Any, str]], tracer: str
) -> None:
    if not isinstance(x, (tuple, list)) or len(x) != len(want):
        many = f" of {len(x)}" if isinstance(x, (tuple, list)) else ""
        what = f"input {name!r} is {_text(x)}{many}"
        raise _refusal(what, f"a sequence of {len(want)}", "with as many", tracer)
    for number, (item, wanted) in enumerate(zip(x, want, strict=True)):
        _require(item, f"{name}[{number}]", wanted, known, tracer)


def _require_mapping(
    x: Any, name: str, want: dict[str, Wanted], known: dict[str, tuple[Any, str]], tracer: str
) -> None:
    if name.startswith("**") and isinstance(x, list) and not x:
        x = {}  # so fx.Interpreter, and torch.export with it, calls a program without keywords
    if not isinstance(x, Mapping) or list(x) != list(want):
        keys = f" with {', '.join(map(repr, x)) or 'nothing'}" if isinstance(x, Mapping) else ""
        wanted = ", ".join(map(repr, want)) or "nothing"
        what = f"input {name!r} is {_text(x)}{keys}"
        raise _refusal(what, f"a mapping with {wanted}", "with these keys", tracer)
    for key, item in x.items():
        _require(item, f"{name}[{key!r}]", want[key], known, tracer)


def _require_sizes(
    x: torch.Tensor,
    name: str,
    want: tuple[int | str | None, ...],
    known: dict[str, tuple[Any, str]],
    tracer: str,
) -> None:
    if x.ndim != len(want):
        what = f"input {name!r} has {x.ndim} axes"
        raise _refusal(what, str(len(want)), _SIZES, tracer)
    for axis, size in enumerate(want):
        if size is None:
            continue
        given = x.shape[axis]
        what = f"input {name!r} has size {given} along axis {axis}"
        if isinstance(size, str):
            same, where = known.setdefault(size, (given, name))
            if given != same:
                raise _refusal(what, f"that of {where!r}, {same},", _SIZES, tracer)
        elif given != size:
            raise _refusal(what, str(size), _TWO if axis == 0 and size == 1 else _SIZES, tracer)


def _equal(x: Any, want: Any) -> bool:
    """Tell whether a value is the wanted one: ``1`` is not ``True``, but it is ``1.0``."""
    if isinstance(x, torch.Tensor) or isinstance(x, bool) is not isinstance(want, bool):
        return False
    return bool(x == want)


def _text(x: Any) -> str:
    if isinstance(x, str) and x == DEFAULT:
        return "left at its default"
    if x is None or isinstance(x, (bool, int, float, complex, str, slice, torch.dtype)):
        return repr(x)
    name = "tensor" if isinstance(x, torch.Tensor) else type(x).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


_SIZES = "with inputs of these sizes"
_TWO = f"{_SIZES}, or with a batch of two or more for a model that takes any batch"


def _refusal(what: str, captured: str, trace: str, tracer: str) -> ArgumentError:
    captured = "its default" if captured == "left at its default" else captured
    return ArgumentError(
        f"{what}, but {tracer} captured this model for {captured} alone; trace the model {trace}"
    )


fx.node.has_side_effect(require_inputs)
