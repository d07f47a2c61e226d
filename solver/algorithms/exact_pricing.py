"""Prices and cases that make a proof, by linear programs and branching."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence

from upscale_opt.solver.algorithms.exact_price_program import PriceProgram
from upscale_opt.solver.problem.instance import Case, Group
from upscale_opt.solver.problem.proof import case_bound, common_weight
from upscale_opt.solver.problem.reduction import Component

_UNITS = (1, 2, 6, 12, 60, 2520, 1 << 20)
"""Denominators to try: the least with which rounding loses nothing makes the proof readable."""

_MAX_CASES = 1000
"""A proof of more cases than this is not tried for."""

_MAX_WORK = 60_000
"""Nor one that takes more work than this to find: some seconds."""

_LARGEST = 1 << 500
"""Nor with weights that are more times the common one than floating-point numbers can say."""

_SLACK = 1e-6


def prove(
    component: Component, groups: Sequence[Group], bound: int, deadline: float
) -> tuple[Case, ...]:
    """Cases which show that the component costs at least ``bound``, if that can be done.

    Prices come from the dual of the program's linear relaxation. Where it falls short, a demand
    that the relaxation meets by half is made to hold in one case and to fail in the other.

    Args:
        component: the reads.
        groups: in core demands.
        bound: what is to be shown.
        deadline: when to stop at the latest, by ``time.monotonic()``.

    Returns:
        The cases; or the one that shows as much as can be shown without distinction, if there would
        be too many.
    """
    if time.monotonic() >= deadline or sum(len(g.demands) for g in groups) > _MAX_WORK:
        return (Case(),)
    weights = [read.weight for read in component.reads]
    weights += [piece.weight for read in component.reads for piece in read.pieces]
    if max(weights) // (common_weight(component) or 1) > _LARGEST:
        return (Case(),)
    program = PriceProgram(component, groups)
    prover = _Prover(component, groups, program, bound, deadline)
    root = Case()
    done: list[Case] = []
    waiting = [root]
    while waiting:
        case, split = prover.priced(waiting.pop())
        if case_bound(component, groups, case) >= bound:
            done.append(case)
            continue
        if not case.holds and not case.fails:
            root = case
        late = program.work > _MAX_WORK or time.monotonic() >= deadline
        if split is None or late or len(done) + len(waiting) >= _MAX_CASES:
            return (root,)
        waiting.append(Case((*case.holds, split), case.fails))
        waiting.append(Case(case.holds, (*case.fails, split)))
    return tuple(done)


class _Prover:
    def __init__(
        self,
        component: Component,
        groups: Sequence[Group],
        program: PriceProgram,
        bound: int,
        deadline: float,
    ) -> None:
        self._component, self._groups, self._program = component, groups, program
        self._bound, self._deadline = bound, deadline
        self._step = common_weight(component) or 1

    def priced(self, case: Case) -> tuple[Case, int | None]:
        """The case with the prices that prove most, and a demand to distinguish cases by."""
        best, most = case, case_bound(self._component, self._groups, case)
        if most >= self._bound:
            return case, None
        if not self._program.solve(case.holds, case.fails, self._deadline):
            return case, self._most_entangled((*case.holds, *case.fails))
        hopeless = self._program.value() < (self._bound / self._step - 1) * (1 - _SLACK)
        for unit in _UNITS[-1:] if hopeless else _UNITS:
            candidate = self._program.case(unit)
            proven = case_bound(self._component, self._groups, candidate)
            if proven > most:
                best, most = candidate, proven
            if proven >= self._bound:
                break
        split = self._program.undecided()
        if split is None:
            split = self._most_entangled((*case.holds, *case.fails))
        return best, split

    def _most_entangled(self, decided: Collection[int]) -> int | None:
        """The undecided demand that is in most groups."""
        times = Counter(d for group in self._groups for d in group.demands if d not in decided)
        return max(times, key=lambda demand: (times[demand], -demand), default=None)
