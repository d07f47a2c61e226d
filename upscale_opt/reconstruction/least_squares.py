"""Ridge regression on sums: weights that make one layer's outputs match another's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from upscale_opt.reconstruction.elimination import cholesky

GRID = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridges to choose from, as shares of the mean of the diagonal of the Gram matrix."""


@dataclass
class Sums:
    """Sums over positions of what a layer reads (x) and should write (y); float64, on the CPU.

    Attributes:
        xx: of shape (groups, columns, columns).
        xy: of shape (groups, columns, outputs).
        yy: of shape (groups, outputs).
        x: of shape (groups, columns).
        y: of shape (groups, outputs).
        rows: positions.
    """

    xx: Tensor
    xy: Tensor
    yy: Tensor
    x: Tensor
    y: Tensor
    rows: int = 0

    @classmethod
    def zeros(cls, groups: int, columns: int, outputs: int) -> Sums:
        """Sums of nothing."""
        shapes = ((columns, columns), (columns, outputs), (outputs,), (columns,), (outputs,))
        xx, xy, yy, x, y = (torch.zeros(groups, *shape, dtype=torch.float64) for shape in shapes)
        return cls(xx, xy, yy, x, y)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Count positions: x of shape (groups, positions, columns), y likewise."""
        x, y = x.double(), y.double()
        self.xx += (x.transpose(1, 2) @ x).cpu()
        self.x += x.sum(1).cpu()
        self.rows += x.shape[1]
        self.add_y(x, y)

    def without_y(self) -> Sums:
        """The same of what is read; of what should be written, sums of nothing."""
        xy, yy, y = map(torch.zeros_like, (self.xy, self.yy, self.y))
        return Sums(self.xx, xy, yy, self.x, y, self.rows)

    def add_y(self, x: Tensor, y: Tensor) -> None:
        """Count what should be written for positions that were counted before."""
        self.xy += (x.transpose(1, 2).to(y) @ y).double().cpu()
        y = y.double()
        self.yy += y.square().sum(1).cpu()
        self.y += y.sum(1).cpu()

    def scaled(self, scale: Tensor) -> Sums:
        """The same with every output times a number; ``scale`` is of y's shape."""
        wide = scale[:, None, :]
        yy, y = self.yy * scale.square(), self.y * scale
        return Sums(self.xx, self.xy * wide, yy, self.x, y, self.rows)

    def __add__(self, other: Sums) -> Sums:
        """Both together."""
        return Sums(
            self.xx + other.xx,
            self.xy + other.xy,
            self.yy + other.yy,
            self.x + other.x,
            self.y + other.y,
            self.rows + other.rows,
        )

    def centred(self) -> Sums:
        """The same of what is left once the means are subtracted."""
        rows = max(self.rows, 1)
        x, y = self.x[:, :, None], self.y[:, None, :]
        return Sums(
            self.xx - x @ x.transpose(1, 2) / rows,
            self.xy - x @ y / rows,
            (self.yy - self.y.square() / rows).clamp(min=0),
            torch.zeros_like(self.x),
            torch.zeros_like(self.y),
            self.rows,
        )

    def part(self, columns: Tensor) -> Sums:
        """The same of some columns, of shape (groups, any number)."""
        wide = columns[:, :, None]
        xx = self.xx.gather(1, wide.expand(-1, -1, self.xx.shape[2]))
        xx = xx.gather(2, columns[:, None, :].expand(-1, columns.shape[1], -1))
        xy = self.xy.gather(1, wide.expand(-1, -1, self.xy.shape[2]))
        return Sums(xx, xy, self.yy, self.x.gather(1, columns), self.y, self.rows)

    def rows_alive(self, alive: Tensor) -> Sums:
        """The same with the outputs that are not alive (bool of y's shape) made zero."""
        own = alive.to(self.y)
        return Sums(self.xx, self.xy * own[:, None], self.yy * own, self.x, self.y * own, self.rows)

    def error(self, weights: Tensor, constant: Tensor | None = None) -> Tensor:
        """The squared deviation of x @ weights + constant from y, of shape (groups, outputs)."""
        found = self.yy + (weights * (self.xx @ weights - 2 * self.xy)).sum(1)
        if constant is not None:
            both = (self.x[:, :, None] * weights).sum(1) - self.y
            found = found + constant * (2 * both + self.rows * constant)
        return found.clamp(min=0)

    def constant(self, weights: Tensor) -> Tensor:
        """The best constant to add, of shape (groups, outputs)."""
        return (self.y - (self.x[:, :, None] * weights).sum(1)) / max(self.rows, 1)


def ridge(sums: Sums, prior: Tensor, share: float) -> Tensor:
    """The weights that minimise the deviation, plus a ridge times their distance from ``prior``.

    Args:
        sums: centred, if a constant is fitted, too.
        prior: of shape (groups, columns, outputs).
        share: the ridge as a share of the mean of the diagonal.
    """
    mean = sums.xx.diagonal(dim1=1, dim2=2).mean(1)
    added = torch.where(mean > 0, share * mean, 1.0)[:, None, None]
    eye = torch.eye(sums.xx.shape[1], dtype=torch.float64)
    factor = cholesky(sums.xx + added * eye)
    return prior + torch.cholesky_solve(sums.xy - sums.xx @ prior, factor)


@dataclass(frozen=True)
class Fit:
    """Weights that were chosen.

    Attributes:
        weights: of shape (groups, columns, outputs).
        constant: to add to the outputs, of shape (groups, outputs); ``None`` where that cannot be.
        ridge: the share; infinite for weights as they were.
        before: the held-out error as it was, as a share of the variance.
        after: and as it is.
    """

    weights: Tensor
    constant: Tensor | None
    ridge: float
    before: float
    after: float


def fitted(
    seen: Sums,
    held_out: Sums,
    prior: Tensor,
    *,
    bias: bool,
    centred: bool,
    grid: tuple[float, ...] = GRID,
) -> Fit:
    """The weights of the ridge that does best on held-out data, fitted to all data.

    Args:
        seen: to fit to.
        held_out: to choose the ridge by; if there are no rows, the same.
        prior: weights as they were, of shape (groups, columns, outputs).
        bias: a constant can be added to the outputs.
        centred: constants do not count, as something behind takes them out.
        grid: ridges to try.

    Returns:
        Weights whose held-out error is no larger than that of ``prior``.
    """
    judge = held_out if held_out.rows else seen
    free = bias or centred
    judged = judge.centred() if centred else judge

    def score(weights: Tensor, constant: Tensor | None) -> float:
        return float(judged.error(weights, None if centred else constant).sum())

    spread = float(judge.centred().yy.sum()) or 1.0
    before = score(prior, None)
    best = before, prior, torch.zeros_like(seen.y) if bias else None, float("inf")
    if bias and not centred:
        shifted = seen.constant(prior)
        own = score(prior, shifted)
        if own < best[0]:
            best = own, prior, shifted, float("inf")
    sums = seen.centred() if free else seen
    choice: float | None = None
    for share in grid:
        weights = ridge(sums, prior, share)
        if not bool(weights.isfinite().all()):
            continue
        constant = seen.constant(weights) if bias else None
        own = score(weights, constant)
        if own < best[0]:
            best, choice = (own, weights, constant, share), share
    if choice is not None and held_out.rows:
        everything = seen + held_out
        weights = ridge(everything.centred() if free else everything, prior, choice)
        constant = everything.constant(weights) if bias else None
        own = score(weights, constant)
        if own <= best[0] and bool(weights.isfinite().all()):
            best = own, weights, constant, choice
    after, weights, constant, share = best
    if centred and bias and constant is not None:
        constant = (seen + held_out if held_out.rows else seen).constant(weights)
    return Fit(weights, constant, share, before / spread, after / spread)
