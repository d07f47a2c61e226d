"""Findings from the rows: with and without constraints, at equal amounts and at equal cost."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from upscale_opt.experiments.study.records import Row, Unpruned

Cost = Literal["multiply_adds", "latency"]

DRAW = 0.005
"""Two accuracies that differ by no more than this are a draw: five of a thousand test images."""

LOST = 0.2
"""A network that is right about no more images than this is lost; two such are a draw."""

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""The shares of the unpruned network's multiply-adds at which methods are compared."""


@dataclass(frozen=True)
class Pair:
    """One network, criterion and amount (or cost), with and without constraints.

    Attributes:
        seed: of the network's training.
        criterion: what ranked the channels.
        at: the amount, or the share of multiply-adds, that both have.
        unconstrained: what was measured without constraints.
        constrained: and with them.
    """

    seed: int
    criterion: str
    at: float
    unconstrained: float
    constrained: float

    @property
    def difference(self) -> float:
        """The lead of unconstrained pruning; negative if it is behind."""
        return self.unconstrained - self.constrained

    @property
    def counts(self) -> bool:
        """Tell whether it is no draw."""
        lost = max(self.unconstrained, self.constrained) <= LOST
        return not lost and abs(self.difference) > DRAW


@dataclass(frozen=True)
class Spread:
    """A mean over seeds, and the standard deviation; that of a single seed is ``None``."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Verdict:
    """The verdict of a set of pairs.

    Attributes:
        pairs: how many there are.
        wins: how often unconstrained is better, and it is no draw.
        losses: how often constrained is.
        difference: by how much unconstrained is better, the mean over everything else and then
            over seeds.
    """

    pairs: int
    wins: int
    losses: int
    difference: Spread

    @property
    def draws(self) -> int:
        """The number of pairs in which neither is better."""
        return self.pairs - self.wins - self.losses

    @property
    def winner(self) -> str:
        """The method that is better by more than :data:`DRAW` and more than the spread over seeds.

        It is neither if most pairs are draws.
        """
        if self.draws > self.pairs / 2:
            return "neither"
        if abs(self.difference.mean) <= max(DRAW, self.difference.deviation or 0.0):
            return "neither"
        return "unconstrained" if self.difference.mean > 0 else "constrained"


def value_of(row: Row) -> float:
    """The number compared: accuracy, or agreement where it is not known what is right."""
    return row.agreement if row.accuracy is None else row.accuracy


def spread(values: Sequence[float]) -> Spread:
    """The mean and the standard deviation of values, one per seed."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation)


def over_seeds(rows: Iterable[Row], value: Callable[[Row], float] = value_of) -> Spread:
    """The mean of a value over the rows of every seed, and then over seeds."""
    return _over_seeds((row.seed, value(row)) for row in rows)


def _over_seeds(values: Iterable[tuple[int, float]]) -> Spread:
    by_seed: dict[int, list[float]] = defaultdict(list)
    for seed, value in values:
        by_seed[seed].append(value)
    return spread([statistics.fmean(own) for own in by_seed.values()])


def judge(pairs: Sequence[Pair]) -> Verdict:
    """The verdict of the pairs, of which there must be some."""
    return Verdict(
        pairs=len(pairs),
        wins=sum(pair.counts and pair.difference > 0 for pair in pairs),
        losses=sum(pair.counts and pair.difference < 0 for pair in pairs),
        difference=_over_seeds((pair.seed, pair.difference) for pair in pairs),
    )


def at_equal_amounts(rows: Iterable[Row]) -> list[Pair]:
    """Pairs of rows that differ by the method alone; of one network and one way of pruning."""
    found: dict[tuple[int, str, float], dict[str, float]] = defaultdict(dict)
    for row in rows:
        found[row.seed, row.criterion, row.amount][row.method] = value_of(row)
    return [
        Pair(*key, values["unconstrained"], values["constrained"])
        for key, values in found.items()
        if len(values) == 2
    ]


def at_equal_costs(
    rows: Iterable[Row],
    unpruned: Sequence[Unpruned],
    cost: Cost,
    shares: Iterable[float] = SHARES,
) -> list[Pair]:
    """Pairs at equal cost, interpolated between the amounts that were measured.

    For every seed and criterion, each method gives a line from the unpruned network through its
    exports; both are read off at every share that they reach.

    Args:
        rows: of one network and one way of pruning.
        unpruned: the network, for every seed.
        cost: multiply-adds, or latency where that was measured.
        shares: of the unpruned network's cost.
    """
    own = {one.seed: one for one in unpruned}
    lines: dict[tuple[int, str], dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        share = share_of(row, own[row.seed], cost)
        if share is None:
            continue
        accuracy = own[row.seed].accuracy
        start = 1.0, 1.0 if accuracy is None else accuracy
        methods = lines.setdefault((row.seed, row.criterion), {})
        methods.setdefault(row.method, [start]).append((share, value_of(row)))
    pairs = []
    for (seed, criterion), methods in lines.items():
        for share in shares if len(methods) == 2 else ():
            left = _read_off(methods["unconstrained"], share)
            right = _read_off(methods["constrained"], share)
            if left is not None and right is not None:
                pairs.append(Pair(seed, criterion, share, left, right))
    return pairs


def share_of(row: Row, unpruned: Unpruned, cost: Cost) -> float | None:
    """The cost of an export, as a share of the unpruned network's."""
    if cost == "latency":
        return row.latency
    return row.multiply_adds / unpruned.multiply_adds


def _read_off(line: Iterable[tuple[float, float]], at: float) -> float | None:
    """The height of a line through points at ``at``, ``None`` if it does not reach there."""
    for (left, low), (right, high) in pairwise(sorted(line)):
        if left <= at <= right:
            return low if left == right else low + (high - low) * (at - left) / (right - left)
    return None
