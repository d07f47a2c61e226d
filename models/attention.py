"""Attention in the ways people write it: functions that a random network's steps call."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def heads(x: Tensor, count: int) -> list[Tensor]:
    """Attend with queries, keys and values that one layer wrote side by side."""
    batch, length, _ = x.shape
    parts = x.reshape(batch, length, 3, count, -1).permute(2, 0, 3, 1, 4)
    mixed = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
    return [mixed.transpose(1, 2).reshape(batch, length, -1)]


def heads_unbound(x: Tensor, count: int) -> list[Tensor]:
    """Attend with unbound parts and a softmax written out, scaled by what the shape says."""
    batch, length, width = x.shape
    parts = x.view(batch, length, 3, count, width // (3 * count)).permute(2, 0, 3, 1, 4)
    query, key, value = parts.unbind(0)
    weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return [(weights.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, -1)]


def heads_chunked(x: Tensor, count: int) -> list[Tensor]:
    """Attend with the parts cut before the heads are."""
    query, key, value = x.chunk(3, dim=-1)
    return attend(query, key, value, count)


def heads_transposed(x: Tensor, count: int) -> list[Tensor]:
    """Attend across channels instead of tokens (XCiT): each channel mixes those of its head."""
    batch, length, _ = x.shape
    parts = x.reshape(batch, length, 3, count, -1).permute(2, 0, 3, 4, 1)
    query, key = functional.normalize(parts[0], dim=-1, eps=0.1), parts[1]
    weights = torch.softmax(query @ key.transpose(-2, -1) / 4, dim=-1)
    return [(weights @ parts[2]).permute(0, 3, 1, 2).reshape(batch, length, -1)]


def attend(query: Tensor, key: Tensor, value: Tensor, count: int) -> list[Tensor]:
    """Attend with queries, keys and values that are tensors of their own."""
    query, key, value = (_split(part, count) for part in (query, key, value))
    return [_joined(functional.scaled_dot_product_attention(query, key, value))]


def attend_written(query: Tensor, key: Tensor, value: Tensor, count: int) -> list[Tensor]:
    """Attend with a softmax written out, and a constant scale."""
    query, key, value = (_split(part, count) for part in (query, key, value))
    weights = functional.softmax(torch.matmul(query, key.mT) * 0.5, dim=-1)
    return [_joined(torch.matmul(weights, value))]


def attend_shared(query: Tensor, key: Tensor, value: Tensor, count: int) -> list[Tensor]:
    """Attend with many heads that share their keys and values."""
    weights = torch.softmax(_split(query, count) @ key.unsqueeze(1).transpose(-2, -1), dim=-1)
    return [_joined(weights @ value.unsqueeze(1))]


def windows(x: Tensor, count: int, shift: int) -> list[Tensor]:
    """Attend within windows of two by two pixels, rolled by ``shift``, as Swin does."""
    batch, height, width, channels = x.shape
    x = torch.roll(x, (-shift, -shift), (1, 2)) if shift else x
    x = x.view(batch, height // 2, 2, width // 2, 2, channels)
    (mixed,) = heads(x.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, channels), count)
    mixed = mixed.view(batch, height // 2, width // 2, 2, 2, channels // 3)
    mixed = mixed.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels // 3)
    return [torch.roll(mixed, (shift, shift), (1, 2)) if shift else mixed]


def _split(x: Tensor, count: int) -> Tensor:
    """Turn ``(N, T, C)`` into ``(N, heads, T, C / heads)``."""
    return x.view(x.size(0), x.size(1), count, x.size(2) // count).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    """Turn ``(N, heads, T, C)`` into ``(N, T, heads * C)``."""
    return x.transpose(1, 2).flatten(2)


ATTENTION: dict[str, Callable[..., list[Tensor]]] = {
    "heads": heads,
    "heads_unbound": heads_unbound,
    "heads_chunked": heads_chunked,
    "heads_transposed": heads_transposed,
    "attend": attend,
    "attend_written": attend_written,
    "attend_shared": attend_shared,
    "windows": windows,
}
"""Step name → function of the operands and the number of heads."""
