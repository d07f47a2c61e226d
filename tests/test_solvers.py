"""The solvers against brute force over all orders, and on instances made to break them."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upscale_opt.errors import SolverError
from upscale_opt.solver.exact import solve_exact
from upscale_opt.solver.greedy import solve_greedy
from upscale_opt.solver.identity import solve_identity
from upscale_opt.solver.instance import (
    Demand,
    DemandKind,
    Instance,
    Outcome,
    Piece,
    Read,
    Space,
    holds,
    identity_orders,
    satisfied,
    total_cost,
)
from upscale_opt.solver.registry import SOLVERS, solve_instance

INTERVAL: DemandKind = "interval"
PREFIX: DemandKind = "prefix"
SUFFIX: DemandKind = "suffix"


def achievable(instance: Instance, number: int) -> set[frozenset[int]]:
    """The sets of demands on one space that hold together under some order."""
    space = instance.spaces[number]
    demands = [(i, d) for i, d in enumerate(instance.demands) if d.space == number]
    orders = [space.channels] if space.fixed else itertools.permutations(space.channels)
    size = len(space.channels)
    found = set()
    for order in orders:
        position = {channel: i for i, channel in enumerate(order)}
        found.add(frozenset(i for i, demand in demands if holds(demand, position, size)))
    return found


def brute_force(instance: Instance) -> int:
    """The optimum over all orders."""
    options = [achievable(instance, number) for number in range(len(instance.spaces))]
    return min(
        total_cost(instance, frozenset().union(*choice)) for choice in itertools.product(*options)
    )


def check(instance: Instance, outcome: Outcome) -> None:
    """What has to hold of every outcome."""
    for space, order in zip(instance.spaces, outcome.orders, strict=True):
        assert sorted(order) == sorted(space.channels)
        assert order == space.channels or not space.fixed
    assert outcome.objective == total_cost(instance, satisfied(instance, outcome.orders))
    assert isinstance(outcome.lower_bound, int)
    assert 0 <= outcome.lower_bound <= outcome.objective


def check_conflicts(instance: Instance, outcome: Outcome) -> None:
    """Every conflict is one, on one space, and minimal."""
    for conflict in outcome.conflicts:
        (number,) = {instance.demands[demand].space for demand in conflict}
        options = achievable(instance, number)
        assert not any(option.issuperset(conflict) for option in options)
        for left_out in conflict:
            rest = set(conflict) - {left_out}
            assert any(option >= rest for option in options)


@st.composite
def instances(draw: st.DrawFn) -> Instance:
    spaces, first = [], 0
    for _ in range(draw(st.integers(1, 2))):
        size = draw(st.sampled_from([6, 5, 4, 3, 2, 1]))
        order = draw(st.permutations(range(first, first + size)))
        spaces.append(Space(tuple(order), fixed=draw(st.integers(0, 5)) == 0))
        first += size
    demands = []
    for _ in range(draw(st.sampled_from([6, 8, 7, 5, 4, 3, 2, 1, 0]))):
        number = draw(st.integers(0, len(spaces) - 1))
        kind = draw(st.sampled_from([INTERVAL, INTERVAL, PREFIX, SUFFIX]))
        channels = spaces[number].channels
        smallest = min(len(channels), draw(st.sampled_from([2, 3, 1])))
        members = st.frozensets(st.sampled_from(channels), min_size=smallest)
        demands.append(Demand(number, kind, draw(members)))
    weights = st.sampled_from([0, 1, 2, 3, 5, 8, 10**6])
    view = st.none() | (
        st.lists(st.integers(0, len(demands) - 1), max_size=3).map(tuple)
        if demands
        else st.just(())
    )
    pieces = st.lists(st.builds(Piece, weights, view), max_size=3).map(tuple)
    single = [Read(len(d.channels), (i,)) for i, d in enumerate(demands) if draw(st.booleans())]
    reads = st.lists(st.builds(Read, weights, view, pieces, st.integers(0, 2)), max_size=4)
    return Instance(tuple(spaces), tuple(demands), (*single, *draw(reads)))


def intervals(size: int, sets: list[set[int]]) -> Instance:
    """One space, and one read per set."""
    demands = tuple(Demand(0, INTERVAL, frozenset(members)) for members in sets)
    reads = tuple(Read(len(members), (i,)) for i, members in enumerate(sets))
    return Instance((Space(tuple(range(size))),), demands, reads)


def random_sets(count: int, size: int, seed: int, smallest: int, largest: int) -> Instance:
    rng = random.Random(seed)
    sets = [set(rng.sample(range(size), rng.randint(smallest, largest))) for _ in range(count)]
    return intervals(size, sets)


def dense_block(layers: int, seed: int, max_gathers: int) -> Instance:
    """Every layer reads the outputs of all layers before it, piece by piece."""
    rng = random.Random(seed)
    spaces: list[Space] = []
    demands: list[Demand] = []
    reads: list[Read] = []
    for layer in range(layers):
        spaces.append(Space(tuple(range(100 * layer, 100 * layer + rng.randint(32, 64)))))
        pieces = []
        for number, space in enumerate(spaces):
            chosen = frozenset(rng.sample(space.channels, len(space.channels) // 2))
            pieces.append(Piece(len(chosen), (len(demands),)))
            demands.append(Demand(number, INTERVAL, chosen))
        reads.append(Read(sum(p.weight for p in pieces), None, tuple(pieces), max_gathers))
    return Instance(tuple(spaces), tuple(demands), tuple(reads))


@settings(max_examples=150, deadline=None)
@given(instances())
def test_exact_is_the_optimum(instance: Instance) -> None:
    optimum = brute_force(instance)
    outcome = solve_exact(instance, time_limit=30)
    check(instance, outcome)
    assert outcome.objective == outcome.lower_bound == optimum
    assert outcome.optimal
    check_conflicts(instance, outcome)


@settings(max_examples=100, deadline=None)
@given(instances())
def test_heuristics_are_valid_and_never_better(instance: Instance) -> None:
    optimum = brute_force(instance)
    for outcome in (solve_greedy(instance), solve_identity(instance)):
        check(instance, outcome)
        assert outcome.lower_bound <= optimum <= outcome.objective
        assert outcome.conflicts == ()
    assert solve_identity(instance).orders == identity_orders(instance.spaces)


@settings(max_examples=30, deadline=None)
@given(instances(), st.sampled_from([0.0, 0.001, 0.01]))
def test_bounds_are_true_when_time_is_short(instance: Instance, time_limit: float) -> None:
    outcome = solve_exact(instance, time_limit=time_limit)
    check(instance, outcome)
    assert outcome.lower_bound <= brute_force(instance) <= outcome.objective
    check_conflicts(instance, outcome)


@pytest.mark.parametrize("seed", range(6))
def test_one_space_of_seven_channels(seed: int) -> None:
    instance = random_sets(12, 7, seed, 2, 4)
    outcome = solve_exact(instance, time_limit=30)
    check(instance, outcome)
    assert outcome.objective == outcome.lower_bound == brute_force(instance)
    check_conflicts(instance, outcome)


def test_larger_conflicts_are_found() -> None:
    """A cycle of pairs is a conflict, all of whose parts hold together."""
    cycle = [{i, (i + 1) % 7} for i in range(7)]
    outcome = solve_exact(intervals(7, cycle), time_limit=30)
    assert outcome.objective == outcome.lower_bound == 2
    assert outcome.conflicts == (tuple(range(7)),)


@pytest.mark.parametrize(("count", "size"), [(36, 1024), (64, 1024), (64, 4096)])
def test_random_halves_are_solved_at_once(count: int, size: int) -> None:
    """Any three random halves conflict, so exactly two reads can be views."""
    instance = random_sets(count, size, 0, size // 2, size // 2)
    began = time.perf_counter()
    outcome = solve_exact(instance, time_limit=60)
    assert time.perf_counter() - began < 20
    check(instance, outcome)
    assert outcome.objective == outcome.lower_bound == (count - 2) * size // 2
    assert len(outcome.conflicts) == count * (count - 1) * (count - 2) // 6


@pytest.mark.parametrize("max_gathers", [1, 8, 16])
def test_dense_blocks(max_gathers: int) -> None:
    instance = dense_block(16, 1, max_gathers)
    outcome = solve_exact(instance, time_limit=60)
    check(instance, outcome)
    assert outcome.optimal
    assert outcome.objective <= solve_greedy(instance).objective


def test_short_time_on_a_large_instance() -> None:
    instance = dense_block(40, 2, 3)
    began = time.perf_counter()
    outcome = solve_exact(instance, time_limit=0.01)
    assert time.perf_counter() - began < 5
    check(instance, outcome)
    assert outcome.objective <= solve_identity(instance).objective


def test_the_same_seed_gives_the_same_outcome() -> None:
    instance = random_sets(24, 30, 3, 2, 5)
    first, second = (solve_exact(instance, time_limit=60, seed=7) for _ in range(2))
    assert first == second
    assert first.optimal


def test_several_workers_reach_the_same_optimum() -> None:
    instance = random_sets(24, 30, 3, 2, 5)
    outcome = solve_exact(instance, time_limit=60, workers=2)
    assert outcome.objective == solve_exact(instance, time_limit=60).objective


def test_progress_closes_the_gap() -> None:
    seen: list[tuple[int, int]] = []
    outcome = solve_exact(
        random_sets(24, 30, 3, 2, 5), time_limit=60, progress=lambda *step: seen.append(step)
    )
    assert seen[-1] == (outcome.objective, outcome.lower_bound)
    assert seen == sorted(seen, key=lambda step: (-step[0], step[1]))
    assert len(set(seen)) == len(seen)


def test_interrupt_returns_what_there_is() -> None:
    instance = random_sets(60, 70, 3, 2, 14)
    handler = signal.getsignal(signal.SIGINT)
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT))
    began = time.perf_counter()
    timer.start()
    outcome = solve_exact(instance, time_limit=60)
    timer.join()
    assert time.perf_counter() - began < 20
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


def test_a_suffix_is_its_complements_prefix() -> None:
    space = Space((0, 1, 2, 3))
    demands = (
        Demand(0, SUFFIX, frozenset({0, 1})),
        Demand(0, PREFIX, frozenset({2, 3})),
        Demand(0, PREFIX, frozenset({1, 2})),
    )
    reads = (Read(2, (0,)), Read(2, (1,)), Read(3, (2,)))
    outcome = solve_exact(Instance((space,), demands, reads), time_limit=30)
    assert outcome.objective == outcome.lower_bound == 3
    assert outcome.conflicts == ((0, 2),)


def test_a_read_across_spaces_needs_both_ends() -> None:
    spaces = (Space((0, 1, 2)), Space((3, 4, 5)))
    demands = (Demand(0, SUFFIX, frozenset({0, 1})), Demand(1, PREFIX, frozenset({5})))
    outcome = solve_exact(Instance(spaces, demands, (Read(3, (0, 1)),)), time_limit=30)
    assert outcome.objective == 0
    assert outcome.orders == ((2, 0, 1), (5, 3, 4))


POISONED = {
    "nothing": Instance((), (), ()),
    "no demands": Instance((Space((3, 1)), Space(())), (), (Read(5, None), Read(7, ()))),
    "no reads": Instance((Space((0, 1)),), (Demand(0, PREFIX, frozenset({1})),), ()),
    "duplicates": Instance(
        (Space((0, 1, 2, 3)),),
        tuple(Demand(0, INTERVAL, frozenset({i % 2, 3})) for i in range(8)),
        tuple(Read(2, (i, i, (i + 2) % 8)) for i in range(8)),
    ),
    "full sets and single channels": Instance(
        (Space((0, 1, 2)),),
        (
            Demand(0, SUFFIX, frozenset({0, 1, 2})),
            Demand(0, INTERVAL, frozenset({1})),
            Demand(0, PREFIX, frozenset({1})),
        ),
        (Read(3, (0,)), Read(1, (1,)), Read(1, (0, 1, 2))),
    ),
    "zero weights": Instance(
        (Space((0, 1, 2)),),
        (Demand(0, INTERVAL, frozenset({0, 2})),),
        (Read(0, (0,)), Read(0, None, (Piece(0, None),), 1), Read(4, (0,), (Piece(0, None),), 1)),
    ),
    "a read that wants the impossible": Instance(
        (Space((0, 1, 2)),),
        tuple(Demand(0, PREFIX, frozenset({c})) for c in range(3)),
        (Read(6, (0, 1)), Read(2, (2,)), Read(9, None, (Piece(1, (0,)), Piece(2, (1,))), 1)),
    ),
    "only fixed spaces": Instance(
        (Space((0, 1, 2), fixed=True),),
        (Demand(0, INTERVAL, frozenset({0, 2})), Demand(0, PREFIX, frozenset({0, 1}))),
        (Read(2, (0,)), Read(2, (1,)), Read(5, None, (Piece(2, (0,)), Piece(3, (1,))), 1)),
    ),
    "huge weights": Instance(
        (Space((0, 1, 2, 3)),),
        tuple(Demand(0, INTERVAL, frozenset(pair)) for pair in itertools.combinations(range(4), 2)),
        tuple(Read(10**15 + i, (i,)) for i in range(6)),
    ),
}


@pytest.mark.parametrize("name", POISONED)
@pytest.mark.parametrize("solver", SOLVERS)
def test_poisoned_instances(name: str, solver: str) -> None:
    instance = POISONED[name]
    outcome = solve_instance(instance, solver, time_limit=30)
    check(instance, outcome)
    optimum = brute_force(instance)
    assert outcome.lower_bound <= optimum <= outcome.objective
    assert solver != "cp-sat" or outcome.objective == outcome.lower_bound


def test_weights_beyond_64_bits_still_give_a_true_bound() -> None:
    poisoned = POISONED["huge weights"]
    reads = tuple(Read(10**30 + 7**i, (i,)) for i in range(6))
    instance = Instance(poisoned.spaces, poisoned.demands, reads)
    outcome = solve_exact(instance, time_limit=30)
    check(instance, outcome)
    assert outcome.lower_bound <= brute_force(instance) <= outcome.objective
    assert outcome.objective - outcome.lower_bound < 10**15


def test_unknown_solvers_are_named() -> None:
    with pytest.raises(SolverError, match=r"'gurobi'.*'cp-sat', 'greedy', 'identity'"):
        solve_instance(POISONED["nothing"], "gurobi", time_limit=1)


def test_greedy_is_not_exponential() -> None:
    began = time.perf_counter()
    for largest in (3, 6, 100):
        instance = random_sets(64, 400, 1, 2, largest)
        check(instance, solve_greedy(instance))
    assert time.perf_counter() - began < 15


def test_greedy_orders_a_path_and_what_is_inside() -> None:
    path = [{5, 2, 7}, {7, 0, 3}, {3, 6, 4}, {6, 4}, {5, 2}]
    assert solve_greedy(intervals(8, path)).objective == 0
