"""Every solver against brute force over all orders, and on instances made to break them."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from solver_outcomes import (
    HEURISTICS,
    are_orders,
    check,
    instances,
    is_solved,
    random_sets,
    solvers_for,
)

from upscale_opt.errors import SolverError
from upscale_opt.models.instances.handmade import HANDMADE
from upscale_opt.solver.algorithms.identity import solve_identity
from upscale_opt.solver.algorithms.registry import SOLVERS, solve_instance
from upscale_opt.solver.brute_force import brute_force
from upscale_opt.solver.problem.instance import (
    Demand,
    Instance,
    Proof,
    Read,
    Space,
    identity_orders,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(instances())
def test_all_solvers_beside_brute_force(instance: Instance) -> None:
    optimum = brute_force(instance)
    for solver in solvers_for(instance):
        outcome = solve_instance(instance, solver, time_limit=600)
        check(instance, outcome)
        assert outcome.lower_bound <= optimum <= outcome.objective, solver
        if solver in HEURISTICS:
            assert outcome.proof == Proof(), solver
        else:
            assert is_solved(instance, solver, outcome), solver


@settings(max_examples=50, deadline=None)
@given(instances())
def test_identity_keeps_the_order(instance: Instance) -> None:
    assert solve_identity(instance).orders == identity_orders(instance.spaces)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(instances(), st.sampled_from([0.0, 0.001, 0.01]))
def test_bounds_are_true_when_time_is_short(instance: Instance, time_limit: float) -> None:
    optimum = brute_force(instance)
    for solver in solvers_for(instance):
        outcome = solve_instance(instance, solver, time_limit=time_limit)
        check(instance, outcome)
        assert outcome.lower_bound <= optimum <= outcome.objective, solver


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(instances(), st.integers(0, 100))
def test_the_same_seed_gives_the_same_outcome(instance: Instance, seed: int) -> None:
    for solver in solvers_for(instance):
        first, second = (
            solve_instance(instance, solver, time_limit=60, seed=seed) for _ in range(2)
        )
        assert first == second, solver


@pytest.mark.parametrize("solver", SOLVERS)
def test_progress_closes_the_gap(solver: str) -> None:
    """Costs fall, bounds rise, something changes each time, and the end is the outcome."""
    seen: list[tuple[int, int]] = []
    instance = random_sets(7, 8, 3, 2, 5)
    outcome = solve_instance(
        instance, solver, time_limit=60, progress=lambda *step: seen.append(step)
    )
    assert seen[-1] == (outcome.objective, outcome.lower_bound)
    assert seen == sorted(seen, key=lambda step: (-step[0], step[1]))
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("solver", SOLVERS)
def test_weights_beyond_64_bits_still_give_a_true_bound(solver: str) -> None:
    instance = HANDMADE["huge-weights"]
    reads = tuple(Read(10**30 + 7**i, (i,)) for i in range(6))
    instance = Instance(instance.spaces, instance.demands, reads)
    outcome = solve_instance(instance, solver, time_limit=30)
    check(instance, outcome)
    assert outcome.lower_bound <= brute_force(instance) <= outcome.objective
    assert solver in HEURISTICS or outcome.objective - outcome.lower_bound < 10**27


def test_unknown_solvers_are_named() -> None:
    with pytest.raises(SolverError, match=r"'gurobi'.*'cp-sat'.*'greedy', 'identity'"):
        solve_instance(HANDMADE["nothing"], "gurobi", time_limit=1)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_read_across_spaces_needs_both_ends(solver: str) -> None:
    spaces = (Space((0, 1, 2)), Space((3, 4, 5)))
    demands = (
        Demand(0, "suffix", frozenset({0, 1})),
        Demand(1, "prefix", frozenset({5})),
    )
    instance = Instance(spaces, demands, (Read(3, (0, 1)),))
    outcome = solve_instance(instance, solver, time_limit=30)
    assert are_orders(instance, outcome.orders)
    assert outcome.objective == (3 if solver == "identity" else 0)
