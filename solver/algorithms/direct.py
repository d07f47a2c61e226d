"""Orders as variables of one CP-SAT model: an exact solver to check the other one by.

It shares nothing with ``algorithms/exact.py`` but the instance: no reduction, no conflicts,
no PQ-trees. It can take some dozens of channels per space; the other one takes thousands.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ortools.sat.python import cp_model

from upscale_opt.solver.algorithms.direct_blocks import (
    count_blocks_literals,
    model_blocks,
)
from upscale_opt.solver.algorithms.direct_copies import (
    count_copies_literals,
    model_copies,
)
from upscale_opt.solver.algorithms.direct_program import (
    OutOfTimeError,
    Program,
    Values,
)
from upscale_opt.solver.algorithms.greedy import GRACE, greedy_orders
from upscale_opt.solver.algorithms.identity import solve_identity
from upscale_opt.solver.algorithms.interruptible import solve_interruptibly
from upscale_opt.solver.problem.instance import (
    Improvement,
    Instance,
    Orders,
    Outcome,
    cost,
)

_MAX_LITERALS = 20_000
"""Instances whose model would have more truth values are left to other solvers."""


def solve_direct(
    instance: Instance,
    *,
    time_limit: float,
    seed: int = 0,
    workers: int = 1,
    progress: Improvement | None = None,
) -> Outcome:
    """The best orders, by one model of everything.

    If time runs out (or Ctrl-C is pressed), the best orders so far come with a true bound. What is
    too large for such a model comes back as greedily ordered, with the bound that is obvious. A run
    with one worker that is not cut off by the time is the same for the same seed.

    Args:
        instance: the problem.
        time_limit: in seconds; the greedy orders may take a little longer.
        seed: for CP-SAT.
        workers: threads of CP-SAT.
        progress: told the incumbent and the bound.
    """
    deadline = time.monotonic() + time_limit
    best = _Best(solve_identity(instance), instance, progress)
    try:
        best.improve(greedy_orders(instance, deadline=deadline + GRACE))
        best.report()
        if best.outcome.optimal or time.monotonic() >= deadline:
            return best.outcome
        copies = instance.measure == "copies"
        if (count_copies_literals if copies else count_blocks_literals)(instance) > _MAX_LITERALS:
            return best.outcome
        program = Program(deadline)
        build = model_copies if copies else model_blocks
        orders = build(program, instance, best.outcome.orders)
        scale = program.minimize()
        _search(program, scale, orders, best, deadline, seed, workers, linear=not copies)
    except (KeyboardInterrupt, OutOfTimeError):
        pass
    return best.outcome


class _Best:
    """The best orders and the best bound so far, and who wants to know of them."""

    def __init__(self, first: Outcome, instance: Instance, progress: Improvement | None) -> None:
        self.outcome = first
        self._instance, self._progress = instance, progress

    def improve(self, orders: Orders) -> None:
        objective = cost(self._instance, orders)
        if objective < self.outcome.objective:
            self.outcome = Outcome(orders, objective, self.outcome.lower_bound)

    def bound(self, lower_bound: int) -> None:
        if lower_bound > self.outcome.lower_bound:
            self.outcome = Outcome(self.outcome.orders, self.outcome.objective, lower_bound)

    def report(self) -> None:
        if self._progress is not None:
            self._progress(self.outcome.objective, self.outcome.lower_bound)


def _search(
    program: Program,
    scale: int,
    orders: Callable[[Values], Orders],
    best: _Best,
    deadline: float,
    seed: int,
    workers: int,
    linear: bool,
) -> None:
    """Run CP-SAT, and keep what it finds.

    The linear relaxation says much of paths (``linear``) and nothing of windows.
    """

    def found(value: Values | None, bound: int) -> None:
        before = best.outcome
        if value is not None:
            best.improve(orders(value))
        best.bound(program.constant + scale * max(0, bound))
        if best.outcome != before:
            best.report()

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = workers
    solver.parameters.random_seed = seed
    solver.parameters.linearization_level = 2 if linear else 0
    solver.parameters.max_time_in_seconds = max(0.0, deadline - time.monotonic())
    status, _ = solve_interruptibly(solver, program.model, _Watcher(found))
    solved = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    found(solver.value if solved else None, solver.response_proto.inner_objective_lower_bound)


class _Watcher(cp_model.CpSolverSolutionCallback):
    def __init__(self, tell: Callable[[Values, int], None]) -> None:
        super().__init__()
        self._tell = tell

    def on_solution_callback(self) -> None:
        # best_objective_bound is a floating-point number, and off by what large costs round to
        self._tell(self.value, self.response_proto.inner_objective_lower_bound)
