"""The solvers by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from upscale_opt.errors import SolverError
from upscale_opt.solver.algorithms.blocks import solve_blocks
from upscale_opt.solver.algorithms.direct import solve_direct
from upscale_opt.solver.algorithms.exact import solve_exact
from upscale_opt.solver.algorithms.greedy import solve_greedy
from upscale_opt.solver.algorithms.identity import solve_identity
from upscale_opt.solver.algorithms.local_search import solve_local_search
from upscale_opt.solver.algorithms.milp import solve_pulp, solve_pulp_cbc
from upscale_opt.solver.algorithms.window_search import solve_with_windows
from upscale_opt.solver.problem.instance import Improvement, Instance, Outcome

_FOREVER = 1e9
"""Seconds in place of infinity, of which solvers could not take shares."""


class Solver(Protocol):
    """The signature of every solver in :data:`SOLVERS`."""

    def __call__(
        self,
        instance: Instance,
        *,
        time_limit: float,
        seed: int = 0,
        workers: int = 1,
        progress: Improvement | None = None,
    ) -> Outcome:
        """Find orders for ``instance``."""


def _heuristic(solve: Callable[[Instance], Outcome]) -> Solver:
    """A heuristic as a solver: it needs none of the options."""

    def solver(
        instance: Instance,
        *,
        time_limit: float,
        seed: int = 0,
        workers: int = 1,
        progress: Improvement | None = None,
    ) -> Outcome:
        outcome = solve(instance)
        if progress is not None:
            progress(outcome.objective, outcome.lower_bound)
        return outcome

    return solver


def _cp_sat(
    instance: Instance,
    *,
    time_limit: float,
    seed: int = 0,
    workers: int = 1,
    progress: Improvement | None = None,
) -> Outcome:
    """The exact solver for the instance's measure."""
    solve = solve_blocks if instance.measure == "blocks" else solve_exact
    return solve(instance, time_limit=time_limit, seed=seed, workers=workers, progress=progress)


SOLVERS: dict[str, Solver] = {
    "cp-sat": _cp_sat,
    "cp-sat-direct": solve_direct,
    "pulp": solve_pulp,
    "pulp-cbc": solve_pulp_cbc,
    "local-search": solve_local_search,
    "greedy": _heuristic(solve_greedy),
    "identity": _heuristic(solve_identity),
}


HEURISTICS = ("greedy", "identity")
"""Those that look for no better orders than their rule gives."""


def solve_instance(
    instance: Instance,
    solver: str = "cp-sat",
    *,
    time_limit: float,
    seed: int = 0,
    workers: int = 1,
    progress: Improvement | None = None,
) -> Outcome:
    """Solve ``instance`` with the solver of that name.

    Args:
        instance: the problem.
        solver: a key of :data:`SOLVERS`.
        time_limit: in seconds, maybe infinity; heuristics ignore it.
        seed: for solvers that make random choices.
        workers: threads, for solvers that can use several.
        progress: told the best cost and the bound, whenever one of them improves.

    Raises:
        SolverError: there is no such solver.
    """
    if solver not in SOLVERS:
        known = ", ".join(repr(name) for name in SOLVERS)
        raise SolverError(f"unknown solver {solver!r}; the solvers are {known}")
    limit = min(time_limit, _FOREVER)
    if solver not in HEURISTICS and any(read.window is not None for read in instance.reads):

        def plain(part: Instance, seconds: float) -> Outcome:
            return SOLVERS[solver](part, time_limit=seconds, seed=seed, workers=workers)

        return solve_with_windows(instance, plain, time_limit=limit, seed=seed, progress=progress)
    return SOLVERS[solver](
        instance, time_limit=limit, seed=seed, workers=workers, progress=progress
    )
