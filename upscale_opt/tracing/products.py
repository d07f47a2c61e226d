"""Calls that multiply tensors, and along which axes: attention, ``matmul`` and ``einsum``."""

from __future__ import annotations

import operator
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn import functional

from upscale_opt.tracing.site import CallSite
from upscale_opt.tracing.values import Traced


@dataclass(frozen=True)
class Product:
    """A call as a product of tensors, with a letter for every axis.

    Attributes:
        how: what kind of call it is.
        operands: what is multiplied.
        letters: of every operand.
        result: of the result.
        equation: of an ``einsum``.
        scale: what scores are multiplied by, if this is attention in one call.
        repeats: how many heads of queries share each head of keys and values.
    """

    how: Literal["attention", "matmul", "einsum"]
    operands: tuple[Traced, ...]
    letters: tuple[str, ...]
    result: str
    equation: str = ""
    scale: float | None = None
    repeats: int = 1


_MATMULS = {torch.matmul, torch.bmm, operator.matmul}
_METHODS = {"matmul", "bmm", "__matmul__"}
_ATTENTION = {functional.scaled_dot_product_attention}


def product_of(site: CallSite) -> Product | None:
    """The product that a call computes, if it does, and nothing but single heads is broadcast."""
    target = site.node.target
    name = ""
    if isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.split("::")[1]
    if site.node.op == "call_module":
        return None
    if target in _ATTENTION or name == "scaled_dot_product_attention":
        return _attention(site)
    if target is torch.einsum:
        return _einsum(site)
    if target in _MATMULS or name in ("matmul", "bmm"):
        return _matmul(site)
    if site.node.op == "call_method" and target in _METHODS:
        return _matmul(site)
    return None


def attention_arguments(args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``scaled_dot_product_attention``, by name."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _attention(site: CallSite) -> Product | None:
    given = attention_arguments(*site.arguments)
    operands = tuple(given.get(name) for name in ("query", "key", "value"))
    if not all(isinstance(x, Traced) for x in operands):
        return None
    query, key, _ = operands
    assert isinstance(query, Traced)
    assert isinstance(key, Traced)
    grouped = bool(given.get("enable_gqa")) and min(len(query.shape), len(key.shape)) > 2
    repeats = query.shape[-3] // key.shape[-3] if grouped else _broadcast(operands)
    batch = string.ascii_lowercase[: len(query.shape) - 2]
    scale = given.get("scale")
    if not (scale is None or isinstance(scale, (int, float))):
        return None
    return _checked(
        Product(
            "attention",
            operands,  # type: ignore[arg-type]
            (batch + "yz", batch + "xz", batch + "xw"),
            batch + "yw",
            scale=query.shape[-1] ** -0.5 if scale is None else scale,
            repeats=repeats,
        ),
        site,
    )


def _matmul(site: CallSite) -> Product | None:
    args, kwargs = site.arguments
    if kwargs or len(args) != 2 or not all(isinstance(x, Traced) for x in args):
        return None
    batch = string.ascii_lowercase[: len(args[0].shape) - 2]
    letters = batch + "yz", batch + "zx"
    return _checked(Product("matmul", args, letters, batch + "yx", repeats=_broadcast(args)), site)


def _broadcast(operands: Sequence[Any]) -> int:
    """Count the heads of the first operand, if each of the others has one for all of them."""
    if any(not isinstance(x, Traced) or len(x.shape) < 4 for x in operands):
        return 1
    first, *others = (x.shape[-3] for x in operands)
    return first if set(others) == {1} else 1


def _einsum(site: CallSite) -> Product | None:
    args, kwargs = site.arguments
    operands = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
    equation = args[0].replace(" ", "") if isinstance(args[0], str) else ""
    sides = equation.split("->")
    if kwargs or len(operands) != 2 or len(sides) != 2 or "." in equation:
        return None
    letters = tuple(sides[0].split(","))
    if len(letters) != 2 or not all(isinstance(x, Traced) for x in operands):
        return None
    return _checked(Product("einsum", tuple(operands), letters, sides[1], equation), site)


def _checked(product: Product, site: CallSite) -> Product | None:
    """``product``, if every letter stands for one size."""
    sizes: dict[str, int] = {}
    shapes = [x.shape for x in product.operands]
    if product.repeats > 1:
        shapes[1:] = [(*s[:-3], s[-3] * product.repeats, *s[-2:]) for s in shapes[1:]]
    for letters, shape in zip(
        (*product.letters, product.result), (*shapes, site.outputs[0].shape), strict=True
    ):
        if len(letters) != len(shape) or len(set(letters)) < len(letters):
            return None
        if any(sizes.setdefault(c, size) != size for c, size in zip(letters, shape, strict=True)):
            return None
    return product
