"""The linear program whose variables are the prices of a proof, solved by GLOP.

Maximise the bound of ``proof.py`` over the prices. Its own dual is the linear relaxation of the
program that is to be proven: the multipliers of the rows that bound what a read costs say to what
extent the read is served in that way. One model serves all cases of a proof: to assume that a
demand holds, or fails, changes a few coefficients.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ortools.linear_solver import pywraplp  # type: ignore[import-untyped]

from upscale_opt.solver.problem.instance import Case, Group, Read
from upscale_opt.solver.problem.proof import common_weight, users
from upscale_opt.solver.problem.reduction import Component

_MAX_STEPS = 10_000
"""Of the simplex method, which can go round in circles where weights are very far apart."""

_FRACTION = 1e-6


@dataclass(frozen=True)
class _Use:
    """A row that bounds a cost by the charges of the demands of a view."""

    row: Any
    read: int
    view: frozenset[int]
    weight: int


class PriceProgram:
    """The program for one component.

    Args:
        component: its reads.
        groups: in core demands.

    Attributes:
        work: the rows and coefficients that were built or changed, and the steps of the simplex
            method: how much has been done, in a unit that is the same on all machines.
    """

    def __init__(self, component: Component, groups: Sequence[Group]) -> None:
        self.work = 0
        self._solver = pywraplp.Solver.CreateSolver("GLOP")
        self._solver.SetSolverSpecificParametersAsString(f"max_number_of_iterations: {_MAX_STEPS}")
        self._infinity = self._solver.infinity()
        self._scale = common_weight(component) or 1
        self._groups = groups
        self._holds: frozenset[int] = frozenset()
        self._fails: frozenset[int] = frozenset()
        self._goal = self._solver.Objective()
        self._goal.SetMaximization()
        self._prices = [self._positive() for _ in groups]
        self._of: dict[int, list[int]] = defaultdict(list)
        for index, group in enumerate(groups):
            self._goal.SetCoefficient(self._prices[index], -group.limit)
            for demand in group.demands:
                self._of[demand].append(index)
        self._shares: dict[tuple[int, int], Any] = {}
        for demand, numbers in users(component).items():
            if len(numbers) > 1 and demand in self._of:
                self._share(demand, numbers)
        self._uses: list[_Use] = []
        for read, number in zip(component.reads, component.numbers, strict=True):
            self._goal.SetCoefficient(self._least(read, number), 1)
        self._by_demand: dict[int, list[_Use]] = defaultdict(list)
        for use in self._uses:
            for demand in use.view:
                self._by_demand[demand].append(use)

    def solve(self, holds: Collection[int], fails: Collection[int], deadline: float) -> bool:
        """Find the best prices for a case; False if there are none, or not in time."""
        holds, fails = frozenset(holds), frozenset(fails)
        changed = (holds ^ self._holds) | (fails ^ self._fails)
        self._holds, self._fails = holds, fails
        for demand in changed:
            for index in self._of[demand]:
                group = self._groups[index]
                held = sum(other in holds for other in group.demands)
                self._goal.SetCoefficient(self._prices[index], held - group.limit)
            for use in self._by_demand[demand]:
                self._charge(use)
        self._solver.SetTimeLimit(max(1, round(1000 * (deadline - time.monotonic()))))
        solved: bool = self._solver.Solve() == pywraplp.Solver.OPTIMAL
        self.work += cast(int, self._solver.iterations())
        return solved

    def value(self) -> float:
        """The bound that the best prices prove, in units of the common weight, before rounding."""
        return cast(float, self._goal.Value())

    def case(self, unit: int) -> Case:
        """The prices as multiples of 1 / ``unit``."""

        def whole(variable: Any) -> int:
            value = variable.solution_value() * unit
            return max(0, round(value)) * self._scale if math.isfinite(value) else 0

        prices = {index: whole(variable) for index, variable in enumerate(self._prices)}
        shares = {key: whole(variable) for key, variable in self._shares.items()}
        return Case(
            tuple(sorted(self._holds)),
            tuple(sorted(self._fails)),
            {index: price for index, price in prices.items() if price},
            {key: share for key, share in shares.items() if share},
            unit,
        )

    def undecided(self) -> int | None:
        """The demand that the relaxation meets by half, and with the most at stake."""
        stakes: dict[int, float] = defaultdict(float)
        for use in self._uses:
            extent = abs(use.row.dual_value())
            for demand in use.view - self._holds - self._fails:
                stakes[demand] += max(use.weight / self._scale, 1) * min(extent, 1 - extent)
        best = max(stakes, key=lambda demand: (stakes[demand], -demand), default=None)
        return best if best is not None and stakes[best] > _FRACTION else None

    # Building.

    def _positive(self) -> Any:
        return self._solver.NumVar(0, self._infinity, "")

    def _share(self, demand: int, numbers: Sequence[int]) -> None:
        """The reads that make the demand together are charged its price."""
        row = self._solver.Constraint(-self._infinity, 0)
        for number in numbers:
            self._shares[number, demand] = self._positive()
            row.SetCoefficient(self._shares[number, demand], 1)
        for index in self._of[demand]:
            row.SetCoefficient(self._prices[index], -1)
        self.work += len(numbers) + len(self._of[demand])

    def _least(self, read: Read, number: int) -> Any:
        """The variable of the least that the read can cost with charges."""
        least = self._solver.NumVar(-self._infinity, read.weight / self._scale, "")
        self._bound_by_view(least, read.view, number, read.weight)
        if read.pieces:
            scarcity = self._positive()
            total = self._solver.Constraint(-self._infinity, 0)
            total.SetCoefficient(least, 1)
            total.SetCoefficient(scarcity, read.max_gathers)
            for piece in read.pieces:
                part = self._solver.NumVar(-self._infinity, self._infinity, "")
                row = self._solver.Constraint(-self._infinity, piece.weight / self._scale)
                row.SetCoefficient(part, 1)
                row.SetCoefficient(scarcity, -1)
                self._bound_by_view(part, piece.view, number, piece.weight)
                total.SetCoefficient(part, -1)
        self.work += 1 + len(read.pieces)
        return least

    def _bound_by_view(
        self, least: Any, view: tuple[int, ...] | None, number: int, weight: int
    ) -> None:
        if view is None:
            return
        row = self._solver.Constraint(-self._infinity, 0)
        row.SetCoefficient(least, 1)
        use = _Use(row, number, frozenset(view), weight)
        self._uses.append(use)
        self._charge(use)

    def _charge(self, use: _Use) -> None:
        """The use's row, with the charges of the demands that neither hold nor fail."""
        use.row.SetUb(0 if self._fails.isdisjoint(use.view) else self._infinity)
        coefficients: dict[int, int] = defaultdict(int)
        for demand in use.view:
            share = self._shares.get((use.read, demand))
            charged = demand not in self._holds
            if share is not None:
                use.row.SetCoefficient(share, -1 if charged else 0)
                continue
            for index in self._of[demand]:
                coefficients[index] -= charged
        for index, coefficient in coefficients.items():
            use.row.SetCoefficient(self._prices[index], coefficient)
        self.work += 1 + len(coefficients)
