"""The exact solver: its conflicts and proofs, large instances, time, interrupts, wishes."""

from __future__ import annotations

import itertools
import math
import os
import random
import signal
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import longest_stretch
from solver_outcomes import check, instances, random_sets, terms_of_proof

from upscale_opt.models.instances.handmade import HANDMADE
from upscale_opt.models.instances.random import dense_block
from upscale_opt.solver.algorithms.exact import solve_exact
from upscale_opt.solver.algorithms.greedy import greedy_orders, solve_greedy
from upscale_opt.solver.algorithms.identity import solve_identity
from upscale_opt.solver.algorithms.registry import SOLVERS, solve_instance
from upscale_opt.solver.brute_force import brute_force
from upscale_opt.solver.problem.instance import (
    Instance,
    Outcome,
    Read,
    cost,
    identity_orders,
)
from upscale_opt.solver.problem.proof import proven_bound


def exclude_each_other(instance: Instance, demands: tuple[int, ...]) -> bool:
    """Whether no order at all meets these demands together."""
    together = Instance(instance.spaces, instance.demands, (Read(1, demands),))
    return brute_force(together) == 1


@settings(max_examples=70, deadline=None)
@given(instances())
def test_conflicts_are_conflicts_and_minimal(instance: Instance) -> None:
    """Trying all orders confirms it."""
    relaxed, _ = terms_of_proof(instance)
    for group in solve_instance(instance, "cp-sat", time_limit=60).proof.groups:
        for conflict in itertools.combinations(group.demands, group.limit + 1):
            assert exclude_each_other(relaxed, conflict)
        if len(group.demands) == group.limit + 1:
            for part in itertools.combinations(group.demands, group.limit):
                assert not exclude_each_other(relaxed, part)


def test_larger_conflicts_are_found() -> None:
    """A cycle of pairs is a conflict, all of whose parts hold together."""
    outcome = solve_exact(HANDMADE["cycle-of-pairs"], time_limit=30)
    assert outcome.objective == outcome.lower_bound == 2
    (group,) = outcome.proof.groups
    assert (group.demands, group.limit) == (tuple(range(7)), 6)


def test_a_suffix_is_its_complements_prefix() -> None:
    outcome = solve_exact(HANDMADE["prefix-against-suffix"], time_limit=30)
    assert outcome.objective == outcome.lower_bound == 3
    (group,) = outcome.proof.groups
    assert (group.demands, group.limit) == ((0, 2), 1)


@pytest.mark.parametrize(("count", "size"), [(36, 1024), (64, 1024), (64, 4096)])
def test_random_halves(count: int, size: int) -> None:
    """Any three random halves conflict, so exactly two reads can be views; the proof says so."""
    instance = random_sets(count, size, 0, size // 2, size // 2)
    outcome = solve_exact(instance, time_limit=600)
    check(instance, outcome)
    assert outcome.objective == outcome.lower_bound == (count - 2) * size // 2
    (group,) = outcome.proof.groups
    assert (group.demands, group.limit) == (tuple(range(count)), 2)
    assert proven_bound(instance, outcome.proof) == outcome.objective


@pytest.mark.parametrize("max_gathers", [1, 8, 16])
def test_dense_blocks(max_gathers: int) -> None:
    instance = dense_block(random.Random(1), 16, 64, max_gathers=max_gathers)
    outcome = solve_exact(instance, time_limit=600)
    check(instance, outcome)
    assert outcome.optimal
    assert outcome.objective <= solve_greedy(instance).objective


def test_short_time_on_a_large_instance() -> None:
    instance = dense_block(random.Random(2), 40, 64, max_gathers=3)
    outcome = solve_exact(instance, time_limit=0.01)
    check(instance, outcome)
    assert outcome.objective <= solve_identity(instance).objective


def test_the_same_seed_gives_the_same_outcome() -> None:
    instance = random_sets(24, 30, 3, 2, 5)
    first, second = (solve_exact(instance, time_limit=600, seed=7) for _ in range(2))
    assert first == second
    assert first.optimal


def test_several_workers_reach_the_same_optimum() -> None:
    instance = random_sets(24, 30, 3, 2, 5)
    outcome = solve_exact(instance, time_limit=600, workers=2)
    assert outcome.optimal
    assert outcome.objective == solve_exact(instance, time_limit=600).objective


def test_progress_closes_the_gap() -> None:
    seen: list[tuple[int, int]] = []
    outcome = solve_exact(
        random_sets(24, 30, 3, 2, 5), time_limit=600, progress=lambda *step: seen.append(step)
    )
    assert seen[-1] == (outcome.objective, outcome.lower_bound)
    assert seen == sorted(seen, key=lambda step: (-step[0], step[1]))
    assert len(set(seen)) == len(seen)


def test_interrupt_returns_what_there_is() -> None:
    """A limit of an hour: were Ctrl-C ignored, this test would not end."""
    instance = random_sets(60, 70, 3, 2, 14)
    handler = signal.getsignal(signal.SIGINT)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    outcome = solve_exact(instance, time_limit=3600)
    timer.join()
    check(instance, outcome)
    assert not outcome.optimal
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_interrupt_in_progress_returns_what_there_is() -> None:
    def interrupt(incumbent: int, bound: int) -> None:
        raise KeyboardInterrupt

    instance = random_sets(24, 30, 3, 2, 5)
    outcome = solve_exact(instance, time_limit=60, progress=interrupt)
    check(instance, outcome)
    assert not outcome.optimal


def test_solving_in_a_thread() -> None:
    outcomes: list[Outcome] = []
    instance = random_sets(12, 7, 0, 2, 4)
    thread = threading.Thread(target=lambda: outcomes.append(solve_exact(instance, time_limit=30)))
    thread.start()
    thread.join()
    assert outcomes[0].optimal


@settings(max_examples=60, deadline=None)
@given(instances(), st.data())
def test_wishes_come_second(instance: Instance, data: st.DataObject) -> None:
    """Counted a million million times less than reads, they leave the reads' cost alone."""
    plain = [replace(read, pieces=()) for read in instance.reads]
    wishes = data.draw(st.lists(st.sampled_from(plain), max_size=4)) if plain else []
    instance = replace(instance, measure="copies", wishes=tuple(wishes))
    most = 1 + sum(wish.weight for wish in wishes)
    dear = tuple(
        replace(
            read,
            weight=read.weight * most,
            pieces=tuple(replace(piece, weight=piece.weight * most) for piece in read.pieces),
        )
        for read in instance.reads
    )
    best = brute_force(replace(instance, reads=(*dear, *wishes), wishes=()))
    outcome = solve_exact(instance, time_limit=60)
    check(instance, outcome)
    wished = cost(replace(instance, reads=tuple(wishes), wishes=()), outcome.orders)
    assert (outcome.objective, wished) == divmod(best, most)


@pytest.mark.parametrize("solver", ["cp-sat", "pulp", "cp-sat-direct", "local-search"])
def test_an_unlimited_time_ends(solver: str) -> None:
    outcome = solve_instance(random_sets(12, 20, 0, 2, 8), solver, time_limit=math.inf)
    assert outcome.lower_bound <= outcome.objective


def test_greedy_stops_at_its_deadline() -> None:
    """Spaces that were not ordered in time keep their order."""
    instance = random_sets(300, 512, 0, 200, 300)
    orders = greedy_orders(instance, deadline=time.monotonic() - 1)
    assert orders == identity_orders(instance.spaces)


@pytest.mark.parametrize("sets", [(600, 200, 0, 3, 3), (200, 400, 1, 100, 300)])
def test_the_clock_is_looked_at_now_and_then(sets: tuple[int, int, int, int, int]) -> None:
    """The greedy start alone would take millions of calls, if nothing stopped it."""
    instance = random_sets(*sets)
    assert longest_stretch(lambda: solve_exact(instance, time_limit=0.5)) < 1_000_000
    check(instance, solve_exact(instance, time_limit=0.5))


def test_an_interrupt_is_passed_on() -> None:
    def interrupt(incumbent: int, bound: int) -> None:
        raise KeyboardInterrupt

    instance = random_sets(24, 30, 3, 2, 5)
    assert solve_exact(instance, time_limit=60, progress=interrupt).interrupted
    assert not solve_exact(instance, time_limit=60).interrupted


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("lightest", [0, 10**400])
def test_weights_that_no_float_can_hold(solver: str, lightest: int) -> None:
    """Alike, and beside small ones."""
    instance = random_sets(6, 8, 0, 2, 5)
    reads = tuple(
        replace(read, weight=lightest or 10 ** (80 * i)) for i, read in enumerate(instance.reads)
    )
    heavy = replace(instance, reads=reads)
    outcome = solve_instance(heavy, solver, time_limit=60)
    check(heavy, outcome)
    assert outcome.lower_bound <= brute_force(heavy) <= outcome.objective
