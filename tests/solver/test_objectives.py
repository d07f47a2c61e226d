"""What is minimised: bytes, gathers, blocks, and weights per read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from plain_prices import without_windows
from sample_networks import Documents, documents_of

import upscale_opt as uo
from upscale_opt.errors import SolverError
from upscale_opt.ir.graph import Tensor
from upscale_opt.solver.api import instance_of
from upscale_opt.solver.network.objectives import (
    OBJECTIVES,
    UNITS,
    bytes_per_channel,
    price,
)
from upscale_opt.solver.problem.instance import blocks


@pytest.fixture(scope="module")
def documents() -> Documents:
    return documents_of("resnet18", 0.5)


def solved(documents: Documents, objective: str, **options: Any) -> uo.Solution:
    if objective == "latency":
        options = {"cost_model": without_windows(), **options}
    solution = uo.solve(documents.graph, documents.masks, objective=objective, **options)
    assert solution.status == "optimal"
    return solution


def test_every_objective_has_a_unit() -> None:
    assert tuple(UNITS) == OBJECTIVES


def test_bytes_are_those_of_the_tensors(documents: Documents) -> None:
    solution = solved(documents, "copied_bytes")
    copied = 0
    for read in solution.reads:
        tensor = documents.graph.tensors[read.tensor]
        assert tensor.dtype == "float32"
        copied += read.copied * 4 * math.prod(tensor.shape) // len(tensor.channels)
    assert copied == solution.objective_value > 0


def test_gathers_are_counted(documents: Documents) -> None:
    solution = solved(documents, "gathers")
    assert solution.objective_value == solution.gathers > 0


def test_each_objective_is_best_at_its_own(documents: Documents) -> None:
    """No other objective's optimum is better by this one's measure."""
    optimum = {objective: solved(documents, objective) for objective in OBJECTIVES}
    bytes_of = {
        name: bytes_per_channel(tensor)
        for name, tensor in documents.graph.tensors.items()
        if tensor.channels
    }
    in_blocks = instance_of(documents.graph, documents.masks, objective="blocks")
    measures: dict[str, Callable[[uo.Solution], int]] = {
        "copied_channels": lambda s: sum(read.copied for read in s.reads),
        "copied_bytes": lambda s: sum(read.copied * bytes_of[read.tensor] for read in s.reads),
        "gathers": lambda s: s.gathers,
        "blocks": lambda s: sum(blocks(read, s.orders) for read in in_blocks.reads),
    }
    for objective, measure in measures.items():
        own = measure(optimum[objective])
        assert own == optimum[objective].objective_value
        assert own == min(measure(other) for other in optimum.values())


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("float32", 4), ("float64", 8), ("bfloat16", 2), ("bool", 1), ("int8", 1), ("complex64", 8)],
)
def test_element_sizes(dtype: str, size: int) -> None:
    tensor = Tensor(shape=(2, 6, 5, 5), dtype=dtype, axis=1, channels=(0, 1, 2), features=2)
    assert bytes_per_channel(tensor) == 2 * 2 * 25 * size
    assert price("copied_bytes", tensor, 3) == 3 * bytes_per_channel(tensor)
    assert price("gathers", tensor, 0) == 0


def test_blocks_are_at_least_one_per_read(documents: Documents) -> None:
    solution = solved(documents, "blocks")
    instance = instance_of(documents.graph, documents.masks, objective="blocks")
    runs = [blocks(read, solution.orders) for read in instance.reads]
    assert sum(runs) == solution.objective_value >= len(instance.reads)
    assert sum(run > 1 for run in runs) == solution.gathers


def test_a_weight_can_turn_a_gather_into_a_view(documents: Documents) -> None:
    plain = documents.solution
    gather = next(read for read in plain.reads if read.plan == "gather")
    name = f"{gather.op}[{gather.operand}]"
    heavy = solved(documents, "copied_channels", weights={name: 1000})
    plans = {(read.op, read.operand): read.plan for read in heavy.reads if not read.optional}
    assert plans[gather.op, gather.operand] == "view"
    assert heavy.weights == {name: 1000}
    assert uo.check(heavy, documents.graph, documents.masks).optimal


def test_reads_of_weight_zero_do_not_matter(documents: Documents) -> None:
    layers = {read.op: 0 for read in documents.solution.reads if not read.optional}
    assert solved(documents, "copied_channels", weights=layers).objective_value == 0


def test_a_weight_for_one_operand_beats_one_for_the_operation(documents: Documents) -> None:
    gather = next(read for read in documents.solution.reads if read.plan == "gather")
    both = {gather.op: 5, f"{gather.op}[{gather.operand}]": 0}
    alone = {f"{gather.op}[{gather.operand}]": 0}
    first, second = (
        instance_of(documents.graph, documents.masks, weights=weights).reads
        for weights in (both, alone)
    )
    assert first == second


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"nothing": 2}, "'nothing'"),
        ({"layer1_0_conv1[7]": 2}, r"layer1_0_conv1\[7\]"),
        ({"layer1_0_conv1": -1}, "not negative"),
        ({"layer1_0_conv1": 1.5}, "1.5"),
        ({"layer1_0_conv1": True}, "True"),
    ],
)
def test_bad_weights_are_named(
    documents: Documents, weights: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(SolverError, match=message):
        uo.solve(documents.graph, documents.masks, weights=weights)


@pytest.mark.parametrize("option", [{"objective": "speed"}, {"selection": "layer"}])
def test_unknown_options_are_named(documents: Documents, option: dict[str, Any]) -> None:
    with pytest.raises(SolverError, match=next(iter(option.values()))):
        uo.solve(documents.graph, documents.masks, **option)
