"""The options of solvers, checked before anything is solved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any, SupportsFloat

from upscale_opt.errors import SolverError

_MOST = 2**31
"""What solvers take as seeds and numbers of threads is less."""


def check_options(time_limit: Any, seed: Any, workers: Any, weights: Any = None) -> None:
    """Refuse options that no solver could make sense of.

    Raises:
        SolverError: naming the first.
    """
    number = isinstance(time_limit, SupportsFloat) and not isinstance(time_limit, bool)
    if not number or not float(time_limit) > 0:
        given = f"{float(time_limit):g}" if number else repr(time_limit)
        raise SolverError(f"the time limit must be more than 0 seconds, not {given}")
    for what, value, least in (("seed", seed, 0), ("number of workers", workers, 1)):
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole or not least <= value < _MOST:
            raise SolverError(
                f"the {what} must be a whole number from {least} to {_MOST - 1}, not {value!r}"
            )
    if weights is not None and not isinstance(weights, Mapping):
        raise SolverError(
            "weights must be a dict from operations to whole numbers, "
            f"not an object of class {type(weights).__name__}"
        )


def check_share(max_extra_macs: object, objective: str) -> None:
    """Check the multiply-adds that windows may add.

    Raises:
        SolverError: if it is no share, or the objective has no use for it.
    """
    number = isinstance(max_extra_macs, (int, float)) and not isinstance(max_extra_macs, bool)
    if not number or not 0 <= max_extra_macs < math.inf:  # type: ignore[operator]
        raise SolverError(
            f"max_extra_macs is a share of the multiply-adds, such as 0.05, not {max_extra_macs!r}"
        )
    if max_extra_macs and objective in ("latency", "blocks"):
        raise SolverError(f"the objective {objective!r} knows no max_extra_macs; leave it out")
