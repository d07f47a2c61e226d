"""Widths: the entries of a tensor that are stored or read, and those of all tensors in one list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from upscale_opt.ir.cost_model import EACH, Blocks
from upscale_opt.solver.selection.pickers import Ints, Picker
from upscale_opt.solver.selection.setting import Bools, Floats


class Node:
    """A width: the entries of a tensor that are stored, or read.

    Attributes:
        channels: of every entry.
        fixed: of shape (entries,): it is there by all means.
        labels: of shape (entries,): its group; groups are made equally long.
        groups: how many.
        ranks: for every picker and family: for every entry the number of levels at which the picker
            asks for it.
        stored: it is the width of a tensor in memory.
        readers: those that may ask for entries.
        tensors: whose entries these are.
        blocks: how they are counted.
        plain: the number of the node that counts them one by one.
    """

    def __init__(
        self, channels: Ints, fixed: Bools, groups: int, blocks: Blocks = EACH, plain: int = 0
    ) -> None:
        self.channels = channels
        self.fixed = fixed
        self.groups = groups
        self.blocks = blocks
        self.plain = plain
        size = len(channels)
        self.labels = np.arange(size) * groups // max(size, 1)
        self.ranks: dict[int, list[Ints]] = {}
        self.stored = False
        self.readers: frozenset[int] = frozenset()
        self.tensors: list[str] = []


@dataclass(frozen=True)
class Own:
    """The entries that one picker decides on.

    Attributes:
        entries: of all nodes, in one list, those that it may ask for.
        ranks: by family, for each of them: the number of levels at which it does.
        slots: for each of them, its slot.
        known: the slots that occur.
        local: for each of them, its slot's place among those.
        place: for every node, its slot's place among those, or -1.
        grouped: some of the nodes have several slots.
    """

    entries: Ints
    ranks: list[Ints]
    slots: Ints
    known: Ints
    local: Ints
    place: Ints
    grouped: bool


class Flat:
    """The entries of all nodes in one list, and slots: nodes, or their groups.

    Args:
        nodes: all.
        nodes_of: for every picker, the numbers of those that it decides on.
        pickers: the decisions.

    Attributes:
        fixed: of shape (entries,): they are there by all means.
        slots: of shape (entries,): of each, its slot.
        count: how many slots there are.
        pickers: the entries that each of them decides on.
        is_blocked: some widths are counted in blocks.
    """

    def __init__(
        self, nodes: Sequence[Node], nodes_of: Sequence[Sequence[int]], pickers: Sequence[Picker]
    ) -> None:
        self.fixed = np.concatenate([node.fixed for node in nodes])
        self._groups = np.array([node.groups for node in nodes])
        self._first = np.concatenate([[0], np.cumsum(self._groups)[:-1]])
        self.count = int(self._groups.sum())
        blocks = [node.blocks for node in nodes]
        self._blocked = np.flatnonzero([own != EACH for own in blocks])
        self.is_blocked = bool(len(self._blocked))
        self._size = np.array([own.size for own in blocks])
        self._uneven = np.array([own.uneven for own in blocks])
        self.slots = np.concatenate(
            [first + node.labels for first, node in zip(self._first, nodes, strict=True)]
        )
        starts = np.concatenate([[0], np.cumsum([len(node.fixed) for node in nodes])])
        self.pickers: list[Own] = []
        for number, picker in enumerate(pickers):
            entries: list[Ints] = []
            ranks: list[list[Ints]] = [[] for _ in picker.families]
            for at in nodes_of[number]:
                node = nodes[at]
                own = node.ranks[number]
                asked = ~node.fixed & np.any([rank > 0 for rank in own], axis=0)
                entries.append(starts[at] + np.flatnonzero(asked))
                for f, rank in enumerate(own):
                    ranks[f].append(rank[asked])
            nothing = np.zeros(0, dtype=np.int64)
            joined = np.concatenate([nothing, *entries]).astype(np.int64)
            slots = self.slots[joined]
            known, local = np.unique(slots, return_inverse=True)
            place = np.full(len(nodes), -1)
            single = [at for at in nodes_of[number] if nodes[at].groups == 1]
            for at in single:
                found = np.searchsorted(known, self._first[at])
                if found < len(known) and known[found] == self._first[at]:
                    place[at] = found
            grouped = len(single) < len(nodes_of[number])
            parts = [np.concatenate([nothing, *own]).astype(np.int64) for own in ranks]
            self.pickers.append(Own(joined, parts, slots, known, local, place, grouped))

    def sizes(self, slots: Ints) -> Floats:
        """The widths of all nodes as they are counted: of groups, the largest for all."""
        widest = np.maximum.reduceat(slots, self._first, axis=0)
        groups = self._groups if widest.ndim == 1 else self._groups[:, None]
        sizes = np.asarray(widest * groups, dtype=np.float64)
        if self.is_blocked:
            sizes[self._blocked] = self.counted(self._blocked, sizes[self._blocked])
        return sizes

    def counted(self, nodes: Ints, widths: Floats) -> Floats:
        """Widths of some nodes, of shape (nodes,) or (nodes, levels), as they are counted."""
        size, uneven = self._size[nodes], self._uneven[nodes]
        if widths.ndim > 1:
            size, uneven = size[:, None], uneven[:, None]
        whole = -(-widths // size) * size
        return np.asarray(np.where(whole == widths, whole, whole * uneven), dtype=np.float64)
