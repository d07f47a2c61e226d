"""Does an elementwise operation keep zeros? Ask the operation itself."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal

import torch

ZeroRule = Literal["all", "any", "never"]

_PROBES = (1.7, -2.3, 0.6, 0.0)
"""Values to stand in for what is not known."""


def maps_zero_to(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], zeros: dict[int, float | None]
) -> float | None:
    """The result where the tensor arguments numbered in ``zeros`` have the given values.

    The other tensor arguments may hold anything; ``None`` if the result is not always the same.
    """
    if any(value is None for value in zeros.values()):
        return None
    results = {_evaluate(func, args, kwargs, dict(zeros), probe) for probe in _PROBES}
    return results.pop() if len(results) == 1 else None


def combine(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], operands: list[int]
) -> ZeroRule:
    """The rule for when the result is zero, given which tensor arguments ``operands`` are."""
    one = all(maps_zero_to(func, args, kwargs, {index: 0.0}) == 0 for index in operands)
    if one:
        return "any"
    every = maps_zero_to(func, args, kwargs, dict.fromkeys(operands, 0.0)) == 0
    return "all" if every else "never"


def parameter_role(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], index: int
) -> Literal["scale", "shift", "neutral"] | None:
    """The part that tensor argument ``index``, a parameter, plays beside one activation."""
    other = 1 - index
    keeps = maps_zero_to(func, args, kwargs, {other: 0.0}) == 0
    if keeps:
        kills = maps_zero_to(func, args, kwargs, {index: 0.0}) == 0
        return "scale" if kills else "neutral"
    both = maps_zero_to(func, args, kwargs, {0: 0.0, 1: 0.0}) == 0
    return "shift" if both else None


def _evaluate(
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    values: dict[int, float | None],
    probe: float,
) -> float | None:
    """Run ``func`` with numbers for tensors; ``None`` if it does not work that way."""
    key = (func, _plain(args), _plain(kwargs), tuple(sorted(values.items())), probe)
    try:
        return _evaluate_cached(*key)
    except TypeError:  # an argument that cannot be hashed
        return None


@lru_cache(maxsize=4096)
def _evaluate_cached(
    func: Any, args: Any, kwargs: Any, values: tuple[tuple[int, float], ...], probe: float
) -> float | None:
    given = dict(values)
    count = 0

    def fill(item: Any) -> Any:
        nonlocal count
        if item == _TENSOR:
            value = given.get(count, probe)
            count += 1
            return torch.tensor([value], dtype=torch.float64)
        if isinstance(item, tuple) and len(item) == 2 and item[0] == "list":
            return [fill(i) for i in item[1]]
        return item

    try:
        with torch.no_grad():
            result = func(*(fill(a) for a in args), **{k: fill(v) for k, v in kwargs})
        if isinstance(result, (tuple, list)):
            result = result[0]
        number = float(result.item())
    except Exception:
        return None
    return None if math.isnan(number) else number


_TENSOR = ("tensor",)


def _plain(tree: Any) -> Any:
    """``tree`` with its tensors replaced by a mark, hashable where possible."""
    if isinstance(tree, torch.Tensor):
        return _TENSOR
    if isinstance(tree, dict):
        return tuple((k, _plain(v)) for k, v in tree.items())
    if isinstance(tree, list):
        return ("list", tuple(_plain(v) for v in tree))
    if isinstance(tree, tuple):
        return tuple(_plain(v) for v in tree)
    return tree
