"""A lower bound on a travelling salesman's tour: Held & Karp's (1970), by subgradients."""

from __future__ import annotations

import math
import time

import numpy as np
import numpy.typing as npt

_ROUNDS = 60

Matrix = npt.NDArray[np.float64]
"""Floats, of shape (n, n), unless said otherwise."""


def tour_bound(distance: Matrix, *, deadline: float) -> float:
    """No tour through all nodes is shorter than this.

    A tour is a 1-tree (a spanning tree of all nodes but one, and two edges at that one) in which
    every node has degree two; so the shortest 1-tree is a bound. To charge the nodes of too high a
    degree, and pay those of too low a one, does not change which tours are short, but improves it.

    Args:
        distance: float64 of shape (n, n), n >= 3; symmetric, not negative.
        deadline: when to be done, by ``time.monotonic()``; one round is always made.
    """
    size = len(distance)
    charge = np.zeros(size)
    best = -math.inf
    step = float(distance.sum()) / size**2
    for _ in range(_ROUNDS):
        length, degree = _shortest_1_tree(distance + charge[:, None] + charge[None, :])
        best = max(best, length - 2 * float(charge.sum()))
        excess = degree - 2
        if not excess.any() or time.monotonic() > deadline:
            break
        charge += step * excess
        step *= 0.95
    return best


def _shortest_1_tree(distance: Matrix) -> tuple[float, Matrix]:
    """Its length, and every node's degree in it: Prim's algorithm, then two edges at node 0.

    Args:
        distance: float64 of shape (n, n), symmetric; entries may be negative.

    Returns:
        The length, and the degrees: whole numbers as float64, of shape (n,).
    """
    size = len(distance)
    degree = np.zeros(size)
    nearest = distance[1].copy()
    parent = np.ones(size, dtype=np.intp)
    outside = np.ones(size, dtype=bool)
    outside[:2] = False
    total = 0.0
    for _ in range(size - 2):
        candidates = np.where(outside, nearest, np.inf)
        node = int(candidates.argmin())
        total += float(candidates[node])
        degree[node] += 1
        degree[parent[node]] += 1
        outside[node] = False
        closer = outside & (distance[node] < nearest)
        nearest[closer] = distance[node][closer]
        parent[closer] = node
    ends = np.argsort(distance[0, 1:], kind="stable")[:2] + 1
    degree[0] = 2
    degree[ends] += 1
    return total + float(distance[0, ends].sum()), degree
