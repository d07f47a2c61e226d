"""Conflicts: minimal sets of demands on one space that cannot hold together.

Pairs and triples are enumerated. Whether three sets have the consecutive-ones property depends only
on which regions of their Venn diagram are inhabited, so a few machine words decide each triple.
Larger conflicts are found on demand (:meth:`Family.conflict`).

Where all pairs or all triples within a set of demands conflict, one or two of them can hold, which
is a much stronger inequality than its parts, and a much shorter proof: :func:`small_cuts` covers
pairs and triples by such *cliques*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from upscale_opt.solver.problem.pqtree import End, PQTree
from upscale_opt.solver.problem.reduction import CoreDemand


@dataclass(frozen=True)
class Cut:
    """At most ``limit`` of the ``demands`` hold together."""

    demands: tuple[int, ...]
    limit: int


@dataclass(frozen=True)
class Family:
    """The demands on one space.

    Attributes:
        size: how many channels the space has.
        tree: all orders of the space.
        demands: by number, heavier ones first where it matters.
    """

    size: int
    tree: PQTree
    demands: dict[int, CoreDemand]

    def conflict(self, chosen: Sequence[int]) -> tuple[int, ...] | None:
        """A minimal conflict among ``chosen``, None if they can all hold.

        Grows the conflict one demand at a time: the first demand that no longer fits belongs to it,
        and everything behind that demand does not matter any more.
        """
        found: list[int] = []
        pool = list(chosen)
        while True:
            tree = self.tree.copy()
            if not all(tree.reduce_mask(self.demands[demand].mask) for demand in found):
                return tuple(sorted(found))
            for place, demand in enumerate(pool):
                if not tree.reduce_mask(self.demands[demand].mask):
                    found.append(demand)
                    del pool[place:]
                    break
            else:
                return None


def small_cuts(family: Family, stop: Callable[[], bool], max_triples: int) -> list[Cut]:
    """Cuts that cover all conflicting pairs and triples of the family.

    Args:
        family: the demands on one space.
        stop: asked now and then; once it says True, what was found so far is returned.
        max_triples: triples are not enumerated where there would be more.
    """
    numbers = list(family.demands)
    size = len(numbers)
    graph = _Conflicts(list(family.demands.values()), family.size)
    graph.find_pairs(stop)
    if size * (size - 1) * (size - 2) // 6 <= max_triples:
        graph.find_triples(stop)
    cuts: list[Cut] = []
    for limit, cliques in ((1, graph.pair_cliques()), (2, graph.triple_cliques())):
        for clique in cliques:
            cuts.append(Cut(tuple(sorted(numbers[i] for i in clique)), limit))
            if stop():
                return cuts
    return cuts


class _Conflicts:
    """The pairs and triples of sets that conflict, as bit sets of positions.

    ``pairs[i]`` holds the j in conflict with i; ``triples[i][j]`` the k such that i, j and k are in
    conflict while no two of them are.
    """

    def __init__(self, demands: Sequence[CoreDemand], channels: int) -> None:
        self.everything = ((1 << channels) - 1) << 1
        self.sets = [demand.mask & self.everything for demand in demands]
        self.prefix = [demand.prefix for demand in demands]
        size = len(self.sets)
        self.pairs = [0] * size
        self.triples = [[0] * size for _ in range(size)]

    def find_pairs(self, stop: Callable[[], bool]) -> None:
        """Only demands for a space's end can conflict in pairs: they must be nested."""
        ends = [i for i, prefix in enumerate(self.prefix) if prefix]
        for i in ends:
            if stop():
                return
            for j in ends:
                if self.sets[i] & ~self.sets[j] and self.sets[j] & ~self.sets[i]:
                    self.pairs[i] |= 1 << j

    def find_triples(self, stop: Callable[[], bool]) -> None:
        """Fill ``triples``, as far as ``stop`` allows."""
        sets, prefix, pairs, triples = self.sets, self.prefix, self.pairs, self.triples
        complements = [self.everything & ~members for members in sets]
        for i, first in enumerate(sets):
            if stop():
                return
            for j in range(i + 1, len(sets)):
                if pairs[i] >> j & 1:
                    continue
                second = sets[j]
                regions = (
                    complements[i] & complements[j],
                    first & complements[j],
                    complements[i] & second,
                    first & second,
                )
                for k in range(j + 1, len(sets)):
                    if (pairs[i] | pairs[j]) >> k & 1:
                        continue
                    third, outside = sets[k], complements[k]
                    signature = 0
                    for place, region in enumerate(regions):
                        if region & outside:
                            signature |= 1 << place
                        if region & third:
                            signature |= 16 << place
                    if conflicting(signature, (prefix[i], prefix[j], prefix[k])):
                        triples[i][j] |= 1 << k
                        triples[j][i] |= 1 << k
                        triples[i][k] |= 1 << j
                        triples[k][i] |= 1 << j
                        triples[j][k] |= 1 << i
                        triples[k][j] |= 1 << i

    def pair_cliques(self) -> Iterator[tuple[int, ...]]:
        """Cliques of conflicting pairs that cover all of them."""
        open_pairs = list(self.pairs)
        for i in range(len(open_pairs)):
            while open_pairs[i]:
                clique = [i]
                candidates = self.pairs[i]
                fresh = open_pairs[i]
                while candidates:
                    pick = _lowest(candidates & fresh or candidates)
                    clique.append(pick)
                    candidates &= self.pairs[pick]
                members = _union(clique)
                for member in clique:
                    open_pairs[member] &= ~members
                yield tuple(sorted(clique))

    def triple_cliques(self) -> Iterator[tuple[int, ...]]:
        """Sets in which any three conflict, that cover all conflicting triples."""
        if not any(map(any, self.triples)):
            return
        size = len(self.sets)
        everyone = (1 << size) - 1
        thirds = [
            [
                everyone if self.pairs[i] >> j & 1 else row[j] | self.pairs[i] | self.pairs[j]
                for j in range(size)
            ]
            for i, row in enumerate(self.triples)
        ]
        open_triples = [list(row) for row in self.triples]
        for i in range(size):
            for j in range(i + 1, size):
                while open_triples[i][j]:
                    clique = [i, j]
                    candidates = thirds[i][j] & ~(1 << i | 1 << j)
                    while candidates:
                        pick = _lowest(candidates & open_triples[i][j] or candidates)
                        candidates &= ~(1 << pick)
                        for member in clique:
                            candidates &= thirds[member][pick]
                        clique.append(pick)
                    members = _union(clique)
                    for one in clique:
                        row = open_triples[one]
                        for other in clique:
                            row[other] &= ~members
                    yield tuple(sorted(clique))


def three_conflict(sets: tuple[int, int, int], everything: int) -> bool:
    """Three sets conflict.

    Args:
        sets: as bits; those with bit 0, the left sentinel, are wanted at the beginning.
        everything: all channels as bits.
    """
    first, second, third = sets
    regions = (
        everything & ~first & ~second,
        everything & first & ~second,
        everything & ~first & second,
        everything & first & second,
    )
    signature = 0
    for place, region in enumerate(regions):
        signature |= (1 << place if region & ~third else 0) | (16 << place if region & third else 0)
    return conflicting(signature, (bool(first & 1), bool(second & 1), bool(third & 1)))


@cache
def conflicting(signature: int, prefix: tuple[bool, ...]) -> bool:
    """Three sets conflict; bit r of ``signature``: region r of the diagram is inhabited.

    Region r lies inside set number s where bit s of r is set.
    """
    regions = list(_bits(signature))
    tree = PQTree(regions, ends=True)
    for place, wanted in enumerate(prefix):
        members: list[int | End] = [region for region in regions if region >> place & 1]
        if not tree.reduce([End.LEFT, *members] if wanted else members):
            return True
    return False


def _bits(mask: int, start: int = 0) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield start + low.bit_length() - 1
        mask ^= low


def _lowest(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


def _union(places: Iterable[int]) -> int:
    mask = 0
    for place in places:
        mask |= 1 << place
    return mask
