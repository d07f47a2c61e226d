"""Brute force beside even more force, and what it refuses."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from solver_outcomes import are_orders, instances

from upscale_opt.errors import SolverError
from upscale_opt.models.instances.from_sets import of_parts, one_space, with_measure
from upscale_opt.solver.brute_force import MAX_CHANNELS, brute_force, brute_force_orders
from upscale_opt.solver.problem.instance import (
    Instance,
    Orders,
    Part,
    Read,
    Space,
    cost,
)


def all_orders(instance: Instance, most: int) -> list[Orders]:
    """All combinations of orders, or none if they are too many."""
    sizes = [1 if space.fixed else math.factorial(len(space.channels)) for space in instance.spaces]
    if math.prod(sizes) > most:
        return []
    per_space = [
        [space.channels] if space.fixed else list(itertools.permutations(space.channels))
        for space in instance.spaces
    ]
    return list(itertools.product(*per_space))


@settings(max_examples=80, deadline=None)
@given(instances(sets=5, channels=5))
def test_nothing_that_is_left_out_matters(instance: Instance) -> None:
    """Every combination of orders costs as much, and one of them as little."""
    found = brute_force_orders(instance)
    assert are_orders(instance, found)
    assert brute_force(instance) == cost(instance, found)
    choices = all_orders(instance, 3000)
    if choices:
        assert min(cost(instance, choice) for choice in choices) == brute_force(instance)


@pytest.mark.parametrize("measure", ["copies", "blocks"])
def test_large_spaces_are_refused(measure: str) -> None:
    size = MAX_CHANNELS + 1
    instance = one_space(size, [{0, 2}])
    if measure == "blocks":
        instance = with_measure(instance, "blocks")
    with pytest.raises(SolverError, match=f"at most {MAX_CHANNELS} channels.*space 0 has {size}"):
        brute_force(instance)


def test_large_spaces_that_nobody_orders_are_no_trouble() -> None:
    fixed = replace(one_space(300, [range(0, 300, 2)]).spaces[0], fixed=True)
    reads = (Read(150, None, parts=(Part(0, frozenset(range(0, 300, 2))),)),)
    instance = Instance((fixed, Space(tuple(range(300, 400)))), (), reads)
    assert brute_force(instance) == 150
    assert brute_force(with_measure(instance, "blocks")) == 150


def test_too_many_spaces_tied_together_are_refused() -> None:
    spaces = [Space(tuple(range(6 * i, 6 * i + 6))) for i in range(8)]
    wanted = []
    for offsets in ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0), (0, 2), (1, 4)):
        for space in spaces:
            part = Part(space.channels[0] // 6, frozenset(space.channels[i] for i in offsets))
            wanted.append([part])
    instance = of_parts(spaces, wanted)
    together = Read(1, tuple(range(len(instance.demands))))
    with pytest.raises(SolverError, match="8 spaces together"):
        brute_force(replace(instance, reads=(*instance.reads, together)))
