"""Example inputs: bring them into one form, remember their shapes, make them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from upscale_opt.errors import TraceError
from upscale_opt.ir.graph import Example

Inputs = torch.Tensor | tuple[Any, ...] | list[Any] | dict[str, Any]
"""A tensor, a tuple or list of positional arguments, or a dict of keyword arguments."""


def as_call(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments.

    Raises:
        TraceError: if ``inputs`` is none of the accepted forms.
    """
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    if isinstance(inputs, Mapping) and all(isinstance(key, str) for key in inputs):
        return (), dict(inputs)
    raise TraceError(
        f"inputs are a {type(inputs).__name__}; give a tensor, a tuple or list of positional "
        "arguments, or a dict of keyword arguments"
    )


def describe(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Example:
    """Remember a call's arguments by shape and dtype.

    Raises:
        TraceError: if an argument is neither a tensor, a plain value, nor a collection of such.
    """
    items = [_describe(value) for value in (*args, *kwargs.values())]
    return Example(kind="tuple", items=tuple(items), keys=tuple(kwargs))


def _describe(value: Any) -> Example:
    if isinstance(value, torch.Tensor):
        return Example(kind="tensor", shape=tuple(value.shape), dtype=dtype_name(value.dtype))
    if value is None or isinstance(value, (bool, int, float, str)):
        return Example(kind="value", value=value)
    if isinstance(value, (tuple, list)):
        items = tuple(_describe(v) for v in value)
        return Example(kind="tuple" if isinstance(value, tuple) else "list", items=items)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        items = tuple(_describe(v) for v in value.values())
        return Example(kind="dict", items=items, keys=tuple(value))
    raise TraceError(
        f"an input is a {type(value).__name__}; tensors, numbers, strings, None, and tuples, lists "
        "and dicts of them are understood"
    )


def remake(
    example: Example, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Zeros of the remembered shapes; floating-point tensors get ``dtype``."""
    values = [_remake(item, dtype, device) for item in example.items]
    count = len(values) - len(example.keys)
    return tuple(values[:count]), dict(zip(example.keys, values[count:], strict=True))


def _remake(example: Example, dtype: torch.dtype, device: torch.device) -> Any:
    if example.kind == "tensor":
        own = getattr(torch, example.dtype)
        return torch.zeros(
            example.shape, dtype=dtype if own.is_floating_point else own, device=device
        )
    if example.kind == "value":
        return example.value
    items = [_remake(item, dtype, device) for item in example.items]
    if example.kind == "dict":
        return dict(zip(example.keys, items, strict=True))
    return tuple(items) if example.kind == "tuple" else items


def map_tensors(tree: Any, function: Any) -> Any:
    """``tree`` with ``function`` applied to every tensor in it."""
    return pytree.tree_map_only(torch.Tensor, function, tree)


def dtype_name(dtype: torch.dtype) -> str:
    """``"float32"`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
