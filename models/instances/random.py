"""Random instances of the problem of channel orders, of any size, without any network.

Each generator takes where its randomness comes from, how many sets of channels are wanted and how
many channels there are; what else it can be told has a default. So all of them can be offered by
name (``GENERATORS``):

>>> instance = GENERATORS["correlated"](random.Random(0), 3, 8)
>>> [sorted(demand.channels) for demand in instance.demands]
[[0, 2, 3, 5], [0, 2, 5, 6], [0, 3, 4, 7]]

Every read has its ``parts``, so that each instance makes sense under both measures: as generated,
copies, of as many channels as a read takes; by ``instances.with_measure``, blocks or anything else.
PyTorch is not needed.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from upscale_opt.models.instances.from_sets import of_parts, one_space, with_pieces
from upscale_opt.models.instances.obstructions import OBSTRUCTIONS, obstruction
from upscale_opt.models.instances.spoiling import spoiled
from upscale_opt.solver.problem.instance import (
    Demand,
    DemandKind,
    Instance,
    Part,
    Piece,
    Read,
    Space,
)

Channels = frozenset[int]


def independent(rng: random.Random, sets: int, channels: int, *, amount: float = 0.5) -> Instance:
    """Sets that know nothing of each other, as masks of a network with random weights.

    Args:
        rng: Where everything comes from.
        sets: How many.
        channels: To draw from.
        amount: The share of the channels in each set, which has at least one.
    """
    size = _share(channels, amount)
    return one_space(channels, [rng.sample(range(channels), size) for _ in range(sets)])


def correlated(
    rng: random.Random,
    sets: int,
    channels: int,
    *,
    amount: float = 0.5,
    correlation: float = 0.5,
) -> Instance:
    """Sets that tend to agree: in trained networks, some channels matter to every reader.

    A channel's score for one reader is its general importance and a deviation of that reader's own,
    both normally distributed; a set is the channels of highest score.

    Args:
        rng: Where everything comes from.
        sets: How many.
        channels: To draw from.
        amount: The share of the channels in each set, which has at least one.
        correlation: Of the scores of two readers; from 0 (independent sets) to 1 (equal ones).
    """
    size = _share(channels, amount)
    common = [rng.gauss(0, 1) for _ in range(channels)]
    wanted = []
    for _ in range(sets):
        score = [
            correlation**0.5 * importance + (1 - correlation) ** 0.5 * rng.gauss(0, 1)
            for importance in common
        ]
        wanted.append(sorted(range(channels), key=lambda channel: -score[channel])[:size])
    return one_space(channels, wanted)


def chains(rng: random.Random, sets: int, channels: int, *, count: int = 2) -> Instance:
    """Nested sets: every chain's sets contain one another, and cross those of the other chains.

    Global magnitude pruning makes such sets of one layer at several amounts. A single chain can
    always be met; of several, what can be is a puzzle.

    Args:
        rng: Where everything comes from.
        sets: How many, in all chains together.
        channels: To draw from.
        count: How many chains.
    """
    orders = [rng.sample(range(channels), channels) for _ in range(count)]
    return one_space(channels, [orders[i % count][: rng.randint(1, channels)] for i in range(sets)])


def laminar(rng: random.Random, sets: int, channels: int) -> Instance:
    """Sets of which any two are nested or disjoint: some order always meets them all.

    Args:
        rng: Where everything comes from.
        sets: How many.
        channels: To draw from; they are split at random again and again.
    """
    order = rng.sample(range(channels), channels)
    nodes, open_nodes = [], [(0, channels)]
    while open_nodes:
        first, last = open_nodes.pop()
        nodes.append(order[first:last])
        if last - first > 1:
            middle = rng.randint(first + 1, last - 1)
            open_nodes += [(first, middle), (middle, last)]
    return one_space(channels, [rng.choice(nodes) for _ in range(sets)])


def noisy_intervals(
    rng: random.Random, sets: int, channels: int, *, flips: float = 0.02
) -> Instance:
    """Intervals of a hidden order, in which some channels were then added or removed.

    Args:
        rng: Where everything comes from.
        sets: How many.
        channels: To draw from.
        flips: The chance of each channel of each set to be changed; 0 leaves the hidden order
            an optimum without any copies.
    """
    order = rng.sample(range(channels), channels)
    wanted = []
    for _ in range(sets):
        first = rng.randrange(channels)
        members = set(order[first : rng.randint(first + 1, channels)])
        members ^= {channel for channel in order if rng.random() < flips}
        wanted.append(members or {order[first]})
    return one_space(channels, wanted)


def tucker(rng: random.Random, sets: int, channels: int) -> Instance:
    """Tucker's obstructions, as many as there are sets for, each among channels of its own choice.

    An element of an obstruction may become several channels, and channels that no set wants lie in
    between. If the last obstruction is cut off, what is left of it can be met.

    Args:
        rng: Where everything comes from.
        sets: How many.
        channels: To draw from. From three on, one obstruction at least fits in.
    """
    wanted: list[Iterable[int]] = []
    while len(wanted) < sets:
        name = rng.choice(OBSTRUCTIONS)
        fitting = [k for k in range(1, max(2, sets)) if _elements(obstruction(name, k)) <= channels]
        rows = obstruction(name, rng.choice(fitting)) if fitting else (frozenset({0}),)
        wanted += embedded(rng, rows, channels)
    return one_space(channels, wanted[:sets])


def embedded(rng: random.Random, rows: Sequence[Channels], channels: int) -> list[Channels]:
    """Return the sets ``rows`` over some elements as sets over more channels, in other places.

    Args:
        rng: Where everything comes from.
        rows: Sets over 0, 1, 2, ...
        channels: How many there are now; at least as many as elements.
    """
    elements = _elements(rows)
    places = rng.sample(range(channels), rng.randint(elements, channels))
    element = {c: i if i < elements else rng.randrange(elements) for i, c in enumerate(places)}
    return [frozenset(c for c, e in element.items() if e in row) for row in rows]


def _elements(rows: Iterable[Channels]) -> int:
    return 1 + max(max(row) for row in rows)


def streams(
    rng: random.Random, sets: int, channels: int, *, spaces: int = 3, amount: float = 0.5
) -> Instance:
    """Several spaces in several memories, as residual streams that are concatenated and read.

    A memory holds some of the spaces one behind the other. Half of the reads want what can be a
    view: an end of one space, all of those behind it, and the beginning of another one. The others
    want anything.

    Args:
        rng: Where everything comes from.
        sets: How many reads.
        channels: In all spaces together.
        spaces: How many, as far as there are channels.
        amount: The share of a space's channels that a read wants, in general.
    """
    parts = _split(rng, channels, min(spaces, channels))
    wanted: list[list[Part]] = []
    for _ in range(sets):
        memory = rng.sample(range(len(parts)), rng.randint(1, len(parts)))
        read = [Part(s, frozenset(c for c in parts[s] if rng.random() < amount)) for s in memory]
        if rng.random() < 0.5:
            read[1:-1] = [Part(part.space, frozenset(parts[part.space])) for part in read[1:-1]]
        if not any(part.channels for part in read):
            read[-1] = Part(memory[-1], frozenset(rng.sample(parts[memory[-1]], 1)))
        wanted.append(read)
    return of_parts([Space(tuple(part)) for part in parts], wanted)


def dense_block(
    rng: random.Random,
    sets: int,
    channels: int,
    *,
    amount: float = 0.5,
    max_gathers: int = 4,
) -> Instance:
    """Every layer reads what all layers before it wrote, which was concatenated.

    It may select in front of the concatenation, piece by piece, instead of behind it.

    Args:
        rng: Where everything comes from.
        sets: How many layers.
        channels: That each of them reads anew, at most; half as many at least.
        amount: The share of the channels that each layer wants, of every layer before it.
        max_gathers: How many pieces it may gather.
    """
    spaces: list[Space] = []
    wanted: list[list[Part]] = []
    first = 0
    for _ in range(sets):
        size = rng.randint((channels + 1) // 2, channels)
        spaces.append(Space(tuple(range(first, first + size))))
        first += size
        picks = [rng.sample(s.channels, _share(len(s.channels), amount)) for s in spaces]
        wanted.append([Part(number, frozenset(pick)) for number, pick in enumerate(picks)])
    return with_pieces(of_parts(spaces, wanted), max_gathers)


def anything(rng: random.Random, sets: int, channels: int) -> Instance:
    """An instance that no network would ask for: reads and pieces that depend on any demands.

    Args:
        rng: Where everything comes from.
        sets: How many demands; half as many reads, and some that want one demand only.
        channels: In all spaces (one or two) together.
    """
    groups = _split(rng, channels, min(channels, rng.randint(1, 2)))
    spaces = tuple(Space(tuple(rng.sample(group, len(group)))) for group in groups)
    kinds: list[DemandKind] = ["interval", "interval", "prefix", "suffix"]
    demands = []
    for _ in range(sets):
        number = rng.randrange(len(spaces))
        members = rng.sample(groups[number], rng.randint(0, len(groups[number])))
        demands.append(Demand(number, rng.choice(kinds), frozenset(members)))

    def view() -> tuple[int, ...] | None:
        if rng.random() < 0.25:
            return None
        return tuple(rng.randrange(sets) for _ in range(rng.randint(0, 3) if sets else 0))

    reads = [Read(len(d.channels), (i,)) for i, d in enumerate(demands) if rng.random() < 0.5]
    for _ in range((sets + 1) // 2):
        pieces = [Piece(rng.randint(0, 4), view()) for _ in range(rng.choice([0, 0, 1, 2, 3]))]
        reads.append(Read(rng.randint(0, 9), view(), tuple(pieces), rng.randint(0, 2)))
    full = tuple(replace(read, parts=_asked(read, demands)) for read in reads)
    return Instance(spaces, tuple(demands), full)


def _asked(read: Read, demands: Sequence[Demand]) -> tuple[Part, ...]:
    """The demands of the read's view as parts, one behind the other."""
    return tuple(Part(demands[i].space, demands[i].channels) for i in read.view or ())


Generator = Callable[[random.Random, int, int], Instance]
"""Called with where randomness comes from, a number of sets and a number of channels."""

GENERATORS: Mapping[str, Generator] = {
    "independent": independent,
    "correlated": correlated,
    "chains": chains,
    "laminar": laminar,
    "noisy-intervals": noisy_intervals,
    "tucker": tucker,
    "streams": streams,
    "dense-block": dense_block,
    "anything": anything,
}
"""All generators, by the name that a command line offers them under."""


def random_instance(rng: random.Random, *, sets: int = 6, channels: int = 8) -> Instance:
    """Draw a small instance of any kind, and spoil it a little.

    Args:
        rng: Where everything comes from.
        sets: How many there are at most, before it is spoilt.
        channels: How many each space has at most.
    """
    name = rng.choice(list(GENERATORS))
    wanted = max(rng.randint(1, sets), rng.randint(1, sets))
    size = max(rng.randint(1, channels), rng.randint(1, channels))
    amount = rng.uniform(0.2, 0.8)
    if name == "independent":
        instance = independent(rng, wanted, size, amount=amount)
    elif name == "correlated":
        instance = correlated(rng, wanted, size, amount=amount, correlation=rng.random())
    elif name == "noisy-intervals":
        instance = noisy_intervals(rng, wanted, size, flips=0.2)
    elif name == "streams":
        instance = streams(rng, wanted, size, spaces=rng.randint(1, 3), amount=amount)
    elif name == "dense-block":
        layers, size = min(3, wanted), min(5, size)
        instance = dense_block(rng, layers, size, amount=amount, max_gathers=rng.randint(0, 3))
    else:
        instance = GENERATORS[name](rng, wanted, size)
    return spoiled(rng, instance)


def _share(channels: int, amount: float) -> int:
    return min(channels, max(1, round(amount * channels)))


def _split(rng: random.Random, channels: int, count: int) -> list[range]:
    """The channels as ``count`` spaces, none of them empty."""
    cuts = sorted(rng.sample(range(1, channels), max(count, 1) - 1))
    return [range(a, b) for a, b in itertools.pairwise([0, *cuts, channels])]
