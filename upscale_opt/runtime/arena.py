"""Concatenations in a shared buffer: modules that write tensors into it and read channels of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import accumulate

import torch
from torch import fx, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from upscale_opt.runtime.gather import gather
from upscale_opt.runtime.indices import Indexed

Token = torch.Tensor | tuple[torch.Tensor, ...]
"""A stand-in for an arena: its buffer, or all that was to be written so far."""

Run = tuple[int, int, int]
"""A run of adjacent channels: its start in the piece, its start in the buffer, its length."""

_MANY_PARTS = 16
"""More parts than this are concatenated whole and selected afterwards."""


class ArenaWrite(nn.Module):
    """Writes tensors into a buffer, each channel to its place.

    The buffer is written in place where that can do no harm. Where gradients are wanted, and in
    programs that are captured or compiled, nothing is written: the tensors themselves are passed
    on, and every reader concatenates what it reads.

    Args:
        runs: for each tensor, where its channels go.
        size: how many channels the buffer has.
        dim: the channel axis.
        in_place: whether a buffer may be used at all.
    """

    def __init__(
        self, runs: Sequence[Sequence[Run]], size: int, dim: int, in_place: bool = True
    ) -> None:
        super().__init__()
        self.runs = [list(piece) for piece in runs]
        self.size, self.dim, self.in_place = size, dim, in_place

    def forward(self, *values: torch.Tensor, earlier: Token | None = None) -> Token:
        """The arena with ``values`` in it.

        Args:
            values: tensors alike but for their channels.
            earlier: the arena so far, if it has been written to.
        """
        if isinstance(earlier, tuple):
            return (*earlier, *values)
        if earlier is not None and not _fit(earlier, values):
            return self._fill(_copied(earlier, values), values)
        if earlier is None and not (self.in_place and _fit(values[0], values)):
            return values
        buffer = self._allocate(values[0]) if earlier is None else earlier
        self._fill(buffer.data, values)  # what was read of it before has not changed: for autograd
        return buffer

    def _fill(self, buffer: torch.Tensor, values: Sequence[torch.Tensor]) -> torch.Tensor:
        for value, runs in zip(values, self.runs, strict=True):
            for first, place, length in runs:
                part = value if length == value.size(self.dim) else self._part(value, first, length)
                self._part(buffer, place, length).copy_(part)
        return buffer

    def _part(self, tensor: torch.Tensor, first: int, length: int) -> torch.Tensor:
        return tensor.narrow(self.dim, first, length)

    def _allocate(self, like: torch.Tensor) -> torch.Tensor:
        shape = list(like.shape)
        shape[self.dim] = self.size
        form = torch.contiguous_format
        for rank, candidate in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            last = like.dim() == rank and like.is_contiguous(memory_format=candidate)
            if last and not like.is_contiguous():
                form = candidate
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=form)

    def extra_repr(self) -> str:
        """Say how much is written."""
        written = sum(length for runs in self.runs for _, _, length in runs)
        return f"{written} of {self.size} along dim {self.dim}"


class ArenaRead(Indexed):
    """Reads channels of an arena: a view, if they lie side by side in the buffer.

    Args:
        places: where the channels lie in the buffer, in the order wanted.
        sources: for each of them, which of the tensors written it belongs to, and its place there.
        sizes: the channels of every tensor written so far.
        dim: the channel axis.
        device: where the indices live.
        view: whether adjacent channels may be read as a view.
    """

    indices: torch.Tensor
    joined: torch.Tensor

    def __init__(
        self,
        places: Sequence[int],
        sources: Sequence[tuple[int, int]],
        sizes: Sequence[int],
        dim: int,
        device: torch.device,
        *,
        view: bool,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.start, self.length = places[0], len(places)
        self.view = view and list(places) == list(range(places[0], places[0] + len(places)))
        self.parts = joined_runs(sources)
        self.used = sorted({piece for piece, _ in sources})
        joined: list[int] = []  # where the channels are in all that is used, end to end
        if len(self.parts) > _MANY_PARTS:
            starts = dict(zip(self.used, accumulate(sizes[p] for p in self.used), strict=True))
            joined = [starts[piece] - sizes[piece] + place for piece, place in sources]
        self.add_indices("indices", [] if self.view else places, device)
        self.add_indices("joined", joined, device)

    def forward(self, arena: Token) -> torch.Tensor:
        """The channels, as a view, a copy, or a concatenation."""
        if isinstance(arena, tuple):
            return self._joined(arena)
        if self.view:
            return arena.narrow(self.dim, self.start, self.length)
        return gather(arena, self.dim, self.indices)

    def _joined(self, pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        """The channels collected from the tensors themselves."""
        if len(self.parts) <= _MANY_PARTS:
            parts = [pieces[p].narrow(self.dim, first, length) for p, first, length in self.parts]
            return parts[0] if len(parts) == 1 else torch.cat(parts, self.dim)
        whole = torch.cat([pieces[piece] for piece in self.used], self.dim)
        if isinstance(whole, fx.Proxy):
            everything = [slice(None)] * self.dim
            place = (*everything, self.joined.tolist())
            return whole[place]
        return gather(whole, self.dim, self.joined)

    def extra_repr(self) -> str:
        """Say how many channels there are, and how they are served."""
        how = f"{self.start}+{self.length}" if self.view else f"{self.length} gathered"
        return f"{how} along dim {self.dim}"


def joined_runs(sources: Sequence[tuple[int, int]]) -> list[Run]:
    """Channels that lie side by side in one tensor, as (which tensor, first channel, how many)."""
    runs: list[Run] = []
    for piece, place in sources:
        if runs and runs[-1][0] == piece and sum(runs[-1][1:]) == place:
            runs[-1] = piece, runs[-1][1], runs[-1][2] + 1
        else:
            runs.append((piece, place, 1))
    return runs


def _fit(buffer: torch.Tensor, values: Sequence[torch.Tensor]) -> bool:
    """Tell whether ``values`` can be written into ``buffer``, or into one like it."""
    return may_write((buffer, *values)) and all(x.dtype == buffer.dtype for x in values)


def _copied(buffer: torch.Tensor, values: Sequence[torch.Tensor]) -> torch.Tensor:
    """A copy of ``buffer`` that can hold ``values``, too, and that autograd looks through."""
    kinds = (value.dtype for value in values)
    return buffer.to(reduce(torch.promote_types, kinds, buffer.dtype), copy=True)


def may_write(values: Sequence[torch.Tensor]) -> bool:
    """True if autograd records neither these tensors nor what is written.

    False where gradients are wanted, and in programs that are traced, compiled or transformed.
    """
    if any(isinstance(value, fx.Proxy) for value in values):
        return False
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return False
    if get_proxy_mode() is not None or torch._C._are_functorch_transforms_active():
        return False
    if forward_ad._current_level >= 0:  # differentiated forwards
        return False
    return not (torch.is_grad_enabled() and any(value.requires_grad for value in values))
