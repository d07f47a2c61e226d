"""Tables of what budgets leave: by multiply-adds, at equal time, and one epoch later."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence

from budget_cells import Cell, Whole
from budget_clock import BY_UPSCALE, Clock
from budget_methods import JOINTS, METHODS, WAYS

Accuracies = Mapping[tuple[str, float, int], float]
"""By method, share of the multiply-adds, and seed."""


def accuracies(found: Sequence[Cell]) -> dict[tuple[str, float, int], float]:
    """The accuracies of refitted exports of one network."""
    return {(one.method, one.share, one.seed): one.accuracy for one in found}


def shares_of(found: Sequence[Cell]) -> list[float]:
    """The budgets that were tried, the largest first."""
    return sorted({one.share for one in found}, reverse=True)


def methods_of(found: Sequence[Cell]) -> list[str]:
    """The methods that were tried, in their order."""
    return [name for name in METHODS if any(one.method == name for one in found)]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of shares, in per cent."""
    percent = [100 * value for value in values]
    more = f" ± {statistics.stdev(percent):.1f}" if len(percent) > 1 else ""
    return f"{statistics.mean(percent):.1f}{more}"


def heads(names: Sequence[str]) -> Iterator[str]:
    """The first two lines of a table whose first column holds words."""
    yield f"| {' | '.join(names)} |"
    yield f"| --- |{' ---: |' * (len(names) - 1)}"


def at(accuracies: Accuracies, method: str, share: float) -> str:
    """The accuracy of a method at a share, over all seeds; a dash if there is none."""
    own = [
        value for (who, where, _), value in accuracies.items() if (who, where) == (method, share)
    ]
    return spread(own) if own else "–"


def table(whole: Sequence[Whole], found: Sequence[Cell]) -> Iterator[str]:
    """One network: a line for each method, a column for each budget.

    Args:
        whole: the network, unpruned, of every seed.
        found: its cells.
    """
    shares, known = shares_of(found), accuracies(found)
    yield (
        f"Unpruned: {spread([one.accuracy for one in whole])} %, "
        f"{whole[0].macs:,} multiply-adds; {len(whole)} seed{'s' * (len(whole) > 1)}."
    )
    yield ""
    yield from heads(["masks", *(f"{share:.0%}" for share in shares), "copied", "seconds"])
    for method in methods_of(found):
        mine = [one for one in found if one.method == method]
        copied = [one.copied for one in mine]
        cells = [
            method,
            *(at(known, method, share) for share in shares),
            f"{min(copied):,} to {max(copied):,}",
            f"{statistics.mean(one.choosing for one in mine):.1f}",
        ]
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield from differences(known, shares, methods_of(found))
    yield ""


def ahead(
    accuracies: Accuracies, share: float, rivals: Sequence[str], who: str = "joint"
) -> tuple[str, list[float]] | None:
    """The best of the rivals at a share, and by how much ``who`` is above it, seed by seed.

    Only rivals that were tried with all of its seeds count; ``None`` if there is none.
    """
    seeds = [seed for method, where, seed in accuracies if (method, where) == (who, share)]
    means = {
        name: statistics.mean(accuracies[name, share, seed] for seed in seeds)
        for name in rivals
        if seeds and all((name, share, seed) in accuracies for seed in seeds)
    }
    if not means:
        return None
    rival = max(means, key=lambda name: means[name])
    return rival, [accuracies[who, share, seed] - accuracies[rival, share, seed] for seed in seeds]


def differences(
    known: Accuracies, shares: Sequence[float], methods: Sequence[str]
) -> Iterator[str]:
    """Lines that say how far ``joint`` is ahead."""
    if "joint" not in methods:
        return
    uniform = [name for name in methods if name.startswith("uniform")]
    others = [name for name in methods if name != "joint"]
    yield "Joint, in points above (mean and standard deviation over seeds):"
    yield ""
    for label, rivals in (("the best of the others", others), ("the better uniform", uniform)):
        parts = [
            f"{spread(found[1])} at {share:.0%} ({found[0]})"
            for share in shares
            if (found := ahead(known, share, rivals)) is not None
        ]
        if parts:
            yield f"- {label}: {', '.join(parts)}"


# At equal time.


def accuracy_in(time_left: float, points: Sequence[tuple[float, float]]) -> float | None:
    """The accuracy at a share of the time, on straight lines between points.

    Args:
        time_left: the share.
        points: shares of the time, and accuracies; the unpruned network's among them.

    Returns:
        ``None`` if even the fastest takes longer.
    """
    for (fast, low), (slow, high) in itertools.pairwise(sorted(points)):
        if fast <= time_left <= slow:
            return low + (high - low) * (time_left - fast) / max(slow - fast, 1e-9)
    return None


def in_time(
    whole: Sequence[Whole], found: Sequence[Cell], clocks: Sequence[Clock]
) -> tuple[dict[float, float], dict[tuple[str, float, int], float | None]]:
    """What every method reaches in the times that joint's networks take.

    Args:
        whole: a network, unpruned, of every seed.
        found: its cells.
        clocks: its seeds on the clock, in one runtime.

    Returns:
        For each share of the multiply-adds, joint's share of the time (mean over seeds); and the
        accuracies by method, that share, and seed: ``None`` where the method is slower.
    """
    times: dict[float, list[float]] = {}
    reached: dict[tuple[str, float, int], float | None] = {}
    for one in clocks:
        took = one.took()
        top = next(each.accuracy for each in whole if each.seed == one.seed)
        right = {
            (cell.method, cell.share): cell.accuracy for cell in found if cell.seed == one.seed
        }
        for method in dict.fromkeys(name for name, _ in took):
            source = "uniform" if method == BY_UPSCALE else method
            points = [
                (took[method, share], right[source, share])
                for name, share in took
                if name == method and (source, share) in right
            ]
            for share in shares_of(found):
                if ("joint", share) in took:
                    reached[method, share, one.seed] = accuracy_in(
                        took["joint", share], [*points, (1.0, top)]
                    )
        for share in shares_of(found):
            if ("joint", share) in took:
                times.setdefault(share, []).append(took["joint", share])
    return {share: statistics.mean(own) for share, own in times.items()}, reached


def at_equal_time(
    whole: Sequence[Whole], found: Sequence[Cell], clocks: Sequence[Clock]
) -> Iterator[str]:
    """A line for each method, a column for each time that joint's networks take.

    Args:
        whole: a network, unpruned, of every seed.
        found: its cells.
        clocks: its seeds on the clock, in one runtime.
    """
    times, reached = in_time(whole, found, clocks)
    shares = sorted(times, reverse=True)
    base = statistics.mean(one.unpruned for one in clocks)
    yield (
        f"Unpruned: {base:.2f} ms for {clocks[0].batch} "
        f"input{'s' * (clocks[0].batch > 1)}; {len(clocks)} seed{'s' * (len(clocks) > 1)}."
    )
    yield ""
    yield from heads(["masks", *(f"{times[share]:.0%} of the time" for share in shares)])
    names = [*WAYS, BY_UPSCALE]
    for method in [name for name in names if any(who == name for who, _, _ in reached)]:
        cells = [method]
        for share in shares:
            own = [value for (who, at, _), value in reached.items() if (who, at) == (method, share)]
            known = [value for value in own if value is not None]
            cells.append(spread(known) if own and len(known) == len(own) else "slower")
        yield f"| {' | '.join(cells)} |"
    yield ""
    sure = {key: value for key, value in reached.items() if value is not None}
    rivals = [name for name in names if name not in JOINTS]
    for who in JOINTS:
        parts = []
        for share in shares:
            best = ahead(sure, share, rivals, who)
            if best is not None:
                parts.append(f"{spread(best[1])} in {times[share]:.0%} of the time ({best[0]})")
        if parts:
            yield f"{who.capitalize()}, in points above the best others: {', '.join(parts)}."
            yield ""


# How small.


def smallest(top: float, points: Sequence[tuple[float, float]], within: float) -> float | None:
    """The smallest share of the multiply-adds that leaves all but some accuracy.

    Between the budgets that were tried, on straight lines, from the largest down to the first that
    leaves less.

    Args:
        top: the unpruned accuracy.
        points: shares of the multiply-adds, and accuracies.
        within: the accuracy that may go.

    Returns:
        ``None`` if no budget that was tried leaves so much.
    """
    least = top - within
    found = None
    for (large, high), (small, low) in itertools.pairwise(
        sorted([*points, (1.0, top)], reverse=True)
    ):
        if low >= least:
            found = small
            continue
        if high >= least and found is not None:
            found = small + (large - small) * (least - low) / max(high - low, 1e-9)
        break
    return found
