"""Definitions that do not fit the file, and models that cannot be saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from comparing import complaint, same_state, state
from saved_network import Net, build, call_
from torch import nn

import upscale_opt as uo

# Definitions of other models.


@pytest.mark.parametrize(
    ("definition", "words"),
    [
        (lambda: torchvision.models.resnet18(), ["ResNet", "call 'conv1'", "'stem.weight'"]),
        (lambda: nn.Linear(4, 4), ["Linear"]),
        (lambda: Net(width=13), ["a Net", "channel graph differs"]),
        (lambda: Net(act=nn.GELU), ["'act'", "a GELU instead of a ReLU"]),
        (lambda: Net(act=nn.Sigmoid), ["channel graph differs"]),
        (lambda: Net(p=0.25), ["drop.p is 0.25 instead of 0.5"]),
        (lambda: Net(factor=2.0), ["mul(%", "2.0", "instead of", "0.5"]),
        (lambda: nn.Sequential(Net()), ["Sequential"]),
    ],
)
def test_other_definitions(
    definition: Callable[[], nn.Module], words: list[str], saved: Path
) -> None:
    made = definition()
    before = state(made)
    message = complaint(uo.MaterializeError, lambda: uo.load(made, saved))
    assert "a pruned Net was saved here" in message
    assert "same arguments" in message
    assert any(word in message for word in words[-1:]) or words[1:] == ["call 'conv1'", words[-1]]
    assert words[0] in message
    assert same_state(before, state(made))
    assert all(module.training for module in made.modules())


def test_settings_of_the_definition_are_compared(saved: Path) -> None:
    definition = Net()
    definition.norm.eps = 1e-3
    assert "norm.eps is 0.001 instead of 1e-05" in complaint(
        uo.MaterializeError, lambda: uo.load(definition, saved)
    )
    definition = Net()
    definition.readers[1] = nn.Conv2d(12, 8, 1, bias=False, padding=0, padding_mode="circular")
    assert "readers.1.padding_mode is 'circular' instead of 'zeros'" in complaint(
        uo.MaterializeError, lambda: uo.load(definition, saved)
    )


def test_settings_changed_before_saving_are_asked_for(tmp_path: Path) -> None:
    pruned, path = build(), tmp_path / "pruned.safetensors"
    pruned.get_submodule("drop").p = 0.1
    uo.save(pruned, path)
    assert "drop.p is 0.5 instead of 0.1" in complaint(
        uo.MaterializeError, lambda: uo.load(Net(), path)
    )
    assert torch.equal(call_(uo.load(Net(p=0.1), path)), call_(pruned))


def test_tensors_of_the_definition_have_other_shapes(tmp_path: Path) -> None:
    """In modules that are not understood, the channel graph does not show it."""
    path = tmp_path / "pruned.safetensors"

    class DropPath(nn.Sequential):
        """Modules of this name are one call, and two layers in one are not understood."""

    def model(hidden: int) -> nn.Module:
        return nn.Sequential(DropPath(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 6))).eval()

    pruned = uo.prune(model(4), torch.zeros(1, 3, 6))
    uo.save(pruned.model, path)
    assert same_state(state(uo.load(model(4), path)), state(pruned.model))
    assert "'0.0.weight' gets (5, 6) instead of (4, 6)" in complaint(
        uo.MaterializeError, lambda: uo.load(model(5), path)
    )


@pytest.mark.parametrize("given", [torchvision.models.resnet18, Net, None, {}])
def test_what_is_no_definition(given: Any, saved: Path) -> None:
    message = complaint(uo.MaterializeError, lambda: uo.load(given, saved))
    assert "not a module" in message
    assert "resnet18()" in message


def test_a_definition_in_the_way_does_not_matter_for_a_bad_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"nothing")
    complaint(uo.SchemaError, lambda: uo.load(nn.Linear(2, 2), path))


# Models that cannot be saved.


@pytest.mark.parametrize(
    "model", [Net(), nn.Sequential(build()), torch.fx.symbolic_trace(Net()), None, "pruned"]
)
def test_what_is_no_pruned_model(model: Any, tmp_path: Path) -> None:
    message = complaint(uo.MaterializeError, lambda: uo.save(model, tmp_path / "no.safetensors"))
    assert type(model).__name__ in message
    assert "materialize or prune" in message
    assert not list(tmp_path.iterdir())


class Extra(nn.Conv2d):
    """Has more state than tensors."""

    def get_extra_state(self) -> Any:
        return {"some": object()}


def replace_head(model: Any) -> None:
    model.head = nn.Conv2d(8, 10, 1)


def append_parameter(model: Any) -> None:
    """To a module that the program calls, which may use it."""
    model.head.more = nn.Parameter(torch.zeros(2))


def drop_bias(model: Any) -> None:
    model.head.bias = None


def edit_program(model: Any) -> None:
    graph: torch.fx.Graph = model.graph
    (output,) = (node for node in graph.nodes if node.op == "output")
    with graph.inserting_before(output):
        more = graph.call_function(torch.neg, (output.args[0],))
    output.args = (more,)
    model.recompile()


def extra_state(model: Any) -> None:
    made = Extra(8, 4, 1)
    made.load_state_dict(model.head.state_dict(), strict=False)
    model.head = made


def sparse_weight(model: Any) -> None:
    model.head.weight = nn.Parameter(model.head.weight.detach().to_sparse())


def odd_dtype(model: Any) -> None:
    odd = torch.zeros(4, dtype=torch.uint8).view(torch.bits8)
    model.head.bias = nn.Parameter(odd, requires_grad=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (replace_head, ["'head.weight'", "(10, 8, 1, 1)", "(4, 8, 1, 1)", "solution"]),
        (append_parameter, ["'head.more'", "did not exist", "(2,)"]),
        (drop_bias, ["'head.bias'", "is gone", "(4,)"]),
        (edit_program, ["program was edited", "neg(%"]),
        (extra_state, ["'head'", "Extra", "extra state", "torch.save"]),
        (sparse_weight, ["'head.weight'", "sparse"]),
        (odd_dtype, ["'head.bias'", "bits8"]),
        (lambda model: model.to("meta"), ["'stem.weight'", "meta device"]),
    ],
)
def test_models_changed_since(
    change: Callable[[Any], None], words: list[str], tmp_path: Path
) -> None:
    pruned = build()
    change(pruned)
    message = complaint(uo.MaterializeError, lambda: uo.save(pruned, tmp_path / "no.safetensors"))
    assert all(word in message for word in words), message
    assert not list(tmp_path.iterdir())
