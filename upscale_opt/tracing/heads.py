"""Channels in tensors that have an axis of heads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from upscale_opt.tracing.channels import Array
from upscale_opt.tracing.values import (
    MOVES_ONE,
    Arrangement,
    NotUnderstood,
    Traced,
    places,
    varying_axes,
)


class HeadsRefused(Exception):  # noqa: N818 - caught in tracing: trace again without heads
    """Attention cannot be expressed in this graph after all."""


@dataclass(frozen=True)
class Heads:
    """A tensor's channels: which lie where.

    Attributes:
        source: the tensor with a channel axis.
        taken: the entries of its axis, head after head; ``None`` if it is the operand itself.
        arrangement: from the channels taken to the operand.
        ids: their ids.
        head: the operand's axis of heads, if there is one.
        channel: the operand's axis of a head's channels.
        flat: the axes of ``source`` behind that of the channels are one in the arrangement.
        repeats: how many heads of the operand, one behind the other, each of these is.
    """

    source: Traced
    taken: Array | None
    arrangement: Arrangement | None
    ids: Array
    head: int | None
    channel: int
    flat: bool = False
    repeats: int = 1

    @property
    def count(self) -> int:
        """The number of heads."""
        return 1 if self.arrangement is None else self.arrangement.heads


def has_channels(x: Traced) -> bool:
    """Tell whether ``x`` is a tensor whose channels are known."""
    return not x.is_constant and (x.spread is not None or x.axis is not None)


def channel_axes(x: Traced) -> list[int]:
    """The axes along which the channels of ``x`` vary."""
    if x.axis is not None:
        return [x.axis]
    if x.spread is None or x.spread.source.ids is None or x.spread.source.axis is None:
        return []
    source = x.spread.source
    assert source.axis is not None
    return varying_axes(x.spread.move(places(source.shape, source.axis)))


def heads_of(x: Traced, channel: int) -> Heads:
    """The places of the channels of ``x``, if axis ``channel`` runs along those of each head.

    Raises:
        NotUnderstood: if they do not lie head by head.
    """
    axes = channel_axes(x)
    if channel not in axes or len(axes) > 2:
        raise NotUnderstood("multiplies along axes that are not those of heads and channels")
    if x.axis is not None:
        assert x.ids is not None
        return Heads(x, None, None, x.ids, None, channel)
    assert x.spread is not None
    source = x.spread.source
    assert source.axis is not None
    assert source.ids is not None
    if len(axes) != 2:
        raise NotUnderstood("shares channels between heads")
    head = next(axis for axis in axes if axis != channel)
    every = torch.arange(source.fake.numel(), dtype=torch.int64).reshape(source.shape)
    moved = x.spread.move(every)
    label = x.spread.move(places(source.shape, source.axis))
    corner = label.permute([head, channel, *(a for a in range(label.ndim) if a not in axes)])
    taken = corner.reshape(*corner.shape[:2], -1)[:, :, 0].flatten().numpy().astype(np.int64)
    flat = moved.ndim <= len(source.shape) and source.axis < len(source.shape) - 2
    joined = every.flatten(source.axis + 1) if flat else every
    order = _order(moved, tuple(joined.shape), source.axis, head, channel)
    repeats = _repeats(taken.reshape(x.shape[head], -1))
    every_head = Arrangement(source.axis, x.shape[head], order)
    expected = every_head.spread(joined.index_select(source.axis, torch.from_numpy(taken)))
    if moved.shape != expected.shape or not torch.equal(moved, expected):
        raise NotUnderstood("moves channels and other elements at once")
    taken = taken.reshape(x.shape[head], -1)[::repeats].flatten()
    arrangement = Arrangement(source.axis, x.shape[head] // repeats, order)
    return Heads(source, taken, arrangement, source.ids[taken], head, channel, flat, repeats)


def _repeats(taken: Array) -> int:
    """Count how often each head occurs, one behind the other.

    Args:
        taken: the channels of every head, of shape (heads, channels).
    """
    same = (taken == taken[0]).all(axis=1)
    count = len(same) if same.all() else int(np.argmin(same))
    if len(taken) % count or not np.array_equal(taken, np.repeat(taken[::count], count, axis=0)):
        return 1
    return count


def _order(
    moved: torch.Tensor, shape: tuple[int, ...], split: int, head: int, channel: int
) -> tuple[int, ...]:
    """The axis that each axis of ``moved`` was, once the axis ``split`` of ``shape`` is two."""
    if moved.ndim != len(shape) + 1:
        raise NotUnderstood("splits or joins axes besides those of heads and channels")
    if shape[0] == 1 != moved.shape[0]:
        raise NotUnderstood(MOVES_ONE)
    strides = {}
    for axis, size in enumerate(shape):
        if axis != split and size > 1:
            stride = int(np.prod(shape[axis + 1 :], dtype=np.int64))
            strides[stride] = axis + (axis > split)
    known: dict[int, int] = {head: split, channel: split + 1}
    for axis, size in enumerate(moved.shape):
        if axis in known or size == 1:
            continue
        first = moved[(0,) * moved.ndim]
        second = moved[tuple(int(a == axis) for a in range(moved.ndim))]
        place = strides.get(int(second - first))
        if place is None:
            raise NotUnderstood("splits or joins axes besides those of heads and channels")
        known[axis] = place
    rest = [place for place in range(moved.ndim) if place not in known.values()]
    single = [axis for axis in range(moved.ndim) if axis not in known]
    if len(rest) > 1 or len(rest) != len(single) or len(set(known.values())) < len(known):
        raise NotUnderstood("has several axes of size one; trace with larger inputs")
    known.update(zip(single, rest, strict=True))
    return tuple(known[axis] for axis in range(moved.ndim))
