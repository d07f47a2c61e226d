"""Real networks, every side and amount: proven optimal, smaller, and lossless.

Small ones here, one of each kind; ``benchmarks/networks.py --side … --amount …`` has the rest.
"""

from __future__ import annotations

import copy

import pytest
import torch
from comparing import EXACT, assert_lossless, size
from sample_networks import built, images
from torch import nn

import upscale_opt as uo
from upscale_opt.masking.segments import Side
from upscale_opt.runtime.modules import Gather
from upscale_opt.tracing.recent import copied_with_trace

NETWORKS = ("resnet18", "squeezenet1_1", "mobilenet_v3_small")


def masked_network(name: str, side: Side, amount: float) -> tuple[nn.Module, uo.ChannelGraph]:
    model, graph = built(name)
    masked = copied_with_trace(model, graph)
    uo.apply_masks(masked, graph, uo.choose_masks(masked, graph, amount, side=side))
    return masked, graph


SIDES: tuple[Side, ...] = ("input", "output", "both")

CASES = [
    *((name, side, 0.5) for name in NETWORKS for side in SIDES),
    *(("resnet18", "both", amount) for amount in (0.1, 0.9)),
    ("densenet121", "input", 0.5),
]


@pytest.mark.parametrize(("name", "side", "amount"), CASES)
def test_lossless_and_optimal(name: str, side: Side, amount: float) -> None:
    masked, graph = masked_network(name, side, amount)
    masks = uo.masks_of(masked, graph)
    solution = uo.solve(graph, masks)
    assert solution.status == "optimal"
    assert sum(read.copied for read in solution.reads) == solution.objective_value
    assert solution.lower_bound == solution.objective_value
    assert uo.Solution.from_json(solution.to_json()) == solution
    pruned = uo.materialize(masked, solution)
    assert size(pruned) < size(masked)
    report = uo.verify(masked, pruned, images(2, 64, seed=1))
    assert report.float64_error < EXACT
    assert report.dtype == "float32"
    masked.double()  # other batch and image sizes; verify's copies are not needed any more
    pruned.double()
    assert_lossless(masked, pruned, images(1, 96, 80, seed=2).double())


def test_gathers_are_where_the_solution_says() -> None:
    masked, graph = masked_network("resnet18", "input", 0.5)
    solution = uo.solve(graph, uo.masks_of(masked, graph))
    pruned = uo.materialize(masked, solution)
    copied = [len(m.indices) for m in pruned.modules() if isinstance(m, Gather)]
    selects = [r.copied for r in solution.reads if r.plan == "gather" and r.kind == "select"]
    assert sorted(copied) == sorted(selects)
    assert copied


# What makes the tests above worth something: an export with one number wrong is caught.


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "topology/dense_block"])
@pytest.mark.parametrize("place", ["first", "last"])
def test_one_wrong_weight_is_caught(name: str, place: str) -> None:
    masked, graph = masked_network(name, "input", 0.5)
    pruned = uo.materialize(masked, uo.solve(graph, uo.masks_of(masked, graph)))
    weights = [p for p in pruned.parameters() if p.ndim == 4]
    weight = weights[0 if place == "first" else -1]
    (gradient,) = torch.autograd.grad(pruned(images(2, 64)).sum(), weight)
    influence = gradient.flatten()
    used = influence.nonzero().flatten()  # a relu makes some of no influence on these images
    entry = used[influence[used].abs().argsort()[len(used) // 2]]
    with torch.no_grad():
        weight.view(-1)[entry] += 1e-3
    with pytest.raises(uo.VerificationError, match="deviates by"):
        uo.verify(masked, pruned, images(2, 64))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "topology/dense_block"])
def test_misplaced_gather_indices_are_caught(name: str) -> None:
    masked, graph = masked_network(name, "input", 0.5)
    pruned = uo.materialize(masked, uo.solve(graph, uo.masks_of(masked, graph)))
    gathers = [m for m in pruned.modules() if isinstance(m, Gather)]
    for gather in (gathers[0], gathers[-1]):
        broken = copy.deepcopy(pruned)
        target = next(n for n, m in pruned.named_modules() if m is gather)
        indices = broken.get_submodule(target).get_buffer("indices")
        indices.copy_(indices.roll(1))  # of two alone, a relu may leave nothing to be seen
        with pytest.raises(uo.VerificationError, match="deviates by"):
            uo.verify(masked, broken, images(2, 64))


def test_an_unpruned_amount_changes_nothing() -> None:
    masked, graph = masked_network("resnet18", "both", 0.0)
    solution = uo.solve(graph, uo.masks_of(masked, graph))
    assert solution.objective_value == 0
    assert not solution.parameters
    pruned = uo.materialize(masked, solution)
    assert size(pruned) == size(masked)
    assert uo.verify(masked, pruned, images(2, 64)).float64_error < EXACT


def test_heuristics_copy_no_less_than_the_optimum() -> None:
    masked, graph = masked_network("resnet18", "input", 0.5)
    masks = uo.masks_of(masked, graph)
    optimum = uo.solve(graph, masks)
    for solver in ("greedy", "identity"):
        solution = uo.solve(graph, masks, solver=solver)
        assert solution.objective_value >= optimum.objective_value
        assert solution.lower_bound <= optimum.objective_value
        assert sum(read.copied for read in solution.reads) == solution.objective_value
        pruned = uo.materialize(masked, solution)
        assert uo.verify(masked, pruned, images(2, 64)).float64_error < EXACT
    assert optimum.objective_value < uo.solve(graph, masks, solver="identity").objective_value


def test_the_same_seed_gives_the_same_solution() -> None:
    masked, graph = masked_network("resnet18", "both", 0.5)
    masks = uo.masks_of(masked, graph)
    one, two = (uo.solve(graph, masks, seed=3).model_dump(exclude={"times"}) for _ in range(2))
    assert one == two
