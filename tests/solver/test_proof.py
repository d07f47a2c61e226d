"""Proofs of bounds: never more than the truth, and all of it where that can be."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from solver_outcomes import instances, random_sets, terms_of_proof

from upscale_opt.models.instances.handmade import HANDMADE
from upscale_opt.solver.algorithms.exact import solve_exact
from upscale_opt.solver.brute_force import brute_force
from upscale_opt.solver.problem.instance import Case, Group, Instance, Proof
from upscale_opt.solver.problem.proof import complete, false_group, proven_bound


@settings(max_examples=60, deadline=None)
@given(instances())
def test_small_problems_are_proven_without_the_solvers_word(instance: Instance) -> None:
    instance, _ = terms_of_proof(instance)
    outcome = solve_exact(instance, time_limit=30)
    assert false_group(instance, outcome.proof) is None
    assert proven_bound(instance, outcome.proof) == outcome.lower_bound == brute_force(instance)


def true_groups(instance: Instance) -> list[Group]:
    """All pairs and triples of demands that exclude each other."""
    numbers = range(len(instance.demands))
    subsets = [*itertools.combinations(numbers, 2), *itertools.combinations(numbers, 3)]
    groups = [Group(subset, len(subset) - 1) for subset in subsets]
    return [group for group in groups if false_group(instance, Proof((group,))) is None]


def any_proof(rng: random.Random, instance: Instance) -> Proof:
    """Prices, shares and cases at random, over conflicts that are true."""
    groups = true_groups(instance)
    groups = rng.sample(groups, rng.randint(0, min(6, len(groups))))
    weights = [1, *(read.weight for read in instance.reads)]
    demands = range(len(instance.demands))
    cases = []
    split = rng.sample(demands, rng.randint(0, min(2, len(demands))))
    for held in itertools.product([True, False], repeat=len(split)):
        unit = rng.choice([1, 2, 3])
        cases.append(
            Case(
                tuple(d for d, holds in zip(split, held, strict=True) if holds),
                tuple(d for d, holds in zip(split, held, strict=True) if not holds),
                {i: rng.choice(weights) for i in range(len(groups)) if rng.random() < 0.7},
                {
                    (read, demand): rng.choice(weights)
                    for read in range(len(instance.reads))
                    for demand in demands
                    if rng.random() < 0.5
                },
                unit,
            )
        )
    return Proof(tuple(groups), tuple(cases))


@settings(max_examples=100, deadline=None)
@given(instances(), st.integers(0, 2**20))
def test_no_proof_shows_more_than_the_truth(instance: Instance, seed: int) -> None:
    instance, _ = terms_of_proof(instance)
    proof = any_proof(random.Random(seed), instance)
    assert proven_bound(instance, proof) <= brute_force(instance)


@settings(max_examples=60, deadline=None)
@given(instances(), st.integers(0, 2**20), st.data())
def test_proofs_that_leave_out_a_case_show_nothing_false(
    instance: Instance, seed: int, data: st.DataObject
) -> None:
    instance, _ = terms_of_proof(instance)
    proof = solve_exact(instance, time_limit=30, seed=seed).proof
    if proof.cases:
        gone = data.draw(st.integers(0, len(proof.cases) - 1), label="case left out")
        proof = replace(proof, cases=proof.cases[:gone] + proof.cases[gone + 1 :])
    assert proven_bound(instance, proof) <= brute_force(instance)


def test_false_groups_are_found() -> None:
    instance = HANDMADE["cycle-of-pairs"]
    everyone = tuple(range(len(instance.demands)))
    assert false_group(instance, Proof((Group(everyone, len(everyone) - 1),))) is None
    assert false_group(instance, Proof((Group(everyone[1:], len(everyone) - 2),))) == everyone[1:]
    assert false_group(instance, Proof((Group(everyone, 2),))) == everyone[:3]
    assert false_group(instance, Proof((Group((0, 0), 1),))) == (0, 0)


def test_cases_are_complete_only_together() -> None:
    assert complete([((), ())])
    assert not complete([])
    assert complete([((0,), ()), ((), (0,))])
    assert not complete([((0,), ()), ((0,), (1,))])
    three = [((0, 1), ()), ((0,), (1,)), ((), (0,))]
    assert complete(three)
    assert not any(complete(three[:i] + three[i + 1 :]) for i in range(3))


def test_cases_are_needed_and_found() -> None:
    """No prices alone prove this optimum; distinguishing cases does."""
    instance = random_sets(24, 30, 3, 2, 5)
    outcome = solve_exact(instance, time_limit=60)
    assert outcome.optimal
    assert len(outcome.proof.cases) > 1
    assert proven_bound(instance, outcome.proof) == outcome.objective


def test_negative_prices_prove_nothing() -> None:
    """JSON cannot have them, but objects can."""
    instance = HANDMADE["cycle-of-pairs"]
    groups = tuple(Group((demand,), 1) for demand in range(len(instance.demands)))
    prices = dict.fromkeys(range(len(groups)), -1000)
    assert proven_bound(instance, Proof(groups, (Case(prices=prices),))) == 0
    shares = {(read, demand): -1000 for read in range(7) for demand in range(7)}
    assert proven_bound(instance, Proof(groups, (Case(shares=shares),))) == 0
    assert proven_bound(instance, Proof(groups, (Case(unit=0),))) == 0


def test_hostile_cases_do_no_harm() -> None:
    """Looking through these would take 2**60 steps."""
    assert not complete([((2 * i, 2 * i + 1), ()) for i in range(60)])
    assert false_group(HANDMADE["cycle-of-pairs"], Proof((Group((0, 1), -1),))) == (0, 1)
