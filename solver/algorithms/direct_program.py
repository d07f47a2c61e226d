"""The base of the direct models: a CP-SAT model with hints, costs and a deadline."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from ortools.sat.python import cp_model

Values = Callable[[cp_model.IntVar], int]
"""The values of variables in a solution."""

_LARGEST_TOTAL = 1 << 58
"""CP-SAT computes in 64-bit integers; larger objectives are scaled down."""


class OutOfTimeError(Exception):
    """The deadline passed while a model was being built."""


class Program:
    """A model that is being built, variable by variable with the value of a known solution.

    Attributes:
        model: for CP-SAT.
        constant: what is to be paid in any case.
    """

    def __init__(self, deadline: float) -> None:
        self.model = cp_model.CpModel()
        self.constant = 0
        self._deadline = deadline
        self._costs: list[tuple[int, cp_model.IntVar]] = []

    def literal(self, hint: bool) -> cp_model.IntVar:
        """A new truth value."""
        if time.monotonic() > self._deadline:
            raise OutOfTimeError
        literal = self.model.new_bool_var("")
        self.model.add_hint(literal, hint)
        return literal

    def number(self, low: int, high: int, hint: int) -> cp_model.IntVar:
        """A new integer from ``low`` to ``high``, both included."""
        number = self.model.new_int_var(low, high, "")
        self.model.add_hint(number, hint)
        return number

    def pay(self, amount: int, literal: cp_model.IntVar) -> None:
        """Let ``literal`` cost ``amount``, which may be negative."""
        if amount:
            self._costs.append((amount, literal))

    def minimize(self) -> int:
        """Set the objective and return its scale.

        The cost is at least ``constant`` plus the scale times the objective: amounts too large for
        CP-SAT even after division by their greatest common divisor are rounded down.
        """
        scale = math.gcd(*(amount for amount, _ in self._costs)) or 1
        total = sum(abs(amount) for amount, _ in self._costs)
        scale *= -(-total // (scale * _LARGEST_TOTAL)) or 1
        literals = [literal for _, literal in self._costs]
        amounts = [amount // scale for amount, _ in self._costs]
        self.model.minimize(cp_model.LinearExpr.weighted_sum(literals, amounts))
        return scale
