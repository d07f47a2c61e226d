"""Concatenations that share a buffer: modules that write tensors into it and read channels of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx, nn

from upscale_opt.kernels import gather

Token = torch.Tensor | tuple[torch.Tensor, ...]
"""What stands for an arena: its buffer, or all that was to be written so far."""

Run = tuple[int, int, int]
"""Where adjacent channels lie: first in the piece, first in the buffer, and how many."""

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
        if not self.in_place or isinstance(earlier, tuple) or not _may_write(values):
            return values if earlier is None else (*_as_tuple(earlier), *values)
        buffer = self._allocate(values[0]) if earlier is None else earlier
        assert isinstance(buffer, torch.Tensor)
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
        """How much is written."""
        written = sum(length for runs in self.runs for _, _, length in runs)
        return f"{written} of {self.size} along dim {self.dim}"


class ArenaRead(nn.Module):
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
        self.sources, self.sizes = list(sources), list(sizes)
        indices = torch.empty(0, dtype=torch.int64) if self.view else torch.tensor(places)
        self.register_buffer("indices", indices.to(device), persistent=False)

    def forward(self, arena: Token) -> torch.Tensor:
        """The channels, as a view, a copy, or a concatenation."""
        if isinstance(arena, tuple):
            return self._joined(arena)
        if self.view:
            return arena.narrow(self.dim, self.start, self.length)
        return gather(arena, self.dim, self.indices)

    def _joined(self, pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        """The channels collected from the tensors themselves."""
        runs: list[Run] = []  # which tensor, first channel, how many
        for piece, place in self.sources:
            if runs and runs[-1][0] == piece and sum(runs[-1][1:]) == place:
                runs[-1] = piece, runs[-1][1], runs[-1][2] + 1
            else:
                runs.append((piece, place, 1))
        if len(runs) <= _MANY_PARTS:
            parts = [pieces[p].narrow(self.dim, first, length) for p, first, length in runs]
            return parts[0] if len(parts) == 1 else torch.cat(parts, self.dim)
        used = sorted({piece for piece, _ in self.sources})
        whole = torch.cat([pieces[piece] for piece in used], self.dim)
        starts: dict[int, int] = {}
        total = 0
        for piece in used:
            starts[piece] = total
            total += self.sizes[piece]
        chosen = [starts[piece] + place for piece, place in self.sources]
        if isinstance(whole, fx.Proxy):
            return whole[(*[slice(None)] * self.dim, chosen)]
        return gather(whole, self.dim, torch.tensor(chosen, device=whole.device))

    def extra_repr(self) -> str:
        """How many channels, and how they are served."""
        how = f"{self.start}+{self.length}" if self.view else f"{self.length} gathered"
        return f"{how} along dim {self.dim}"


def _as_tuple(token: Token) -> tuple[torch.Tensor, ...]:
    return token if isinstance(token, tuple) else (token,)


def _may_write(values: Sequence[torch.Tensor]) -> bool:
    """Whether nobody looks back at these tensors, or at what is written."""
    if any(isinstance(value, fx.Proxy) for value in values):
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.jit.is_scripting():
        return False
    return not (torch.is_grad_enabled() and any(value.requires_grad for value in values))
