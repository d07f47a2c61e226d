"""The master programs as mixed-integer linear programs, by PuLP: HiGHS or CBC.

Why this formulation. The textbook's is a linear ordering with betweenness: n (n - 1) / 2 variables
say which of two channels comes first, about n³ / 3 inequalities make that an order, and for each
set S, |S|² (n - |S|) more keep every other channel out from between two of its own. For the 36
random halves of 1,024 channels in the benchmarks that is 5 · 10⁵ variables, 4 · 10⁸ inequalities
and 5 · 10⁹ more; and its relaxation is worth nothing, since one half everywhere is feasible, with
all sets consecutive.

The conflict formulation knows no channels. A variable per demand says whether it is to hold, one
per read whether it is gathered, and a cut per conflict found that not all of its demands hold:

    min  Σ_r w_r g_r
    s.t. g_r + h_d ≥ 1              for every read r that is a view if d holds
         Σ_{d∈C} h_d ≤ limit_C      for every cut C

A read with a view of several demands takes one more variable and as many inequalities, one that can
be served in p pieces 1 + p variables and 1 + p inequalities or one more. So there are as many
variables as demands, reads and pieces, and as many inequalities as reads, pieces and cuts; for the
36 halves, any three of which conflict, 72 variables, 36 inequalities and one cut: at most two hold.
Cuts come in rounds, as for CP-SAT (``algorithms/exact.py``): all that pairs and triples of
demands imply at first, then those that the solver's choice violates.

Numbers are floating-point here, so weights are made small enough for the solvers' tolerances to
matter less than one unit; a bound is rounded up to an integer only as far as these allow.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Collection, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from upscale_opt.errors import SolverError
from upscale_opt.solver.algorithms.exact import solve_exact
from upscale_opt.solver.algorithms.exact_master import Relaxed
from upscale_opt.solver.algorithms.milp_process import MISSING, MilpProcess
from upscale_opt.solver.problem.conflicts import Cut
from upscale_opt.solver.problem.instance import Improvement, Instance, Outcome
from upscale_opt.solver.problem.reduction import Component

_LARGEST_TOTAL = 1 << 28
"""Larger objectives are scaled down: see ``_tolerance``."""

_SEEDS = 1 << 31
"""The solvers take smaller seeds only."""


def solve_pulp(
    instance: Instance,
    *,
    time_limit: float,
    seed: int = 0,
    workers: int = 1,
    progress: Improvement | None = None,
) -> Outcome:
    """The best orders and the proof that they are, by HiGHS.

    If time runs out (or Ctrl-C is pressed), the best orders so far come with a true bound. A run
    with one worker that is not cut off by the time is the same for the same seed.

    Args:
        instance: the problem.
        time_limit: in seconds.
        seed: for HiGHS, and for the search for conflicts.
        workers: threads of HiGHS.
        progress: told the incumbent and the bound.

    Raises:
        SolverError: if HiGHS is not installed or fails, or the measure is ``"blocks"``.
    """
    if importlib.util.find_spec("highspy") is None:
        raise SolverError(MISSING["highs"])
    return _solve("pulp", "highs", instance, time_limit, seed, workers, progress)


def solve_pulp_cbc(
    instance: Instance,
    *,
    time_limit: float,
    seed: int = 0,
    workers: int = 1,
    progress: Improvement | None = None,
) -> Outcome:
    """The same as :func:`solve_pulp` by CBC, whose bound is known only where it reaches an optimum.

    Raises:
        SolverError: if there is no CBC or it fails, or the measure is ``"blocks"``.
    """
    return _solve("pulp-cbc", "cbc", instance, time_limit, seed, workers, progress)


def _solve(
    name: str,
    solver: str,
    instance: Instance,
    time_limit: float,
    seed: int,
    workers: int,
    progress: Improvement | None,
) -> Outcome:
    if instance.measure != "copies":
        raise SolverError(f"solver {name!r} minimises copies only; use 'cp-sat' for blocks")
    with MilpProcess(solver) as process:

        def master(component: Component, seed: int, workers: int) -> PulpMaster:
            return PulpMaster(component, seed, workers, process)

        return solve_exact(
            instance,
            time_limit=time_limit,
            seed=seed,
            workers=workers,
            progress=progress,
            master=master,
        )


class PulpMaster:
    """Choose demands at least cost; knows of conflicts only what :meth:`add` was told.

    Takes the place of ``Master``. Several may share a process.
    """

    def __init__(self, component: Component, seed: int, workers: int, process: MilpProcess) -> None:
        weights = [read.weight for read in component.reads]
        weights += [piece.weight for read in component.reads for piece in read.pieces]
        self._scale = _Scale.of(weights)
        self._process = process
        self._cuts: list[tuple[int, tuple[int, ...]]] = []
        self._problem: dict[str, Any] = {
            "seed": seed % _SEEDS,
            "threads": workers,
            "demands": component.demands,
            "reads": [
                {
                    "weight": read.weight // self._scale.unit,
                    "view": read.view,
                    "pieces": [(p.weight // self._scale.unit, p.view) for p in read.pieces],
                    "max_gathers": read.max_gathers,
                }
                for read in component.reads
            ],
            "cuts": self._cuts,
        }

    def add(self, cuts: Iterable[Cut]) -> None:
        """Forbid that more than ``cut.limit`` of ``cut.demands`` hold."""
        self._cuts.extend((cut.limit, cut.demands) for cut in cuts)

    def run(
        self,
        time_limit: float,
        hint: Collection[int],
        on_solution: Callable[[frozenset[int], int], None],
    ) -> Relaxed:
        """Solve what is known so far; see ``Master.run``.

        Raises:
            SolverError: if the solver is not there or fails.
        """
        best = Relaxed(None, 0, finished=False)
        problem = {**self._problem, "held": sorted(hint)}
        with closing(self._process.solve(problem, time_limit)) as messages:
            for message in messages:
                bound = max(best.bound, self._scale.bound(message.get("bound", 0.0)))
                chosen = frozenset(message["held"]) if "held" in message else best.chosen
                best = Relaxed(chosen, bound, finished=message.get("optimal", False))
                if message["state"] == "found" and "held" in message:
                    on_solution(frozenset(message["held"]), bound)
        return best


@dataclass(frozen=True)
class _Scale:
    """The divisor of weights (which are rounded down), and how far their sums can be off."""

    unit: int
    tolerance: float

    @staticmethod
    def of(weights: Collection[int]) -> _Scale:
        """Such that the tolerance is less than one unit, and as fine as that allows.

        The solvers take numbers for equal that differ by 10⁻⁹, and an objective can be off by that
        times the sum of its weights.
        """
        unit = math.gcd(*weights) or 1
        unit *= -(-sum(weights) // (unit * _LARGEST_TOTAL)) or 1
        total = sum(weight // unit for weight in weights)
        return _Scale(unit, 1e-4 + 1e-9 * total)

    def bound(self, value: float) -> int:
        """The least cost that ``value``, a bound in units, leaves possible."""
        if not math.isfinite(value):
            return 0
        return max(0, math.ceil(value - self.tolerance)) * self.unit
