"""Sums over the batches: of what a layer reads and should write, and of what a norm reads."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from upscale_opt.reconstruction.behind import Behind
from upscale_opt.reconstruction.columns import matrix, rows_of
from upscale_opt.reconstruction.least_squares import Sums
from upscale_opt.reconstruction.watching import Seen

WIDEST = 8192
"""Layers with more columns than this are left as they are: their Gram matrices would not fit."""

_HELD_OUT = 0.25
"""The share of each batch by which ridges are chosen."""


_ROUNDING = 1e-12
"""A variance that is a smaller share of the mean square is one of rounding."""


def held_out_from(count: int) -> int:
    """The first of so many samples that is held out; ``count`` if none is."""
    return count - int(_HELD_OUT * count) if count >= 4 else count


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32 at least."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


class Work:
    """Sums over the batches of one layer or norm."""

    same = True

    def add(self, before: Seen, after: Seen) -> None:
        """Count what both models read and write."""
        raise NotImplementedError


class LayerWork(Work):
    """The sums to refit a layer by.

    Args:
        name: of its weight.
        weight: as it is now.
        in_axis: its axis that reads.
        groups: into how many groups its channels fall.
        intact: it is the original's.

    Attributes:
        wide: it has too many columns.
        prior: the weight as it was, of shape (groups, columns, outputs); empty if it is wide.
        reads: the channels that it reads, if sums are to be of these only.
    """

    reads: Tensor | None = None

    def __init__(self, name: str, weight: Tensor, in_axis: int, groups: int, intact: bool) -> None:
        self.name, self.in_axis, self.groups = name, in_axis, groups
        read = weight.shape[1] if in_axis == 1 else weight.shape[0] // groups
        self.wide = read * math.prod(weight.shape[2:]) > WIDEST
        self.prior = torch.empty(0) if self.wide else matrix(weight.cpu(), in_axis, groups).clone()
        self.same = intact
        self.seen: Sums | None = None
        self.held_out: Sums | None = None
        self._read_is_counted = False

    def again(self) -> None:
        """Forget what should be written; what is read comes once more as it was."""
        if self.seen is not None and self.held_out is not None:
            self.seen, self.held_out = self.seen.without_y(), self.held_out.without_y()
            self._read_is_counted = True

    def add(self, before: Seen, after: Seen) -> None:
        """Count the pruned layer's inputs, and what they should give."""
        self.same = self.same and bool(torch.equal(before.x, after.x))
        if self.wide or before.y.shape != after.y.shape:
            return
        target = before.y
        if after.bias is not None:  # which stays as it is while the weights are fitted
            target = target - after.bias.reshape(1, -1, *[1] * (target.ndim - 2))
        count = len(after.x)
        cut = held_out_from(count)
        read = after.x if self.reads is None else after.x[:, self.reads.to(after.x.device)]
        both = Seen(after.name, read, target, after.convolving)
        for start, stop, place in ((0, cut, "seen"), (cut, count, "held_out")):
            for x, y in rows_of(both, start, stop):
                sums = getattr(self, place)
                if sums is None:
                    sums = Sums.zeros(x.shape[0], x.shape[2], y.shape[2])
                    setattr(self, place, sums)
                if self._read_is_counted:
                    sums.add_y(x, y)
                else:
                    sums.add(x, y)
        if self.held_out is None and self.seen is not None:
            groups, columns, outputs = self.seen.xy.shape
            self.held_out = Sums.zeros(groups, columns, outputs)


class NormWork(Work):
    """The means and variances of what a batch norm reads."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.same = True
        self.sums: list[list[Tensor]] = [[], []]
        self.rows = 0

    def add(self, before: Seen, after: Seen) -> None:
        """Count what both models read."""
        self.same = self.same and bool(torch.equal(before.x, after.x))
        for seen, sums in zip((before, after), self.sums, strict=True):
            x = seen.x.movedim(1, 0).flatten(1).double()
            new = [x.sum(1).cpu(), x.square().sum(1).cpu()]
            sums[:] = [a + b for a, b in zip(sums, new, strict=True)] if sums else new
        self.rows += before.x.numel() // before.x.shape[1]

    def statistics(self) -> list[tuple[Tensor, Tensor]]:
        """Mean and variance, for both models."""
        found = []
        for total, squares in self.sums:
            mean = total / self.rows
            found.append((mean, (squares / self.rows - mean.square()).clamp(min=0)))
        return found


class Judge:
    """The deviation of what is read of a layer from what the original reads, of samples held out.

    Args:
        read: what stands behind the layer.
        alive: the outputs that count.

    Attributes:
        first: the deviation at first, as a share of the variance.
        least: and the least so far.
    """

    def __init__(self, read: Behind, alive: Tensor) -> None:
        self._read, self._alive = read, alive.double()
        self.first = self.least = float("inf")
        self._begin()

    def _begin(self) -> None:
        self._error, self._sum, self._square = torch.zeros(3, len(self._alive), dtype=torch.float64)
        self._rows = 0

    def add(self, should: Tensor, does: Tensor, cut: int) -> None:
        """Count a batch.

        Args:
            should: what the rectifier gets in the original.
            does: and in the masked model.
            cut: the first of the layer's samples (or rows) that is held out; if none is, all count.
        """
        want, have = (self._held_out(self._read.read(z), cut) for z in (should, does))
        self._error += (have - want).square().sum(1)
        self._sum += want.sum(1)
        self._square += want.square().sum(1)
        self._rows += want.shape[1]

    def _held_out(self, z: Tensor, cut: int) -> Tensor:
        """Of shape (channels, positions)."""
        axis = self._read.axis
        rows = z.reshape(-1, z.shape[-1]) if axis == z.ndim - 1 else z
        rows = rows[cut:] if cut < len(rows) else rows
        return rows.movedim(1, 0).flatten(1).double().cpu()

    def end(self) -> float:
        """End a round: its deviation, as a share of the least before it; 0 for the first."""
        variance = self._square - self._sum.square() / max(self._rows, 1)
        least = _ROUNDING * float(self._alive @ self._square)
        spread = max(float(self._alive @ variance.clamp(min=0)), least)
        error = float(self._alive @ self._error) / (spread or 1.0)
        before = self.least
        if math.isinf(self.first):
            self.first = error
        self.least = min(self.least, error)
        self._begin()
        return error / before if before else 1.0
