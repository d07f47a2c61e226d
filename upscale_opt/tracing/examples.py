"""Example inputs: bring them into one form, remember their shapes, make them again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from upscale_opt.errors import SchemaError, TraceError
from upscale_opt.ir.graph import Example

Inputs = torch.Tensor | tuple[Any, ...] | list[Any] | dict[str, Any]
"""A tensor, a tuple or list of positional arguments, or a dict of keyword arguments."""

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex128", "complex64", "complex32"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
    if hasattr(torch, name)
}
"""The dtypes that documents and files may name; PyTorch crashes on bytes said to be quantized."""

_MOST = 2**30
"""More numbers than this are no example; zeros take no memory before they are written."""


def require_model(model: object, what_for: str) -> None:
    """Refuse what is no model.

    Raises:
        TraceError: naming what was given.
    """
    if not isinstance(model, torch.nn.Module):
        raise TraceError(f"cannot {what_for} a {type(model).__name__}; give an nn.Module")


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
    if isinstance(value, torch.dtype):
        return Example(kind="dtype", dtype=dtype_name(value))
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return Example(kind="slice", items=tuple(_describe(v) for v in parts))
    if isinstance(value, (tuple, list)):
        items = tuple(_describe(v) for v in value)
        return Example(kind="tuple" if isinstance(value, tuple) else "list", items=items)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        items = tuple(_describe(v) for v in value.values())
        return Example(kind="dict", items=items, keys=tuple(value))
    raise TraceError(
        f"an input is a {type(value).__name__}; tensors, numbers, strings, None, dtypes, "
        "slices, and tuples, lists and dicts of them are understood"
    )


def remake(
    example: Example, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Zeros of the remembered shapes; floating-point tensors get ``dtype``.

    Raises:
        SchemaError: if there can be no such inputs.
    """
    _check_tensors(example)
    try:
        return _remade(example, dtype, device)
    except (MemoryError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SchemaError(f"the solution's example inputs cannot be made: {reason}") from None


def _check_tensors(example: Example) -> None:
    """Refuse dtypes, sizes and numbers of elements that no inputs have.

    Raises:
        SchemaError: naming the first.
    """
    numbers = 0
    for leaf in _leaves(example):
        if leaf.kind not in ("tensor", "dtype"):
            continue
        why = ""
        if leaf.dtype not in DTYPES:
            why = f"{leaf.dtype!r} is not a dtype of tensors"
        elif min(leaf.shape, default=0) < 0:
            why = f"{leaf.shape} is not a shape"
        numbers += 0 if why or leaf.kind == "dtype" else math.prod(leaf.shape)
        if numbers > _MOST:
            why = f"they hold more than {_MOST:,} numbers"
        if why:
            raise SchemaError(f"the solution's example inputs cannot be made: {why}")


def _leaves(example: Example) -> Iterator[Example]:
    yield example
    for item in example.items:
        yield from _leaves(item)


def _remade(
    example: Example, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    values = [_remake(item, dtype, device) for item in example.items]
    count = len(values) - len(example.keys)
    return tuple(values[:count]), dict(zip(example.keys, values[count:], strict=True))


def _remake(example: Example, dtype: torch.dtype, device: torch.device) -> Any:
    if example.kind == "tensor":
        own = DTYPES[example.dtype]
        return torch.zeros(
            example.shape, dtype=dtype if own.is_floating_point else own, device=device
        )
    if example.kind == "value":
        return example.value
    if example.kind == "dtype":
        return DTYPES[example.dtype]
    items = [_remake(item, dtype, device) for item in example.items]
    if example.kind == "slice":
        return slice(*items)
    if example.kind == "dict":
        return dict(zip(example.keys, items, strict=True))
    return tuple(items) if example.kind == "tuple" else items


def map_tensors(tree: Any, function: Any) -> Any:
    """``tree`` with ``function`` applied to every tensor in it."""
    return pytree.tree_map_only(torch.Tensor, function, tree)


def dtype_name(dtype: torch.dtype) -> str:
    """``"float32"`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
