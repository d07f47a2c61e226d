"""Rotary embeddings, as a call of its own."""

from __future__ import annotations

from torch import Tensor, cat


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of channels, those in the first half of the last axis with the other half.

    Su et al., RoFormer, 2021, in the spelling of transformers.

    Args:
        x: of shape (..., channels), floating point.
        cos: of a shape that can be broadcast to that of ``x``.
        sin: of the shape of ``cos``.
    """
    half = x.shape[-1] // 2
    return x * cos + cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def signed(sin: Tensor) -> Tensor:
    """Take the other sign in the first half of the last axis.

    Args:
        sin: of shape (..., channels).
    """
    half = sin.shape[-1] // 2
    return cat((-sin[..., :half], sin[..., half:]), dim=-1)
