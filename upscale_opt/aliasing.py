"""Calls that modify their input in place must not modify what others still read.

The original program is free of that (tracing sees to it), but in the pruned one a tensor may be a
view of another where the original had a copy.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import fx, nn

from upscale_opt.modules import Gather, PlacedSum

_FRESH_MODULES = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.Linear,
    Gather,
    PlacedSum,
)
_FRESH_FUNCTIONS = {operator.add, operator.mul, operator.sub, torch.add, torch.mul, torch.cat}


def protect(calls: Iterable[fx.Node], modules: dict[str, nn.Module]) -> None:
    """Give every in-place call whose input might be read by others a copy of it.

    Args:
        calls: the calls that modify their first argument in place.
        modules: the modules of the program, by target.
    """
    for call in calls:
        value = call.args[0] if call.args else next(iter(call.kwargs.values()), None)
        if not isinstance(value, fx.Node) or _is_fresh(value, modules):
            continue
        with call.graph.inserting_before(call):
            copied = call.graph.call_method("clone", (value,))
        call.replace_input_with(value, copied)


def _is_fresh(value: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the tensor was made by its call, and nobody else reads it."""
    if len(value.users) != 1:
        return False
    if value.op == "call_module":
        return isinstance(modules.get(str(value.target)), _FRESH_MODULES)
    return value.op == "call_function" and value.target in _FRESH_FUNCTIONS
