"""Random instances for the tests of solvers, and what has to hold of every outcome."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from upscale_opt.models.instances.from_sets import one_space, with_measure
from upscale_opt.models.instances.random import random_instance
from upscale_opt.solver.algorithms.registry import SOLVERS
from upscale_opt.solver.problem.instance import (
    Instance,
    Orders,
    Outcome,
    as_copies,
    cost,
)
from upscale_opt.solver.problem.proof import false_group, proven_bound


@st.composite
def instances(draw: st.DrawFn, sets: int = 6, channels: int = 8) -> Instance:
    """Small instances of all generators, under both measures.

    Sizes are drawn first, so that they shrink first.
    """
    most = draw(st.integers(1, sets), label="sets"), draw(st.integers(1, channels), label="size")
    rng = random.Random(draw(st.integers(0, 2**20), label="seed"))
    instance = random_instance(rng, sets=most[0], channels=most[1])
    if draw(st.booleans(), label="copies"):
        return instance
    keep = rng.random() < 0.5
    return with_measure(instance, "blocks", [r.weight for r in instance.reads] if keep else None)


def random_sets(count: int, size: int, seed: int, smallest: int, largest: int) -> Instance:
    """One space, and one read for each of some random sets."""
    rng = random.Random(seed)
    sets = [set(rng.sample(range(size), rng.randint(smallest, largest))) for _ in range(count)]
    return one_space(size, sets)


HEURISTICS = {"local-search", "greedy", "identity"}
"""All other solvers prove what they find."""


def solvers_for(instance: Instance) -> list[str]:
    """The solvers that know the instance's measure."""
    return [name for name in SOLVERS if instance.measure == "copies" or "pulp" not in name]


def is_solved(instance: Instance, solver: str, outcome: Outcome) -> bool:
    """Whether an exact solver has done what can be expected of it.

    It has proven that there is nothing better; but a floating-point solver may leave open a
    millionth of the weights where these are huge.
    """
    weights = [read.weight for read in instance.reads]
    weights += [piece.weight for read in instance.reads for piece in read.pieces]
    huge = "pulp" in solver and sum(weights) >= 2**28
    return outcome.objective - outcome.lower_bound <= (sum(weights) >> 20 if huge else 0)


def check(instance: Instance, outcome: Outcome) -> None:
    """The orders are orders, cost what is said, and the bound and its proof are possible."""
    assert are_orders(instance, outcome.orders)
    assert outcome.objective == cost(instance, outcome.orders)
    assert isinstance(outcome.lower_bound, int)
    assert 0 <= outcome.lower_bound <= outcome.objective
    _check_proof(instance, outcome)


def are_orders(instance: Instance, orders: Orders) -> bool:
    """Whether there is one allowed order per space."""
    return all(
        order == space.channels if space.fixed else sorted(order) == sorted(space.channels)
        for space, order in zip(instance.spaces, orders, strict=True)
    )


def terms_of_proof(instance: Instance) -> tuple[Instance, int]:
    """The instance that proofs speak of, and what its cost lacks."""
    return as_copies(instance) if instance.measure == "blocks" else (instance, 0)


def _check_proof(instance: Instance, outcome: Outcome) -> None:
    """Its conflicts are conflicts, on one space each, and what they prove can be true."""
    relaxed, constant = terms_of_proof(instance)
    proof = outcome.proof
    for group in proof.groups:
        assert len({relaxed.demands[demand].space for demand in group.demands}) == 1
        assert len(set(group.demands)) == len(group.demands) > group.limit >= 1
    assert false_group(relaxed, proof) is None
    for case in proof.cases:
        assert min([*case.prices.values(), *case.shares.values()], default=0) >= 0
    assert constant + proven_bound(relaxed, proof) <= outcome.objective
