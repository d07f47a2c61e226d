"""Calls for what Python and PyTorch do by means that know no proxies."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx


def assign(tensor: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    """Run ``tensor[index] = value``, and return the tensor."""
    if isinstance(tensor, fx.Proxy):  # read again, or traced again
        arguments = tensor, index, value
        made: Any = tensor.tracer.create_proxy("call_function", assign, arguments, {})
        return made
    tensor[index] = value
    return tensor


fx.node.has_side_effect(assign)


def finfo(dtype: Any) -> Any:
    """The :class:`torch.finfo` of a dtype."""
    if isinstance(dtype, fx.Proxy):
        return dtype.tracer.create_proxy("call_function", finfo, (dtype,), {})
    return torch.finfo(dtype)


def iinfo(dtype: Any) -> Any:
    """The :class:`torch.iinfo` of a dtype."""
    if isinstance(dtype, fx.Proxy):
        return dtype.tracer.create_proxy("call_function", iinfo, (dtype,), {})
    return torch.iinfo(dtype)


def whole(number: Any) -> Any:
    """The ``int`` of a number."""
    if isinstance(number, fx.Proxy):
        return number.tracer.create_proxy("call_function", whole, (number,), {})
    return int(number)


def real(number: Any) -> Any:
    """The ``float`` of a number."""
    if isinstance(number, fx.Proxy):
        return number.tracer.create_proxy("call_function", real, (number,), {})
    return float(number)
