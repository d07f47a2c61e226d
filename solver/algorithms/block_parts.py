"""Minimising blocks, in parts: spaces that reads couple, their atoms, and a first bound."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from upscale_opt.disjoint_sets import UnionFind
from upscale_opt.solver.algorithms.held_karp import Matrix, tour_bound
from upscale_opt.solver.algorithms.interruptible import whole_bound
from upscale_opt.solver.problem.instance import Instance, Read

_MAX_NODES = 3000
"""Spaces of more atoms than this do without the bound by 1-trees."""


@dataclass(frozen=True)
class BlockPart:
    """Spaces that are coupled by reads across their borders, and the reads of them.

    Attributes:
        spaces: numbers of spaces, ascending.
        atoms: per space, its atoms: channels that no read tells apart, in original order.
        reads: the reads that want something of them.
        trivial_bound: one run per read.
    """

    spaces: tuple[int, ...]
    atoms: dict[int, tuple[tuple[int, ...], ...]]
    reads: tuple[Read, ...]
    trivial_bound: int

    @property
    def runs(self) -> int:
        """The cost of all reads together, or more."""
        channels = sum(len(p.channels) for read in self.reads for p in read.parts)
        return sum(read.weight for read in self.reads) * channels

    @property
    def arcs(self) -> int:
        """The number of arcs of the model."""
        return sum((len(atoms) + 1) ** 2 for atoms in self.atoms.values())


def parts_of(instance: Instance) -> list[BlockPart]:
    """The parts of an instance, the smallest first."""
    union = UnionFind()
    members: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    bit = 1
    for read in instance.reads:
        used = [part for part in read.parts if part.channels]
        for part in used:
            union.join((used[0].space, part.space))
            for channel in part.channels:
                members[part.space][channel] |= bit
            bit <<= 1
    parts = []
    for root in sorted({union.find(space) for space in members}):
        spaces = tuple(s for s in union.members() if union.find(s) == root)
        reads = tuple(
            read
            for read in instance.reads
            if any(part.channels and union.find(part.space) == root for part in read.parts)
        )
        atoms = {space: _atoms(instance, space, members[space]) for space in spaces}
        parts.append(BlockPart(spaces, atoms, reads, sum(read.weight for read in reads)))
    return sorted(parts, key=lambda part: (part.arcs, part.spaces))


def _atoms(instance: Instance, space: int, members: dict[int, int]) -> tuple[tuple[int, ...], ...]:
    """Channels with equal membership; each channel for itself where the order is fixed."""
    channels = instance.spaces[space].channels
    if instance.spaces[space].fixed:
        return tuple((channel,) for channel in channels)
    groups: dict[int, list[int]] = defaultdict(list)
    for channel in channels:
        groups[members.get(channel, 0)].append(channel)
    return tuple(tuple(group) for group in groups.values())


def relaxed_bound(part: BlockPart, deadline: float) -> int:
    """No orders give the part's reads fewer runs: a tour's bound per space, borders given away.

    Args:
        part: the part.
        deadline: when to be done, by ``time.monotonic()``.
    """
    spared = sum(
        read.weight
        for read in part.reads
        for left, right in pairwise(read.parts)
        if left.channels and right.channels
    )
    runs = sum(_space_bound(part, space, deadline) for space in part.spaces)
    return max(part.trivial_bound, runs - spared)


def _space_bound(part: BlockPart, space: int, deadline: float) -> int:
    """Twice the runs in a space are the length of a tour through its atoms and its two ends."""
    atoms = part.atoms[space]
    wanted = [(r.weight, p.channels) for r in part.reads for p in r.parts if p.space == space]
    floor = sum(weight for weight, channels in wanted if channels)
    if not 3 <= len(atoms) + 1 <= _MAX_NODES:
        return floor
    inside = np.zeros((len(atoms) + 1, len(wanted)))
    for column, (_, channels) in enumerate(wanted):
        inside[1:, column] = [atom[0] in channels for atom in atoms]
    weights = np.array([weight for weight, _ in wanted], dtype=float)
    length = tour_bound(_distances(inside, weights), deadline=deadline)
    slack = len(inside) * 2 * sum(weight * len(channels) for weight, channels in wanted)
    return max(floor, (whole_bound(length, slack) + 1) // 2)


def _distances(inside: Matrix, weights: Matrix) -> Matrix:
    """Weighted Hamming distances between rows.

    Args:
        inside: zeros and ones as float64, of shape (n, sets): row 0 for the space's two ends, then
            a row per atom.
        weights: float64 of shape (sets,).

    Returns:
        float64 of shape (n, n), symmetric.
    """
    heavy = inside * weights
    sizes = heavy.sum(axis=1)
    squares: Matrix = sizes[:, None] + sizes[None, :] - 2 * heavy @ inside.T
    return squares
