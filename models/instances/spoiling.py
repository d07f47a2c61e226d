"""Small random changes that make an instance nastier: repeats, zeros, full sets, fixed spaces."""

from __future__ import annotations

import random
from dataclasses import replace

from upscale_opt.models.instances.from_sets import joined, of_parts
from upscale_opt.solver.problem.instance import (
    Demand,
    DemandKind,
    Instance,
    Part,
    Read,
    Space,
)


def spoiled(rng: random.Random, instance: Instance, *, chance: float = 0.3) -> Instance:
    """Change ``instance`` in none, some or all of the ways known here.

    Args:
        rng: Where everything comes from.
        instance: With at least one channel in every space.
        chance: Of every kind of change.
    """
    for spoil in (_at_an_end, _repeat, _want_all_or_nothing, _fix, _reweigh):
        if rng.random() < chance:
            instance = spoil(rng, instance)
    return instance


def _at_an_end(rng: random.Random, instance: Instance) -> Instance:
    """Put a channel that is always wanted next to a space: intervals become prefixes, suffixes."""
    number = rng.randrange(len(instance.spaces))
    fresh = 1 + max(channel for space in instance.spaces for channel in space.channels)
    post = Part(len(instance.spaces), frozenset({fresh}))
    spaces = (*instance.spaces, Space((fresh,), fixed=True))
    wanted = [
        (*read.parts, post) if rng.random() < 0.5 else (post, *read.parts)
        for read in instance.reads
        if not read.pieces and [part.space for part in read.parts] == [number]
    ]
    ends = of_parts(spaces, wanted)
    return joined(replace(instance, spaces=spaces), ends)


def _repeat(rng: random.Random, instance: Instance) -> Instance:
    """List a read, with its demands, once again."""
    if not instance.reads:
        return instance
    read = rng.choice(instance.reads)
    return joined(instance, Instance((), instance.demands, (read,)))


def _want_all_or_nothing(rng: random.Random, instance: Instance) -> Instance:
    """Let a space be wanted entirely, not at all, or in one channel."""
    number = rng.randrange(len(instance.spaces))
    channels = instance.spaces[number].channels
    kinds: list[DemandKind] = ["interval", "prefix", "suffix"]
    wanted = [frozenset(channels), frozenset(channels[:1]), frozenset[int]()]
    demands = [Demand(number, rng.choice(kinds), members) for members in wanted]
    reads = [
        Read(rng.randint(0, 3), (index,), parts=(Part(number, members),))
        for index, members in enumerate(wanted)
    ]
    return joined(instance, Instance((), tuple(demands), tuple(reads)))


def _fix(rng: random.Random, instance: Instance) -> Instance:
    """Allow a space one order only."""
    spaces = list(instance.spaces)
    number = rng.randrange(len(spaces))
    spaces[number] = replace(spaces[number], fixed=True)
    return replace(instance, spaces=tuple(spaces))


def _reweigh(rng: random.Random, instance: Instance) -> Instance:
    """Give reads and pieces odd weights."""
    weights = rng.choice([(0, 1), (1,), (0, 1, 2, 3, 5, 8), (1, 1000, 10**6), (7, 10**12)])
    reads = [
        replace(
            read,
            weight=rng.choice(weights),
            pieces=tuple(replace(piece, weight=rng.choice(weights)) for piece in read.pieces),
        )
        for read in instance.reads
    ]
    return replace(instance, reads=tuple(reads))
