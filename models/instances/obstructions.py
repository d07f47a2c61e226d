"""Tucker's obstructions: the smallest families of sets that no order makes all consecutive.

A. Tucker, *A structure theorem for the consecutive 1's property*, Journal of Combinatorial Theory B
12(2), 1972: a family can be made consecutive if and only if it contains (in some of its sets,
restricted to some of their elements) none of these. Take away any one set, and the rest can.
"""

from __future__ import annotations

from typing import Literal

from upscale_opt.errors import ArgumentError

Obstruction = Literal["I", "II", "III", "IV", "V"]

OBSTRUCTIONS: tuple[Obstruction, ...] = ("I", "II", "III", "IV", "V")
"""M_I(k), M_II(k) and M_III(k) are infinite families with k = 1, 2, ...; M_IV and M_V are not."""


def obstruction(name: Obstruction, k: int = 1) -> tuple[frozenset[int], ...]:
    """Return the sets of M_name(k), over the elements 0, 1, 2, ...

    They are k + 2 sets over k + 2 elements (I), k + 3 over k + 3 (II), k + 2 over k + 3 (III), and
    4 sets over 6 (IV) or 5 (V) elements.

    Raises:
        ArgumentError: There is no such obstruction.

    >>> [sorted(members) for members in obstruction("I", 1)]
    [[0, 1], [1, 2], [0, 2]]
    """
    if name not in OBSTRUCTIONS or k < 1:
        raise ArgumentError(
            f"no obstruction M_{name}({k}); there are M_I(k), M_II(k), M_III(k), M_IV and M_V, "
            "with k from 1"
        )
    if name == "IV":
        return _sets({0, 1}, {2, 3}, {4, 5}, {0, 2, 4})
    if name == "V":
        return _sets({0, 1}, {0, 1, 2, 3}, {2, 3}, {0, 2, 4})
    chain = [{i, i + 1} for i in range(k + 1)]
    if name == "I":
        return _sets(*chain, {0, k + 1})
    if name == "II":
        everything = set(range(k + 3))
        return _sets(*chain, everything - {0}, everything - {k + 1})
    return _sets(*chain, {*range(1, k + 1), k + 2})


def _sets(*sets: set[int]) -> tuple[frozenset[int], ...]:
    return tuple(map(frozenset, sets))
