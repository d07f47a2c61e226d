"""Short paths through all nodes, from one end to the other: 2-opt and or-opt moves, and kicks.

2-opt turns a stretch of the path round (Croes 1958), or-opt moves a few nodes elsewhere (Or 1976).
When no such move helps any more, a kick, two neighbouring stretches swapped, is repaired by these
moves and kept if the path is not longer for it (iterated local search: Martin, Otto & Felten 1991).
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

_LONGEST_MOVE = 3
"""Or-opt moves up to so many nodes at a time."""

_REACH = 50
"""The most nodes that a kick concerns."""

Distances = npt.NDArray[np.int32]
"""Of shape (n + 2, n + 2): between all nodes, the left end at n, the right end at n + 1."""

Nodes = npt.NDArray[np.intp]
"""Numbers of nodes, of shape (k,)."""

_Move = tuple[int, int, Nodes]
"""From which place up to (not including) which, and the nodes that then stand there."""


class Tour:
    """A path through nodes 0 to n - 1, from node n, its left end, to node n + 1, its right end.

    Attributes:
        size: n.
        path: the nodes in their sequence, of shape (n + 2,), the ends included.
    """

    def __init__(self, distances: Distances, inner: Iterable[int], deadline: float) -> None:
        """Start with the path through the ``inner`` nodes in this sequence.

        Args:
            distances: symmetric, less than 2**29; that between the ends does not matter.
            inner: all nodes but the ends.
            deadline: when to stop at the latest, by ``time.monotonic()``.
        """
        self.size = len(distances) - 2
        self._distances = distances
        self._deadline = deadline
        self.path: Nodes = np.array([self.size, *inner, self.size + 1], np.intp)
        self._place: Nodes = np.empty_like(self.path)
        self._place[self.path] = np.arange(self.size + 2)
        self._steps: npt.NDArray[np.int32] = distances[self.path[:-1], self.path[1:]]  # (n + 1,)

    @property
    def length(self) -> int:
        """The sum of the path's steps."""
        return int(self._steps.sum(dtype=np.int64))

    def settle(self, nodes: Iterable[int]) -> None:
        """Make moves that shorten the path at these nodes, and where it was changed, until none."""
        queue = deque(nodes)
        waiting = set(queue)
        while queue and time.monotonic() < self._deadline:
            node = queue.popleft()
            waiting.discard(node)
            while (move := self._best_move(node)) is not None:
                low, high, stretch = move
                around = (low - 1, low, high - 1, high)
                before = [int(self.path[place]) for place in around]
                self._rewrite(low, stretch)
                for touched in (*before, *(int(self.path[place]) for place in around)):
                    if touched < self.size and touched not in waiting:
                        queue.append(touched)
                        waiting.add(touched)

    def kick(self, rng: random.Random) -> bool:
        """Change the path at random and settle it again.

        Returns:
            Whether it is shorter now. A longer one is undone.
        """
        saved = self.path.copy(), self._place.copy(), self._steps.copy()
        length = self.length
        span = min(self.size, _REACH)
        first = rng.randint(1, self.size - span + 1)
        a, b, c = sorted(rng.sample(range(first, first + span + 1), 3))
        ends = [int(self.path[place]) for place in (a - 1, a, b - 1, b, c - 1, c)]
        self._rewrite(a, np.concatenate([self.path[b:c], self.path[a:b]]))
        self.settle(dict.fromkeys(node for node in ends if node < self.size))
        if self.length > length:
            self.path, self._place, self._steps = saved
        return self.length < length

    def _rewrite(self, low: int, stretch: Nodes) -> None:
        """Replace the path from place ``low`` on by these nodes, which are the same ones."""
        high = low + len(stretch)
        path = self.path
        path[low:high] = stretch
        self._place[stretch] = np.arange(low, high)
        self._steps[low - 1 : high] = self._distances[path[low - 1 : high], path[low : high + 1]]

    def _best_move(self, node: int) -> _Move | None:
        """The move at ``node`` that shortens the path most: from where to where, and the nodes."""
        place = int(self._place[node])
        best, move = self._best_turn(place)
        for count in range(1, min(_LONGEST_MOVE, self.size - 1) + 1):
            for low in {place, place - count + 1}:
                if low >= 1 and low + count <= self.size + 1:
                    change, other = self._best_shift(low, low + count)
                    if change < best:
                        best, move = change, other
        return move

    def _best_turn(self, place: int) -> tuple[int, _Move | None]:
        """2-opt: the node gets a new neighbour on its right, or else on its left."""
        distances, path, steps = self._distances, self.path, self._steps
        near = distances[path[place]][path]
        best, move = 0, None
        if place < self.size - 1:
            after = distances[path[place + 1]][path]
            changes = near[place + 2 : -1] + after[place + 3 :] - steps[place + 2 :]
            at = int(changes.argmin())
            change = int(changes[at]) - int(steps[place])
            if change < best:
                high = place + 3 + at
                best, move = change, (place + 1, high, path[place + 1 : high][::-1].copy())
        if place > 2:
            before = distances[path[place - 1]][path]
            changes = before[: place - 2] + near[1 : place - 1] - steps[: place - 2]
            at = int(changes.argmin())
            change = int(changes[at]) - int(steps[place - 1])
            if change < best:
                best, move = change, (at + 1, place, path[at + 1 : place][::-1].copy())
        return best, move

    def _best_shift(self, low: int, high: int) -> tuple[int, _Move | None]:
        """Or-opt: the nodes from place ``low`` up to ``high`` go elsewhere, perhaps turned."""
        distances, path, steps = self._distances, self.path, self._steps
        gap = distances[path[low - 1], path[high]]
        gain = int(steps[low - 1]) + int(steps[high - 1]) - int(gap)
        if gain <= 0:
            return 0, None
        first, last = distances[path[low]][path], distances[path[high - 1]][path]
        best, move = 0, None
        for turned in (False, True)[: high - low]:
            head, tail = (last, first) if turned else (first, last)
            costs = head[:-1] + tail[1:] - steps
            costs[low - 1 : high] = np.iinfo(np.int32).max
            at = int(costs.argmin())
            change = int(costs[at]) - gain
            if change < best:
                moved = path[low:high][::-1] if turned else path[low:high]
                if at >= high:
                    stretch = (low, at + 1, np.concatenate([path[high : at + 1], moved]))
                else:
                    stretch = (at + 1, high, np.concatenate([moved, path[at + 1 : low]]))
                best, move = change, stretch
        return best, move


def nearest(distances: Distances) -> list[int]:
    """The inner nodes, from the left end always on to the nearest one."""
    size = len(distances) - 2
    left = np.ones(size, bool)
    path = [size]
    for _ in range(size):
        rest = np.where(left, distances[path[-1], :size], np.iinfo(np.int32).max)
        path.append(int(rest.argmin()))
        left[path[-1]] = False
    return path[1:]
