"""The distance of two outputs, and how large it may be."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from upscale_opt.errors import VerificationError
from upscale_opt.verifying.rounding import MORE
from upscale_opt.verifying.walking import Pair, pairs_of

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
        want: the masked model's output: tensors and numbers, in whatever holds them. Other values
            have to be equal.
        got: the pruned model's.

    Returns:
        The deviation; NaN if something is not finite where it should be.

    Raises:
        VerificationError: if they differ in structure, shape or dtype, or ``want`` is not finite.
    """
    return largest(Apart.of(pair) for pair in pairs_of(want, got))


def largest(pairs: Iterable[Apart]) -> float:
    """The largest of some deviations; NaN if one is."""
    found = [pair.error for pair in pairs]
    return math.nan if any(map(math.isnan, found)) else max(found, default=0.0)


@dataclass(frozen=True)
class Apart:
    """The distance of two tensors.

    Attributes:
        place: where in the outputs they are.
        error: the largest difference, relative to the largest magnitude wanted.
        sliced: the largest difference in each slice along each axis, relative to the largest
            magnitude wanted there; what is small may lie beside what is huge.
        zero: nothing but zeros is wanted.
    """

    place: str
    error: float
    sliced: tuple[torch.Tensor, ...]
    zero: bool

    @classmethod
    def of(cls, pair: Pair) -> Apart:
        """Compare two tensors of one shape.

        Raises:
            VerificationError: if the first one is not finite.
        """
        want, got = pair.want, pair.got
        if not bool(want.isfinite().all()):
            raise VerificationError(
                f"{pair.place} of the masked model is not finite, so there is nothing to compare "
                "with; give other inputs"
            )
        if not want.numel():
            return cls(pair.place, 0.0, (), True)
        size, far = want.abs(), (want - got).abs()
        scale, difference = float(size.max()), float(far.max())
        error = difference / scale if scale > 0 else difference
        if not difference and not pair.same:  # whole numbers, larger than float64 tells apart
            error = 1.0
        sliced = tuple(
            _by_slice(far, axis) / _scales(_by_slice(size, axis), scale)
            for axis in range(want.ndim)
            if want.shape[axis] > 1
        )
        return cls(pair.place, error, sliced, scale == 0)

    def beyond(self, most: float, noise: Apart | None) -> bool:
        """Tell whether a slice deviates by more than ``most`` and the noise there explain."""
        for axis, errors in enumerate(self.sliced):
            limit = torch.full_like(errors, most)
            if noise is not None:
                limit = torch.maximum(limit, MORE * noise.sliced[axis])
            if not bool((errors <= limit).all()):
                return True
        return False


def _by_slice(values: torch.Tensor, axis: int) -> torch.Tensor:
    others = [other for other in range(values.ndim) if other != axis]
    return values.amax(others) if others else values


def _scales(sizes: torch.Tensor, scale: float) -> torch.Tensor:
    """The scales of slices, to which deviations are relative: of zeros, the tensor's."""
    return torch.where(sizes > 0, sizes, torch.full_like(sizes, scale if scale > 0 else 1.0))
