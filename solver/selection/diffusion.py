"""Min-sum diffusion: a lower bound for sums of costs of single sizes and of pairs of them.

Costs are shifted between pairs and single sizes until all agree (Werner, *A linear programming
approach to max-sum problem*, IEEE TPAMI 29, 2007). Any shifts give a bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from upscale_opt.solver.selection.pickers import Ints
from upscale_opt.solver.selection.setting import Floats


@dataclass
class Variable:
    """A size.

    Attributes:
        levels: of shape (sizes,): of a picker, the level (by family); else the width itself.
        families: of shape (sizes,): of a picker, the family.
        loss: of shape (sizes,).
        starts: of shape (buckets,): where buckets begin.
        near: the number of the size that the known choice has.
        dead: the last size stands for a layer that nobody reads.
    """

    levels: Ints
    families: Ints
    loss: Floats
    starts: Ints
    near: int
    dead: bool = False

    def least(self, values: Floats) -> Floats:
        """The least value in every bucket; of shape (…, sizes)."""
        return np.asarray(np.minimum.reduceat(values, self.starts, axis=-1), dtype=np.float64)

    def most(self, values: Floats) -> Floats:
        """The largest value in every bucket."""
        return -self.least(-values)


class Diffusion:
    """A pairwise energy whose costs are shifted until its parts agree."""

    def __init__(
        self,
        variables: Sequence[Variable],
        single: list[Floats],
        pairs: dict[tuple[int, int], Floats],
        walls: dict[tuple[int, int], Floats],
    ) -> None:
        self._variables = variables
        self._single = single
        self._keys = list(pairs)
        self._pairs = pairs
        self._walls = walls
        self._shifts = {
            key: tuple(np.zeros(len(variables[at].starts)) for at in key) for key in pairs
        }
        self._edges: list[list[tuple[tuple[int, int], int]]] = [[] for _ in variables]
        for key in self._keys:
            self._edges[key[0]].append((key, 0))
            self._edges[key[1]].append((key, 1))

    def set(self, prices: Floats, costs: list[Floats]) -> None:
        """Take other prices; shifts stay."""
        self._priced = [
            cost + prices @ single for cost, single in zip(costs, self._single, strict=True)
        ]
        self._unary = [
            variable.least(priced)
            for variable, priced in zip(self._variables, self._priced, strict=True)
        ]
        self._tables = {}
        for key in self._keys:
            base = np.tensordot(prices, self._pairs[key], axes=1) + self._walls.get(key, 0.0)
            one, other = self._shifts[key]
            self._tables[key] = base - one[:, None] - other[None, :]
            self._unary[key[0]] = self._unary[key[0]] + one
            self._unary[key[1]] = self._unary[key[1]] + other

    def sweep(self, count: int) -> None:
        """Let every size share its costs with its pairs."""
        order = list(range(len(self._unary)))
        for _ in range(count):
            for at in (*order, *reversed(order)):
                edges = self._edges[at]
                if not edges:
                    continue
                marginals = [self._tables[key].min(axis=1 - side) for key, side in edges]
                total = self._unary[at] + np.sum(marginals, axis=0)
                share = total / (len(edges) + 1)
                self._unary[at] = share.copy()
                for (key, side), marginal in zip(edges, marginals, strict=True):
                    shift = share - marginal
                    self._shifts[key][side][:] -= shift
                    table = self._tables[key]
                    table += shift[:, None] if side == 0 else shift[None, :]

    def energy(self) -> tuple[float, Floats]:
        """The bound, and what its parts take."""
        used = np.zeros(len(self._single[0])) if self._single else np.zeros(1)
        total = 0.0
        self._at = []
        for number, unary in enumerate(self._unary):
            bucket = int(unary.argmin())
            starts, priced = self._variables[number].starts, self._priced[number]
            end = starts[bucket + 1] if bucket + 1 < len(starts) else len(priced)
            at = int(starts[bucket] + priced[starts[bucket] : end].argmin())
            self._at.append(at)
            total += float(unary[bucket])
            used = used + self._single[number][:, at]
        for key in self._keys:
            table = self._tables[key]
            flat = int(table.argmin())
            i, j = divmod(flat, table.shape[1])
            total += float(table[i, j])
            used = used + self._pairs[key][:, i, j]
        return total, used

    def rows(self, rows: list[list[tuple[int, Floats]]]) -> Floats:
        """The excess of what each sum must be over what it is."""
        return np.array(
            [sum(float(values[self._at[variable]]) for variable, values in terms) for terms in rows]
        )
