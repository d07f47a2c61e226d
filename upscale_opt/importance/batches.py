"""Batches that a user hands to a criterion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


def as_batches(batches: Iterable[Any]) -> Iterable[Any]:
    """``batches``; a single tensor or dict is one batch, not a series of images or names."""
    return [batches] if isinstance(batches, (Tensor, Mapping)) else batches
