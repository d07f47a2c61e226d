"""One part of a block minimisation as a CP-SAT model of circuits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ortools.sat.python import cp_model

from upscale_opt.solver.algorithms.block_parts import BlockPart
from upscale_opt.solver.algorithms.interruptible import (
    solve_interruptibly,
    whole_bound,
)
from upscale_opt.solver.problem.instance import Instance, Orders


class Circuit:
    """One part as a CP-SAT model: per space, a circuit through its atoms and its two ends."""

    def __init__(self, instance: Instance, part: BlockPart, orders: Orders) -> None:
        self._instance, self._part = instance, part
        self._model = cp_model.CpModel()
        self._arcs: dict[int, dict[tuple[int, int], cp_model.IntVar]] = {}
        paths = {space: self._number(space, orders[space]) for space in part.spaces}
        for space, path in paths.items():
            self._add_path(space, path)
        terms = [*self._beginnings(), *self._spared(paths)]
        weights = [weight for weight, _ in terms]
        literals = [literal for _, literal in terms]
        self._total = sum(map(abs, weights))
        self._model.minimize(cp_model.LinearExpr.weighted_sum(literals, weights))

    def solve(
        self, time_limit: float, seed: int, workers: int, tell: Callable[[int, int], None]
    ) -> Paths:
        """Orders of all spaces of the part (if any were found) and a bound on its cost.

        ``tell`` is told the cost and the bound, whenever there are better orders.
        """
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = workers
        solver.parameters.random_seed = seed
        solver.parameters.max_time_in_seconds = max(time_limit, 0.0)
        status, interrupted = solve_interruptibly(solver, self._model, _Watcher(self._total, tell))
        bound = max(0, whole_bound(solver.best_objective_bound, self._total))
        orders: dict[int, tuple[int, ...]] = {}
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            for space, arcs in self._arcs.items():
                after = {a: b for (a, b), literal in arcs.items() if solver.boolean_value(literal)}
                orders[space] = self._follow(space, after)
        return Paths(orders, bound, interrupted)

    def _follow(self, space: int, after: dict[int, int]) -> tuple[int, ...]:
        atoms = self._part.atoms[space]
        order: list[int] = []
        node = after.get(0, 0)
        while node:
            order.extend(atoms[node - 1])
            node = after[node]
        return tuple(order)

    def _number(self, space: int, order: tuple[int, ...]) -> list[int]:
        """An order as a path: atoms numbered from 1, at the first of their channels."""
        number = {c: i for i, atom in enumerate(self._part.atoms[space], 1) for c in atom}
        return list(dict.fromkeys(number[channel] for channel in order))

    def _add_path(self, space: int, path: list[int]) -> None:
        """Node 0 stands for both ends; a fixed space has the arcs of its one order only."""
        followed = set(pairwise([0, *path, 0]))
        nodes = range(len(path) + 1)
        fixed = self._instance.spaces[space].fixed
        pairs = sorted(followed) if fixed else [(a, b) for a in nodes for b in nodes if a != b]
        arcs = {}
        for a, b in pairs:
            arcs[a, b] = self._model.new_bool_var("")
            self._model.add_hint(arcs[a, b], (a, b) in followed)
        self._model.add_circuit([(a, b, literal) for (a, b), literal in arcs.items()])
        self._arcs[space] = arcs

    def _beginnings(self) -> Iterator[tuple[int, cp_model.IntVar]]:
        """The cost of each arc: the reads that begin a run there."""
        wanted: dict[int, dict[int, list[frozenset[int]]]] = defaultdict(lambda: defaultdict(list))
        for read in self._part.reads:
            for part in read.parts:
                if part.channels:
                    wanted[part.space][read.weight].append(part.channels)
        for space, by_weight in wanted.items():
            atoms = self._part.atoms[space]
            for weight, sets in by_weight.items():
                inside = [0, *(_members(atom[0], sets) for atom in atoms)]
                for (a, b), literal in self._arcs[space].items():
                    beginning = (inside[b] & ~inside[a]).bit_count()
                    if beginning:
                        yield weight * beginning, literal

    def _spared(self, paths: dict[int, list[int]]) -> Iterator[tuple[int, cp_model.IntVar]]:
        """The runs that go on across the border of two spaces and were counted twice."""
        for read in self._part.reads:
            for left, right in pairwise(read.parts):
                if not (left.channels and right.channels and read.weight):
                    continue
                spared = self._model.new_bool_var("")
                hint = True
                for part, end in ((left, -1), (right, 0)):
                    own = [
                        node
                        for node, atom in enumerate(self._part.atoms[part.space], 1)
                        if atom[0] in part.channels
                    ]
                    arcs = self._arcs[part.space]
                    keys = [(node, 0) if end else (0, node) for node in own]
                    literals = [arcs[key] for key in keys if key in arcs]
                    self._model.add_bool_or([*literals, ~spared])
                    hint = hint and paths[part.space][end] in own
                self._model.add_hint(spared, hint)
                yield -read.weight, spared


@dataclass(frozen=True)
class Paths:
    """The result of a search: orders by space (none, if it found none), and a bound.

    Attributes:
        orders: of the part's spaces.
        bound: the part's reads have no fewer runs, by weight.
        interrupted: by Ctrl-C.
    """

    orders: dict[int, tuple[int, ...]]
    bound: int
    interrupted: bool


class _Watcher(cp_model.CpSolverSolutionCallback):
    def __init__(self, total: int, tell: Callable[[int, int], None]) -> None:
        super().__init__()
        self._total = total
        self._tell = tell

    def on_solution_callback(self) -> None:
        self._tell(
            round(self.objective_value), max(0, whole_bound(self.best_objective_bound, self._total))
        )


def _members(channel: int, sets: Sequence[frozenset[int]]) -> int:
    return sum(1 << i for i, channels in enumerate(sets) if channel in channels)
