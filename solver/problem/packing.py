"""Demands that hold together, collected greedily: the orders behind every incumbent."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from upscale_opt.solver.problem.conflicts import Family
from upscale_opt.solver.problem.instance import (
    Piece,
    Read,
    gathered_pieces,
    is_view,
    read_cost,
)
from upscale_opt.solver.problem.pqtree import PQTree
from upscale_opt.solver.problem.reduction import Component


class Packing:
    """Demands that hold together, with one PQ-tree per space.

    Attributes:
        held: the demands.
        trees: per space, the orders under which its share of ``held`` holds.
    """

    def __init__(self, families: Mapping[int, Family]) -> None:
        self.held: set[int] = set()
        self.trees = {space: family.tree for space, family in families.items()}
        self._demands = {d: demand for f in families.values() for d, demand in f.demands.items()}
        self._hopeless: set[int] = set()

    def add(self, wanted: Iterable[int]) -> bool:
        """Add all these demands, or none of them if they do not all fit."""
        fresh = [demand for demand in wanted if demand not in self.held]
        if not self._hopeless.isdisjoint(fresh):
            return False
        grown: dict[int, PQTree] = {}
        for number in fresh:
            demand = self._demands[number]
            tree = grown.get(demand.space) or self.trees[demand.space].copy()
            if not tree.reduce_mask(demand.mask):
                if demand.space not in grown:
                    self._hopeless.add(number)
                return False
            grown[demand.space] = tree
        self.trees.update(grown)
        self.held.update(fresh)
        return True

    def serve(self, read: Read) -> None:
        """Make ``read`` as cheap as its demands still allow; add nothing if that is no use."""
        if read.view is not None and self.add(read.view):
            return
        if read.pieces:
            self.serve_by_pieces(read, sorted(read.pieces, key=lambda piece: -piece.weight))

    def serve_by_pieces(self, read: Read, pieces: Iterable[Piece]) -> None:
        """Make views of these pieces of ``read``, as far as possible; of none if that is no use."""
        before = set(self.held), dict(self.trees), set(self._hopeless)
        for piece in pieces:
            if piece.view is not None:
                self.add(piece.view)
        if gathered_pieces(read, self.held) is None:
            self.held, self.trees, self._hopeless = before

    def cost(self, reads: Iterable[Read]) -> int:
        """The cost of the reads when exactly the demands ``held`` hold."""
        return sum(read_cost(read, self.held) for read in reads)


def pack(
    component: Component, families: Mapping[int, Family], preferred: Collection[int]
) -> Packing:
    """Serve the component's reads: as well as ``preferred`` does, then better where possible.

    The result is maximal: a demand that is not held cannot hold with the others. So its cost is
    exactly what its orders cost.
    """
    packing = Packing(families)
    reads = component.reads
    gain = [read.weight - read_cost(read, preferred) for read in reads]
    for index in sorted(range(len(reads)), key=lambda i: (-gain[i], i)):
        for view in served_by(reads[index], preferred):
            packing.add(view)
    for index in sorted(range(len(reads)), key=lambda i: (-reads[i].weight, i)):
        packing.serve(reads[index])
    for demand in component.demands:
        packing.add((demand,))
    return packing


def served_by(read: Read, held: Collection[int]) -> list[tuple[int, ...]]:
    """The views among its own and its pieces' that make the read as cheap as ``held`` allows."""
    if read.view is not None and is_view(read.view, held):
        return [read.view]
    gathered = gathered_pieces(read, held)
    if gathered is None:
        return []
    pieces = enumerate(read.pieces)
    return [piece.view for i, piece in pieces if piece.view is not None and i not in gathered]
