"""Picks, with what the network takes under them."""

from __future__ import annotations

import numpy as np

from upscale_opt.solver.selection.pickers import Ints, Picks
from upscale_opt.solver.selection.setting import Floats
from upscale_opt.solver.selection.widths import Widths


class State:
    """Picks, with what they take; one picker's alternatives are priced all at once.

    Args:
        widths: the functions.
        picks: where to start.

    Attributes:
        sizes: of shape (nodes,): their widths.
        copies: of shape (resources,): what gathers are guessed to take of it.
    """

    def __init__(self, widths: Widths, picks: Picks) -> None:
        self.widths = widths
        self.picks = list(picks)
        self.copies = widths.constant * 0
        for copies, (family, level) in zip(widths.copies, picks, strict=True):
            self.copies = self.copies + copies[family][:, level]
        flat = widths.flat
        self._asks = np.zeros(len(flat.fixed), dtype=np.int32)
        for picker, (family, level) in enumerate(picks):
            own = flat.pickers[picker]
            self._asks[own.entries] += own.ranks[family] > level
        there = flat.fixed | (self._asks > 0)
        self._slots = np.bincount(flat.slots[there], minlength=flat.count)
        self.sizes = flat.sizes(self._slots)

    @property
    def used(self) -> Floats:
        """Of shape (resources,): what the picks take."""
        w = self.widths
        used: Floats = w.constant + w.coefficients @ (self.sizes[w.left] * self.sizes[w.right])
        return used + self.copies

    @property
    def loss(self) -> float:
        """Of the picks."""
        return self.widths.loss(self.picks)

    def pick(self, picker: int, family: int, level: int) -> None:
        """Change one picker's pick."""
        flat, (old, before) = self.widths.flat, self.picks[picker]
        own = flat.pickers[picker]
        self.picks[picker] = (family, level)
        copies = self.widths.copies[picker]
        self.copies = self.copies + copies[family][:, level] - copies[old][:, before]
        others = self._asks[own.entries] - (own.ranks[old] > before)
        now = others + (own.ranks[family] > level)
        change = (now > 0).astype(np.int64) - (self._asks[own.entries] > 0)
        self._asks[own.entries] = now
        self._slots = self._slots + np.bincount(
            own.slots, weights=change, minlength=flat.count
        ).astype(np.int64)
        self.sizes = flat.sizes(self._slots)

    def alternatives(self, picker: int) -> list[Floats]:
        """For every family, of shape (resources, levels): what the network would take then."""
        w, flat = self.widths, self.widths.flat
        own, terms = flat.pickers[picker], w.terms_of[picker]
        old, before = self.picks[picker]
        copies = w.copies[picker]
        total = self.used - copies[old][:, before]
        families = w.pickers[picker].families
        if not len(terms):
            return [total[:, None] + own for own in copies]
        coefficients = w.coefficients[:, terms]
        rest = total - coefficients @ (self.sizes[w.left[terms]] * self.sizes[w.right[terms]])
        free = self._asks[own.entries] - (own.ranks[old] > before) <= 0
        on_now = np.bincount(own.local, self._asks[own.entries] > 0, minlength=len(own.known))
        base = self._slots[own.known] - on_now
        base += np.bincount(own.local, ~free, minlength=len(own.known))
        results = []
        for number, family in enumerate(families):
            levels = len(family.losses)
            spread = own.local[free] * (levels + 1) + own.ranks[number][free]
            table = np.bincount(spread, minlength=len(own.known) * (levels + 1))
            table = table.reshape(len(own.known), levels + 1)
            above = table.sum(axis=1, keepdims=True) - np.cumsum(table, axis=1)[:, :levels]
            widths = base[:, None] + above
            if own.grouped:
                slots = np.repeat(self._slots[:, None], levels, axis=1)
                slots[own.known] = widths
                sizes = flat.sizes(slots)
                left, right = sizes[w.left[terms]], sizes[w.right[terms]]
            else:
                left = self._rows(own.place[w.left[terms]], w.left[terms], widths)
                right = self._rows(own.place[w.right[terms]], w.right[terms], widths)
            results.append(rest[:, None] + coefficients @ (left * right) + copies[number])
        return results

    def _rows(self, place: Ints, nodes: Ints, widths: Ints) -> Floats:
        """The widths of some nodes at all levels, as counted; those that do not change included."""
        flat = self.widths.flat
        rows = np.asarray(widths[np.maximum(place, 0)], dtype=np.float64)
        if flat.is_blocked:
            rows = flat.counted(nodes, rows)
        still = place < 0
        rows[still] = self.sizes[nodes[still], None]
        return rows
