"""Local search: never worse, never infeasible, and what its paths are made of."""

from __future__ import annotations

import itertools
import math
import random
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from solver_outcomes import are_orders, check, instances, random_sets
from test_direct import tight

from upscale_opt.models.instances.from_sets import with_measure
from upscale_opt.models.instances.handmade import HANDMADE
from upscale_opt.models.instances.random import dense_block, independent
from upscale_opt.solver.algorithms import local_blocks, local_search
from upscale_opt.solver.algorithms.greedy import solve_greedy
from upscale_opt.solver.algorithms.identity import solve_identity
from upscale_opt.solver.algorithms.local_search import improve, solve_local_search
from upscale_opt.solver.algorithms.registry import solve_instance
from upscale_opt.solver.algorithms.tours import Distances, Tour, nearest
from upscale_opt.solver.brute_force import brute_force
from upscale_opt.solver.problem.instance import Instance, Measure, Orders, cost

NEVER = math.inf
"""A deadline."""

MEASURES: tuple[Measure, ...] = ("copies", "blocks")


def shuffled(instance: Instance, rng: random.Random) -> Orders:
    return tuple(
        space.channels if space.fixed else tuple(rng.sample(space.channels, len(space.channels)))
        for space in instance.spaces
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(instances(), st.randoms(use_true_random=False))
def test_any_orders_are_improved_or_kept(instance: Instance, rng: random.Random) -> None:
    """And everything that is found is told, each better than the one before."""
    orders = shuffled(instance, rng)
    told: list[Orders] = []
    better = improve(instance, orders, deadline=NEVER, seed=rng.randint(0, 9), found=told.append)
    assert are_orders(instance, better)
    costs = [cost(instance, each) for each in (orders, *told)]
    assert costs == sorted(set(costs), reverse=True)
    assert [orders, *told][-1] == better
    assert brute_force(instance) <= costs[-1]


@pytest.mark.parametrize("measure", MEASURES)
def test_tight_instances_are_nearly_always_solved(measure: Measure) -> None:
    """Starting from any orders at all."""
    solved = 0
    for seed in range(30):
        rng = random.Random(seed)
        instance = tight(rng, measure)
        better = improve(instance, shuffled(instance, rng), deadline=NEVER)
        assert are_orders(instance, better)
        optimum = brute_force(instance)
        assert cost(instance, better) >= optimum
        solved += cost(instance, better) == optimum
    assert solved >= 26


@pytest.mark.parametrize("measure", MEASURES)
def test_what_greedy_leaves_is_found(measure: Measure) -> None:
    instance = with_measure(random_sets(60, 70, 3, 2, 14), measure)
    outcome = solve_local_search(instance, time_limit=600)
    check(instance, outcome)
    assert outcome.objective < 0.98 * solve_greedy(instance).objective


def test_thousands_of_channels_cost_nothing() -> None:
    """Any three random halves conflict, so exactly two reads can be views: there is no better."""
    instance = independent(random.Random(0), 36, 1024)
    outcome = solve_local_search(instance, time_limit=600)
    check(instance, outcome)
    assert outcome.objective == 34 * 512


def test_blocks_across_many_spaces() -> None:
    instance = with_measure(dense_block(random.Random(1), 8, 200), "blocks")
    outcome = solve_local_search(instance, time_limit=600)
    check(instance, outcome)
    assert outcome.objective < 0.7 * solve_greedy(instance).objective


@pytest.mark.parametrize("name", HANDMADE)
@pytest.mark.parametrize("measure", MEASURES)
def test_poisoned_instances(name: str, measure: Measure) -> None:
    instance = replace(HANDMADE[name], measure=measure)
    outcome = solve_local_search(instance, time_limit=60)
    check(instance, outcome)
    best = min(solve_greedy(instance), solve_identity(instance), key=lambda o: o.objective)
    least = solve_instance(instance, "cp-sat", time_limit=600).lower_bound
    assert least <= outcome.objective <= best.objective
    assert outcome.lower_bound == best.lower_bound


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("power", [60, 400])
def test_weights_of_any_size(measure: Measure, power: int) -> None:
    """Floating-point numbers end at 2**1024."""
    instance = random_sets(30, 20, 0, 2, 6)
    reads = tuple(replace(r, weight=10**power + 7**i) for i, r in enumerate(instance.reads))
    heavy = replace(instance, reads=reads, measure=measure)
    outcome = solve_local_search(heavy, time_limit=600)
    check(heavy, outcome)
    assert outcome.objective < solve_identity(heavy).objective


@pytest.mark.parametrize("measure", MEASURES)
def test_the_same_seed_gives_the_same_outcome(measure: Measure) -> None:
    instance = with_measure(random_sets(40, 50, 3, 2, 9), measure)
    first, second, other = (
        solve_local_search(instance, time_limit=600, seed=seed) for seed in (7, 7, 8)
    )
    assert first == second
    assert first.orders != other.orders


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("time_limit", [0.0, 0.01, 0.3])
def test_short_time_on_a_large_instance(
    measure: Measure, time_limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_search, "GRACE", 600.0)  # a busy machine takes longer for greedy
    instance = with_measure(dense_block(random.Random(2), 30, 1200), measure)
    outcome = solve_local_search(instance, time_limit=time_limit)
    check(instance, outcome)
    assert outcome.objective <= solve_greedy(instance).objective


@pytest.mark.parametrize("measure", MEASURES)
def test_no_time_at_all_changes_nothing(measure: Measure) -> None:
    instance = with_measure(random_sets(40, 50, 3, 2, 9), measure)
    orders = shuffled(instance, random.Random(0))
    assert improve(instance, orders, deadline=time.monotonic()) == orders


@pytest.mark.parametrize("measure", MEASURES)
def test_interrupt_returns_what_there_is(measure: Measure) -> None:
    instance = with_measure(random_sets(60, 70, 3, 2, 14), measure)
    costs: list[int] = []

    def interrupt(incumbent: int, bound: int) -> None:
        costs.append(incumbent)
        if len(costs) == 3:
            raise KeyboardInterrupt

    outcome = solve_local_search(instance, time_limit=600, progress=interrupt)
    check(instance, outcome)
    assert costs == sorted(set(costs), reverse=True)
    assert len(costs) == 3
    assert outcome.objective == costs[-1]


@settings(max_examples=70, deadline=None)
@given(instances(), st.randoms(use_true_random=False))
def test_paths_are_twice_the_runs(instance: Instance, rng: random.Random) -> None:
    """Two orders of one space differ by half of what their paths differ by."""
    instance = replace(instance, measure="blocks")
    for number in local_blocks._beside(instance):
        parts = [[p for p in r.parts if instance.spaces[p.space].channels] for r in instance.reads]
        if any(a.space == b.space for row in parts for a, b in itertools.pairwise(row)):
            continue  # beside itself a space moves the ends of its own path
        orders = shuffled(instance, rng)
        atoms = local_blocks._atoms(instance, orders, number)
        distances = local_blocks._distances(instance, orders, number, atoms, NEVER)
        assert distances is not None
        costs, lengths = [], []
        for _ in range(2):
            path = rng.sample(range(len(atoms)), len(atoms))
            order = tuple(channel for node in path for channel in atoms[node])
            costs.append(cost(instance, (*orders[:number], order, *orders[number + 1 :])))
            lengths.append(Tour(distances, path, NEVER).length)
        if sum(read.weight * len(read.parts) for read in instance.reads) < 2**28:
            assert lengths[0] - lengths[1] == 2 * (costs[0] - costs[1])


def scattered(size: int, seed: int) -> Distances:
    """The Manhattan distances of random points."""
    points = np.random.default_rng(seed).integers(0, 1000, (size + 2, 2))
    between: Distances = abs(points[:, None] - points[None]).sum(axis=2).astype(np.int32)
    return between


def length(distances: Distances, inner: list[int]) -> int:
    size = len(distances) - 2
    path = [size, *inner, size + 1]
    return sum(int(distances[left, right]) for left, right in itertools.pairwise(path))


@settings(max_examples=70, deadline=None)
@given(st.integers(2, 40), st.integers(0, 2**20))
def test_tours_stay_tours_and_know_their_length(size: int, seed: int) -> None:
    distances = scattered(size, seed)
    rng = random.Random(seed)
    start = rng.sample(range(size), size)
    tour = Tour(distances, start, NEVER)
    known = length(distances, start)
    assert tour.length == known
    tour.settle(range(size))
    assert tour.length <= known
    known = tour.length
    for _ in range(10):
        shorter = tour.kick(rng)
        inner = tour.path[1:-1].tolist()
        assert sorted(inner) == list(range(size))
        assert tour.path[0] == size
        assert tour.path[-1] == size + 1
        assert tour.length == length(distances, inner) <= known
        assert shorter == (tour.length < known)
        known = tour.length
    assert sorted(nearest(distances)) == list(range(size))


@pytest.mark.parametrize("seed", range(8))
def test_short_tours_are_the_shortest(seed: int) -> None:
    distances = scattered(7, seed)
    rng = random.Random(seed)
    tour = Tour(distances, range(7), NEVER)
    tour.settle(range(7))
    for _ in range(50):
        tour.kick(rng)
    best = min(length(distances, list(inner)) for inner in itertools.permutations(range(7)))
    assert tour.length == best


def test_tours_stop_when_time_is_over() -> None:
    distances = scattered(40, 0)
    tour = Tour(distances, range(40), deadline=time.monotonic())
    tour.settle(range(40))
    assert tour.path[1:-1].tolist() == list(range(40))
