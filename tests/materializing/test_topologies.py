"""Small networks that isolate one difficulty each, under many masks each.

``benchmarks/lossless.py --networks 0 --full`` tries six times as many.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator

import pytest
import torch
from comparing import assert_lossless, cast
from torch import nn

import upscale_opt as uo
from upscale_opt.models import catalogue
from upscale_opt.models.generated.masks import (
    Side,
    WeightMasks,
    apply_weight_masks,
    prunable_weights,
    random_weight_masks,
)
from upscale_opt.models.topologies import TOPOLOGIES, UNTRACEABLE, example_inputs

MASKS = 10
SIDES: tuple[Side, ...] = ("in", "out", "both")


def uniform(model: nn.Module, kept: str, side: Side) -> WeightMasks:
    """Every weight alike: all channels kept, none, or one somewhere in the middle."""
    masks: WeightMasks = {}
    for weight in prunable_weights(model):
        for axis in weight.axes(side):
            size = weight.channels(axis)
            choices = {"full": list(range(size)), "none": [], "one": [size // 2]}
            masks[weight.name, axis] = choices[kept]
    return masks


def all_masks(model: nn.Module) -> Iterator[tuple[WeightMasks, bool]]:
    """The masks, and whether biases go with the rows removed; always the same."""
    yield uniform(model, "full", "both"), False
    count = 1
    for kept in ("none", "one"):
        for side in SIDES:
            yield uniform(model, kept, side), count % 2 == 0  # biases go in every other
            count += 1
    rng = random.Random(0)
    for number in range(count, MASKS):
        side = SIDES[number % 3]
        yield random_weight_masks(model, rng, side), rng.random() < 0.5


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_lossless_under_many_masks(name: str) -> None:
    full_name = catalogue.PREFIX + name
    model = catalogue.build(full_name, seed=3)
    catalogue.randomize(model, 4, example_inputs(name, 4)).double()
    inputs = cast(example_inputs(name, 2), torch.float64)
    others = cast(example_inputs(name, 3), torch.float64)
    original = {key: value.clone() for key, value in model.state_dict().items()}
    graph = uo.trace(model, inputs)
    tried = 0
    for number, (masks, biases) in enumerate(all_masks(model)):
        model.load_state_dict(original)
        apply_weight_masks(model, masks, biases=biases)
        try:
            found = uo.masks_of(model, graph)
            solution = uo.solve(graph, found)
            assert solution.status == "optimal"
            assert sum(read.copied for read in solution.reads) == solution.objective_value
            assert solution.lower_bound == solution.objective_value
            masked = copy.deepcopy(model) if number % 10 == 0 else model  # a copy is traced anew
            pruned = uo.materialize(masked, solution)
            assert_lossless(model, pruned, inputs if number % 2 else others)
        except Exception as error:
            raise AssertionError(f"masks {number} of {name}: {error}") from error
        tried += 1
    assert tried == MASKS


def test_the_masks_contain_the_corner_cases() -> None:
    model = catalogue.build("topology/residual_stage")
    styles = [
        {len(kept) / model.get_parameter(name).shape[axis] for (name, axis), kept in masks.items()}
        for masks, _ in all_masks(model)
    ]
    assert len(styles) == MASKS
    assert [0.0] in [list(s) for s in styles]
    assert [1.0] in [list(s) for s in styles]
    assert any(0 < min(s) < 0.1 for s in styles)
    assert any(0.0 in s and 1.0 in s for s in styles)
    assert {biases for _, biases in all_masks(model)} == {True, False}


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_untraceable(name: str) -> None:
    with pytest.raises(uo.TraceError, match="DataDependent cannot be traced"):
        uo.trace(UNTRACEABLE[name]().eval(), example_inputs(name, 2))
