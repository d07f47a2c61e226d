"""Marks by which state dicts of different prunings are told apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from upscale_opt.ir.solution import Solution

MARK = "pruning_fingerprint"
"""The mark's name in the ``state_dict``."""


def mark_of(solutions: Sequence[Solution]) -> list[int] | None:
    """16 bytes that depend on which channels every parameter has, in which order.

    ``None`` if the pruned model names no positions of channels: then weights of any pruning of the
    same sizes make it compute what that one computes, as those of any other model do.

    Args:
        solutions: of all prunings, the first one first.
    """
    if not any(map(_names_positions, solutions)):
        return None
    kept = [
        [[name, sorted(by_axis.items())] for name, by_axis in sorted(solution.parameters.items())]
        for solution in solutions
    ]
    return list(hashlib.sha256(json.dumps(kept).encode()).digest()[:16])


def _names_positions(solution: Solution) -> bool:
    if solution.arenas:
        return True
    for read in solution.reads:
        stored = solution.tensors.get(read.tensor, ())
        if read.kind == "place" or tuple(read.channels) != tuple(range(len(stored))):
            return True
    return False
