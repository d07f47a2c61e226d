"""Channel identities: fresh ids, ties between them, what is fixed, and the spaces they form.

What a concatenation holds more than once gets a twin for every time, so that a reader may take one
without the others. Twins have the order of what they were made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from upscale_opt.disjoint_sets import UnionFind
from upscale_opt.ir.graph import Space

Array = npt.NDArray[np.int64]
"""Whole numbers, along one axis unless said otherwise."""

Boolean = npt.NDArray[np.bool_]


class Channels:
    """Channel ids, which of them are one channel, and why some must keep their order."""

    def __init__(self) -> None:
        self._count = 0
        self._same = UnionFind()
        self._fixed: list[tuple[Array, str]] = []
        self._renamed: list[Array] = []  # of shape (2, channels): what became what in a join

    @property
    def count(self) -> int:
        """The number of ids."""
        return self._count

    def fresh(self, count: int) -> Array:
        """``count`` new ids."""
        first, self._count = self._count, self._count + count
        return np.arange(first, self._count, dtype=np.int64)

    def tie(self, left: Array, right: Array) -> None:
        """From now on ``left[i]`` and ``right[i]`` are the same channel."""
        if left is right or np.array_equal(left, right):
            return
        self._same.tie(left.tolist(), right.tolist())

    def apart(self, parts: Sequence[Array]) -> list[Array]:
        """The ids of tensors that are joined, with twins for those that several of them hold."""
        roots = [self.resolve(ids) for ids in parts]
        held, times = np.unique(np.concatenate(list(map(np.unique, roots))), return_counts=True)
        found: list[Array] = []
        for ids, own in zip(parts, roots, strict=True):
            shared = np.intersect1d(own, held[times > 1])
            named = ids.copy()
            for twin, channel in zip(self.fresh(len(shared)), shared, strict=True):
                named[own == channel] = twin
            found.append(named)
            if len(shared):
                self._renamed.append(np.unique(np.stack([ids, named]), axis=1))
        return found

    def originals(self) -> dict[int, int]:
        """For the representative of every twin, that of what it was made of, which is no twin.

        Where a twin was tied to a twin of something else, or to what it was made of, it is none:
        all of these are tied, and one channel. So are twins that a join made of what is one now.
        """
        while True:
            made: dict[int, int] = {}
            apart: list[tuple[int, int]] = []
            for pairs in self._renamed:
                became: dict[int, int] = {}
                for read, named in pairs.T.tolist():
                    channel, twin = self._same.find(read), self._same.find(named)
                    if became.setdefault(channel, twin) != twin:
                        apart.append((became[channel], twin))
                    if twin != channel and made.setdefault(twin, channel) != channel:
                        apart.append((made[twin], channel))
            apart += [(twin, made[twin]) for twin in made if _last(made, twin) is None]
            if not apart:
                return {twin: last for twin in made if (last := _last(made, twin)) is not None}
            for one, other in apart:
                self._same.tie([one], [other])

    def fix(self, ids: Array, reason: str) -> None:
        """No order but the original one is allowed for ``ids``."""
        self._fixed.append((ids, reason))

    def resolve(self, ids: Array) -> Array:
        """The representative of each id."""
        return np.array([self._same.find(i) for i in ids.tolist()], dtype=np.int64)

    def roots(self) -> Array:
        """The representative of every id ever made, by id."""
        roots = np.arange(self._count, dtype=np.int64)
        tied = self._same.members()
        roots[tied] = [self._same.find(member) for member in tied]
        return roots

    def fixed(self, roots: Array) -> dict[int, str]:
        """For every representative that is fixed, the first reason given."""
        reasons: dict[int, str] = {}
        for ids, reason in self._fixed:
            for root in roots[ids].tolist():
                reasons.setdefault(root, reason)
        return reasons


def _last(made: Mapping[int, int], twin: int) -> int | None:
    """The channel at the end of a chain of twins; ``None`` if it has none."""
    seen = {twin}
    while twin in made:
        twin = made[twin]
        if twin in seen:
            return None
        seen.add(twin)
    return twin


def units(elements: Array) -> tuple[Array, int]:
    """Split ``elements`` into the longest equal runs: ``[5, 5, 8, 8]`` is ``[5, 8]``, 2 each.

    Args:
        elements: the channel of every element along an axis.

    Returns:
        The channels, and how many elements (features) stand for each: as many for all of them.
    """
    if len(elements) == 0:
        return elements, 1
    borders = np.flatnonzero(np.diff(elements)) + 1
    size = int(np.gcd.reduce(np.append(borders, len(elements))))
    return elements[::size], size


def find_spaces(
    sequences: Iterable[Array],
    fixed: dict[int, str],
    count: int,
    groups: Iterable[Array] = (),
) -> tuple[Space, ...]:
    """Find channels that must be stored side by side, and may be in any order among themselves.

    Channels that the same tensors hold. Where a tensor holds a channel twice, or channels are
    fixed, the sequences of all tensors that share channels with it are binding: there, a space is
    a run of channels that follow each other in every sequence in which either occurs.

    Args:
        sequences: of all tensors, the ids along the channel axis; ids below ``count``.
        fixed: the ids whose order is fixed, with the reason.
        count: the number of ids.
        groups: channels that must not share a space with others.
    """
    distinct = list({sequence.tobytes(): sequence for sequence in sequences}.values())
    parts = list({sequence.tobytes(): sequence for sequence in groups}.values())
    bound = _bound(distinct, fixed, count)
    together = _held_together([*distinct, *parts], count)
    together[bound | (together == _UNHELD)] = -1
    spaces = [
        Space(channels=tuple(ids.tolist()), fixed=None)
        for ids in _by_value(together)
        if together[ids[0]] >= 0
    ]
    binding = [sequence for sequence in [*distinct, *parts] if len(sequence) and bound[sequence[0]]]
    spaces += _find_runs(binding, fixed, count, np.flatnonzero(bound).tolist())
    return tuple(sorted(spaces, key=lambda space: space.channels[0]))


def _bound(sequences: Sequence[Array], fixed: dict[int, str], count: int) -> Boolean:
    """The ids that share tensors, directly or not, with an id that is fixed or occurs twice.

    Of shape (count,), like what the functions below say of every id.
    """
    union = UnionFind()
    owner = np.full(count, -1, dtype=np.int64)
    for number, sequence in enumerate(sequences):
        union.join([number, *(n for n in np.unique(owner[sequence]).tolist() if n >= 0)])
        owner[sequence[owner[sequence] < 0]] = number
    is_fixed = np.zeros(count, dtype=bool)
    is_fixed[list(fixed)] = True
    binding = {
        union.find(number)
        for number, sequence in enumerate(sequences)
        if is_fixed[sequence].any() or len(np.unique(sequence)) < len(sequence)
    }
    bound = [union.find(number) in binding for number in range(len(sequences))]
    return np.array([*bound, False], dtype=bool)[owner]


def _held_together(sequences: Sequence[Array], count: int) -> Array:
    """A number for every id, equal for ids that the same sequences hold."""
    numbers = np.full(count, _UNHELD, dtype=np.int64)
    last = 0
    for sequence in sequences:
        old, new = np.unique(numbers[sequence], return_inverse=True)
        numbers[sequence] = last + 1 + new
        last += len(old)
    return numbers


_UNHELD = 0
"""The number of ids that no sequence holds."""


def _by_value(numbers: Array) -> list[Array]:
    """For every number, where it stands."""
    order = np.argsort(numbers, kind="stable")
    borders = np.flatnonzero(np.diff(numbers[order])) + 1
    return [part for part in np.split(order, borders) if len(part)]


def _find_runs(
    distinct: Sequence[Array], fixed: dict[int, str], count: int, ids: Sequence[int]
) -> list[Space]:
    """Chain ``ids`` that follow each other in every sequence in which either occurs."""
    follower = _neighbour(distinct, count)
    leader = _neighbour([sequence[::-1] for sequence in distinct], count)
    spaces: list[Space] = []
    used = np.zeros(count, dtype=bool)
    heads = [a for a in ids if not _linked(int(leader[a]), a, follower, leader, fixed)]
    for head in [*heads, *ids]:  # the second pass takes what lies on cycles
        if used[head]:
            continue
        run = [head]
        used[head] = True
        while True:
            last, following = run[-1], int(follower[run[-1]])
            if not _linked(last, following, follower, leader, fixed) or used[following]:
                break
            used[following] = True
            run.append(following)
        spaces.append(Space(channels=tuple(run), fixed=fixed.get(head)))
    return spaces


_NONE, _UNSEEN = -1, -2


def _neighbour(sequences: Sequence[Array], count: int) -> Array:
    """For each id, the id that follows it wherever it occurs, or -1 if there is no such id."""
    result = np.full(count, _UNSEEN, dtype=np.int64)
    for sequence in sequences:
        following = np.append(sequence[1:], _NONE)
        known = result[sequence]
        agreed = np.where((known == _UNSEEN) | (known == following), following, _NONE)
        result[sequence] = agreed
        again = result[sequence] != agreed  # an id that occurs twice, with different followers
        result[sequence[again]] = _NONE
    return result


def _linked(a: int, b: int, follower: Array, leader: Array, fixed: dict[int, str]) -> bool:
    if a < 0 or b < 0 or a == b:
        return False
    return bool(follower[a] == b and leader[b] == a) and fixed.get(a) == fixed.get(b)
