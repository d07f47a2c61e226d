"""Orders under which windows are narrow, by simulated annealing.

Atoms, and runs of them, are moved about at random, from the orders that are best without windows,
and from some in which a wide read is the view that the others' windows lie around.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from upscale_opt.solver.algorithms.window_line import Line

_STEPS_PER_ATOM = 60
_MOST_STEPS = 2_500
"""The steps of the annealing of one part: per atom, and at most."""

_STARTS = 3
"""The number of reads that are tried as the view that the others' windows lie around."""


def anneal(line: Line, rng: random.Random, deadline: float) -> list[int]:
    """The best sequence of atoms found."""
    sizes = Counter(line.home)
    movable = [i for i, s in enumerate(line.spaces) if s in line.free and sizes[s] > 1]
    best, value = list(line.start), line.cost(line.start)
    if not movable:
        return best
    for start in _starts(line):
        cost = line.cost(start)
        if cost < value:
            best, value = start, cost
    current = value
    now = [[a for a in best if line.home[a] == space] for space in line.spaces]
    steps = min(_STEPS_PER_ATOM * len(line.start), _MOST_STEPS)
    hot = max((read.weight for read in line.reads), default=1) * 0.3
    for step in range(steps):
        if current == 0 or (step % 32 == 0 and time.monotonic() >= deadline):
            break
        heat = hot * (1 - step / steps) ** 2 + 1e-9
        which = rng.choice(movable)
        moved = [*now[:which], _moved(now[which], rng), *now[which + 1 :]]
        sequence = [a for block in moved for a in block]
        cost = line.cost(sequence)
        if cost <= current or rng.random() < math.exp((current - cost) / heat):
            now, current = moved, cost
            if cost < value:
                best, value = sequence, cost
    return best


def _starts(line: Line) -> Iterator[list[int]]:
    """Sequences in which one read is a view, and other reads' windows hold little else.

    What few windows may hold lies outside: in an arena, the tensors written last.
    """
    spread = (~line.foreign).sum(axis=0)
    dearest = sorted(line.windows, key=lambda w: -line.reads[w[0]].weight)[:_STARTS]
    for _, place, _ in dearest:
        wanted = line.wanted[place]
        side = np.where(wanted, -1, 1) * (spread.max(initial=0) + 1 - spread)
        rank = {a: i for i, a in enumerate(line.start)}
        order = {space: i for i, space in enumerate(line.spaces)}
        yield sorted(
            line.start,
            key=lambda a: (
                order[line.home[a]],
                int(side[a]) if line.home[a] in line.free else 0,
                rank[a],
            ),
        )


def _moved(block: Sequence[int], rng: random.Random) -> list[int]:
    """A few neighbours put elsewhere, perhaps turned round."""
    size = len(block)
    length = min(size - 1, 1 + int(rng.expovariate(0.5)))
    first = rng.randrange(size - length + 1)
    taken = list(block[first : first + length])
    rest = [*block[:first], *block[first + length :]]
    if rng.random() < 0.5:
        taken.reverse()
    place = rng.randrange(len(rest) + 1)
    return [*rest[:place], *taken, *rest[place:]]
