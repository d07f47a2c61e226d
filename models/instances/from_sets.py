"""Instances made from sets of channels, with every read's parts, so that both measures fit them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from upscale_opt.solver.problem.instance import (
    Demand,
    DemandKind,
    Instance,
    Measure,
    Part,
    Piece,
    Read,
    Space,
)


def one_space(channels: int, sets: Iterable[Iterable[int]]) -> Instance:
    """Return the instance with one space, and one read per set of its channels."""
    space = Space(tuple(range(channels)))
    return of_parts([space], [[Part(0, frozenset(members))] for members in sets])


def of_parts(spaces: Sequence[Space], wanted: Iterable[Sequence[Part]]) -> Instance:
    """Return the instance whose reads want these parts of their memories.

    A read weighs as many channels as it takes. It is a view if it is an interval of one space; or a
    suffix of the first space it touches, a prefix of the last, and everything in between.

    Args:
        spaces: To be ordered.
        wanted: Per read, the spaces in the memory that it reads, with what it wants of them.
    """
    demands: dict[Demand, int] = {}

    def ask(part: Part, kind: DemandKind) -> int:
        return demands.setdefault(Demand(part.space, kind, part.channels), len(demands))

    def is_full(part: Part) -> bool:
        return len(part.channels) == len(spaces[part.space].channels)

    reads = []
    for parts in wanted:
        touched = [i for i, part in enumerate(parts) if part.channels]
        view: tuple[int, ...] | None = ()
        if len(touched) == 1:
            view = (ask(parts[touched[0]], "interval"),)
        elif touched:
            first, last = parts[touched[0]], parts[touched[-1]]
            ends = (ask(first, "suffix"), ask(last, "prefix"))
            between = parts[touched[0] + 1 : touched[-1]]
            view = ends if all(map(is_full, between)) else None
        weight = sum(len(part.channels) for part in parts)
        reads.append(Read(weight, view, parts=tuple(parts)))
    return Instance(tuple(spaces), tuple(demands), tuple(reads))


def with_pieces(instance: Instance, max_gathers: int) -> Instance:
    """Let every read be served by the spaces in its memory, one by one.

    Args:
        instance: Whose reads have their ``parts``.
        max_gathers: How many of these pieces a read may gather.
    """
    demands: dict[Demand, int] = {demand: i for i, demand in enumerate(instance.demands)}
    reads = []
    for read in instance.reads:
        pieces = []
        for part in read.parts:
            demand = Demand(part.space, "interval", part.channels)
            number = demands.setdefault(demand, len(demands))
            if part.channels:
                pieces.append(Piece(len(part.channels), (number,)))
        reads.append(replace(read, pieces=tuple(pieces), max_gathers=max_gathers))
    return replace(instance, demands=tuple(demands), reads=tuple(reads))


def with_measure(
    instance: Instance, measure: Measure, weights: Sequence[int] | None = None
) -> Instance:
    """Return the instance with another measure and other weights.

    Args:
        instance: Whose reads have their ``parts``.
        measure: What orders shall cost.
        weights: One per read. By default 1 for ``"blocks"``, so that runs are counted, and
            what they were for ``"copies"``.
    """
    if weights is None:
        weights = [1 if measure == "blocks" else read.weight for read in instance.reads]
    reads = [replace(r, weight=w) for r, w in zip(instance.reads, weights, strict=True)]
    return replace(instance, measure=measure, reads=tuple(reads))


def joined(instance: Instance, more: Instance) -> Instance:
    """Both instances' demands and reads, over the spaces of the first."""
    start = len(instance.demands)

    def moved(view: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if view is None else tuple(start + demand for demand in view)

    reads = [
        replace(
            read,
            view=moved(read.view),
            pieces=tuple(replace(piece, view=moved(piece.view)) for piece in read.pieces),
        )
        for read in more.reads
    ]
    return replace(
        instance,
        demands=(*instance.demands, *more.demands),
        reads=(*instance.reads, *reads),
    )
