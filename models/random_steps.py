"""The functions that a random network's steps call: one line each, results always in a list."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def chunk(x: Tensor, pieces: int, count: int) -> list[Tensor]:
    """Cut the channels; the count is passed in, for a traced tuple has no length."""
    parts = torch.chunk(x, pieces, dim=1)
    return [parts[index] for index in range(count)]


def cat(*operands: Tensor) -> list[Tensor]:
    """Concatenate images along channels."""
    return [torch.cat(operands, dim=1)]


def cat_last(*operands: Tensor) -> list[Tensor]:
    """Concatenate tokens or vectors along channels."""
    return [torch.cat(operands, dim=-1)]


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
}
"""Step name → function of the operands and the step's constants or parameter."""
