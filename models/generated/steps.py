"""The functions that a random network's steps call, results always in a list."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from upscale_opt.models.attention import ATTENTION


def chunk(x: Tensor, pieces: int, count: int) -> list[Tensor]:
    """Cut the channels; the count is passed in, for a traced tuple has no length."""
    parts = torch.chunk(x, pieces, dim=1)
    return [parts[index] for index in range(count)]


def split(x: Tensor, *sizes: int) -> list[Tensor]:
    """Cut the channels into pieces of given sizes."""
    parts = torch.split(x, list(sizes), dim=1)
    return [parts[index] for index in range(len(sizes))]


def halve_last(x: Tensor) -> list[Tensor]:
    """Cut channels that come last into two."""
    left, right = x.chunk(2, dim=-1)
    return [left, right]


def cat(*operands: Tensor) -> list[Tensor]:
    """Concatenate images along channels."""
    return [torch.cat(operands, dim=1)]


def cat_last(*operands: Tensor) -> list[Tensor]:
    """Concatenate tokens or vectors along channels."""
    return [torch.cat(operands, dim=-1)]


def shuffle(x: Tensor, groups: int) -> list[Tensor]:
    """Shuffle channels as torchvision's ShuffleNet does."""
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return [x.view(batch, channels, height, width)]


def centre(x: Tensor, dim: int) -> list[Tensor]:
    """Subtract the mean over channels, and divide by what is like a deviation."""
    centred = x - x.mean(dim, keepdim=True)
    return [centred / (1 + centred.abs().mean(dim, keepdim=True))]


def unit_norm(x: Tensor, dim: int) -> list[Tensor]:
    """Divide by the norm over channels, where it is not small."""
    return [x / (torch.linalg.vector_norm(x, dim=dim, keepdim=True) + 0.1)]


def maxout(x: Tensor) -> list[Tensor]:
    """Take the larger of every two neighbouring channels."""
    return [torch.unflatten(x, 1, (-1, 2)).amax(2)]


def merge_patches(x: Tensor) -> list[Tensor]:
    """Move each two by two pixels into channels that come last, as Swin does."""
    corners = [x[:, i::2, j::2] for j in range(2) for i in range(2)]
    return [torch.cat(corners, dim=-1)]


STEPS: dict[str, Callable[..., list[Tensor]]] = {
    "relu": lambda x: [torch.relu(x)],
    "silu": lambda x: [functional.silu(x)],
    "tanh": lambda x: [x.tanh()],
    "sigmoid": lambda x: [torch.sigmoid(x)],
    "exp": lambda x: [torch.exp(x.clamp(max=1.0))],
    "softplus": lambda x: [functional.softplus(x)],
    "add_one": lambda x: [x + 1],
    "add": lambda x, y: [x + y],
    "add_": lambda x, y: [x.add_(y)],
    "sub": lambda x, y: [x - y],
    "mul": lambda x, y: [x * y],
    "cat": cat,
    "cat_last": cat_last,
    "slice": lambda x, start, stop: [x[:, start:stop]],
    "chunk": chunk,
    "avg_pool": lambda x: [functional.avg_pool2d(x, 2)],
    "adaptive_pool": lambda x, side: [functional.adaptive_avg_pool2d(x, side)],
    "mean": lambda x: [x.mean((2, 3))],
    "mean_keepdim": lambda x: [x.mean((2, 3), keepdim=True)],
    "mean_tokens": lambda x: [x.mean(1)],
    "flatten": lambda x: [torch.flatten(x, 1)],
    "reshape_batch": lambda x: [x.reshape(x.size(0), -1)],
    "reshape_fixed": lambda x, features: [x.reshape(-1, features)],
    "to_tokens": lambda x: [x.flatten(2).transpose(1, 2)],
    "from_tokens": lambda x, height, width: [
        x.transpose(1, 2).reshape(x.size(0), -1, height, width)
    ],
    # From here on: what the vocabulary "basic" lacks.
    "relu_": lambda x: [functional.relu(x, inplace=True)],
    "mul_": lambda x, y: [x.mul_(y)],
    "flip": lambda x: [x.flip(1)],
    "roll": lambda x, shift: [torch.roll(x, shift, 1)],
    "take": lambda x, *order: [x[:, list(order)]],
    "stride": lambda x, start, step: [x[:, start::step]],
    "split": split,
    "slice_last": lambda x, start, stop: [x[..., start:stop]],
    "halve_last": halve_last,
    "shuffle": shuffle,
    "unflatten_shuffle": lambda x, groups: [
        x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
    ],
    "torch_shuffle": lambda x, groups: [torch.channel_shuffle(x, groups)],
    "glu": lambda x, dim: [functional.glu(x, dim)],
    "maxout": maxout,
    "pad_channels": lambda x, before, after: [functional.pad(x, (0, 0, 0, 0, before, after))],
    "pixel_shuffle": lambda x: [functional.pixel_shuffle(x, 2)],
    "pixel_unshuffle": lambda x: [functional.pixel_unshuffle(x, 2)],
    "softmax": lambda x, dim: [x.softmax(dim)],
    "log_softmax": lambda x, dim: [functional.log_softmax(x, dim)],
    "mean_channels": lambda x, dim: [x.mean(dim, keepdim=True)],
    "amax_channels": lambda x, dim: [x.amax(dim, keepdim=True)],
    "cumsum": lambda x, dim: [x.cumsum(dim)],
    "centre": centre,
    "unit_norm": unit_norm,
    "to_last": lambda x: [x.permute(0, 2, 3, 1)],
    "from_last": lambda x: [x.permute(0, 3, 1, 2)],
    "to_sequence": lambda x: [x.flatten(2)],
    "from_sequence": lambda x, height, width: [x.unflatten(2, (height, width))],
    "to_volume": lambda x: [x.unsqueeze(2)],
    "squeeze_depth": lambda x: [x.squeeze(2)],
    "mean_depth": lambda x: [x.mean(2)],
    "to_depth": lambda x: [x.unsqueeze(1)],
    "mean_features": lambda x: [x.mean(1)],
    "spread": lambda x: [x[:, :, None, None]],
    "swap": lambda x: [x.transpose(1, 2)],
    "first_token": lambda x: [x[:, 0]],
    "drop_token": lambda x: [x[:, 1:]],
    "merge_patches": merge_patches,
    **ATTENTION,
}
"""Step name → function of the operands and the step's constants or parameter."""
