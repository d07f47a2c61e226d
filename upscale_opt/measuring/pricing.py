"""Prices from timings of whole networks and of single kernels."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from upscale_opt.ir.cost_model import Check, CostModel, KernelCost
from upscale_opt.measuring.fitting import Timing, fit, relative_error
from upscale_opt.measuring.kernels import Kernel
from upscale_opt.measuring.timing import Passes


def prices(
    passes: Sequence[Passes],
    probes: Sequence[Mapping[str, Sequence[Timing]]],
    profile: CostModel,
) -> tuple[dict[str, KernelCost], dict[str, float]]:
    """Prices of all kinds, and the error of those that were timed.

    Args:
        passes: timed.
        probes: timings of kernels that were timed on their own, by kind.
        profile: has the prices of kinds that were not timed.
    """
    timings: dict[str, list[Timing]] = {}
    for probe in probes:
        for kind, own in probe.items():
            timings.setdefault(kind, []).extend(own)
    moving = {kind: fit(own) for kind, own in timings.items()}
    for one in passes:
        for kernels, timing in one.timings:
            rest = list(_alone(kernels, timing, moving))
            timings.setdefault(kernels[-1].kind, []).extend(rest)
    timings = {kind: own for kind, own in timings.items() if own}
    return fitted(timings, profile, statistics.median(one.overhead for one in passes))


def fitted(
    timings: Mapping[str, Sequence[Timing]], profile: CostModel, overhead: float
) -> tuple[dict[str, KernelCost], dict[str, float]]:
    """Prices of all kinds, and the error of those that were timed.

    Args:
        timings: by kind.
        profile: has the prices of kinds that were not timed.
        overhead: nanoseconds that every call costs beside its kernel.
    """
    scaled = _scaled(profile, timings)
    found = {kind: fit(own, scaled[kind].ns_per_mac / 2) for kind, own in timings.items()}
    error = {kind: relative_error(price, timings[kind]) for kind, price in found.items()}
    everything = {**scaled, **found}
    return {kind: _with(everything[kind], overhead) for kind in profile.kernels}, error


def _alone(
    kernels: Sequence[Kernel], timing: Timing, moving: Mapping[str, KernelCost]
) -> Iterator[Timing]:
    """A timing without the copies before it; none, if they are most of it or cannot be told."""
    if not all(kernel.kind in moving for kernel in kernels[:-1]):
        return
    before = sum(moving[kernel.kind].nanoseconds(kernel.bytes, 0) for kernel in kernels[:-1])
    if 2 * before < timing.nanoseconds:
        yield replace(timing, nanoseconds=timing.nanoseconds - before)


def _scaled(profile: CostModel, timings: Mapping[str, Sequence[Timing]]) -> dict[str, KernelCost]:
    """The profile's prices, times what the timings say of this device."""
    ratios = [
        sum(t.nanoseconds for t in timings[kind])
        / sum(profile.kernels[kind].nanoseconds(t.bytes, t.macs, t.sides) for t in timings[kind])
        for kind in timings
    ]
    factor = statistics.median(ratios) if ratios else 1.0
    return {
        kind: price.model_copy(
            update={
                "launch": price.launch * factor,
                "ns_per_byte": price.ns_per_byte * factor,
                "ns_per_mac": price.ns_per_mac * factor,
                "ns_per_far_byte": price.ns_per_far_byte * factor,
            }
        )
        for kind, price in profile.kernels.items()
    }


def _with(price: KernelCost, overhead: float) -> KernelCost:
    return price.model_copy(update={"launch": max(0.0, price.launch + overhead)})


def check(one: Passes, prices: Mapping[str, KernelCost]) -> Check:
    """Compare what ``prices`` predict of the passes with what was measured."""
    predicted = sum(prices[k.kind].nanoseconds(k.bytes, k.macs, k.sides) for k in one.kernels)
    return Check(network=one.name, predicted=predicted, measured=one.measured)
