"""Events that work which takes a while tells of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from upscale_opt.solver.problem.instance import Improvement


@dataclass(frozen=True)
class Progress:
    """One event; every public function that takes ``progress`` calls it with these.

        >>> print(Progress("solve", value=1200, bound=800))
        solve: 1,200, at least 800

    Attributes:
        step: what is going on: ``"trace"``, ``"solve"`` …; where solvers are compared, the name of
            the solver.
        value: the objective's value for the best solution so far; ``None`` where nothing is solved,
            or a step only begins.
        bound: the lower bound so far; ``None`` where ``value`` is.
    """

    step: str
    value: int | None = None
    bound: int | None = None

    def __str__(self) -> str:
        if self.value is None or self.bound is None:
            return self.step
        return f"{self.step}: {self.value:,}, at least {self.bound:,}"


Listener = Callable[[Progress], None]
"""The type of ``progress``: ``print`` does, for one."""


def improvements(listener: Listener | None, step: str) -> Improvement | None:
    """Tell ``listener`` what a solver tells, as events of one step."""
    if listener is None:
        return None
    # some solvers count with NumPy, whose numbers JSON does not know
    return lambda value, bound: listener(Progress(step, int(value), int(bound)))
