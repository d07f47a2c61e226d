"""Solves master programs by PuLP, in a process of its own; see ``algorithms/milp.py``.

This file is run as a script. It imports the standard library, PuLP and highspy only, so that no
other package that contains HiGHS, as OR-Tools does, can come into the process. A problem comes in
as one line of JSON, and what is found goes out as lines of JSON. The process ends with its standard
input, even in the middle of a problem.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # what lies beside this file is not to be found by its bare name
    _HERE = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) != _HERE]

import json
import queue
import shutil
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, TypedDict

Tell = Callable[[dict[str, Any]], None]

_TOLERANCE = 1e-9
"""The distance from feasible, integer or optimal at which the solvers may take a number for it."""


class Problem(TypedDict):
    """A master program: choose demands at least cost. See ``read_cost`` for what reads cost."""

    solver: str
    seconds: float
    seed: int
    threads: int
    demands: list[int]
    reads: list[Served]
    cuts: list[tuple[int, list[int]]]
    held: list[int]


class Served(TypedDict):
    """A read: its weight and view, and of each of its pieces the weight and view."""

    weight: int
    view: list[int] | None
    pieces: list[tuple[int, list[int] | None]]
    max_gathers: int


def main() -> None:
    """Solve one problem after the other until the standard input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what solvers print must not come between the lines

    def tell(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    problems: queue.SimpleQueue[tuple[Problem, float]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(problems,), daemon=True).start()
    import pulp  # noqa: F401  # takes a while; the next problem is on its way

    tell({"state": "ready"})
    while True:
        problem, deadline = problems.get()
        try:
            Program(problem).solve(deadline, tell)
        except Exception as error:  # whatever a solver raises, the other side has to hear of it
            tell({"state": "failed", "error": f"{type(error).__name__}: {error}"})


def _listen(problems: queue.SimpleQueue[tuple[Problem, float]]) -> None:
    """Pass on what comes in; end this process and those it started when nothing more can come."""
    for line in sys.stdin:
        problem: Problem = json.loads(line)
        problems.put((problem, time.monotonic() + problem["seconds"]))
    shutil.rmtree(_folder(), ignore_errors=True)
    if os.name == "posix" and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


def _folder() -> str:
    """The folder where solvers may keep files."""
    return sys.argv[1]


class Program:
    """The integer program: what is to hold, how reads are served, and what that costs."""

    def __init__(self, problem: Problem) -> None:
        import pulp

        self.problem = problem
        self.model = pulp.LpProblem("master", pulp.LpMinimize)
        self._known = frozenset(problem["held"])
        self._costs: list[tuple[Any, int]] = []
        self._count = 0
        self._new_variable = getattr(self.model, "add_variable", pulp.LpVariable)  # PuLP < 3.3.1
        self.held = {d: self._binary(d in self._known) for d in problem["demands"]}
        for read in problem["reads"]:
            self._serve(read)
        for limit, demands in problem["cuts"]:
            self.model += pulp.lpSum(self.held[demand] for demand in demands) <= limit
        self.model.setObjective(pulp.LpAffineExpression(self._costs))

    def solve(self, deadline: float, tell: Tell) -> None:
        """Look for the best choice of demands, and tell of the better ones on the way."""
        (_highs if self.problem["solver"] == "highs" else _cbc)(self, deadline, tell)

    def chosen(self, values: Callable[[Any], float]) -> list[int]:
        """The demands that are to hold in a solution."""
        return [demand for demand, variable in self.held.items() if values(variable) > 0.5]

    def cost(self, values: Callable[[Any], float]) -> int:
        """The cost of a solution, exactly."""
        return sum(weight for variable, weight in self._costs if values(variable) > 0.5)

    def _serve(self, read: Served) -> None:
        """A read is a view, or served piece by piece, or gathered."""
        import pulp

        is_view = self._holds(read["view"])
        gathers = [
            number for number, (_, view) in enumerate(read["pieces"]) if not self._holds(view)
        ]
        piecewise = (
            bool(read["pieces"])
            and not is_view
            and len(gathers) <= read["max_gathers"]
            and sum(read["pieces"][number][0] for number in gathers) < read["weight"]
        )
        gathered = self._binary(not is_view and not piecewise)
        self._costs.append((gathered, read["weight"]))
        ways = [gathered]
        if read["view"] is not None:
            ways.append(self._all(read["view"]))
        if read["pieces"]:
            chosen = self._binary(piecewise)
            ways.append(chosen)
            copies = []
            for number, (weight, view) in enumerate(read["pieces"]):
                copy = self._binary(piecewise and number in gathers)
                copies.append(copy)
                self._costs.append((copy, weight))
                self.model += copy + (0 if view is None else self._all(view)) >= chosen
            if len(copies) > read["max_gathers"]:
                self.model += pulp.lpSum(copies) <= read["max_gathers"] * chosen
        self.model += pulp.lpSum(ways) >= 1

    def _all(self, view: list[int]) -> Any:
        """A variable that is at most each demand's of the view."""
        if len(view) == 1:
            return self.held[view[0]]
        every = self._binary(self._holds(view))
        for demand in view:
            self.model += every <= self.held[demand]
        return every

    def _binary(self, known: bool) -> Any:
        """A new variable, and its value in the known solution."""
        self._count += 1
        variable = self._new_variable(f"x{self._count}", cat="Binary")
        variable.setInitialValue(int(known))
        return variable

    def _holds(self, view: list[int] | None) -> bool:
        return view is not None and self._known.issuperset(view)


def _highs(program: Program, deadline: float, tell: Tell) -> None:
    """By HiGHS: bounds and better solutions are told on the way."""
    import highspy
    import pulp

    def found(kind: Any, text: str, data: Any, control: Any, user: Any) -> None:
        message: dict[str, Any] = {"state": "found", "bound": data.mip_dual_bound}
        if kind == improving:
            values = data.mip_solution
            message["held"] = program.chosen(lambda variable: values[variable.index])
        tell(message)

    improving = highspy.cb.HighsCallbackType.kCallbackMipImprovingSolution
    solver = pulp.HiGHS(
        msg=False,
        gapAbs=0,
        gapRel=0,
        threads=program.problem["threads"],
        timeLimit=max(0.0, deadline - time.monotonic()),
        random_seed=program.problem["seed"],
        primal_feasibility_tolerance=_TOLERANCE,
        dual_feasibility_tolerance=_TOLERANCE,
        mip_feasibility_tolerance=_TOLERANCE,
    )
    solver.createAndConfigureSolver(program.model)
    solver.buildSolverModel(program.model)
    highs = program.model.solverModel
    highs.setCallback(found, None)
    highs.startCallback(improving)
    highs.startCallback(highspy.cb.HighsCallbackType.kCallbackMipLogging)
    known = highspy.HighsSolution()
    known.col_value = [float(variable.varValue) for variable in program.model.variables()]
    highs.setSolution(known)
    solver.callSolver(program.model)
    solution = highs.getSolution()
    message = {
        "state": "done",
        "optimal": highs.getModelStatus() == highspy.HighsModelStatus.kOptimal,
        "bound": highs.getInfo().mip_dual_bound,
    }
    if solution.value_valid:
        values = list(solution.col_value)
        message["held"] = program.chosen(lambda variable: values[variable.index])
    tell(message)


def _cbc(program: Program, deadline: float, tell: Tell) -> None:
    """By CBC's executable, whose bound PuLP does not hand on: it is known at the optimum only."""
    import pulp

    options = {
        "msg": False,
        "gapAbs": 0,
        "gapRel": 0,
        "threads": program.problem["threads"],
        "timeLimit": max(0.0, deadline - time.monotonic()),
        "warmStart": os.name != "nt",  # PuLP would have to keep its files for it
        "options": [
            f"randomCbcSeed {program.problem['seed']}",
            f"primalTolerance {_TOLERANCE}",
            f"integerTolerance {_TOLERANCE}",
        ],
    }
    names = ("PULP_CBC_CMD", "COIN_CMD")  # the one that comes with PuLP; the one on the path
    solvers = (getattr(pulp, name)(**options) for name in names if hasattr(pulp, name))
    solver = next((solver for solver in solvers if solver.available()), None)
    if solver is None:
        tell({"state": "missing"})
        return
    solver.tmpDir = _folder()
    program.model.solve(solver)
    status = program.model.sol_status
    message: dict[str, Any] = {"state": "done", "optimal": status == pulp.LpSolutionOptimal}
    if status in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        message["held"] = program.chosen(lambda variable: variable.varValue)
    if status == pulp.LpSolutionOptimal:
        cost = program.cost(lambda variable: variable.varValue)
        message["bound"] = min(cost, pulp.value(program.model.objective))
    tell(message)


if __name__ == "__main__":
    main()
