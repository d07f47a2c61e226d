"""Sets of things that belong together, when that is learned bit by bit."""

from __future__ import annotations

from collections.abc import Iterable


class UnionFind:
    """A partition of integers; each is alone until it is joined with others."""

    def __init__(self) -> None:
        self._leader: dict[int, int] = {}

    def members(self) -> list[int]:
        """All that were ever mentioned, ascending."""
        return sorted(self._leader)

    def find(self, member: int) -> int:
        """The representative of the member's class."""
        leader = self._leader
        above = leader.setdefault(member, member)
        while above != member:
            leader[member] = above = leader[above]  # next time, the way is half as long
            member, above = above, leader[above]
        return member

    def join(self, members: Iterable[int]) -> None:
        """Put all ``members``, and all that belong to them, into the first one's class."""
        first, *others = members
        self.find(first)
        self.tie([first] * len(others), others)

    def tie(self, left: Iterable[int], right: Iterable[int]) -> None:
        """Join pairs: the first of ``left`` with the first of ``right``, and so on."""
        find = self.find
        for a, b in zip(left, right, strict=True):
            root, other = find(a), find(b)
            if root != other:
                self._leader[other] = root
