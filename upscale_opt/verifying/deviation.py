"""The distance of two outputs, and how large it may be."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils import _pytree as pytree

from upscale_opt.errors import VerificationError
from upscale_opt.tracing.examples import dtype_name

EXACT = 1e-10
"""The relative deviation allowed in float64: rounding, and nothing else."""

ALLOWED = {
    torch.float64: EXACT,
    torch.float32: 1e-3,
    torch.float16: 5e-2,
    torch.bfloat16: 3e-1,
}
"""The relative deviation that rounding explains, by the precision computed in; else ``EXACT``."""


def allowed(dtype: torch.dtype) -> float:
    """The relative deviation that is allowed where models compute in ``dtype``."""
    return ALLOWED.get(dtype, EXACT)


def deviation(want: Any, got: Any) -> float:
    """The largest deviation of a number, relative to the largest magnitude in its tensor.

    Args:
        want: the masked model's output: tensors and numbers in nested tuples, lists and dicts.
            Other plain values have to be equal.
        got: the pruned model's.

    Returns:
        The deviation; NaN if something is not finite where it should be.

    Raises:
        VerificationError: if they differ in structure, shape or dtype, or ``want`` is not finite.
    """
    wanted, structure = pytree.tree_flatten(want)
    actual, other = pytree.tree_flatten(got)
    if structure != other:
        raise VerificationError(
            f"the pruned model returns {other} where the masked one returns {structure}"
        )
    pairs = enumerate(zip(wanted, actual, strict=True))
    errors = [_apart(index, *pair) for index, pair in pairs]
    return math.nan if any(map(math.isnan, errors)) else max(errors, default=0.0)


def _apart(index: int, want: Any, got: Any) -> float:
    if type(want) is float and type(got) is float:
        want, got = torch.tensor(want, dtype=torch.float64), torch.tensor(got, dtype=torch.float64)
    if not isinstance(want, torch.Tensor) or not isinstance(got, torch.Tensor):
        plain = want is None or isinstance(want, (bool, int, float, str))
        if type(want) is not type(got) or (plain and want != got):
            raise VerificationError(f"output {index} is {got!r} instead of {want!r}")
        return 0.0
    if want.dtype != got.dtype:
        raise VerificationError(
            f"output {index} is {dtype_name(got.dtype)} instead of {dtype_name(want.dtype)}"
        )
    if want.shape != got.shape:
        raise VerificationError(
            f"output {index} has the shape {tuple(got.shape)} instead of {tuple(want.shape)}"
        )
    wide = torch.complex128 if want.is_complex() else torch.float64
    want, got = want.detach().to(wide), got.detach().to(wide)
    if not bool(want.isfinite().all()):
        raise VerificationError(
            f"output {index} of the masked model is not finite, so there is nothing to compare "
            "with; give other inputs"
        )
    if not want.numel():
        return 0.0
    scale, difference = float(want.abs().max()), float((want - got).abs().max())
    return difference / scale if scale > 0 else difference
