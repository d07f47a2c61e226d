"""Differences of two results: tensors, containers, objects and plain values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

_ALLOWED = {torch.float64: 1e-7, torch.float32: 1e-3, torch.complex64: 1e-3}
"""Deviations of results, relative to the largest of them; other dtypes are coarser."""


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Tell whether two tensors are equal up to rounding."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    allowed = _ALLOWED.get(a.dtype, 5e-2)
    a, b = a.detach(), b.detach()
    if not (a.is_complex() or a.dtype == torch.float64):
        a, b = a.double(), b.double()
    fine = a.isfinite()
    if not torch.equal(fine, b.isfinite()):
        return False
    scale = float(a[fine].abs().max()) if bool(fine.any()) else 1.0
    return torch.allclose(a, b, rtol=allowed, atol=allowed * scale, equal_nan=True)


def differing(
    want: Any,
    got: Any,
    same: Callable[[torch.Tensor, torch.Tensor], bool],
    place: str = "the result",
) -> str | None:
    """Find where two results differ; ``None`` if they do not.

    Args:
        want: tensors in any containers, named tuples, dataclasses and objects.
        got: what is compared with it.
        same: compares two tensors.
        place: where this is.
    """
    if isinstance(want, torch.Tensor) and isinstance(got, torch.Tensor):
        return None if same(want, got) else place
    if _kind(want) is not _kind(got):
        return f"{place}, a {_kind(got).__name__} instead of a {_kind(want).__name__}"
    if isinstance(want, (tuple, list)):
        if len(want) != len(got):
            return f"{place}, which has {len(got)} parts instead of {len(want)}"
        parts = [(f"{place}[{i}]", a, b) for i, (a, b) in enumerate(zip(want, got, strict=True))]
    elif isinstance(want, dict):
        if list(want) != list(got):
            return f"{place}, whose keys are {list(got)} instead of {list(want)}"
        parts = [(f"{place}[{key!r}]", value, got[key]) for key, value in want.items()]
    elif want is got:
        return None
    elif hasattr(want, "__dict__") and not isinstance(want, (type, nn.Module)):
        a, b = vars(want), vars(got)
        if list(a) != list(b):
            return f"{place}, whose attributes are {list(b)} instead of {list(a)}"
        parts = [(f"{place}.{key}", value, b[key]) for key, value in a.items()]
    else:
        equal = want == got or (want != want and got != got)
        return None if equal is True else place
    return next((d for p, a, b in parts if (d := differing(a, b, same, p)) is not None), None)


def _kind(value: Any) -> Any:
    if isinstance(value, fx.immutable_collections.immutable_list):
        return list
    return dict if isinstance(value, fx.immutable_collections.immutable_dict) else type(value)
