"""The program over given columns, for CP-SAT: one column a picker, live widths as unions.

Nested sets make unions cheap. A channel is asked for by a picker if the level picked is below the
channel's rank; so channels that have the same ranks with all pickers are one *atom*, live if any
picker's level is below its rank there. Costs are products of two widths.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from ortools.sat.python import cp_model

from upscale_opt.ir.cost_model import EACH
from upscale_opt.solver.algorithms.interruptible import solve_interruptibly, whole_bound
from upscale_opt.solver.selection.nodes import Node
from upscale_opt.solver.selection.pickers import Picks
from upscale_opt.solver.selection.setting import Floats
from upscale_opt.solver.selection.widths import Widths

_LOSS_SCALE = 1e11
"""Losses are rounded down to this many parts of the largest, so that bounds are true."""

_GAP = 1e-7
_TIME_SCALE = 1e12
_PARTS = 4
"""Parts of a channel in which widths counted in blocks are whole numbers, rounded down."""

_Literal = tuple[int, int, int]
"""A picker, a family, and a level: that it takes this level or one that keeps more."""


@dataclass(frozen=True)
class Programmed:
    """The answer.

    Attributes:
        picks: the best found; ``None`` if none.
        bound: no picks lose less, in this shape of segments.
        impossible: no picks are within the limits.
        interrupted: it was stopped.
    """

    picks: Picks | None
    bound: float
    impossible: bool = False
    interrupted: bool = False


class Program:
    """The program.

    Args:
        widths: what picks take.
        most: of shape (resources,): the limits.
    """

    def __init__(self, widths: Widths, most: Floats) -> None:
        self._widths = widths
        self._model = cp_model.CpModel()
        self._literals: list[list[list[cp_model.IntVar]]] = []
        self._atoms: dict[tuple[_Literal, ...], cp_model.IntVar] = {}
        self._sizes: dict[int, tuple[cp_model.LinearExprT, int, int]] = {}
        self._variables: dict[int, cp_model.IntVar] = {}
        self._pick_literals()
        self._limit(most)
        self._minimise()

    def _pick_literals(self) -> None:
        model = self._model
        for p, picker in enumerate(self._widths.pickers):
            families: list[list[cp_model.IntVar]] = []
            for f, family in enumerate(picker.families):
                levels = len(family.losses)
                own = [model.new_bool_var(f"g{p}_{f}_{level}") for level in range(levels)]
                for one, other in pairwise(own):
                    model.add_implication(one, other)
                families.append(own)
            model.add_exactly_one(own[-1] for own in families)
            self._literals.append(families)

    def _of(self, literal: _Literal) -> cp_model.IntVar:
        p, f, level = literal
        return self._literals[p][f][level]

    # Widths.

    def _signatures(self, node: Node) -> list[Counter[tuple[_Literal, ...]]]:
        """For every group, how many entries are asked for alike."""
        counts: list[Counter[tuple[_Literal, ...]]] = [Counter() for _ in range(node.groups)]
        rows: list[tuple[int, int, list[int]]] = []
        for p, ranks in node.ranks.items():
            for f, rank in enumerate(ranks):
                rows.append((p, f, rank.tolist()))
        labels, fixed = node.labels.tolist(), node.fixed.tolist()
        for entry in range(len(fixed)):
            if fixed[entry]:
                counts[labels[entry]][_ALWAYS] += 1
                continue
            signature = tuple((p, f, rank[entry] - 1) for p, f, rank in rows if rank[entry] > 0)
            if signature:
                counts[labels[entry]][signature] += 1
        return counts

    def _live(self, signature: tuple[_Literal, ...]) -> cp_model.LinearExprT:
        if signature == _ALWAYS:
            return 1
        pickers = {literal[0] for literal in signature}
        if len(pickers) == 1:  # it takes one family only
            return cp_model.LinearExpr.sum([self._of(literal) for literal in signature])
        found = self._atoms.get(signature)
        if found is None:
            found = self._atoms[signature] = self._model.new_bool_var(f"y{len(self._atoms)}")
            for literal in signature:
                self._model.add_implication(self._of(literal), found)
            for p in pickers:
                own = [self._of(literal) for literal in signature if literal[0] == p]
                if len(own) > 1:
                    self._model.add(cp_model.LinearExpr.sum(own) <= found)
        return found

    def _size(self, number: int) -> tuple[cp_model.LinearExprT, int, int]:
        """The width of a node (or of one of its groups), with the least and the most it may be."""
        if number in self._sizes:
            return self._sizes[number]
        node = self._widths.nodes[number]
        if node.blocks != EACH:
            self._sizes[number] = self._in_blocks(number)
            return self._sizes[number]
        sums = []
        for counts in self._signatures(node):
            terms = [(self._live(signature), count) for signature, count in counts.items()]
            constant = sum(count for live, count in terms if isinstance(live, int))
            parts = [(live, count) for live, count in terms if not isinstance(live, int)]
            expression = constant + cp_model.LinearExpr.weighted_sum(
                [live for live, _ in parts], [count for _, count in parts]
            )
            sums.append((expression, constant, sum(counts.values())))
        if len(sums) == 1:
            self._sizes[number] = sums[0]
        else:
            low, high = max(s[1] for s in sums), max(s[2] for s in sums)
            widest = self._model.new_int_var(low, high, f"m{number}")
            self._model.add_max_equality(widest, [s[0] for s in sums])
            self._sizes[number] = widest, low, high
        return self._sizes[number]

    def _in_blocks(self, number: int) -> tuple[cp_model.LinearExprT, int, int]:
        """The width of a node as its blocks count it, in parts of a channel."""
        plain = self._widths.nodes[number].plain
        _, low, high = self._size(plain)
        parts = np.floor(self._widths.counted(number) * _PARTS + 1e-6).astype(np.int64)
        table = parts[: high + 1].tolist()
        least, most = min(table[low:]), max(table[low:])
        counted = self._model.new_int_var(least, most, f"b{number}")
        self._model.add_element(self._variable(plain), table, counted)
        return counted, least, most

    def _variable(self, number: int) -> cp_model.IntVar:
        if number not in self._variables:
            size, low, high = self._size(number)
            variable = self._model.new_int_var(low, high, f"w{number}")
            self._model.add(variable == size)
            self._variables[number] = variable
        return self._variables[number]

    # Limits.

    def _limit(self, most: Floats) -> None:
        widths = self._widths
        expressions: list[tuple[cp_model.LinearExprT, float]] = []
        for left, right in zip(widths.left.tolist(), widths.right.tolist(), strict=True):
            factor = float(widths.nodes[left].groups * widths.nodes[right].groups)
            for number in (left, right):
                if widths.nodes[number].blocks != EACH:
                    factor /= _PARTS
            if left == 0:
                expressions.append((self._size(right)[0], factor))
                continue
            expressions.append((self._product(left, right), factor))
        for row, limit in enumerate(widths.setting.limits):
            exact = limit.resource != "latency"
            groups = [rate.groups for own in widths.setting.rates.of.values() for rate in own]
            scale = float(math.lcm(*groups)) if exact else _TIME_SCALE / limit.before
            room = math.floor((most[row] - widths.constant[row]) * scale + (0.5 if exact else 0))
            whole = [
                (expression, round(c * factor * scale))
                for (expression, factor), c in zip(
                    expressions, widths.coefficients[row].tolist(), strict=True
                )
            ]
            self._model.add(
                cp_model.LinearExpr.weighted_sum(
                    [expression for expression, c in whole if c], [c for _, c in whole if c]
                )
                <= room
            )

    def _product(self, left: int, right: int) -> cp_model.LinearExprT:
        """At least the product of two widths; limits see to it that it is no more."""
        if not self._is_simple(left):
            left, right = right, left
        if not self._is_simple(left):
            one, other = self._variable(left), self._variable(right)
            highest = self._size(left)[2] * self._size(right)[2]
            product = self._model.new_int_var(0, highest, f"p{left}_{right}")
            self._model.add_multiplication_equality(product, [one, other])
            return product
        (counts,) = self._signatures(self._widths.nodes[left])
        other = self._variable(right)
        _, low, high = self._size(right)
        parts: list[tuple[cp_model.LinearExprT, int]] = []
        sums: Counter[_Literal] = Counter()
        for signature, count in counts.items():
            if signature == _ALWAYS:
                parts.append((other, count))
                continue
            for literal in signature:
                sums[literal] += count
        for literal, count in sums.items():
            z = self._model.new_int_var(0, high, f"z{left}_{right}")
            on = self._of(literal)
            self._model.add(z >= other - high * (1 - on))
            self._model.add(z >= low * on)
            parts.append((z, count))
        return cp_model.LinearExpr.weighted_sum([e for e, _ in parts], [c for _, c in parts])

    def _is_simple(self, number: int) -> bool:
        """A node's width is a sum over the levels of one picker."""
        node = self._widths.nodes[number]
        return len(node.ranks) == 1 and node.groups == 1 and node.blocks == EACH

    def _minimise(self) -> None:
        picker_worst = [
            max(float(family.losses[-1]) for family in picker.families)
            for picker in self._widths.pickers
        ]
        self._unit = max(max(picker_worst, default=0.0), 1e-300) / _LOSS_SCALE
        variables: list[cp_model.IntVar] = []
        factors: list[int] = []
        for p, picker in enumerate(self._widths.pickers):
            for f, family in enumerate(picker.families):
                losses = np.floor(family.losses / self._unit).astype(np.int64).tolist()
                own = self._literals[p][f]
                for level, literal in enumerate(own):
                    after = losses[level + 1] if level + 1 < len(own) else 0
                    variables.append(literal)
                    factors.append(losses[level] - after)
        self._total = sum(map(abs, factors))
        self._model.minimize(cp_model.LinearExpr.weighted_sum(variables, factors))

    # Solving.

    def forbid(self, picks: Picks) -> None:
        """Exclude these picks."""
        others: list[cp_model.LiteralT] = []
        for p, (family, level) in enumerate(picks):
            own = self._literals[p][family]
            others.append(own[level].negated())
            if level:
                others.append(own[level - 1])
        self._model.add_bool_or(others)

    def solve(self, seconds: float, *, seed: int = 0, workers: int = 1) -> Programmed:
        """Solve within so many seconds."""
        solver = cp_model.CpSolver()
        solver.parameters.max_time_in_seconds = max(seconds, 0.01)
        solver.parameters.random_seed = seed
        solver.parameters.num_workers = workers
        solver.parameters.relative_gap_limit = _GAP
        solver.parameters.linearization_level = 2
        status, interrupted = solve_interruptibly(solver, self._model)
        if status == cp_model.INFEASIBLE:
            return Programmed(None, math.inf, impossible=True)
        bound = max(whole_bound(max(solver.best_objective_bound, 0.0), self._total), 0) * self._unit
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return Programmed(None, bound, interrupted=interrupted)
        picks: Picks = []
        for families in self._literals:
            for f, own in enumerate(families):
                if solver.value(own[-1]):
                    picks.append((f, next(i for i, lit in enumerate(own) if solver.value(lit))))
        return Programmed(picks, bound, interrupted=interrupted)


_ALWAYS: tuple[_Literal, ...] = ((-1, -1, -1),)
