"""The direct CP-SAT model: beyond what brute force can do, time, interrupts, independence."""

from __future__ import annotations

import ast
import inspect
import os
import random
import signal
import threading
from dataclasses import replace
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ortools.sat.python import cp_model
from solver_outcomes import check, instances, random_sets

from upscale_opt.models.instances.from_sets import with_measure
from upscale_opt.models.instances.random import dense_block, independent
from upscale_opt.solver.algorithms import (
    direct,
    direct_blocks,
    direct_copies,
    direct_program,
    greedy,
    identity,
    interruptible,
)
from upscale_opt.solver.algorithms.direct import solve_direct
from upscale_opt.solver.algorithms.exact import solve_exact
from upscale_opt.solver.algorithms.greedy import solve_greedy
from upscale_opt.solver.brute_force import brute_force
from upscale_opt.solver.problem import instance
from upscale_opt.solver.problem.instance import (
    Demand,
    Instance,
    Measure,
    Outcome,
    Part,
    Piece,
    Read,
    Space,
)

MEASURES: tuple[Measure, ...] = ("copies", "blocks")


def tight(rng: random.Random, measure: Measure) -> Instance:
    """More demands than can hold together, on one or two spaces of five to seven channels."""
    spaces, first = [], 0
    for size in rng.choices([5, 6, 7], k=rng.randint(1, 2)):
        spaces.append(Space(tuple(rng.sample(range(first, first + size), size))))
        first += size
    demands = []
    for _ in range(rng.randint(8, 14)):
        number = rng.randrange(len(spaces))
        channels = spaces[number].channels
        kind = rng.choice(["interval", "interval", "interval", "prefix", "suffix"])
        wanted = rng.sample(channels, rng.randint(2, len(channels) - 1))
        demands.append(Demand(number, kind, frozenset(wanted)))  # type: ignore[arg-type]

    def view() -> tuple[int, ...]:
        return tuple(rng.choices(range(len(demands)), k=rng.randint(1, 3)))

    reads = [
        Read(len(d.channels), (i,), parts=(Part(d.space, d.channels),))
        for i, d in enumerate(demands)
    ]
    for _ in range(rng.randint(0, 4)):
        pieces = tuple(Piece(rng.randint(1, 8), view()) for _ in range(rng.randint(1, 4)))
        parts = tuple(
            Part(number, frozenset(rng.sample(spaces[number].channels, rng.randint(0, 5))))
            for number in rng.choices(range(len(spaces)), k=rng.randint(1, 3))
        )
        read = Read(rng.randint(3, 12), rng.choice([None, view()]), pieces, rng.randint(1, 3))
        reads.append(replace(read, parts=parts))
    return Instance(tuple(spaces), tuple(demands), tuple(reads), measure)


def heavy(instance: Instance, rng: random.Random) -> Instance:
    """With weights of up to 30 digits, of which some are small."""
    largest = 10 ** rng.randint(4, 30)

    def weight() -> int:
        return rng.randint(0, rng.choice([3, largest, largest]))

    reads = []
    for read in instance.reads:
        pieces = tuple(replace(piece, weight=weight() // 2) for piece in read.pieces)
        reads.append(replace(read, weight=weight(), pieces=pieces))
    return replace(instance, reads=tuple(reads))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**20), st.sampled_from(MEASURES))
def test_bounds_are_true_under_heavy_weights(seed: int, measure: Measure) -> None:
    """CP-SAT tells some bounds as floating-point numbers, which end at 53 bits."""
    rng = random.Random(seed)
    problem = heavy(tight(rng, measure), rng)
    outcome = solve_direct(problem, time_limit=600)
    check(problem, outcome)
    assert outcome.lower_bound <= brute_force(problem)
    total = sum(read.weight * max(1, len(read.parts)) for read in problem.reads)
    assert outcome.optimal or total > 2**40


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**20), st.sampled_from(MEASURES))
def test_tight_instances(seed: int, measure: Measure) -> None:
    """Read by read over-constrained, where the bound has to be worked for."""
    problem = tight(random.Random(seed), measure)
    outcome = solve_direct(problem, time_limit=600)
    check(problem, outcome)
    assert outcome.objective == outcome.lower_bound == brute_force(problem)


@pytest.mark.parametrize("seed", [3, 4])
def test_both_exact_solvers_agree_beyond_brute_force(seed: int) -> None:
    problem = random_sets(24, 30, seed, 2, 5)
    outcome = solve_direct(problem, time_limit=600)
    check(problem, outcome)
    assert outcome.optimal
    assert outcome.objective == solve_exact(problem, time_limit=600).objective


def test_a_space_that_is_read_twice_in_a_row() -> None:
    """From the end of the space into its own beginning, a run goes on."""
    parts = (Part(0, frozenset({0, 1})), Part(0, frozenset({2})), Part(1, frozenset()))
    problem = Instance(
        (Space((0, 2, 1, 3)), Space(())), (), (Read(5, None, parts=parts),), "blocks"
    )
    outcome = solve_direct(problem, time_limit=60)
    check(problem, outcome)
    assert outcome.objective == outcome.lower_bound == 5


@settings(max_examples=70, deadline=None)
@given(instances(), st.randoms(use_true_random=False))
def test_the_model_allows_a_form_of_every_order(problem: Instance, rng: random.Random) -> None:
    """What is left out as symmetric costs the same as something left in: the start is kept."""
    orders = tuple(
        space.channels if space.fixed else tuple(rng.sample(space.channels, len(space.channels)))
        for space in problem.spaces
    )
    copies = replace(problem, measure="copies")
    program = direct_program.Program(float("inf"))
    direct_copies.model_copies(program, copies, orders)
    program.minimize()
    solver = cp_model.CpSolver()
    solver.parameters.fix_variables_to_their_hinted_value = True
    solver.parameters.catch_sigint_signal = False  # it would not be handed back
    status = solver.solve(program.model)
    assert status == cp_model.OPTIMAL
    assert solver.objective_value + program.constant <= instance.cost(copies, orders)


def test_what_is_too_large_is_left_to_the_heuristic() -> None:
    problem = independent(random.Random(0), 36, 1024)
    for measure in MEASURES:
        large = with_measure(problem, measure)
        outcome = solve_direct(large, time_limit=600)
        check(large, outcome)
        assert outcome == solve_greedy(large)


def test_time_ends_the_building_of_a_model() -> None:
    program = direct_program.Program(deadline=0.0)
    with pytest.raises(direct_program.OutOfTimeError):
        program.literal(False)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("time_limit", [0.0, 0.01, 0.3])
def test_short_time_on_a_hard_instance(measure: Measure, time_limit: float) -> None:
    problem = with_measure(dense_block(random.Random(1), 12, 300), measure)
    outcome = solve_direct(problem, time_limit=time_limit)
    check(problem, outcome)
    assert outcome.objective <= solve_greedy(problem).objective


def test_interrupt_returns_what_there_is() -> None:
    problem = random_sets(60, 70, 3, 2, 14)
    handler = signal.getsignal(signal.SIGINT)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    outcome = solve_direct(problem, time_limit=3600)
    timer.join()
    check(problem, outcome)
    assert not outcome.optimal
    assert signal.getsignal(signal.SIGINT) is handler


def test_interrupt_in_progress_returns_what_there_is() -> None:
    calls = 0

    def interrupt(incumbent: int, bound: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    problem = random_sets(24, 30, 4, 2, 5)
    outcome = solve_direct(problem, time_limit=3600, progress=interrupt)
    check(problem, outcome)
    assert calls == 2
    assert not outcome.optimal


def test_solving_in_a_thread() -> None:
    outcomes: list[Outcome] = []
    problem = random_sets(12, 8, 0, 2, 4)
    thread = threading.Thread(target=lambda: outcomes.append(solve_direct(problem, time_limit=600)))
    thread.start()
    thread.join()
    assert outcomes[0].optimal


def test_the_same_seed_gives_the_same_outcome() -> None:
    problem = random_sets(16, 16, 0, 2, 8)
    first, second = (solve_direct(problem, time_limit=600, seed=7) for _ in range(2))
    assert first == second
    assert first.optimal


def test_it_shares_nothing_with_the_other_exact_solver() -> None:
    """So that the one can be checked by the other."""
    shared = {instance, interruptible, greedy, identity}
    own = {direct, direct_blocks, direct_copies, direct_program}
    allowed = {module.__name__ for module in shared | own}
    allowed |= {"upscale_opt.ir.ids", "upscale_opt.shown"}  # how instances are written and printed
    for module in own | shared:
        assert _imports(module) <= allowed


def _imports(module: ModuleType) -> set[str]:
    tree = ast.parse(inspect.getsource(module))
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {name for name in names if name.startswith("upscale_opt.")}
