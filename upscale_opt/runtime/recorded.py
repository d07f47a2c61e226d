"""Calls for what Python and PyTorch do by means that know no proxies."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import fx


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is a call in the program where its first argument is a proxy.

    So it is, too, where a program that has such calls is read or traced again.
    """

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        if isinstance(args[0], fx.Proxy):
            return args[0].tracer.create_proxy("call_function", call, args, {})
        return function(*args)

    return call


@_recorded
def assign(tensor: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    """Run ``tensor[index] = value``, and return the tensor."""
    tensor[index] = value
    return tensor


fx.node.has_side_effect(assign)


@_recorded
def finfo(dtype: torch.dtype) -> torch.finfo:
    """The :class:`torch.finfo` of a dtype."""
    return torch.finfo(dtype)


@_recorded
def iinfo(dtype: torch.dtype) -> torch.iinfo:
    """The :class:`torch.iinfo` of a dtype."""
    return torch.iinfo(dtype)


@_recorded
def whole(number: Any) -> int:
    """The ``int`` of a number."""
    return int(number)


@_recorded
def real(number: Any) -> float:
    """The ``float`` of a number."""
    return float(number)
