"""Optimal brain surgeon in blocks: what is lost if inputs go and the other weights are refitted.

For a layer with weights W on inputs X, and H = XᵗX, the loss of keeping the columns K is

    E(K) = min over V of |X W - X_K V|² = tr(W_Sᵗ inv(inv(H)_SS) W_S),   S = all but K

(Hassibi and Stork, *Second Order Derivatives for Network Pruning: Optimal Brain Surgeon*, NIPS
1992). With H = L Lᵗ, columns in the order in which they are kept longest, the loss of keeping the
first k is the squared norm of the rows of Lᵗ W behind the k-th: one factorisation has all sizes.

That is the loss on the positions that were seen. With k columns refitted to n positions it is too
good by (1 - k/n)² on others (generalised cross-validation; Craven and Wahba, *Smoothing noisy data
with spline functions*, Numerische Mathematik 31, 1979), and where n is no more than k, refitting is
worth nothing that can be told: then the loss is that of the columns dropped, nothing refitted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_ONE_BY_ONE = 256
"""Up to so many units, each step drops one; above, a share of them."""

_SHARE = 64
"""The share of the units that one step drops then is one by this."""

_FEW = 12
"""Up to so many units, all their subsets are looked at for the floors."""

_MANY_SETS = 5000

_PLENTY = 50
"""Positions for each column: losses on others are higher by 4 % then."""


@dataclass(frozen=True)
class Quadratic:
    """The loss of every set of a layer's units, in float64 on the CPU.

    A unit is the columns of one channel. Units come part after part within a group (a part is an
    attention head), and a step drops one unit of every part of every group.

    Attributes:
        gram: positive definite, of shape (groups, columns, columns).
        weights: of shape (groups, columns, outputs); scaled, so that squares are losses.
        parts: into how many parts the units of each group fall.
        columns: of a unit.
        rows: positions that the Gram matrix is of; by default so many that refitting to them is
            refitting to all.
    """

    gram: Tensor
    weights: Tensor
    parts: int
    columns: int
    rows: float = math.inf

    @property
    def units(self) -> int:
        """The number of units in a part: of steps until nothing is left."""
        return self.gram.shape[1] // (self.parts * self.columns)

    def losses(self, order: Tensor) -> Tensor:
        """The losses after 0, 1, 2, … steps, of shape (steps + 1,).

        Args:
            order: the units in the order in which they go, of shape (groups, parts, steps), as
                numbers within their part. Those not named are never dropped.
        """
        groups, parts, steps = order.shape
        if not steps:
            return torch.zeros(1, dtype=torch.float64)
        units = order + self.units * torch.arange(parts)[None, :, None]
        going = units.transpose(1, 2).reshape(groups, -1)
        stays = torch.ones(groups, self.units * parts, dtype=torch.bool)
        stays.scatter_(1, going, False)
        rest = torch.nonzero(stays)[:, 1].reshape(groups, -1)
        columns = self._columns(torch.cat([rest, going.flip(1)], dim=1))
        gone = steps * parts * self.columns
        seen = torch.zeros(steps, dtype=torch.float64)
        plain = torch.zeros(steps, dtype=torch.float64)
        for gram, weights, own in zip(self.gram, self.weights, columns, strict=True):
            inner, kernel = gram[own][:, own], weights[own]
            added = (cholesky(inner).T @ kernel).square().sum(1)[-gone:]
            seen += added.reshape(steps, -1).sum(1).flip(0)
            if not self.plenty:
                added = _one_by_one(inner[-gone:, -gone:], kernel[-gone:])
                plain += added.reshape(steps, -1).sum(1).flip(0)
        left = self.gram.shape[1] - gone // steps * torch.arange(1, steps + 1)
        losses = self._elsewhere(seen.cumsum(0), plain.cumsum(0), left)
        return torch.cat([seen.new_zeros(1), losses])

    def loss(self, dropped: Tensor) -> float:
        """The loss of dropping units.

        Args:
            dropped: of shape (groups, any number), as numbers within their group.
        """
        if not dropped.shape[1]:
            return 0.0
        stays = torch.ones(len(dropped), self.units * self.parts, dtype=torch.bool)
        stays.scatter_(1, dropped, False)
        rest = torch.nonzero(stays)[:, 1].reshape(len(dropped), -1)
        columns = self._columns(torch.cat([rest, dropped], dim=1))
        gone = dropped.shape[1] * self.columns
        seen = plain = torch.zeros((), dtype=torch.float64)
        for gram, weights, own in zip(self.gram, self.weights, columns, strict=True):
            kernel = weights[own[-gone:]]
            factor = cholesky(gram[own][:, own])[-gone:, -gone:]
            seen = seen + (factor.T @ kernel).square().sum()
            if not self.plenty:
                plain = plain + (kernel * (gram[own[-gone:]][:, own[-gone:]] @ kernel)).sum()
        left = torch.tensor(self.gram.shape[1] - gone)
        return float(self._elsewhere(seen, plain, left))

    @property
    def plenty(self) -> bool:
        """There are so many positions that what is refitted to them suits others as well."""
        return self.rows >= _PLENTY * self.gram.shape[1]

    def _elsewhere(self, seen: Tensor, plain: Tensor, left: Tensor) -> Tensor:
        """Losses on positions that were not seen.

        Args:
            seen: on those that were, of any shape.
            plain: there, with nothing refitted.
            left: the columns that are refitted.
        """
        if self.plenty:
            return seen
        spare = (1 - left / max(self.rows, 1)).clamp(min=0)
        refitted = torch.where(spare > 0, seen / spare.square().clamp(min=1e-300), math.inf)
        return torch.maximum(torch.minimum(refitted, plain), seen)

    @property
    def own_order(self) -> Tensor:
        """The order in which the units go, each time those that cost least, as in :meth:`losses`.

        With more than some 256 units, a step drops a 64th of them at once.
        """
        return self._eliminated[0]

    @cached_property
    def own_losses(self) -> Tensor:
        """The losses of this order."""
        return self.losses(self.own_order)

    @cached_property
    def _eliminated(self) -> tuple[Tensor, Tensor]:
        """The own order; and what every unit costs alone, of shape (groups, parts, units)."""
        going = Elimination(self)
        scores = singles = going.scores()
        found = []
        while going.left:
            count = at_once(going.left * self.parts, going.left)
            picked = scores.topk(count, dim=2, largest=False, sorted=True).indices
            found.append(going.drop(picked))
            scores = going.scores() if going.left else scores
        return torch.cat(found, dim=2), singles

    def norm_order(self) -> Tensor:
        """The order by the L2 norms of the units' weights, least first, as in :meth:`losses`."""
        groups = len(self.weights)
        norms = self.weights.reshape(groups, self.parts, self.units, -1).square().sum(3)
        return norms.argsort(dim=2, stable=True)

    def floors(self) -> Tensor:
        """For every number of steps, a loss that no set is below, of shape (units + 1,).

        The largest of three bounds. A product of so many columns has no higher rank, so what is
        left out is at least the tail of the eigenvalues of Wᵗ H W (Eckart and Young, 1936). More
        dropped never costs less, so dropping m costs at least the m-th smallest loss of a single
        one. And with 12 units or fewer, all sets are tried.
        """
        units = self.units
        rank = torch.zeros(units + 1, dtype=torch.float64)
        singles = torch.zeros(units + 1, dtype=torch.float64)
        for gram, weights, own in zip(self.gram, self.weights, self._eliminated[1], strict=True):
            values = torch.linalg.eigvalsh(weights.T @ gram @ weights).clamp(min=0)
            tails = torch.cat([values.new_zeros(1), values.cumsum(0)])
            left = torch.arange(units, -1, -1) * self.parts * self.columns
            rank += tails[(len(values) - left).clamp(min=0)]
            singles[1:] += own.sort(dim=1).values.amax(0)
        found = torch.maximum(rank, singles)
        exact = self._all_sets()
        if exact is not None:
            found = torch.maximum(found, exact)
        return torch.cummax(found * (1 - 1e-9), dim=0).values

    def _columns(self, units: Tensor) -> Tensor:
        """The columns of units, of shape (groups, any number)."""
        every = units[:, :, None] * self.columns + torch.arange(self.columns)
        return every.flatten(1)

    def _all_sets(self) -> Tensor | None:
        """The least loss for every number of steps, by trying; ``None`` if that is too much."""
        units, parts = self.units, self.parts
        most = math.comb(units, units // 2)
        if units > _FEW or most**parts > _MANY_SETS or most**parts * len(self.gram) > 2**18:
            return None
        total = torch.zeros(units + 1, dtype=torch.float64)
        for gram, weights in zip(self.gram, self.weights, strict=True):
            inverse = torch.cholesky_inverse(cholesky(gram))
            products = weights @ weights.T
            for size in range(1, units + 1):
                each = [
                    [part * units + unit for unit in chosen]
                    for part in range(parts)
                    for chosen in itertools.combinations(range(units), size)
                ]
                count = math.comb(units, size)
                rows = torch.tensor(each).reshape(parts, count, size)
                sets = _crossed(list(rows))
                columns = self._columns(sets)
                least = math.inf
                for some in torch.split(columns, max(1, 2**21 // columns.shape[1] ** 2)):
                    inner = inverse[some[:, :, None], some[:, None, :]]
                    costs = torch.cholesky_inverse(cholesky(inner))
                    costs = (costs * products[some[:, :, None], some[:, None, :]]).sum((1, 2))
                    least = min(least, float(costs.min()))
                total[size] += max(least, 0.0)
        return total


def _one_by_one(gram: Tensor, weights: Tensor) -> Tensor:
    """The loss that each column adds to those behind it, nothing refitted; of shape (columns,)."""
    behind = gram.triu(1) @ weights
    return (weights * (2 * behind + gram.diagonal()[:, None] * weights)).sum(1)


def _crossed(rows: list[Tensor]) -> Tensor:
    """Every choice of one row of each tensor, put side by side."""
    found = rows[0]
    for other in rows[1:]:
        one = found.repeat_interleave(len(other), dim=0)
        found = torch.cat([one, other.repeat(len(found), 1)], dim=1)
    return found


def at_once(alive: int, most: int) -> int:
    """The number of units that one step drops."""
    return 1 if alive <= _ONE_BY_ONE else min(max(1, alive // _SHARE), most)


class Elimination:
    """Units that go one after the other, with the inverse Gram matrix and the weights refitted.

    Attributes:
        left: units in a part that are still there.
    """

    def __init__(self, quadratic: Quadratic) -> None:
        self._columns = quadratic.columns
        self._parts = quadratic.parts
        self.left = quadratic.units
        groups = len(quadratic.gram)
        self._inverse = torch.cholesky_inverse(cholesky(quadratic.gram))
        self._weights = quadratic.weights.clone()
        # By part: the unit at every place, and whether it is gone (places are cleared now and then)
        self._units = torch.arange(self.left).expand(groups, self._parts, -1).contiguous()
        self._gone = torch.zeros_like(self._units, dtype=torch.bool)

    @property
    def units(self) -> Tensor:
        """The unit at every place, of shape (groups, parts, places)."""
        return self._units

    def scores(self) -> Tensor:
        """The loss that each unit would add alone; infinite where it is gone."""
        groups, columns = len(self._inverse), self._columns
        if columns == 1:
            squares = self._weights.square().sum(2)
            scores = squares / self._inverse.diagonal(dim1=1, dim2=2).clamp(min=1e-300)
        else:
            places = self._inverse.shape[1] // columns
            blocks = self._inverse.view(groups, places, columns, places, columns)
            blocks = blocks.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).contiguous()
            blocks[self._gone.flatten(1)] = torch.eye(columns, dtype=blocks.dtype)
            rows = self._weights.view(groups, places, columns, -1)
            inverse = torch.cholesky_inverse(cholesky(blocks))
            scores = (inverse * (rows @ rows.transpose(2, 3))).sum((2, 3))
        scores = scores.reshape(self._units.shape).clamp(min=0)
        return scores.masked_fill(self._gone, math.inf)

    def drop(self, places: Tensor) -> Tensor:
        """Let units go, by their places, of shape (groups, parts, as many); returns the units.

        Those that are left must be equally many in all parts.
        """
        found = self._units.gather(2, places)
        self._gone.scatter_(2, places, True)
        self.left -= places.shape[2]
        wide = self._units.shape[2]
        flat = places + wide * torch.arange(self._parts)[None, :, None]
        columns = flat.flatten(1)[:, :, None] * self._columns + torch.arange(self._columns)
        for inverse, weights, own in zip(
            self._inverse, self._weights, columns.flatten(1), strict=True
        ):
            if not self.left:
                break
            rows = inverse[own]
            factor = cholesky(rows[:, own])
            solved = torch.linalg.solve_triangular(
                factor, torch.cat([rows, weights[own]], dim=1), upper=False
            )
            half, refitted = solved[:, : len(inverse)], solved[:, len(inverse) :]
            inverse.addmm_(half.T, half, alpha=-1)
            weights.addmm_(half.T, refitted, alpha=-1)
        if self.left and self.left <= 0.75 * wide:
            self._clear()
        return found

    def _clear(self) -> None:
        """Give up the places of what is gone."""
        groups, parts, _ = self._units.shape
        stays = torch.nonzero(~self._gone.flatten(1))[:, 1].reshape(groups, -1)
        columns = (stays[:, :, None] * self._columns + torch.arange(self._columns)).flatten(1)
        self._inverse = torch.stack(
            [one[own][:, own] for one, own in zip(self._inverse, columns, strict=True)]
        )
        self._weights = torch.stack(
            [one[own] for one, own in zip(self._weights, columns, strict=True)]
        )
        self._units = self._units.flatten(1).gather(1, stays).reshape(groups, parts, -1)
        self._gone = torch.zeros_like(self._units, dtype=torch.bool)


def cholesky(matrices: Tensor) -> Tensor:
    """Lower factors of positive semidefinite matrices; a little is added where that fails."""
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrices)
    jitter = 1e-12
    while bool(failed.any()):
        size = matrices.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp(min=1e-300)
        eye = torch.eye(matrices.shape[-1], dtype=matrices.dtype)
        factor, failed = torch.linalg.cholesky_ex(matrices + jitter * size * eye)
        jitter *= 10
    return factor


def projected(gram: Tensor, stays: Tensor) -> Iterator[Tensor]:
    """Yield what is left of each Gram matrix once columns that always stay are fitted.

    Args:
        gram: of shape (groups, columns, columns).
        stays: the columns that stay, bool of shape (columns,).
    """
    for one in gram:
        free = one[~stays][:, ~stays]
        if bool(stays.any()):
            factor = cholesky(one[stays][:, stays])
            half = torch.linalg.solve_triangular(factor, one[stays][:, ~stays], upper=False)
            free = free - half.T @ half
        yield free


def shrink(gram: Tensor, rows: int, ridge: float | None) -> None:
    """Add a ridge to a Gram matrix of shape (groups, columns, columns), in place.

    Args:
        gram: of ``rows`` positions.
        rows: how many there were.
        ridge: as a share of the mean of the diagonal; ``None`` for the share by which oracle
            approximating shrinkage (Chen, Wiesel, Eldar and Hero, *Shrinkage Algorithms for MMSE
            Covariance Estimation*, IEEE Transactions on Signal Processing 2010) estimates a
            covariance from so few rows.
    """
    columns = gram.shape[1]
    diagonal = gram.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1)
    if ridge is not None or columns == 1:
        added = max(ridge or 0.0, 1e-12) * mean
        diagonal.add_(torch.where(added > 0, added, 1.0)[:, None])
        return
    squares = torch.linalg.vector_norm(gram, dim=(1, 2)).square()
    whole = (mean * columns).square()
    above = (1 - 2 / columns) * squares + whole
    below = (rows + 1 - 2 / columns) * (squares - whole / columns)
    share = (above / below.clamp(min=1e-300)).clamp(min=1e-9, max=1.0)
    gram.mul_(1 - share[:, None, None])
    diagonal.add_((share * torch.where(mean > 0, mean, 1.0))[:, None])
