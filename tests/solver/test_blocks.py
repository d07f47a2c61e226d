"""Consecutive block minimisation: bounds, circuits, and arrangements of trees."""

from __future__ import annotations

import itertools
import math
import random
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solver_outcomes import check, instances

from upscale_opt.models.instances.from_sets import one_space, with_measure
from upscale_opt.models.instances.random import dense_block, independent
from upscale_opt.solver.algorithms import blocks as blocks_solver
from upscale_opt.solver.algorithms.block_parts import parts_of, relaxed_bound
from upscale_opt.solver.algorithms.blocks import solve_blocks
from upscale_opt.solver.algorithms.held_karp import tour_bound
from upscale_opt.solver.brute_force import brute_force
from upscale_opt.solver.problem.arranging import arranged
from upscale_opt.solver.problem.instance import Instance, as_copies, blocks, cost
from upscale_opt.solver.problem.pqtree import End, PQTree


def in_blocks(instance: Instance) -> Instance:
    return instance if instance.measure == "blocks" else with_measure(instance, "blocks")


@settings(max_examples=60, deadline=None)
@given(instances().map(in_blocks))
def test_blocks_are_minimal(instance: Instance) -> None:
    outcome = solve_blocks(instance, time_limit=60)
    check(instance, outcome)
    assert outcome.objective == outcome.lower_bound == brute_force(instance)


@settings(max_examples=40, deadline=None)
@given(instances().map(in_blocks), st.randoms(use_true_random=False))
def test_copies_relax_blocks(instance: Instance, rng: random.Random) -> None:
    """Under any orders, blocks cost at least what the relaxation says."""
    relaxed, constant = as_copies(instance)
    orders = tuple(
        s.channels if s.fixed else tuple(rng.sample(s.channels, len(s.channels)))
        for s in instance.spaces
    )
    assert constant + cost(relaxed, orders) <= cost(instance, orders)
    runs = [blocks(read, orders) for read in instance.reads if read.parts]
    if all(run <= 2 for run in runs):
        assert constant + cost(relaxed, orders) == cost(instance, orders)


@settings(max_examples=30, deadline=None)
@given(instances().map(in_blocks))
def test_bounds_by_spanning_trees_are_true(instance: Instance) -> None:
    constant = sum(read.weight for read in instance.reads if not read.parts)
    bounds = [relaxed_bound(part, time.monotonic() + 60) for part in parts_of(instance)]
    assert constant + sum(bounds) <= brute_force(instance)


def test_large_parts_go_without_circuits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Local search and both bounds are left, and they are still true."""
    monkeypatch.setattr(blocks_solver, "_MAX_ARCS", 0)
    instance = with_measure(independent(random.Random(3), 5, 7), "blocks")
    outcome = solve_blocks(instance, time_limit=60)
    check(instance, outcome)
    assert outcome.lower_bound <= brute_force(instance) <= outcome.objective


def test_a_dense_block_gets_orders_and_a_bound() -> None:
    instance = with_measure(dense_block(random.Random(0), 12, 150), "blocks")
    outcome = solve_blocks(instance, time_limit=2)
    check(instance, outcome)
    assert sum(read.weight for read in instance.reads) < outcome.lower_bound <= outcome.objective


@pytest.mark.parametrize("weight", [10**15, 10**20, 10**400])
def test_large_common_weights_make_no_difference(weight: int) -> None:
    instance = with_measure(independent(random.Random(0), 5, 7), "blocks")
    heavy = replace(instance, reads=tuple(replace(read, weight=weight) for read in instance.reads))
    outcome = solve_blocks(heavy, time_limit=60)
    check(heavy, outcome)
    assert outcome.objective == outcome.lower_bound == weight * brute_force(instance)


def test_progress_ends_with_the_outcome() -> None:
    seen: list[tuple[int, int]] = []
    instance = with_measure(independent(random.Random(1), 6, 12), "blocks")
    outcome = solve_blocks(instance, time_limit=60, progress=lambda *step: seen.append(step))
    assert outcome.optimal
    assert seen[-1] == (outcome.objective, outcome.lower_bound)


def test_an_interrupt_returns_what_there_is() -> None:
    def interrupt(best: int, bound: int) -> None:
        raise KeyboardInterrupt

    instance = with_measure(independent(random.Random(1), 6, 12), "blocks")
    outcome = solve_blocks(instance, time_limit=60, progress=interrupt)
    check(instance, outcome)
    assert outcome.lower_bound <= solve_blocks(instance, time_limit=60).objective


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 7), st.integers(0, 2**20))
def test_held_and_karp_are_below_every_tour(size: int, seed: int) -> None:
    points = np.random.default_rng(seed).integers(0, 2, (size, 6)).astype(float)
    distance = np.abs(points[:, None, :] - points[None, :, :]).sum(axis=2)
    shortest = min(
        sum(distance[a, b] for a, b in itertools.pairwise((0, *order, 0)))
        for order in itertools.permutations(range(1, size))
    )
    bound = tour_bound(distance, deadline=math.inf)
    assert bound <= shortest + 1e-9
    assert bound >= 0.7 * shortest - 1e-9


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(0, 2**20))
def test_arrangements_are_allowed_and_have_no_more_runs(size: int, seed: int) -> None:
    rng = random.Random(seed)
    tree = PQTree(range(size), ends=True)
    held: list[list[int | End]] = []
    for _ in range(rng.randint(0, 4)):
        wanted: list[int | End] = [*rng.sample(range(size), rng.randint(1, size))]
        if rng.random() < 0.3:
            wanted.append(End.LEFT)
        if tree.reduce(wanted):
            held.append(wanted)
    others = [rng.sample(range(size), rng.randint(1, size)) for _ in range(4)]
    order = arranged(tree, [tree.mask(other) for other in others])
    assert sorted(order) == list(range(size))
    line = [End.LEFT, *order, End.RIGHT]
    for wanted in held:
        places = sorted(line.index(member) for member in wanted)
        assert places == list(range(places[0], places[0] + len(places)))
    instance = with_measure(one_space(size, map(set, others)), "blocks")
    assert cost(instance, (tuple(order),)) <= cost(instance, (tuple(tree.frontier()),))


def test_arrangements_of_many_children() -> None:
    """Too many for nearest neighbours: they are sorted, which is better than nothing."""
    rng = random.Random(0)
    sets = [rng.sample(range(2000), 1000) for _ in range(30)]
    tree = PQTree(range(2000), ends=True)
    order = arranged(tree, [tree.mask(members) for members in sets])
    instance = with_measure(one_space(2000, map(set, sets)), "blocks")
    assert cost(instance, (tuple(order),)) < 0.9 * cost(instance, (tuple(range(2000)),))
