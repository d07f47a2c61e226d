"""How far two outputs are apart."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from upscale_opt.errors import VerificationError


def deviation(want: Any, got: Any) -> float:
    """The largest deviation of a tensor, relative to the largest magnitude that it should have.

    Args:
        want: tensors in nested tuples, lists and dicts. Values that are no tensors, and tensors of
            whole numbers, have to be equal.
        got: what is compared with it.

    Returns:
        The deviation; NaN if something is not finite where it should be.

    Raises:
        VerificationError: if they differ in structure, shape or dtype, or ``want`` is not finite.
    """
    wanted, structure = pytree.tree_flatten(want)
    actual, other = pytree.tree_flatten(got)
    if structure != other:
        raise VerificationError(f"the outputs are a {other} instead of a {structure}")
    return max((_apart(*pair) for pair in zip(wanted, actual, strict=True)), default=0.0)


def _apart(want: Any, got: Any) -> float:
    if not isinstance(want, torch.Tensor) or not isinstance(got, torch.Tensor):
        if type(want) is type(got) and want == got:
            return 0.0
        raise VerificationError(f"an output is {got!r} instead of {want!r}")
    if want.shape != got.shape or want.dtype != got.dtype:
        raise VerificationError(
            f"an output has the shape {tuple(got.shape)} and is of {got.dtype}, instead of "
            f"{tuple(want.shape)} and {want.dtype}"
        )
    if not want.dtype.is_floating_point:
        return 0.0 if torch.equal(want, got) else float("inf")
    want, got = want.double(), got.double()
    if not bool(want.isfinite().all()):
        raise VerificationError("an output of the masked model is not finite")
    if not want.numel():
        return 0.0
    scale, difference = float(want.abs().max()), float((want - got).abs().max())
    return difference / scale if scale > 0 else difference
