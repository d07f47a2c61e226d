"""Small instances by hand, each of which isolates one difficulty or tries to break a solver.

>>> HANDMADE["cycle-of-pairs"].spaces
(Space(channels=(0, 1, 2, 3, 4, 5, 6)),)
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

from upscale_opt.models.instances.from_sets import of_parts, one_space, with_pieces
from upscale_opt.solver.problem.instance import (
    Demand,
    DemandKind,
    Instance,
    Part,
    Piece,
    Read,
    Space,
)


def _demand(channels: str, kind: DemandKind = "interval", space: int = 0) -> Demand:
    """A demand for channels of one digit each."""
    return Demand(space, kind, _set(channels))


def _part(space: int, channels: str) -> Part:
    return Part(space, _set(channels))


def _set(channels: str) -> frozenset[int]:
    return frozenset(map(int, channels))


def _spaces(*channels: str) -> tuple[Space, ...]:
    return tuple(Space(tuple(map(int, space))) for space in channels)


def _graph(vertices: int, *edges: tuple[int, int]) -> Instance:
    """Reads of two channels each: as many as a set of disjoint paths has edges can be views."""
    return one_space(vertices, edges)


_CUBE = [(a, b) for a, b in itertools.combinations(range(8), 2) if (a ^ b).bit_count() == 1]
_PETERSEN = [
    edge for i in range(5) for edge in ((i, (i + 1) % 5), (i, i + 5), (i + 5, (i + 2) % 5 + 5))
]
_THREE_HALVES = [[1, 3, 5, 7], [2, 3, 6, 7], [4, 5, 6, 7]]
_ENDS = (_demand("01", "suffix"), _demand("23", "prefix"), _demand("12", "prefix"))

NETWORK_LIKE: Mapping[str, Instance] = {
    "cycle-of-pairs": _graph(7, *((i, (i + 1) % 7) for i in range(7))),
    "all-pairs": _graph(5, *itertools.combinations(range(5), 2)),
    "cube-graph": _graph(8, *_CUBE),
    "petersen-graph": _graph(10, *_PETERSEN),
    "general-position-3": one_space(8, _THREE_HALVES),
    "general-position-4": one_space(
        16, [[c for c in range(16) if c >> bit & 1] for bit in range(4)]
    ),
    "residual-then-cat": of_parts(
        _spaces("0123", "4567"),
        [
            [_part(0, "01")],
            [_part(0, "12")],
            [_part(0, "23"), _part(1, "45")],
            [_part(0, "03"), _part(1, "67")],
            [_part(1, "56"), _part(0, "01")],
        ],
    ),
    "three-in-a-row": of_parts(
        _spaces("012", "34", "567"),
        [
            [_part(0, "01"), _part(1, "34"), _part(2, "56")],
            [_part(0, "12"), _part(1, "34"), _part(2, "7")],
            [_part(0, "2"), _part(1, "3"), _part(2, "5")],
            [_part(0, ""), _part(1, "34"), _part(2, "67")],
            [_part(2, "57"), _part(0, "02")],
        ],
    ),
    "read-from-both-sides": of_parts(
        _spaces("012", "345", "678"),
        [
            [_part(0, "12"), _part(1, "34")],
            [_part(1, "34"), _part(0, "12")],
            [_part(1, "45"), _part(2, "67")],
            [_part(2, "78"), _part(1, "35")],
        ],
    ),
    "cat-with-itself": of_parts(
        _spaces("01234"), [[_part(0, "012"), _part(0, "34")], [_part(0, "04"), _part(0, "04")]]
    ),
    "fixed-between-free": of_parts(
        (Space((0, 1, 2)), Space((3, 4, 5), fixed=True), Space((6, 7, 8))),
        [
            [_part(0, "01"), _part(1, "345"), _part(2, "78")],
            [_part(0, "02"), _part(1, "3")],
            [_part(1, "45"), _part(2, "6")],
            [_part(1, "35")],
            [_part(0, "12")],
        ],
    ),
    "pieces-within-the-limit": with_pieces(
        of_parts(
            _spaces("0123", "4567"),
            [
                [_part(0, "01"), _part(1, "46")],
                [_part(0, "12"), _part(1, "45")],
                [_part(0, "02")],
                [_part(1, "47")],
                [_part(1, "56")],
            ],
        ),
        max_gathers=1,
    ),
    "pieces-beyond-the-limit": with_pieces(
        of_parts(
            _spaces("012", "345", "678"),
            [
                [_part(0, "0"), _part(1, "3"), _part(2, "6")],
                [_part(0, "02"), _part(1, "35"), _part(2, "68")],
                [_part(0, "02"), _part(1, "35"), _part(2, "67")],
                [_part(0, "01"), _part(1, "34"), _part(2, "67")],
                [_part(0, "12"), _part(1, "45"), _part(2, "78")],
            ],
        ),
        max_gathers=1,
    ),
}
"""Instances that a network could ask for, with every read's parts."""

POISONED: Mapping[str, Instance] = {
    "nothing": Instance((), (), ()),
    "no-demands": Instance((Space((3, 1)), Space(())), (), (Read(5, None), Read(7, ()))),
    "no-reads": Instance(_spaces("01"), (_demand("1", "prefix"),), ()),
    "no-channels-wanted": Instance(
        _spaces("012"),
        (_demand("", "prefix"), _demand(""), _demand("02")),
        (Read(3, (0, 1)), Read(2, (0, 2)), Read(5, None, (Piece(2, (1,)), Piece(1, (2,))), 2)),
    ),
    "duplicates": Instance(
        _spaces("0123"),
        tuple(_demand(f"{i % 2}3") for i in range(8)),
        tuple(Read(2, (i, i, (i + 2) % 8)) for i in range(8)),
    ),
    "full-sets-and-single-channels": Instance(
        _spaces("012"),
        (_demand("012", "suffix"), _demand("1"), _demand("1", "prefix")),
        (Read(3, (0,)), Read(1, (1,)), Read(1, (0, 1, 2))),
    ),
    "zero-weights": Instance(
        _spaces("012"),
        (_demand("02"),),
        (Read(0, (0,)), Read(0, None, (Piece(0, None),), 1), Read(4, (0,), (Piece(0, None),), 1)),
    ),
    "wants-the-impossible": Instance(
        _spaces("012"),
        tuple(_demand(c, "prefix") for c in "012"),
        (Read(6, (0, 1)), Read(2, (2,)), Read(9, None, (Piece(1, (0,)), Piece(2, (1,))), 1)),
    ),
    "only-fixed-spaces": Instance(
        (Space((0, 1, 2), fixed=True),),
        (_demand("02"), _demand("01", "prefix")),
        (Read(2, (0,)), Read(2, (1,)), Read(5, None, (Piece(2, (0,)), Piece(3, (1,))), 1)),
    ),
    "prefix-against-suffix": Instance(
        _spaces("0123"), _ENDS, (Read(2, (0,)), Read(2, (1,)), Read(3, (2,)))
    ),
    "one-demand-in-many-reads": Instance(
        _spaces("01234"),
        (_demand("012"), _demand("234", "prefix"), _demand("04"), _demand("13", "suffix")),
        tuple(Read(w, v) for w, v in enumerate(itertools.combinations(range(4), 2), start=1)),
    ),
    "pieces-that-share-demands": Instance(
        _spaces("0123", "4567"),
        (_demand("01"), _demand("12"), _demand("13"), _demand("45", space=1)),
        (
            Read(9, (0, 1, 2), (Piece(4, (0, 1)), Piece(4, (1, 2)), Piece(1, (3,))), 1),
            Read(7, None, (Piece(3, (2,)), Piece(3, (0, 2)), Piece(2, None)), 2),
            Read(2, (1,)),
        ),
    ),
    "pieces-dearer-than-the-read": Instance(
        _spaces("0123"),
        (_demand("01"), _demand("12"), _demand("13"), _demand("03", "prefix")),
        (
            Read(3, (0,), (Piece(5, (1,)), Piece(5, (2,))), 2),
            Read(3, (1,), (Piece(1, (2,)), Piece(5, (3,))), 2),
            Read(1, (2,)),
            Read(2, (3,)),
        ),
    ),
    "huge-weights": Instance(
        _spaces("0123"),
        tuple(_demand(f"{a}{b}") for a, b in itertools.combinations(range(4), 2)),
        tuple(Read(10**15 + i, (i,)) for i in range(6)),
    ),
    "huge-weights-beside-small-ones": Instance(
        _spaces("012345", "67"),
        (
            _demand("7", "suffix", space=1),
            _demand("0145", "prefix"),
            _demand("6", "suffix", space=1),
            _demand("1234", "prefix"),
        ),
        (Read(10**12, (0, 1)), Read(7, (2, 3)), Read(10**12, (0,))),
    ),
    "huge-weights-that-tie": Instance(
        _spaces("0123456"),
        (
            _demand("056"),
            _demand("123"),
            _demand("036", "prefix"),
            _demand("056", "suffix"),
            _demand("245", "prefix"),
            _demand("123", "suffix"),
            _demand("0", "suffix"),
        ),
        tuple(Read(10**12 if i in (2, 5, 6) else 7, (i,)) for i in range(7)),
    ),
    "weights-far-apart": Instance(
        _spaces("0123"),
        tuple(_demand(f"{a}{b}") for a, b in itertools.combinations(range(4), 2)),
        tuple(Read(1000 ** (i % 5), (i,)) for i in range(6)),
    ),
}
"""Instances that no network would ask for."""

WITH_WISHES: Mapping[str, Instance] = {
    "wishes-break-ties": replace(
        one_space(4, [[0, 1], [1, 2], [0, 2]]),
        demands=(_demand("01"), _demand("12"), _demand("02"), _demand("3", "prefix")),
        wishes=(Read(3, (0,)), Read(2, (2,)), Read(1, (3,))),
    ),
}
"""Instances with more than one optimum, of which some are better than others."""

HANDMADE: Mapping[str, Instance] = {**NETWORK_LIKE, **POISONED, **WITH_WISHES}
"""All of them by name."""
