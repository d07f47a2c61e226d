"""Fit prices to timings: nanoseconds that are never negative, linear in what a kernel does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from upscale_opt.ir.cost_model import Blocks, KernelCost

Array = NDArray[np.float64]

_MIN_SIZES = 8
"""Fewer sizes than this say nothing about caches."""

_GAIN = 0.9
"""A price with a cache has to fit better by this factor than one without."""

_EXACT = 1e-6
"""A loss of this share of the time is of deviations by a thousandth: there is no better fit."""

_ROUNDS = 4
_TOLERANCE = 0.2
"""Timings that deviate more than this share count less, in each round of the fit."""


@dataclass(frozen=True)
class Timing:
    """The time that kernels of one kind and size take.

    Attributes:
        bytes: that one reads and writes.
        macs: its multiply-adds.
        nanoseconds: that it takes.
        count: how often it was seen; it counts that often.
        sides: the numbers of channels, read and written, that the multiply-adds are proportional
            to, if that is known.
    """

    bytes: float
    macs: float
    nanoseconds: float
    count: int = 1
    sides: tuple[int, ...] = ()


_BLOCKS = tuple(
    Blocks(size, uneven, both)
    for both in (True, False)
    for size in (8, 16, 32)
    for uneven in (1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
)
"""Ways in which kernels may count channels, other than one by one."""


def fit(timings: Sequence[Timing], least_per_mac: float = 0.0) -> KernelCost:
    """The price that fits ``timings`` best.

    A kernel's squared error counts in proportion to the inverse of its time, so that neither many
    short ones nor a long one decide alone; single timings far off count less. Multiply-adds are
    counted in blocks of channels if that fits clearly better.

    Args:
        timings: at least one, of kernels of one kind.
        least_per_mac: what a multiply-add costs at least. Where bytes and multiply-adds grow
            together, timings alone cannot tell them apart.
    """
    best = _in_caches(timings, least_per_mac)
    exact = _EXACT * sum(timing.count * timing.nanoseconds for timing in timings)
    if best[0] <= exact or len({timing.sides for timing in timings}) < _MIN_SIZES:
        return best[1]
    limit = _GAIN * best[0]
    for blocks in _BLOCKS:
        counted = [replace(t, macs=t.macs * blocks.more(t.sides)) for t in timings]
        loss, price = _in_caches(counted, least_per_mac)
        if loss < min(limit, best[0]):
            found = {"block": blocks.size, "uneven": blocks.uneven, "both": blocks.both}
            best = loss, price.model_copy(update=found)
    return best[1]


def _in_caches(timings: Sequence[Timing], least_per_mac: float) -> tuple[float, KernelCost]:
    """The loss and the price, with a price for what is beyond a cache if that is better."""
    sizes = sorted({timing.bytes for timing in timings})
    plain = _fitted(timings, 0, least_per_mac)
    if len(sizes) < _MIN_SIZES or sizes[-1] < 4 * sizes[0]:
        return plain
    caches = [2**power for power in range(40) if sizes[2] < 2**power < sizes[-3]]
    best = min(
        (_fitted(timings, cache, least_per_mac) for cache in caches),
        default=plain,
        key=lambda f: f[0],
    )
    return best if best[0] < _GAIN * plain[0] else plain


def relative_error(cost: KernelCost, timings: Sequence[Timing]) -> float:
    """The median deviation of the price from ``timings``, as a share of them."""
    off = [abs(cost.nanoseconds(t.bytes, t.macs, t.sides) / t.nanoseconds - 1) for t in timings]
    return float(np.median(off))


def _fitted(
    timings: Sequence[Timing], cache: int, least_per_mac: float
) -> tuple[float, KernelCost]:
    """The loss and the price, if what is beyond ``cache`` bytes has a price of its own."""
    columns = [(1.0, t.bytes, t.macs, max(0.0, t.bytes - cache) * bool(cache)) for t in timings]
    matrix = np.array(columns, dtype=np.float64)
    times = np.array([max(t.nanoseconds, 1.0) for t in timings])
    least = np.array([0.0, 0.0, least_per_mac, 0.0])
    counts = np.array([t.count for t in timings], dtype=np.float64)
    trust = np.ones_like(times)
    for _ in range(_ROUNDS):
        root = np.sqrt(counts * trust / times)
        prices = least + non_negative(matrix * root[:, None], (times - matrix @ least) * root)
        off = np.abs(matrix @ prices / times - 1)
        trust = np.minimum(1.0, _TOLERANCE / np.maximum(off, 1e-12))
    loss = float(np.sum(counts * times * np.minimum(off, _TOLERANCE) * off))
    launch, per_byte, per_mac, far = map(float, prices)
    return loss, KernelCost(
        launch=launch,
        ns_per_byte=per_byte,
        ns_per_mac=per_mac,
        cache=cache if far else 0,
        ns_per_far_byte=far,
    )


def non_negative(matrix: Array, target: Array) -> Array:
    """The ``x >= 0`` that brings ``matrix @ x`` closest to ``target``, by trying all supports.

    Args:
        matrix: rows are equations; of few columns.
        target: one number per row.
    """
    scale = np.abs(matrix).max(axis=0)
    used = [column for column in range(matrix.shape[1]) if scale[column] > 0]
    best, least = np.zeros(matrix.shape[1]), float(np.sum(target**2))
    for size in range(1, len(used) + 1):
        for columns in map(list, combinations(used, size)):
            part = matrix[:, columns] / scale[columns]
            x = np.linalg.lstsq(part, target, rcond=None)[0]
            loss = float(np.sum((part @ x - target) ** 2))
            if (x >= 0).all() and loss < least * (1 - 1e-12):
                least, best = loss, np.zeros(matrix.shape[1])
                best[columns] = x / scale[columns]
    return best
