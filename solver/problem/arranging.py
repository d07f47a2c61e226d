"""Of the orders that a PQ-tree allows, one under which given sets fall into few runs.

The third of the exact solver's objectives, after cost and wishes, and a heuristic: the children of
every node are joined to a path by nearest neighbours, in the Hamming distance between the sets that
the ends of two of them belong to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from upscale_opt.solver.problem.pqtree import PNode, PQTree, places_of

_MAX_NEIGHBOURS = 600
"""With more children than this, they are sorted instead."""


def arranged(tree: PQTree, sets: Sequence[int]) -> list[int]:
    """An order of the tree in which ``sets`` have few runs; never more than in its frontier.

    Args:
        tree: with sentinels at its ends.
        sets: in the tree's bits, see :meth:`PQTree.mask`.
    """
    plain = tree.frontier()
    if not sets:
        return plain
    size = len(tree.elements)
    signature = [0] * (size + 2)
    for number, members in enumerate(sets):
        for place in places_of(members):
            signature[place] |= 1 << number
    places = [place for place in _sequence(tree, signature) if 0 < place <= size]
    place_of = {element: place for place, element in enumerate(tree.elements, 1)}
    if _changes(places, signature) < _changes([place_of[e] for e in plain], signature):
        return [tree.elements[place - 1] for place in places]
    return plain


def _changes(places: Sequence[int], signature: Sequence[int]) -> int:
    """The number of beginnings and ends of sets along the places: twice the number of runs."""
    ends = [0, *(signature[place] for place in places), 0]
    return sum((left ^ right).bit_count() for left, right in pairwise(ends))


@dataclass(frozen=True)
class _Strip:
    """Places in a row, which may be turned round, and what its ends belong to."""

    places: tuple[int, ...]
    first: int
    last: int

    def turned(self) -> _Strip:
        return _Strip(self.places[::-1], self.last, self.first)


def _sequence(tree: PQTree, signature: Sequence[int]) -> tuple[int, ...]:
    """The places in an order that the tree allows, from the left sentinel to the right one.

    Children first, without recursion: trees can be deep.
    """
    strips: dict[int, _Strip] = {}
    stack = [(tree.root, False)]
    while stack:
        node, ready = stack.pop()
        if not ready:
            stack.append((node, True))
            stack.extend((child, False) for child in node.children)
            continue
        parts = [strips.pop(id(child)) for child in node.children]
        if isinstance(node, PNode):
            strips[id(node)] = _joined(_path([*parts, *_atoms(node.loose, signature)]))
        else:
            strips[id(node)] = _joined(_oriented(parts))
    (whole,) = strips.values()
    return whole.places if whole.places[0] < whole.places[-1] else whole.places[::-1]


def _atoms(loose: int, signature: Sequence[int]) -> list[_Strip]:
    """Single places that belong to the same sets, together."""
    groups: dict[int, list[int]] = defaultdict(list)
    for place in places_of(loose):
        groups[signature[place]].append(place)
    return [_Strip(tuple(places), own, own) for own, places in groups.items()]


def _path(strips: list[_Strip]) -> list[_Strip]:
    """All strips, each next to one whose end is near to its own."""
    if len(strips) > _MAX_NEIGHBOURS:
        return sorted(strips, key=lambda strip: (strip.first, strip.places))
    left = sorted(strips, key=lambda strip: (strip.first.bit_count(), strip.places))
    path = left[:1]
    del left[:1]
    while left:
        end = path[-1].last
        near = [
            (min((end ^ s.first).bit_count(), (end ^ s.last).bit_count()), i)
            for i, s in enumerate(left)
        ]
        strip = left.pop(min(near)[1])
        closer = (end ^ strip.last).bit_count() < (end ^ strip.first).bit_count()
        path.append(strip.turned() if closer else strip)
    return path


def _oriented(strips: list[_Strip]) -> list[_Strip]:
    """The strips in their sequence, each turned such that neighbours fit, dynamically."""
    best = [(0, [strips[0]]), (0, [strips[0].turned()])]
    for strip in strips[1:]:
        best = [
            min(
                (
                    (changes + (line[-1].last ^ way.first).bit_count(), line)
                    for changes, line in best
                ),
                key=lambda option: option[0],
            )
            for way in (strip, strip.turned())
        ]
        best = [
            (changes, [*line, way])
            for (changes, line), way in zip(best, (strip, strip.turned()), strict=True)
        ]
    return min(best, key=lambda option: option[0])[1]


def _joined(strips: Sequence[_Strip]) -> _Strip:
    places = tuple(place for strip in strips for place in strip.places)
    return _Strip(places, strips[0].first, strips[-1].last)
