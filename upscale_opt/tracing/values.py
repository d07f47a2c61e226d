"""The facts that tracing knows of a tensor while it runs through the program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

from upscale_opt.tracing.channels import Array, Channels


class NotUnderstood(Exception):  # noqa: N818 - a refusal inside tracing, not an error
    """An operation (with these arguments) cannot be understood; the message is the reason."""


MOVES_ONE = "moves a first axis of size one; if that is the batch, trace with two or more"


def check_batch(source: tuple[int, ...], results: Iterable[tuple[int, ...]]) -> None:
    """Refuse to follow a batch of one into another axis.

    With a batch of one, merging the batch axis with the channel axis looks like a reshape of the
    channels alone.

    Raises:
        NotUnderstood: if a tensor with a batch of one gets another first axis.
    """
    if len(source) > 1 and source[0] == 1 and any(shape[:1] != (1,) for shape in results):
        raise NotUnderstood(MOVES_ONE)


@dataclass
class Traced:
    """A tensor that will be part of the graph.

    Attributes:
        name: its name there.
        fake: a stand-in with its shape, dtype and device, without data.
        axis: the channel axis, once known.
        ids: one channel id per element along the axis, once the axis is known.
        why_fixed: for a tensor whose axis is not known yet: why its channels are fixed.
        is_constant: it is a parameter, whose channels are not fixed, and which has no batch axis.
        spread: where its elements come from, if channels lie along several of its axes.
        detour: for what was spread, and has a channel axis again: the tensor it was made of.
        like: for a tensor that no call of the program returns: for each axis, a tensor that has
            the same size along one of its own, if one is known.
        copies: the axis along which a tensor with a channel axis holds copies, if it was expanded.
    """

    name: str
    fake: torch.Tensor
    axis: int | None = None
    ids: Array | None = None
    why_fixed: str = ""
    is_constant: bool = False
    spread: Spread | None = None
    detour: str | None = None
    like: tuple[tuple[Traced, int] | None, ...] = ()
    copies: int | None = None

    def __post_init__(self) -> None:
        self.shape = tuple(int(size) for size in self.fake.shape)
        """Its sizes, as they were when it was made."""


@dataclass(frozen=True)
class Spread:
    """The origin of the elements of a tensor whose channels lie along several axes.

    Attributes:
        source: the tensor with a channel axis.
        move: what the tensor holds, given what ``source`` holds.
    """

    source: Traced
    move: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Arrangement:
    """The way from a tensor with a channel axis to one in which heads have an axis of their own.

    Attributes:
        axis: the channel axis: head after head.
        heads: how many there are.
        order: the sequence of axes once the channel axis is split in two.
    """

    axis: int
    heads: int
    order: tuple[int, ...]

    @property
    def head(self) -> int:
        """The axis of heads."""
        return self.order.index(self.axis)

    @property
    def back(self) -> tuple[int, ...]:
        """The inverse of ``order``."""
        return tuple(self.order.index(axis) for axis in range(len(self.order)))

    def spread(self, joined: torch.Tensor) -> torch.Tensor:
        """The tensor with an axis of heads."""
        shape = list(joined.shape)
        shape[self.axis : self.axis + 1] = self.heads, shape[self.axis] // self.heads
        return joined.reshape(shape).permute(self.order)


@dataclass(frozen=True)
class Kind:
    """Some of a head's channels: those that are turned in pairs, or those that are not.

    Attributes:
        op: the operation that reads them.
        tensor: the graph's tensor of them, each of them once.
        runs: where in a head they lie: in one run, or in two that are the same channels.
    """

    op: str
    tensor: str
    runs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Merged:
    """Channels several of which are one: of heads that share their keys, or turned in pairs.

    Attributes:
        tensor: the graph's tensor that holds all of them, head after head.
        size: how many a head has.
        heads: how many heads, one behind the other, have the same channels.
        kinds: the channels, each of them once.
    """

    tensor: str
    size: int
    heads: int
    kinds: tuple[Kind, ...]

    def entries(self, read: Sequence[Sequence[int]]) -> list[int]:
        """The entries of ``tensor`` for those of each kind's channels, which lie head by head."""
        by_head: dict[int, list[int]] = {}
        for kind, entries in zip(self.kinds, read, strict=True):
            for entry in entries:
                head, channel = divmod(entry, len(kind.runs[0]))
                by_head.setdefault(head, []).extend(run[channel] for run in kind.runs)
        return [
            (head * self.heads + copy) * self.size + place
            for head, places in sorted(by_head.items())
            for copy in range(self.heads)
            for place in sorted(places)
        ]


@dataclass(frozen=True)
class HeadOperand:
    """An operand of a call that works on heads.

    Attributes:
        tensor: the graph's tensor of its channels, or ``None`` if it is read as it is.
        arrangement: from ``tensor`` to the argument; ``None`` if they are the same.
        repeats: how often each head comes in the argument.
        merged: if each channel of ``tensor`` is several of the argument's: which.
    """

    tensor: str | None = None
    arrangement: Arrangement | None = None
    repeats: int = 1
    merged: Merged | None = None


@dataclass(frozen=True)
class HeadCall:
    """The recipe for writing a call again that works on heads.

    Attributes:
        how: what kind of call it is.
        operands: what is multiplied.
        equation: of an ``einsum``.
        scale: what scores are multiplied by, for attention in one call.
        tensor: the graph's tensor of its result's channels, if it has any.
        arrangement: from ``tensor`` to the result; ``None`` if they are the same.

    A ``"reshape"`` is given its operand's ``tensor`` in place of what was spread, and is otherwise
    a call like any other.
    """

    how: Literal["attention", "matmul", "einsum", "pointwise", "rotation", "cat", "reshape"]
    operands: tuple[HeadOperand, ...]
    equation: str = ""
    scale: float | None = None
    tensor: str | None = None
    arrangement: Arrangement | None = None


@dataclass(eq=False)
class Abstract:
    """A tensor inside one call: what its elements have to do with channels.

    Attributes:
        shape: its sizes.
        axis: the channel axis, or ``None`` if it is not (yet) known to have one.
        ids: one channel id per element along the axis.
        traced: the graph's tensor, if it is one that existed before the call.
        parameter: the name, if it is a parameter of the model, perhaps reshaped.
        original: for a parameter: its shape before any reshaping.
        flipped: for a parameter: it is a transposed matrix.
        noise: it was made inside the call and holds anything.
        mixed: it was made of all channels alike, and holds none any more.
        zero: its value in a channel if all inputs of the call are zero there, if known.
    """

    shape: tuple[int, ...]
    axis: int | None = None
    ids: Array | None = None
    traced: Traced | None = None
    parameter: str | None = None
    original: tuple[int, ...] = ()
    flipped: bool = False
    noise: bool = False
    mixed: bool = False
    zero: float | None = 0.0

    def commit(self, axis: int, channels: Channels) -> None:
        """Give a tensor with fixed but unknown channels its channel axis.

        Raises:
            NotUnderstood: if it has another one, or its channels were lost on the way.
        """
        if self.axis == axis:
            return
        if self.axis is not None or self.traced is None or self.traced.axis is not None:
            raise NotUnderstood("reads the tensor along an axis that is not its channel axis")
        self.axis = self.traced.axis = axis
        self.ids = self.traced.ids = channels.fresh(self.shape[axis])
        if not self.traced.is_constant:
            channels.fix(self.ids, self.traced.why_fixed)


@lru_cache(maxsize=4)
def places(shape: tuple[int, ...], axis: int) -> torch.Tensor:
    """For every element of a tensor, its place along ``axis``; int32, contiguous, not to modify."""
    sizes = [-1 if a == axis else 1 for a in range(len(shape))]
    line = np.arange(shape[axis], dtype=np.int32).reshape(sizes)
    return torch.from_numpy(np.broadcast_to(line, shape).copy())


def channel_axis(label: torch.Tensor) -> int | None:
    """The only axis along which the labels vary, or ``None``."""
    if label.numel() == 0:
        return None
    likely = [
        axis for axis in range(label.ndim) if bool((_line(label, axis) != _first(label)).any())
    ]
    if len(likely) != 1:  # more than one; or none in sight of the first element
        varying = varying_axes(label) if not likely else []
        return varying[0] if len(varying) == 1 else None
    elements = label.numpy()  # which compares broadcast arrays much faster than torch does
    line = elements[tuple(slice(None) if a == likely[0] else slice(1) for a in range(label.ndim))]
    return likely[0] if bool((elements == line).all()) else None


def _line(label: torch.Tensor, axis: int) -> torch.Tensor:
    """The labels along ``axis`` through the first element."""
    return label[tuple(slice(None) if a == axis else 0 for a in range(label.ndim))]


def _first(label: torch.Tensor) -> torch.Tensor:
    return label[(0,) * label.ndim]


def varying_axes(label: torch.Tensor) -> list[int]:
    """The axes along which the labels vary."""
    return [
        axis
        for axis in range(label.ndim)
        if label.shape[axis] > 1
        and label.stride(axis) != 0
        and not torch.equal(
            label.narrow(axis, 0, 1).expand_as(label.narrow(axis, 1, label.shape[axis] - 1)),
            label.narrow(axis, 1, label.shape[axis] - 1),
        )
    ]


def along(label: torch.Tensor, axis: int) -> Array:
    """The labels along ``axis``, where they vary along no other."""
    index = tuple(slice(None) if a == axis else 0 for a in range(label.ndim))
    return label[index].numpy().astype(np.int64)
