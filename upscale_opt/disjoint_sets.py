"""Which things belong together, when that is learned bit by bit."""

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
        leader.setdefault(member, member)
        while leader[member] != member:
            leader[member] = leader[leader[member]]
            member = leader[member]
        return member

    def join(self, members: Iterable[int]) -> None:
        """Put all ``members``, and all that belong to them, into the first one's class."""
        first, *others = members
        for member in others:
            self._leader[self.find(member)] = self.find(first)
        self.find(first)
