"""A plan without views, as exports have it that know none: to compare with."""

from __future__ import annotations

from upscale_opt.ir.solution import Read, Solution


def gathered(solution: Solution) -> Solution:
    """``solution`` with a gather for every view and window that takes channels out of a tensor.

    The orders, and with them objective and bound, remain those of ``solution``; so the result can
    be materialised, but it is not what a solver would say, and :func:`upscale_opt.check` refuses
    it.
    """
    buffered = {name for arena in solution.arenas for name in arena.tensors}

    def served(read: Read) -> Read:
        whole = read.channels == solution.tensors[read.tensor] and read.tensor not in buffered
        if read.kind == "place" or read.plan == "gather" or whole:
            return read
        return read.model_copy(update={"plan": "gather"})

    return solution.model_copy(update={"reads": tuple(map(served, solution.reads))})
