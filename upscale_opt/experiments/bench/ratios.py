"""Ratios of times with their uncertainty, and means of ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from upscale_opt.experiments.bench.records import Ratio

RESAMPLES = 2000
"""The number of times that the rounds are drawn anew to see how much their median varies."""


def ratio_of(times: Sequence[float], base: Sequence[float], seed: int = 0) -> Ratio:
    """The median over rounds of one time over another, and its bootstrap 95 % interval.

        >>> ratio_of([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
        Ratio(median=2.0, low=2.0, high=2.0)

    Args:
        times: of the same rounds as ``base``, in any unit.
        base: what they are divided by, in the same unit.
        seed: of the rounds drawn.

    Raises:
        ValueError: if there are no rounds, or not equally many.
    """
    if not times or len(times) != len(base):
        raise ValueError(f"{len(times)} and {len(base)} rounds cannot be compared")
    ratios = np.asarray(times) / np.asarray(base)
    draws = np.random.default_rng(seed).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
    return Ratio(median=float(np.median(ratios)), low=float(low), high=float(high))


def geometric_mean(values: Sequence[float]) -> float | None:
    """The geometric mean of positive numbers; ``None`` if there are none.

    >>> geometric_mean([2.0, 8.0])
    4.0
    """
    if not values:
        return None
    return math.exp(sum(map(math.log, values)) / len(values))
