"""The few modules that a pruned model has and its original lacks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import torch
from torch import fx, nn

from upscale_opt.runtime.arena import ArenaRead, ArenaWrite, Run, may_write
from upscale_opt.runtime.gather import gather
from upscale_opt.runtime.indices import Indexed

Placement = tuple[int, int] | list[int] | None
"""The place of a summand: everywhere (``None``), at (start, length), or at listed indices."""

_FEW_RUNS = 4
"""Channels scattered over no more runs than these are placed run by run, which is faster."""


class Gather(Indexed):
    """Copies the elements ``indices`` along axis ``dim``."""

    indices: torch.Tensor

    def __init__(self, indices: Sequence[int], dim: int, device: torch.device) -> None:
        super().__init__()
        self.dim = dim
        self.add_indices("indices", indices, device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` with only those elements along the axis, in that order."""
        if isinstance(x, fx.Proxy):  # traced again: then the indices shall be part of the program
            chosen = self._buffers["indices"]
            assert chosen is not None
            before = [...] if self.dim < 0 else [slice(None)] * self.dim
            behind = [slice(None)] * max(0, -self.dim - 1)
            place = (*before, chosen.tolist(), *behind)
            return x[place]
        return gather(x, self.dim, self.indices)

    def extra_repr(self) -> str:
        """The number of elements copied."""
        return f"{len(self.indices)} along dim {self.dim}"


class PlacedSum(Indexed):
    """Sums tensors of which some cover only a part of the result's channels.

    Where no autograd records the summands, the partial ones are added in place: to a copy of the
    one that is whole, or to that itself if it is ``spare``. Otherwise, and in programs that are
    captured or compiled, nothing is modified: the channels between two places are summed by
    themselves, and concatenated.

    Args:
        placements: one per summand.
        size: the result's size along ``dim``.
        dim: the channel axis.
        rank: the number of axes. Known beforehand, so that :mod:`torch.fx` can trace the sum.
        device: where the indices live.

    Attributes:
        spare: whether the one whole summand may be overwritten, as nothing else reads it.
    """

    def __init__(
        self, placements: Sequence[Placement], size: int, dim: int, rank: int, device: torch.device
    ) -> None:
        super().__init__()
        self.size, self.dim, self.rank = size, dim, rank
        self.spare = False
        self.runs = [_placed_runs(placement, size) for placement in placements]
        self.whole = [runs == [(0, 0, size)] for runs in self.runs]
        self.pieces, self.segments = _segments(self.runs, size)
        for number, placement in enumerate(placements):
            if not self.runs[number] and placement is not None:
                self.add_indices(f"indices_{number}", placement, device)

    def forward(self, *summands: torch.Tensor) -> torch.Tensor:
        """The sum, with zeros where a summand has no channels."""
        write = may_write(summands)
        values = _alike(summands, self.dim)
        if write and sum(self.whole) == 1:
            total = self._added(values, summands[self.whole.index(True)])
        else:
            total = self._joined(values)
        for number, runs in enumerate(self.runs):
            if not runs:
                add = total.index_add_ if write else total.index_add
                total = add(self.dim, getattr(self, f"indices_{number}"), values[number])
        return total

    def _added(self, values: Sequence[torch.Tensor], given: torch.Tensor) -> torch.Tensor:
        """The whole summand, with the slices of the others added to it; ``given`` is the former."""
        own = self.whole.index(True)
        total = values[own]
        if not (self.spare and total is given and _is_dense(total)):
            total = total.clone()
        for number, x in enumerate(values):
            if number != own:
                for first, start, length in self.runs[number]:
                    part = x if length == x.size(self.dim) else x.narrow(self.dim, first, length)
                    total.narrow(self.dim, start, length).add_(part)
        return total

    def _joined(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """The sum of all that are not scattered, without modifying anything."""
        pieces = [
            torch.split_with_sizes(x, lengths, self.dim) if len(lengths) > 1 else (x,)
            for x, lengths in zip(values, self.pieces, strict=True)
        ]
        parts: list[torch.Tensor] = []
        for length, covering in self.segments:
            part: torch.Tensor | None = None
            for number, piece in covering:
                value = pieces[number][piece]
                part = value if part is None else part + value
            parts.append(self._zeros(values[0], length) if part is None else part)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=self.dim)

    def _zeros(self, like: torch.Tensor, length: int) -> torch.Tensor:
        shape = [length if axis == self.dim else like.size(axis) for axis in range(self.rank)]
        return like.new_zeros(shape)

    def extra_repr(self) -> str:
        """Say what is placed where."""
        places = [
            "all" if whole else "+".join(map(str, runs[0][1:])) if len(runs) == 1 else "indices"
            for runs, whole in zip(self.runs, self.whole, strict=True)
        ]
        kind = ", in place" if self.spare else ""
        return f"{', '.join(places)}; {self.size} along dim {self.dim}{kind}"


def _placed_runs(placement: Placement, size: int) -> list[Run]:
    """The runs of a summand's adjacent channels; none, if it is scattered too far for that."""
    if placement is None:
        return [(0, 0, size)]
    if isinstance(placement, tuple):
        return [(0, *placement)]
    runs: list[Run] = []
    for first, place in enumerate(placement):
        if runs and sum(runs[-1][1:]) == place:
            runs[-1] = *runs[-1][:2], runs[-1][2] + 1
        else:
            runs.append((first, place, 1))
    return runs if len(runs) <= _FEW_RUNS else []


def _segments(
    runs: Sequence[Sequence[Run]], size: int
) -> tuple[list[list[int]], list[tuple[int, list[tuple[int, int]]]]]:
    """Cut summands and their sum at all places where one of them begins or ends.

    Args:
        runs: of every summand.
        size: of the sum.

    Returns:
        For every summand the lengths of its pieces; and the segments of the sum, each with its
        length and the pieces that cover it, as (which summand, which of its pieces).
    """
    ends = {place for own in runs for _, start, length in own for place in (start, start + length)}
    cuts = sorted({0, size, *ends})
    covering: dict[int, list[tuple[int, int]]] = {start: [] for start in cuts[:-1]}
    lengths = {start: end - start for start, end in pairwise(cuts)}
    pieces: list[list[int]] = []
    for number, own in enumerate(runs):
        cut: list[int] = []
        for _, start, length in own:
            for place in cuts[bisect_left(cuts, start) : bisect_left(cuts, start + length)]:
                covering[place].append((number, len(cut)))
                cut.append(lengths[place])
        pieces.append(cut)
    return pieces, [(lengths[start], covering[start]) for start in cuts[:-1]]


def _alike(values: Sequence[torch.Tensor], dim: int) -> Sequence[torch.Tensor]:
    """The same in one precision and, but for their channels, of one shape, as a sum has them."""
    if any(isinstance(value, fx.Proxy) for value in values):
        return values
    kinds = {value.dtype for value in values}
    if len(kinds) > 1:
        common = reduce(torch.promote_types, kinds)
        values = [value.to(common) for value in values]
    shapes = [(*value.shape[:dim], 1, *value.shape[dim + 1 :]) for value in values]
    if any(shape != shapes[0] for shape in shapes[1:]):
        shape = list(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
        shape[dim] = -1
        values = [value.expand(shape) for value in values]
    return values


def _is_dense(x: torch.Tensor) -> bool:
    """Tell whether every number of ``x`` has its own place in memory, where that is easy to see."""
    if x.is_contiguous():
        return True
    form = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    return form is not None and x.is_contiguous(memory_format=form)


OURS: tuple[type[nn.Module], ...] = (Gather, PlacedSum, ArenaWrite, ArenaRead)
"""Modules that a pruned model has and its original lacks."""
