"""Bad input: one clear error of ours each, that names the thing at fault."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparing import complaint
from sample_networks import Documents, built, images, keep
from torch import nn

import upscale_opt as uo
from upscale_opt.errors import ArgumentError, UpscaleError
from upscale_opt.models import catalogue
from upscale_opt.models.topologies import UNTRACEABLE


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    ).eval()


X = torch.ones(1, 3, 8, 8)


def test_every_error_is_ours() -> None:
    of_values = set()
    for name in uo.__all__:
        if name.endswith("Error"):
            error = getattr(uo, name)
            assert issubclass(error, UpscaleError)
            if issubclass(error, ValueError):
                of_values.add(name.removesuffix("Error"))
    wanted = {"Argument", "Budget", "Deploy", "Mask", "Materialize", "Rule", "Solver", "Trace"}
    assert of_values == wanted


def test_bad_arguments_are_value_errors() -> None:
    graph = uo.trace(net(), X)
    masks = uo.Masks(kept={})
    wrong: Any = 3
    actions: list[Callable[[], object]] = [
        lambda: uo.Masks(kept=wrong),
        lambda: uo.solve(wrong, masks),
        lambda: uo.solve(graph, wrong),
        lambda: uo.solve(graph, masks, solver="magic"),
        lambda: uo.check(wrong, graph, masks),
        lambda: uo.explain(wrong),
        lambda: uo.explain(uo.solve(graph, masks), "nobody"),
        lambda: uo.trace(wrong, X),
        lambda: uo.trace(net(), {1, 2}),  # type: ignore[arg-type]
        lambda: uo.masks_of(wrong, graph),
        lambda: uo.choose_masks(net(), graph, 1.5),
        lambda: uo.choose_masks(net(), graph, 0.5, criterion=wrong),
        lambda: uo.materialize(wrong, uo.solve(graph, masks)),
        lambda: uo.materialize(net(), wrong),
        lambda: uo.save(wrong, "nowhere"),
        lambda: uo.deploy(wrong, X, "nowhere.pt2"),
        lambda: uo.deploy(net(), X, "nowhere.gif"),
        lambda: uo.prune(net(), X, amount=0.5, masks=masks),
        lambda: uo.PruningManager(wrong),
        lambda: uo.rule(wrong),
        lambda: uo.rules.check_rules(wrong, X),
        lambda: uo.prune_submodules(wrong, X),
        lambda: uo.prune_submodules(net(), X, wrong),
        lambda: uo.prune_submodules(net(), X, "0"),
        lambda: uo.measuring.moved_bytes(wrong, X),
        lambda: uo.measuring.count_costs(wrong, X),
        lambda: uo.measuring.estimate(wrong, X, wrong),
        lambda: uo.measuring.estimate(net(), X, wrong),
        lambda: catalogue.build("resnet5"),
    ]
    for action in actions:
        with pytest.raises(ValueError, match=r".") as caught:
            action()
        assert isinstance(caught.value, UpscaleError)


def test_what_is_read_is_no_argument(tmp_path: Path) -> None:
    """A bad file is no ValueError, nor is a document read from JSON."""
    (tmp_path / "masks.json").write_text('{"kept": 3}')
    for read in (
        partial(uo.Masks.load, tmp_path / "masks.json"),
        partial(uo.Masks.from_json, '{"kept": 3}'),
    ):
        with pytest.raises(uo.SchemaError) as caught:
            read()
        assert not isinstance(caught.value, ValueError)


# Masks.


def test_masks_for_another_graph(resnet18_documents: Documents) -> None:
    graph = uo.trace(net(), X)
    message = complaint(uo.MaskError, lambda: uo.solve(graph, resnet18_documents.masks))
    assert "another graph" in message
    assert "'conv1.weight'" in message


def test_a_model_for_another_graph(resnet18_documents: Documents) -> None:
    graph = resnet18_documents.graph
    message = complaint(uo.MaskError, lambda: uo.masks_of(net(), graph))
    assert "another model" in message
    assert "'bn1.bias'" in message or "'conv1.weight'" in message
    assert "no parameter" in complaint(uo.MaskError, lambda: uo.choose_masks(net(), graph, 0.5))


def test_a_model_of_another_width() -> None:
    graph = uo.trace(net(), X)
    wider = nn.Sequential(nn.Conv2d(3, 9, 1), nn.BatchNorm2d(9), nn.ReLU(), nn.Conv2d(9, 4, 1))
    message = complaint(uo.MaskError, lambda: uo.masks_of(wider, graph))
    assert "(9, 3, 1, 1)" in message or "(9,)" in message
    assert "trace the model again" in message


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ({"3.weight": {1: (0, 8)}}, ["index 8", "axis 1", "'3.weight'", "8 slices"]),
        ({"3.weight": {1: (0, 10**9)}}, ["index 1000000000", "axis 1", "'3.weight'"]),
        ({"3.weight": {2: (0,)}}, ["axis 2", "'3.weight'", "0, 1"]),
        ({"3.weight": {-1: (0,)}}, ["axis -1", "'3.weight'"]),
        ({"3.weight": {1: (2, 2)}}, ["twice", "axis 1", "'3.weight'"]),
        ({"nowhere.weight": {0: (0,)}}, ["'nowhere.weight'", "another model"]),
    ],
)
def test_masks_that_do_not_fit(
    kept: dict[str, dict[int, tuple[int, ...]]], words: list[str]
) -> None:
    model = net()
    graph = uo.trace(model, X)
    masks = uo.Masks(kept=kept)
    before = copy.deepcopy(model.state_dict())
    actions: list[Callable[[], object]] = [
        lambda: masks.check(graph),
        lambda: uo.solve(graph, masks),
        lambda: uo.apply_masks(model, graph, masks),
        lambda: uo.prune(model, X, masks=masks),
    ]
    for action in actions:
        message = complaint(uo.MaskError, action)
        assert all(word in message for word in words)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_masks_of_a_parameter_without_channels() -> None:
    data = json.loads(uo.trace(model := net(), X).to_json())
    for operation in data["operations"]:
        operation.pop("bias", None)
    graph = uo.ChannelGraph.from_json(json.dumps(data))
    masks = uo.Masks(kept={"0.bias": {0: (1,)}})
    for action in (lambda: uo.solve(graph, masks), lambda: uo.apply_masks(model, graph, masks)):
        message = complaint(uo.MaskError, action)
        assert "axis 0 of '0.bias'; its channel axes are none" in message


@pytest.mark.parametrize(
    "kept",
    [
        {"w": {0: [True, False]}},
        {"w": {0: [0.0]}},
        {"w": {0: np.array([1.0])}},
        {"w": {0: np.array([True])}},
        {"w": {0: [np.int64(-1)]}},
        {"w": {0: torch.ones(2, dtype=torch.bool)}},
        {"w": {0: {1, 2}}},
        {"w": {0: "3-1"}},
        {"w": {0: None}},
        {"w": [0]},
        {3: {0: [1]}},
        [1],
        None,
    ],
    ids=repr,
)
def test_masks_of_something_else(kept: Any) -> None:
    assert "not valid masks: kept" in complaint(uo.SchemaError, lambda: uo.Masks(kept=kept))


@pytest.mark.parametrize(
    "kept", [[np.int64(1), 3], np.array([1, 3]), torch.tensor([1, 3]), (1, np.uint8(3))]
)
def test_masks_of_numpys_numbers(kept: Any) -> None:
    masks = uo.Masks(kept={"w": {0: kept}})
    assert masks == uo.Masks(kept={"w": {0: (1, 3)}})
    assert {type(index) for index in masks.kept["w"][0]} == {int}
    assert uo.Masks.from_json(masks.to_json()) == masks


def test_documents_made_in_python_have_errors_of_one_line() -> None:
    wrong: Any = {"kept": {}, "surprise": 1}
    assert "surprise: unknown field" in complaint(uo.SchemaError, lambda: uo.Masks(**wrong))
    graph = uo.trace(net(), X)
    fields = {name: getattr(graph, name) for name in type(graph).model_fields}
    fields["spaces"] = ()
    message = complaint(uo.SchemaError, lambda: uo.ChannelGraph(**fields))
    assert "not a valid channel graph: channel 0" in message


@pytest.mark.parametrize("amount", [1.5, 1.0, -0.1, float("nan"), float("inf")])
def test_amounts(amount: float) -> None:
    model = net()
    graph = uo.trace(model, X)
    for action in (
        lambda: uo.choose_masks(model, graph, amount),
        lambda: uo.prune(model, X, amount=amount),
    ):
        assert str(amount) in complaint(uo.MaskError, action)


def test_sides_and_layers() -> None:
    model = net()
    graph = uo.trace(model, X)
    wrong: Any = "sideways"
    by_side = complaint(uo.MaskError, lambda: uo.choose_masks(model, graph, 0.5, side=wrong))
    by_layers = complaint(uo.MaskError, lambda: uo.choose_masks(model, graph, 0.5, layers=wrong))
    assert "side must be" in by_side
    assert "layers must be" in by_layers
    assert "'sideways'" in by_side
    assert "'sideways'" in by_layers


# Solving.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"solver": "gurobi"}, ["unknown solver 'gurobi'", "cp-sat", "greedy", "identity"]),
        ({"objective": "energy"}, ["unknown objective 'energy'", "copied_channels"]),
        ({"time_limit": 0}, ["time limit", "more than 0", "not 0"]),
        ({"time_limit": -1.0}, ["time limit", "-1"]),
        ({"time_limit": float("nan")}, ["time limit", "nan"]),
        ({"time_limit": "1"}, ["time limit", "'1'"]),
        ({"seed": 1.5}, ["seed", "whole number from 0", "1.5"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"seed": True}, ["seed", "True"]),
    ],
)
def test_solver_options(options: dict[str, Any], words: list[str]) -> None:
    model = net()
    graph = uo.trace(model, X)
    masks = uo.masks_of(model, graph)
    for action in (
        lambda: uo.solve(graph, masks, **options),
        lambda: uo.prune(model, X, **options),
    ):
        message = complaint(uo.SolverError, action)
        assert all(word in message for word in words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 0}, ["number of workers", "from 1", "not 0"]),
        ({"weights": 3}, ["weights must be a dict", "int"]),
    ],
)
def test_options_of_solve_alone(options: dict[str, Any], words: list[str]) -> None:
    graph = uo.trace(model := net(), X)
    masks = uo.masks_of(model, graph)
    for action in (uo.solve, uo.solver.compare):
        message = complaint(uo.SolverError, partial(action, graph, masks, **options))
        assert all(word in message for word in words)


@pytest.mark.parametrize("solvers", ["greedy", [], ()])
def test_solvers_to_compare_are_a_list(solvers: Any) -> None:
    graph = uo.trace(model := net(), X)
    masks = uo.masks_of(model, graph)
    message = complaint(uo.SolverError, lambda: uo.solver.compare(graph, masks, solvers=solvers))
    assert "list" in message
    assert repr(solvers) in message


# Arguments that are something else.


@pytest.mark.parametrize("wrong", [{}, None, "graph.json"])
def test_arguments_that_are_no_documents(wrong: Any) -> None:
    model = net()
    graph = uo.trace(model, X)
    masks = uo.masks_of(model, graph)
    solution = uo.solve(graph, masks)
    actions: dict[str, list[Callable[[], object]]] = {
        "(ChannelGraph)": [
            lambda: uo.solve(wrong, masks),
            lambda: uo.solver.compare(wrong, masks),
            lambda: uo.groups(wrong),
            lambda: uo.constrain(wrong, masks),
            lambda: uo.solver.removal(wrong, masks, solution),
            lambda: uo.apply_masks(model, wrong, masks),
            lambda: uo.masks_of(model, wrong),
            lambda: masks.check(wrong),
            lambda: uo.check(solution, wrong, masks),
        ],
        "(Masks)": [
            lambda: uo.solve(graph, wrong),
            lambda: uo.solver.compare(graph, wrong),
            lambda: uo.constrain(graph, wrong),
            lambda: uo.solver.removal(graph, wrong, solution),
            lambda: uo.apply_masks(model, graph, wrong),
            lambda: uo.check(solution, graph, wrong),
        ],
        "(Solution)": [
            lambda: uo.solver.removal(graph, masks, wrong),
            lambda: uo.materialize(model, wrong),
        ],
    }
    for kind, calls in actions.items():
        for action in calls:
            message = complaint(uo.SchemaError, action)
            assert kind in message
            assert ("None" if wrong is None else type(wrong).__name__) in message


def test_arguments_that_are_no_models() -> None:
    graph: Any = uo.trace(model := net(), X)
    masks = uo.masks_of(model, graph)
    solution = uo.solve(graph, masks)
    for error, action in (
        (uo.MaskError, lambda: uo.apply_masks(graph, graph, masks)),
        (uo.MaskError, lambda: uo.masks_of(graph, graph)),
        (uo.MaterializeError, lambda: uo.materialize(graph, solution)),
        (uo.VerificationError, lambda: uo.verify(graph, model, X)),
        (uo.VerificationError, lambda: uo.verify(model, graph, X)),
    ):
        assert "ChannelGraph" in complaint(error, action)


# Materialising.


def test_a_solution_for_another_model(resnet18_documents: Documents) -> None:
    solution = resnet18_documents.solution
    model = catalogue.build("resnet34")
    message = complaint(uo.MaterializeError, lambda: uo.materialize(model, solution))
    assert "another model" in message
    assert "ResNet" in message


def test_a_solution_for_a_model_that_does_not_take_its_inputs(
    resnet18_documents: Documents,
) -> None:
    message = complaint(
        uo.MaterializeError,
        lambda: uo.materialize(nn.Linear(4, 4).eval(), resnet18_documents.solution),
    )
    assert "another model" in message
    assert "Linear" in message


def test_a_solution_for_other_masks(resnet18_documents: Documents) -> None:
    unmasked, _ = built("resnet18")
    message = complaint(
        uo.MaterializeError, lambda: uo.materialize(unmasked, resnet18_documents.solution)
    )
    assert "not zero" in message
    assert "apply_masks" in message


def test_a_model_with_more_zeros_than_its_solution_is_fine() -> None:
    model = net()
    solution = uo.solve(graph := uo.trace(model, X), uo.masks_of(model, graph))
    keep(model.get_parameter("3.weight"), 1, [0])
    assert uo.verify(model, uo.materialize(model, solution), X).float64_error < 1e-10


def tampered(change: Callable[[dict[str, Any]], None]) -> tuple[nn.Module, uo.Solution]:
    model = net()
    keep(model.get_parameter("3.weight"), 1, [1, 2, 5])
    graph = uo.trace(model, X)
    solution = uo.solve(graph, uo.masks_of(model, graph))
    data = json.loads(solution.to_json())
    change(data)
    return model, uo.Solution.from_json(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda d: d["parameters"]["0.weight"].update({"0": "0-7"}), "0.weight"),
        (lambda d: d["parameters"]["0.weight"].update({"0": "1,2,9"}), "0.weight"),
        (lambda d: d["parameters"]["0.weight"].update({"7": "1"}), "0.weight"),
        (lambda d: d["parameters"]["3.weight"].update({"1": "2,1,5"}), "3.weight"),
        (lambda d: d["parameters"].pop("1.weight"), "1.weight"),
        (lambda d: d["parameters"].update({"5.weight": {"0": "1"}}), "5.weight"),
        (lambda d: d["tensors"].pop("_0"), "_0"),
        (lambda d: d["tensors"].update({"_0": "1,2"}), "_0"),
        (lambda d: d["tensors"].update({"_0": "1,2,99"}), "_0"),
        (lambda d: d["reads"].clear(), ""),
        (lambda d: d["reads"][-1].update(channels="1"), "_3"),
    ],
    ids=[
        "kept more",
        "index out of range",
        "axis out of range",
        "wrong order",
        "norm not cut",
        "unknown parameter",
        "no tensor",
        "lost channel",
        "channel out of range",
        "no reads",
        "narrower read",
    ],
)
def test_a_solution_that_was_tampered_with(
    change: Callable[[dict[str, Any]], None], word: str
) -> None:
    """It is refused, or what comes out is still right; never a crash or a silent loss."""
    model, solution = tampered(change)
    caught: UpscaleError | None = None
    try:
        pruned = uo.materialize(model, solution)
    except UpscaleError as error:
        caught = error
    if caught is None:
        assert uo.verify(model, pruned, X).float64_error < 1e-10
    else:
        assert word in str(caught)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: e.update(dtype="nn"), "'nn' is not a dtype"),
        (lambda e: e.update(dtype="quint8"), "'quint8' is not a dtype"),
        (lambda e: e.update(shape=[-1, 3, 8, 8]), "(-1, 3, 8, 8) is not a shape"),
        (lambda e: e.update(shape=[2**40, 3, 8, 8]), "more than 1,073,741,824 numbers"),
        (lambda e: e.update(shape=[2**70, 0, 2**70]), "cannot be made"),
    ],
)
def test_a_solution_with_impossible_inputs(
    change: Callable[[dict[str, Any]], None], words: str
) -> None:
    model, solution = tampered(lambda d: change(d["example"]["items"][0]))
    message = complaint(uo.MaterializeError, lambda: uo.materialize(model, solution))
    assert "the solution is damaged" in message
    assert words in message


# Tracing and verifying.


def test_an_untraceable_model() -> None:
    model = UNTRACEABLE["data_dependent"]().eval()
    for action in (lambda: uo.trace(model, X), lambda: uo.prune(model, X, amount=0.5)):
        assert "DataDependent cannot be traced" in complaint(uo.TraceError, action)


def test_a_model_that_raises() -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ZeroDivisionError("this model is broken")

    assert "this model is broken" in complaint(uo.TraceError, lambda: uo.trace(Broken(), X))


def test_verifying_different_models() -> None:
    one, two = net(), net()
    message = complaint(uo.VerificationError, lambda: uo.verify(one, two, X))
    assert "float64" in message
    shapes = nn.Sequential(*one[:3], nn.Conv2d(8, 5, 1))
    assert "shape (1, 5, 8, 8) instead of (1, 4, 8, 8)" in complaint(
        uo.VerificationError, lambda: uo.verify(one, shapes, X)
    )


def test_verifying_another_structure_of_outputs() -> None:
    class Tuple(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.inner(x),)

    one = net()
    complaint(uo.VerificationError, lambda: uo.verify(one, Tuple(one), X))


def test_verifying_with_inputs_that_no_model_takes() -> None:
    for inputs in (torch.ones(1, 4, 8, 8), X.long()):
        message = complaint(uo.VerificationError, partial(uo.verify, net(), net(), inputs))
        assert "the masked model does not run on these inputs in float32" in message


def test_verifying_what_is_not_finite() -> None:
    message = complaint(
        uo.VerificationError, lambda: uo.verify(net(), net(), torch.full((1, 3, 8, 8), torch.inf))
    )
    assert "not finite" in message
    assert "other inputs" in message


def test_verifying_a_model_that_became_not_a_number() -> None:
    model, broken = net(), net()
    with torch.no_grad():
        broken.get_parameter("3.bias").fill_(torch.nan)
    assert "nan" in complaint(uo.VerificationError, lambda: uo.verify(model, broken, X))


# Files and names.


@pytest.mark.parametrize("kind", [uo.ChannelGraph, uo.Masks, uo.Solution])
def test_truncated_files(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "half.json"
    path.write_text('{"schema_version": 1, "ca')
    message = complaint(uo.SchemaError, lambda: kind.load(path))
    assert "half.json" in message
    assert kind.what in message


def test_an_unknown_network() -> None:
    assert "resnet50" in complaint(ArgumentError, lambda: catalogue.build("resnet5"))
    assert "`upscale-opt models` lists" in complaint(
        uo.ArgumentError, lambda: catalogue.build("zzz")
    )


def test_amount_and_masks_at_once() -> None:
    with pytest.raises(uo.MaskError, match="one of amount, budget and masks"):
        uo.prune(net(), X, amount=0.5, masks=uo.Masks(kept={}))


def test_verify_catches_other_weights_of_one_architecture(resnet18_documents: Documents) -> None:
    other = copy.deepcopy(resnet18_documents.model)
    with torch.no_grad():
        other.get_parameter("fc.bias")[0] += 1e-6
    complaint(
        uo.VerificationError, lambda: uo.verify(resnet18_documents.model, other, images(1, 64))
    )


def test_an_attribute_that_does_not_exist() -> None:
    with pytest.raises(AttributeError, match="no attribute 'pruen'"):
        _ = uo.pruen
