"""The check of inputs that a pruned model makes, if its original was captured for some alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from upscale_opt.errors import ArgumentError

Wanted = tuple[int | str | None, ...] | bool | int | float | str | None
"""The demands on an input: a tensor of sizes (those of one name are equal), or a value."""


def require_inputs(inputs: Sequence[Any], names: Sequence[str], wanted: Sequence[Wanted]) -> Any:
    """Refuse inputs that a program by :mod:`torch.export` was not captured for.

    Args:
        inputs: the inputs.
        names: their names.
        wanted: for a tensor its sizes, where ``None`` is any and a name is one that other axes of
            that name have, too; for anything else the value.

    Raises:
        ArgumentError: naming the first input that differs, and the way out.
    """
    proxies = [x for x in inputs if isinstance(x, fx.Proxy)]
    if proxies:  # traced again: then it shall be part of the program
        arguments = (tuple(inputs), tuple(names), tuple(wanted))
        return proxies[0].tracer.create_proxy("call_function", require_inputs, arguments, {})
    known: dict[str, tuple[Any, str]] = {}
    for x, name, want in zip(inputs, names, wanted, strict=True):
        if not isinstance(want, tuple):
            if x is not want and (isinstance(x, torch.Tensor) or x != want):
                what = "a tensor" if isinstance(x, torch.Tensor) else repr(x)
                raise _refusal(f"input {name!r} is {what}", repr(want), "with this value")
            continue
        if not isinstance(x, torch.Tensor):
            raise _refusal(f"input {name!r} is {x!r}", "a tensor", "with this value")
        if x.ndim != len(want):
            raise _refusal(f"input {name!r} has {x.ndim} axes", str(len(want)))
        for axis, size in enumerate(want):
            given = x.shape[axis]
            what = f"input {name!r} has size {given} along axis {axis}"
            if isinstance(size, str):
                same, where = known.setdefault(size, (given, name))
                if given != same:
                    raise _refusal(what, f"that of {where!r}, {same},")
            elif size is not None and given != size:
                raise _refusal(what, str(size), _TWO if axis == 0 and size == 1 else _SIZES)
    return None


_SIZES = "with inputs of these sizes"
_TWO = f"{_SIZES}, or with a batch of two or more for a model that takes any batch"


def _refusal(what: str, captured: str, trace: str = _SIZES) -> ArgumentError:
    return ArgumentError(
        f"{what}, but torch.export captured this model for {captured} alone; "
        f"trace the model {trace}"
    )


fx.node.has_side_effect(require_inputs)
