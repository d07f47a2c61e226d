"""Masks of attention as what is added to the scores."""

from __future__ import annotations

import torch
from torch import Tensor

from upscale_opt.runtime.one_call import one_call


@one_call
def attention_bias(
    mask: Tensor | None, padding: Tensor | None, heads: int, dtype: torch.dtype, axes: int
) -> Tensor | None:
    """The sum of what :class:`torch.nn.MultiheadAttention` makes of its masks.

    Args:
        mask: ``attn_mask``, of shape (queries, keys) or (batch * heads, queries, keys); boolean
            where nothing is seen, or floating point.
        padding: ``key_padding_mask``, of shape (batch, keys) or (keys,), the same.
        heads: how many there are.
        dtype: of the tokens.
        axes: how many the tokens have: 3, or 2 where there is no batch.

    Returns:
        A tensor that can be broadcast to (batch, heads, queries, keys), or without the batch.
    """
    result = None if mask is None else added_mask(mask, dtype)
    if result is not None and result.ndim == 3 and axes == 3:
        result = result.reshape(-1, heads, *result.shape[1:])
    if padding is None:
        return result
    own = added_mask(padding, dtype)[..., None, None, :]
    return own if result is None else result + own


@one_call
def added_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added to scores: minus infinity where a boolean one is true."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
