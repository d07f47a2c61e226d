"""Run CP-SAT such that Ctrl-C ends the search and keeps its result, and read its bounds safely."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor, wait

from ortools.sat.python import cp_model


def solve_interruptibly(
    solver: cp_model.CpSolver,
    model: cp_model.CpModel,
    watcher: cp_model.CpSolverSolutionCallback | None = None,
) -> tuple[cp_model.CpSolverStatus, bool]:
    """``solver.solve``, which an interrupt stops as if the time had run out; and whether it did.

    CP-SAT could take over the signal, but then nobody else hears of it. So it searches in a thread,
    and this one waits for it and for Ctrl-C; which a handler of the caller's hears first. Python
    delivers signals to the main thread only, so elsewhere there is nothing to wait for.
    """
    watcher = watcher or _Nobody()
    solver.parameters.catch_sigint_signal = False
    if threading.current_thread() is not threading.main_thread():
        return solver.solve(model, watcher), False
    with ThreadPoolExecutor(1) as pool:
        search = pool.submit(solver.solve, model, watcher)
        interrupted = False
        while not search.done():
            try:
                if interrupted:  # more than once, as it may not have begun to search
                    solver.stop_search()
                wait([search], timeout=0.05 if interrupted else None)
            except KeyboardInterrupt:
                interrupted = True
        return search.result(), interrupted


class _Nobody(cp_model.CpSolverSolutionCallback):
    """Is told of solutions."""

    def on_solution_callback(self) -> None:
        """Wait for the last one."""


def whole_bound(bound: float, total: int) -> int:
    """A bound that CP-SAT tells as a floating-point number, as a whole number that is no larger.

    CP-SAT scales objectives while it solves, so its numbers are off by what rounding does to the
    sum of all costs, and not merely to the bound: with costs of 10**12 it called 7 "7.00018".

    Args:
        bound: such as ``CpSolverSolutionCallback.best_objective_bound``.
        total: the sum of the absolute values of the objective's coefficients.
    """
    return math.ceil(bound - 1e-6 - total * 2.0**-48)
