"""Steps that a trace may get wrong: numbers from sizes and arguments, gates, helpers it sees not.

Each function gets the network's layer or parameter of the step (or nothing), the arguments of the
call, the step's operands, and its numbers, and returns one tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Given:
    """The optional arguments of a call.

    Attributes:
        k: a number; from 0 on.
        flag: a flag.
        scale: a factor.
        gate: a float, or a tensor that is broadcast against images.
    """

    k: Any = 0
    flag: Any = False
    scale: Any = 1.0
    gate: Any = None


@torch.fx.wrap
def scaled_by_channels(x: Tensor) -> Tensor:
    """Divide by the root of the number of channels."""
    y: Tensor = x * x.shape[1] ** -0.5
    return y


@torch.fx.wrap
def times_positions(x: Tensor) -> Tensor:
    """Multiply by the channels' numbers."""
    return x * torch.ones_like(x).cumsum(1)


@torch.fx.wrap
def softmax_of_groups(x: Tensor) -> Tensor:
    """Take the softmax within each of two groups of channels."""
    shape = x.shape
    return x.reshape(shape[0], 2, -1).softmax(-1).reshape(shape)


@torch.fx.wrap
def times_flipped(x: Tensor, scale: Tensor) -> Tensor:
    """Multiply by a parameter, last channel first."""
    return x * scale.flip(0)


@torch.fx.wrap
def halved(x: Tensor) -> Tensor:
    """Multiply by a half, after a relu."""
    return torch.relu(x) * 0.5


def branch(x: Tensor, y: Tensor) -> Tensor:
    """Decide by a type."""
    return y * 2 if isinstance(x, Tensor) else y.flip(1)


def swapped_halves(y: Tensor, axis: int) -> Tensor:
    """Exchange the halves of an axis."""
    left, right = y.chunk(2, axis)
    return torch.cat([right, left], axis)


def _gated(y: Tensor, gate: Any) -> Tensor:
    return y if gate is None else y * gate


HAZARDS: dict[str, Callable[..., Tensor]] = {
    # Sizes in arithmetic; `x` is the network's input.
    "by_height": lambda w, g, y, x, side: y * (x.shape[2] / side),
    "plus_height": lambda w, g, y, x, side: y + (x.shape[2] - side),
    "minus_width": lambda w, g, y, x, side: y - (x.size(3) - side) * 0.5,
    "clamp_height": lambda w, g, y, x, side: y.clamp(min=x.shape[2] - side),
    "by_channels": lambda w, g, y: y * y.shape[1] ** -0.5,
    "by_features": lambda w, g, y: y * (y.flatten(1).size(1) / 100),
    "by_batch": lambda w, g, y, x: y * (x.shape[0] / 2),
    "by_area": lambda w, g, y: y / (y.shape[2] * y.shape[3]),
    # Sizes of parameters.
    "by_fan_in": lambda w, g, y: y / w.weight.shape[1] ** 0.5,
    "by_numel": lambda w, g, y: y * (w.weight.numel() / 50),
    "by_rows": lambda w, g, y: y * w.weight.size(0),
    # Optional arguments, flags and numbers.
    "times_scale": lambda w, g, y: y * g.scale,
    "plus_scale": lambda w, g, y: y + (g.scale - 1),
    "flag_flip": lambda w, g, y: y.flip(1) if g.flag else y,
    "flag_more": lambda w, g, y: y + 1 if g.flag else y * 2,
    "plus_k": lambda w, g, y: y + g.k,
    "clamp_k": lambda w, g, y: y.clamp(min=g.k),
    "times_k": lambda w, g, y: y * (g.k + 1),
    "roll_k": lambda w, g, y: y.roll(g.k + 1, 1),
    "slice_k": lambda w, g, y: y[:, g.k : g.k + 2],
    "softmax_k": lambda w, g, y: y.softmax(g.k + 1),
    # Gates.
    "times_gate": lambda w, g, y: _gated(y, g.gate),
    "plus_gate": lambda w, g, y: y if g.gate is None else y + g.gate,
    # Negative axes.
    "cat_negative": lambda w, g, y, z: torch.cat([y, z], -3),
    "flip_negative": lambda w, g, y: y.flip(-3),
    "softmax_negative": lambda w, g, y: y.softmax(-3),
    "slice_negative": lambda w, g, y, start, stop: y[..., start:stop, :, :],
    "mean_negative": lambda w, g, y: y - y.mean(-3, keepdim=True),
    "halves_negative": lambda w, g, y: swapped_halves(y, -3),
    # Helpers that are called as one.
    "wrapped_scale": lambda w, g, y: scaled_by_channels(y),
    "wrapped_positions": lambda w, g, y: times_positions(y),
    "wrapped_groups": lambda w, g, y: softmax_of_groups(y),
    "wrapped_flip": lambda w, g, y: times_flipped(y, w),
    "wrapped_half": lambda w, g, y: halved(y),
    # Summands that are zero, and give the shape.
    "plus_pooled": lambda w, g, y, z: functional.adaptive_avg_pool2d(y, 1) + z,
    "pooled_plus": lambda w, g, y, z: z + y.mean((2, 3), keepdim=True),
    # Positions from sizes.
    "roll_height": lambda w, g, y, x: y.roll(x.shape[2], 1),
    "slice_height": lambda w, g, y, x: y[:, x.shape[2] % 3 : x.shape[2] % 3 + 2],
    "take_width": lambda w, g, y, x: y + y[:, x.shape[3] % 2, None],
    "split_height": lambda w, g, y, x: torch.cat(
        [y[:, 1 + x.shape[2] % 2 :], y[:, : 1 + x.shape[2] % 2]], 1
    ),
    # Looks at a tensor.
    "is_tensor": lambda w, g, y, x: branch(x, y),
    "by_rank": lambda w, g, y, x: y * {4: 2.0, 3: 3.0}.get(x.dim(), 1.0),
}
"""Step name → function; see above."""
