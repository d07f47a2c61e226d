"""The master program of one component: which demands to hold, in OR-Tools CP-SAT."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial

from ortools.sat.python import cp_model

from upscale_opt.solver.algorithms.interruptible import (
    solve_interruptibly,
    whole_bound,
)
from upscale_opt.solver.problem.conflicts import Cut
from upscale_opt.solver.problem.instance import Piece, Read, gathered_pieces, is_view
from upscale_opt.solver.problem.reduction import Component

_LARGEST_TOTAL = 1 << 58
"""CP-SAT computes in 64-bit integers; larger objectives are scaled down."""


@dataclass(frozen=True)
class Relaxed:
    """The result of one run of the master.

    Attributes:
        chosen: demands to hold for the best cost; None if the run found no solution.
        bound: nothing that respects the cuts so far costs less.
        finished: ``chosen`` is proven to be the best.
        interrupted: by Ctrl-C.
    """

    chosen: frozenset[int] | None
    bound: int
    finished: bool
    interrupted: bool = False


class Master:
    """Choose demands at least cost; knows of conflicts only what :meth:`add` was told."""

    def __init__(self, component: Component, seed: int, workers: int) -> None:
        self._seed, self._workers = seed, workers
        self._reads = component.reads
        self._model = cp_model.CpModel()
        self._held = {d: self._model.new_bool_var(f"demand {d}") for d in component.demands}
        self._costs: list[tuple[int, cp_model.IntVar]] = []
        self._hints: list[tuple[cp_model.IntVar, Callable[[Collection[int]], bool]]] = []
        for read in component.reads:
            self._encode(read)
        self._scale = self._minimize()
        self._effort: float | None = None

    def add(self, cuts: Iterable[Cut]) -> None:
        """Forbid that more than ``cut.limit`` of ``cut.demands`` hold."""
        for cut in cuts:
            literals = [self._held[demand] for demand in cut.demands]
            if cut.limit == 1:
                self._model.add_at_most_one(literals)
            elif cut.limit == len(literals) - 1:
                self._model.add_bool_or([~literal for literal in literals])
            else:
                self._model.add(cp_model.LinearExpr.sum(literals) <= cut.limit)

    def run(
        self,
        time_limit: float,
        hint: Collection[int],
        on_solution: Callable[[frozenset[int], int], None],
    ) -> Relaxed:
        """Solve what is known so far.

        Args:
            time_limit: in seconds.
            hint: demands that hold in a good solution.
            on_solution: told the demands of each better solution on the way, and the bound.
        """
        self._model.clear_hints()  # type: ignore[no-untyped-call]
        for demand, literal in self._held.items():
            self._model.add_hint(literal, demand in hint)
        for literal, value in self._hints:
            self._model.add_hint(literal, value(hint))
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = self._workers
        solver.parameters.linearization_level = 2
        solver.parameters.random_seed = self._seed
        solver.parameters.max_time_in_seconds = max(time_limit, 0.0)
        if self._effort is not None:
            solver.parameters.max_deterministic_time = self._effort
        total = sum(weight // self._scale for weight, _ in self._costs)
        watcher = _Watcher(
            self._held, total, lambda held, bound: on_solution(held, bound * self._scale)
        )
        status, interrupted = solve_interruptibly(solver, self._model, watcher)
        bound = max(0, solver.response_proto.inner_objective_lower_bound) * self._scale
        chosen = None
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            chosen = frozenset(d for d, var in self._held.items() if solver.boolean_value(var))
        return Relaxed(chosen, bound, status == cp_model.OPTIMAL, interrupted)

    def prefer(self, wishes: Iterable[Read], limit: int, effort: float) -> None:
        """From now on, meet as many wishes as orders of cost ``limit`` can.

        Args:
            wishes: reads without pieces; what those cost that are not met is the new objective.
            limit: what the reads may cost.
            effort: an end to each run, in CP-SAT's deterministic seconds.
        """
        literals = [literal for _, literal in self._costs]
        weights = [weight // self._scale for weight, _ in self._costs]
        total = cp_model.LinearExpr.weighted_sum(literals, weights)
        self._model.add(total <= limit // self._scale)
        self._costs = []
        for wish in wishes:
            self._encode(wish)
        self._scale = self._minimize()
        self._effort = effort

    def _encode(self, read: Read) -> None:
        """``read_cost`` in booleans: a view, or piece by piece, or one gather."""
        served: list[cp_model.IntVar] = []
        if read.view is not None:
            served.append(self._all_of(read.view))
        if read.pieces:
            served.append(self._piecewise(read))
        gathered = self._new(
            lambda held: not is_view(read.view, held) and gathered_pieces(read, held) is None
        )
        self._model.add_bool_or([gathered, *served])
        self._costs.append((read.weight, gathered))

    def _piecewise(self, read: Read) -> cp_model.IntVar:
        """A literal that implies serving ``read`` piece by piece, the gathers being paid for."""
        chosen = self._new(lambda held: gathered_pieces(read, held) is not None)
        gathers = []
        for piece in read.pieces:
            gather = self._new(partial(_is_gathered, read, piece))
            views = [] if piece.view is None else [self._all_of(piece.view)]
            self._model.add_bool_or([~chosen, gather, *views])
            self._costs.append((piece.weight, gather))
            gathers.append(gather)
        if len(gathers) > read.max_gathers:
            self._model.add(cp_model.LinearExpr.sum(gathers) <= read.max_gathers)
        return chosen

    def _all_of(self, view: tuple[int, ...]) -> cp_model.IntVar:
        """A literal that implies all demands of a view."""
        if len(view) == 1:
            return self._held[view[0]]
        literal = self._new(lambda held: is_view(view, held))
        for demand in view:
            self._model.add_implication(literal, self._held[demand])
        return literal

    def _new(self, hint: Callable[[Collection[int]], bool]) -> cp_model.IntVar:
        literal = self._model.new_bool_var("")
        self._hints.append((literal, hint))
        return literal

    def _minimize(self) -> int:
        """Set the objective and return its scale: the real cost is at least scale times it.

        Costs that are too large even after division by their greatest common divisor are rounded
        down, so that bounds stay true.
        """
        scale = math.gcd(*(weight for weight, _ in self._costs)) or 1
        total = sum(weight for weight, _ in self._costs)
        scale *= -(-total // (scale * _LARGEST_TOTAL)) or 1
        self._model.minimize(
            cp_model.LinearExpr.weighted_sum(
                [literal for _, literal in self._costs],
                [weight // scale for weight, _ in self._costs],
            )
        )
        return scale


def _is_gathered(read: Read, piece: Piece, held: Collection[int]) -> bool:
    return gathered_pieces(read, held) is not None and not is_view(piece.view, held)


class _Watcher(cp_model.CpSolverSolutionCallback):
    def __init__(
        self,
        held: dict[int, cp_model.IntVar],
        total: int,
        tell: Callable[[frozenset[int], int], None],
    ) -> None:
        super().__init__()
        self._literals = held
        self._total = total
        self._tell = tell

    def on_solution_callback(self) -> None:
        held = frozenset(d for d, var in self._literals.items() if self.boolean_value(var))
        self._tell(held, max(0, whole_bound(self.best_objective_bound, self._total)))
