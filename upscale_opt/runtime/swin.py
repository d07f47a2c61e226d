"""Windows of images, as Swin transformers attend within them.

Each function is one call to :mod:`torch.fx`, as what it does depends on the image's size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from upscale_opt.runtime.one_call import one_call


@one_call
def split_windows(x: torch.Tensor, window: Sequence[int], shift: Sequence[int]) -> torch.Tensor:
    """Cut images into windows, which become the batch and their pixels tokens.

    Args:
        x: images of shape (batch, height, width, channels); padded with zeros as needed.
        window: height and width of a window.
        shift: how far the images are rolled before; not along an axis that has but one window.

    Returns:
        Tokens of shape (batch * windows, pixels, channels).
    """
    batch, height, width, channels = x.shape
    rows, columns, rolled = _grid(height, width, window, shift)
    below, right = rows * window[0] - height, columns * window[1] - width
    if below or right:
        x = functional.pad(x, (0, 0, 0, right, 0, below))
    if any(rolled):
        x = torch.roll(x, (-rolled[0], -rolled[1]), (1, 2))
    x = x.reshape(batch, rows, window[0], columns, window[1], channels)
    return x.transpose(2, 3).reshape(-1, window[0] * window[1], channels)


@one_call
def join_windows(
    x: torch.Tensor, height: int, width: int, window: Sequence[int], shift: Sequence[int]
) -> torch.Tensor:
    """The inverse of :func:`split_windows`, for images of this height and width."""
    rows, columns, rolled = _grid(height, width, window, shift)
    x = x.reshape(-1, rows, columns, window[0], window[1], x.shape[-1]).transpose(2, 3)
    x = x.reshape(-1, rows * window[0], columns * window[1], x.shape[-1])
    if any(rolled):
        x = torch.roll(x, (rolled[0], rolled[1]), (1, 2))
    return x[:, :height, :width].contiguous()


@one_call
def mask_windows(
    scores: torch.Tensor, height: int, width: int, window: Sequence[int], shift: Sequence[int]
) -> torch.Tensor:
    """Lower by 100 the scores of pixels that are in one window only for the rolling.

    Args:
        scores: of shape (batch * windows, heads, pixels, pixels).
        height: of the images.
        width: of the images.
        window: height and width of a window.
        shift: how far the images were to be rolled.
    """
    rows, columns, rolled = _grid(height, width, window, shift)
    if not any(rolled):
        return scores
    vertical = _regions(rows * window[0], window[0], rolled[0], scores.device)
    horizontal = _regions(columns * window[1], window[1], rolled[1], scores.device)
    region = vertical.unsqueeze(1) * 3 + horizontal
    region = region.reshape(rows, window[0], columns, window[1]).transpose(1, 2)
    region = region.reshape(rows * columns, 1, -1)
    apart = region.unsqueeze(-1) != region.unsqueeze(-2)
    penalty = torch.zeros(apart.shape, dtype=scores.dtype, device=scores.device)
    penalty = penalty.masked_fill(apart, -100.0)
    by_window = scores.reshape(-1, *apart.shape[:1], *scores.shape[1:])
    return (by_window + penalty).reshape(scores.shape)


def _grid(
    height: int, width: int, window: Sequence[int], shift: Sequence[int]
) -> tuple[int, int, list[int]]:
    """The numbers of windows in a column and in a row, and how far the images are rolled."""
    rows, columns = -(-height // window[0]), -(-width // window[1])
    rolled = [0 if count == 1 else by for count, by in zip((rows, columns), shift, strict=True)]
    return rows, columns, rolled


def _regions(size: int, window: int, shift: int, device: torch.device) -> torch.Tensor:
    """The former region of each pixel of a rolled row: those of 0, 1 or 2 belonged together."""
    place = torch.arange(size, device=device)
    if not shift:
        return torch.zeros_like(place)
    return (place >= size - window).long() + (place >= size - shift).long()
