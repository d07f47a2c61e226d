"""The one record of options: what it refuses, and that everything that solves takes its fields."""

from __future__ import annotations

import inspect
import json
import math
import pickle
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from typing import Any, get_type_hints

import numpy as np
import pytest
from comparing import complaint
from sample_networks import Documents

import upscale_opt as uo
from upscale_opt.ir.profiles import PROFILES, profile
from upscale_opt.solver.algorithms.registry import SOLVERS
from upscale_opt.solver.api import instance_of
from upscale_opt.solver.comparing import options_of
from upscale_opt.solver.network.objectives import OBJECTIVES
from upscale_opt.solver.network.segments import SELECTIONS
from upscale_opt.solver.options import SolveFields, SolveOptions
from upscale_opt.solver.progress import Progress

FIELDS = tuple(SolveOptions.model_fields)


def test_the_fields_are_those_of_the_record() -> None:
    hints = get_type_hints(SolveFields)
    assert tuple(hints) == FIELDS
    assert SolveFields.__required_keys__ == frozenset()
    of_record = {name: field.annotation for name, field in SolveOptions.model_fields.items()}
    in_words = {"weights": Mapping[str, int] | None, "cost_model": str | uo.CostModel | None}
    assert hints == {**of_record, **in_words}


@pytest.mark.parametrize(
    "function",
    [
        uo.solve,
        uo.solver.compare,
        uo.solver.compare_instance,
        uo.prune,
        uo.prune_submodules,
        uo.PruningManager.compute,
        instance_of,
    ],
    ids=lambda function: function.__qualname__,
)
def test_everything_that_solves_takes_them(function: Callable[..., object]) -> None:
    parameters = inspect.signature(function).parameters
    assert not set(parameters) & set(FIELDS)
    assert parameters["options"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["options"].default is None
    assert parameters["fields"].kind is inspect.Parameter.VAR_KEYWORD
    assert parameters["fields"].annotation == "Unpack[SolveFields]"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"solver": "magic"}, ["unknown solver 'magic'", "cp-sat", "identity"]),
        ({"solver": None}, ["unknown solver None"]),
        ({"objective": ["gathers"]}, ["unknown objective ['gathers']"]),
        ({"selection": "whole"}, ["unknown selection 'whole'", "tensor", "segment", "arena"]),
        ({"weights": 3}, ["weights must be a dict", "int"]),
        ({"weights": {"conv": -1}}, ["'conv'", "not negative", "-1"]),
        ({"weights": {"conv": True}}, ["'conv'", "True"]),
        ({"weights": {3: 1}}, ["'conv1'", "not 3"]),
        ({"max_extra_macs": -1}, ["share", "-1"]),
        ({"max_extra_macs": math.inf}, ["share", "inf"]),
        ({"max_extra_macs": "a tenth"}, ["share", "'a tenth'"]),
        ({"max_extra_macs": 0.1, "objective": "latency"}, ["'latency'", "leave it out"]),
        ({"max_extra_macs": 0.1, "objective": "blocks"}, ["'blocks'", "leave it out"]),
        ({"cost_model": "tpu"}, ["'tpu'", "cpu-channels-last"]),
        ({"cost_model": 3}, ["CostModel", "cpu-channels-last", "int"]),
        ({"time_limit": 0}, ["time limit", "more than 0", "not 0"]),
        ({"time_limit": math.nan}, ["time limit", "nan"]),
        ({"time_limit": True}, ["time limit", "True"]),
        ({"time_limit": np.ones(2)}, ["time limit"]),
        ({"seed": 2**31}, ["seed", str(2**31)]),
        ({"workers": 1.0}, ["number of workers", "from 1", "1.0"]),
        ({"model": "arena"}, ["unknown option 'model'", "selection"]),
        ({"self": 1}, ["unknown option 'self'"]),
    ],
    ids=str,
)
def test_refused_wherever_given(
    resnet18_documents: Documents, given: dict[str, Any], words: list[str]
) -> None:
    graph, masks = resnet18_documents.graph, resnet18_documents.masks
    actions: list[Callable[[], object]] = [
        lambda: SolveOptions(**given),
        lambda: SolveOptions.of(SolveOptions(), **given),
    ]
    if "self" not in given:
        actions.append(lambda: uo.solve(graph, masks, **given))
    for action in actions:
        message = complaint(uo.SolverError, action)
        assert all(word in message for word in words), message


def test_one_record_in_place_of_fields(resnet18_documents: Documents) -> None:
    graph, masks = resnet18_documents.graph, resnet18_documents.masks
    options = SolveOptions(solver="greedy", objective="gathers", selection="segment", seed=5)
    solution = uo.solve(graph, masks, options=options, seed=7)
    assert (solution.solver, solution.objective) == ("greedy", "gathers")
    assert (solution.selection, solution.seed) == ("segment", 7)
    assert json.loads(solution.to_json())["model"] == "segment"  # as it was always written
    assert uo.Solution.from_json(solution.to_json()) == solution
    assert instance_of(graph, masks, options=options) == instance_of(
        graph, masks, objective="gathers", selection="segment"
    )
    for wrong in ({"seed": 5}, "greedy"):
        asked: Any = wrong
        message = complaint(uo.SolverError, partial(uo.solve, graph, masks, options=asked))
        assert "SolveOptions" in message
    (row,) = uo.solver.compare(graph, masks, ["identity"], options=options)
    assert (row.solver, row.objective, row.selection) == ("identity", "gathers", "segment")
    message = complaint(uo.SolverError, lambda: uo.solver.compare(graph, masks, solver="greedy"))
    assert "solvers must be a list" in message


def test_records_are_values() -> None:
    numbers: Any = {"time_limit": Fraction(5, 2), "seed": np.int8(4)}
    options = SolveOptions(weights={"conv": np.int64(3)}, **numbers)
    assert options == SolveOptions(weights={"conv": 3}, time_limit=2.5, seed=4)
    assert [type(v) for v in (options.time_limit, options.seed)] == [float, int]
    assert SolveOptions(weights={}) == SolveOptions()
    assert repr(SolveOptions(seed=3)) == "SolveOptions(seed=3)"
    assert pickle.loads(pickle.dumps(options)) == options
    assert SolveOptions(**json.loads(options.model_dump_json())) == options
    assert SolveOptions.of(options) is options
    with pytest.raises(ValueError, match="frozen"):
        options.seed = 5
    changed = SolveOptions.of(options, time_limit=math.inf)
    assert (changed.seed, changed.time_limit) == (4, math.inf)
    assert changed.weights == {"conv": 3}


def test_cost_models_by_name_or_value() -> None:
    assert SolveOptions().prices is None
    for name in PROFILES:
        assert SolveOptions(cost_model=name).prices == profile(name)
    given = SolveOptions(cost_model=profile("gpu"))
    assert given.prices == profile("gpu")
    assert SolveOptions(**given.model_dump(mode="json")) == given


def test_the_schema_names_what_there_is() -> None:
    properties = SolveOptions.model_json_schema()["properties"]
    assert properties["solver"]["enum"] == list(SOLVERS)
    assert properties["objective"]["enum"] == list(OBJECTIVES)
    assert {"enum": list(SELECTIONS), "type": "string"} in properties["selection"]["anyOf"]
    assert {"enum": list(PROFILES), "type": "string"} in properties["cost_model"]["anyOf"]


def test_the_options_of_several_solvers() -> None:
    first, second = options_of(["greedy", "cp-sat"], SolveOptions(seed=2), time_limit=3)
    assert first == SolveOptions(solver="greedy", seed=2, time_limit=3)
    assert second == SolveOptions(seed=2, time_limit=3)


def test_progress_in_words() -> None:
    assert str(Progress("trace")) == "trace"
    assert str(Progress("solve", 12000, 8)) == "solve: 12,000, at least 8"
