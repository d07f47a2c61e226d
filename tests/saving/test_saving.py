"""Save and load: the loaded model is the saved one, bit for bit, whatever it is made of."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from comparing import call, same_state, state, storages, tensors_of
from hypothesis import HealthCheck, given, settings
from network_strategies import network_and_masks
from sample_networks import documents_of, images, keep
from saving_round_trips import Exported, assert_same, prune, round_trip
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import upscale_opt as uo
from upscale_opt.models import catalogue
from upscale_opt.models.generated.masks import WeightMasks, apply_weight_masks
from upscale_opt.models.generated.networks import RandomNetwork
from upscale_opt.models.topologies import TOPOLOGIES, example_inputs
from upscale_opt.runtime.modules import Gather, PlacedSum
from upscale_opt.saving.file import unpack

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


# All sorts of networks.


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "squeezenet1_1", "mobilenet_v3_small"),
        *("regnet_y_400mf", "shufflenet_v2_x0_5", "googlenet"),
    ],
)
def test_networks(name: str, path: Path) -> None:
    documents = documents_of(name, 0.5, "both")
    pruned = uo.materialize(documents.model, documents.solution)
    definition = catalogue.build(name, seed=7).train()
    before = state(definition)
    round_trip(pruned, definition, path, images(2, 64))
    assert same_state(before, state(definition))
    assert all(module.training for module in definition.modules())


@pytest.mark.parametrize(
    ("name", "training"), [(name, number % 2 == 1) for number, name in enumerate(TOPOLOGIES)]
)
def test_topologies(name: str, training: bool, path: Path) -> None:
    """The definition is in the other mode."""
    inputs = example_inputs(name, 2)
    model = catalogue.randomize(catalogue.build(catalogue.PREFIX + name), 1, inputs)
    pruned = prune(model.train(training), inputs)
    definition = catalogue.build(catalogue.PREFIX + name, seed=3).train(not training)
    round_trip(pruned, definition, path, inputs)
    assert all(module.training != training for module in definition.modules())


def test_networks_have_what_pruning_adds() -> None:
    """The topologies cover the modules of ours."""
    kinds: set[type] = set()
    for name in TOPOLOGIES:
        inputs = example_inputs(name, 2)
        model = catalogue.randomize(catalogue.build(catalogue.PREFIX + name), 1, inputs)
        kinds.update(type(module) for module in prune(model, inputs).modules())
        if {Gather, PlacedSum} <= kinds:
            return
    raise AssertionError(kinds)


loaded_networks = 0


@settings(
    max_examples=20,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(network_and_masks())
def loads(path: Path, drawn: tuple[RandomNetwork, WeightMasks]) -> None:
    global loaded_networks
    network, masks = drawn
    definition = copy.deepcopy(network)
    with torch.no_grad():
        for tensor in definition.parameters():
            tensor.normal_()
    apply_weight_masks(network, masks)
    inputs = network.example_inputs(2)
    graph = uo.trace(network, inputs)
    solution = uo.solve(graph, uo.masks_of(network, graph))
    pruned = uo.materialize(network, solution)
    uo.save(pruned, path)
    assert_same(pruned, uo.load(definition, path), network.example_inputs(3, seed=1))
    loaded_networks += 1


def test_random_networks(path: Path) -> None:
    loads(path)
    assert loaded_networks >= 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [False, True])
def test_models_captured_by_export(training: bool, dtype: torch.dtype, path: Path) -> None:
    model = catalogue.randomize(Exported().eval(), 1).to(dtype).train(training)
    model.get_submodule("norm").eval()
    x = images(2, 8).to(dtype)
    graph = uo.trace(model, x)
    assert graph.capture == "export"
    keep(model.get_parameter("readers.0.weight"), 1, [0, 1, 2, 3])
    keep(model.get_parameter("readers.1.weight"), 1, [2, 5, 7])
    keep(model.get_parameter("readers.2.weight"), 1, [0, 3, 5, 9])
    pruned = uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))
    assert any(isinstance(module, Gather) for module in pruned.modules())
    round_trip(pruned, Exported(), path, x)


def test_programs_that_depend_on_the_mode(path: Path) -> None:
    """What the original's mode decided stays decided, whatever the modes are now."""

    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.block = Choice()
            self.extra = nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> Any:
            x = self.block(self.stem(x))
            return (x, self.extra(x)) if self.training else x

    class Choice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu() if self.training else x.tanh()

    for training in (False, True):
        for inner in (False, True):
            model = TwoHeads().train(training)
            model.block.train(inner)
            pruned = prune(model, images(2, 8)).train(not training)
            round_trip(pruned, TwoHeads().train(not training), path, images(2, 8))


# All sorts of tensors.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("late", [False, True])
def test_dtypes(dtype: torch.dtype, late: bool, path: Path) -> None:
    """Cast before pruning, or after."""
    model = catalogue.randomize(catalogue.build("topology/residual_stage"), 1)
    x = images(2, 8).to(dtype)
    pruned = prune(model, images(2, 8)).to(dtype) if late else prune(model.to(dtype), x)
    loaded = round_trip(pruned, catalogue.build("topology/residual_stage"), path, x)
    assert next(loaded.parameters()).dtype == dtype


class Rich(nn.Module):
    """Parameters, buffers and constants of all kinds."""

    table: Tensor
    mask: Tensor
    phase: Tensor
    count: Tensor
    none: Tensor
    small: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.stem = nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(8, 4, 1).double()
        self.scale = nn.Parameter(torch.rand(8, 1, 1, generator=draw))
        self.register_buffer("table", torch.rand(4, generator=draw), persistent=False)
        self.register_buffer("mask", torch.rand(4, generator=draw) < 0.5)
        self.register_buffer("phase", torch.rand(4, generator=draw).to(torch.complex128))
        self.register_buffer("count", torch.randint(9, (), generator=draw).to(torch.uint16))
        self.register_buffer("none", torch.zeros(0, 3, dtype=torch.complex64))
        self.register_buffer("small", torch.rand(3, generator=draw).to(torch.float8_e4m3fn))
        self.constant = torch.rand(8, 1, 1, generator=draw)  # neither parameter nor buffer

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x) * self.scale + self.constant
        y = self.head(x.double()) * self.table.view(-1, 1, 1)
        y = y + self.mask.view(-1, 1, 1) + self.phase.view(-1, 1, 1)
        return y, self.count, self.none, self.small.float() + torch.tensor([1.5, 2.5, 3.5])


def test_everything_that_holds_numbers_is_saved(path: Path) -> None:
    """Also what a definition draws anew, such as constants and buffers that are not persistent."""
    model = Rich(1).eval()
    pruned = prune(model, images(2, 8))
    loaded = round_trip(pruned, Rich(2).eval(), path, images(2, 8))
    names = {name for name, _ in loaded.named_buffers()}
    assert {"table", "mask", "phase", "count", "none", "small", "constant"} <= names
    dtypes = {tensor.dtype for tensor in tensors_of(loaded)}
    assert {torch.complex128, torch.uint16, torch.bool, torch.float8_e4m3fn} < dtypes
    assert "table" not in loaded.state_dict()


def test_values_that_are_no_numbers(path: Path) -> None:
    model = catalogue.build("topology/residual_stage")
    pruned = prune(model, images(2, 8))
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-42])
    with torch.no_grad():
        pruned.get_parameter("head.weight").view(-1)[:4] = odd
    round_trip(pruned, model, path, images(2, 8))


def test_tied_parameters(path: Path) -> None:
    model = catalogue.randomize(catalogue.build("topology/tied_weights"), 1)
    pruned = prune(model, images(2, 8))
    loaded = round_trip(pruned, catalogue.build("topology/tied_weights"), path, images(2, 8))
    assert loaded.get_parameter("first.weight") is loaded.get_parameter("second.weight")
    stored = unpack(path.read_bytes()).tensors
    assert "first.weight" in stored
    assert "second.weight" not in stored


def test_parameters_tied_or_untied_since(path: Path) -> None:
    """The file says what is tied, not the definition."""
    model = catalogue.randomize(catalogue.build("topology/tied_weights"), 1)
    pruned = prune(model, images(2, 8))
    twin: Any = pruned.get_submodule("second")
    with torch.no_grad():
        twin.weight = nn.Parameter(twin.weight * 2)
    round_trip(pruned, catalogue.build("topology/tied_weights"), path, images(2, 8))

    model = catalogue.randomize(catalogue.build("topology/residual_stage"), 1)
    other = prune(model, images(2, 8))
    block: Any = other.get_submodule("blocks.0.bn1")
    block.bias = block.weight
    round_trip(other, catalogue.build("topology/residual_stage"), path, images(2, 8))


def test_memory_formats(path: Path) -> None:
    """Channels last (of single channels, too), transposed, and with gaps."""

    def build() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.Conv2d(8, 6, 1),
            nn.Flatten(),
            nn.Linear(96, 5),
        ).eval()

    x = images(2, 8).contiguous(memory_format=torch.channels_last)
    pruned = prune(build().to(memory_format=torch.channels_last), x)
    depthwise: Any = pruned.get_submodule("1")
    flat = torch.empty_strided(depthwise.weight.shape, (9, 1, 3, 1)).copy_(depthwise.weight)
    depthwise.weight = nn.Parameter(flat)
    linear: Any = pruned.get_submodule("4")
    linear.weight = nn.Parameter(linear.weight.detach().t().contiguous().t())
    strides = [parameter.stride() for parameter in pruned.parameters()]
    loaded = round_trip(pruned, build(), path, x)
    assert [parameter.stride() for parameter in loaded.parameters()] == strides
    assert loaded.get_parameter("0.weight").is_contiguous(memory_format=torch.channels_last)
    assert loaded.get_parameter("1.weight").stride()[1] == 1
    assert loaded.get_parameter("4.weight").stride()[0] == 1

    bias = torch.rand(10)
    linear.bias = nn.Parameter(bias[::2])
    uo.save(pruned, path)
    loaded = uo.load(build(), path)
    assert loaded.get_parameter("4.bias").is_contiguous()
    assert torch.equal(loaded.get_parameter("4.bias"), bias[::2])
    assert torch.equal(pruned(x), loaded(x))


def test_parametrizations_and_recurrent_layers(path: Path) -> None:
    """Modules whose parameters are reached in other ways than by attribute."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = parametrizations.weight_norm(nn.Linear(6, 8))
            self.hidden = nn.Linear(8, 7)
            self.memory = nn.LSTM(7, 5, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            return self.memory(self.hidden(self.stem(x).relu()))[0]

    x = torch.randn(2, 4, 6)
    loaded = round_trip(prune(Odd().eval(), x), Odd(), path, x)
    loaded.get_submodule("memory").double().float()  # also through the list of weights it keeps
    assert torch.equal(call(loaded, x), call(uo.load(Odd(), path), x))


def test_gradient_flags_and_modes(path: Path) -> None:
    pruned = prune(catalogue.build("topology/residual_stage"), images(2, 8))
    for name, parameter in pruned.named_parameters():
        parameter.requires_grad_("blocks.1" not in name)
    pruned.train().get_submodule("blocks.0.bn1").eval()
    loaded = round_trip(pruned, catalogue.build("topology/residual_stage"), path, images(2, 8))
    assert not loaded.get_parameter("blocks.1.conv1.weight").requires_grad
    assert not loaded.get_submodule("blocks.0.bn1").training
    assert loaded.get_submodule("blocks.0.bn2").training


@pytest.mark.parametrize("there", DEVICES)
@pytest.mark.parametrize("here", DEVICES)
def test_devices(here: str, there: str, path: Path) -> None:
    """From any to any; a definition without memory gets some on the CPU."""
    name = "topology/residual_stage"
    pruned = prune(catalogue.build(name).to(here), images(2, 8).to(here))
    uo.save(pruned, path)
    loaded = uo.load(catalogue.build(name).to(there), path)
    assert {tensor.device.type for tensor in tensors_of(loaded)} == {there}
    assert_same(pruned.to(there), loaded, images(2, 8).to(there))


@pytest.mark.parametrize("name", ["resnet18", "tied_weights", "attention"])
def test_definitions_on_the_meta_device(name: str, path: Path) -> None:
    inputs = example_inputs(name) if name in TOPOLOGIES else images(2, 64)
    model = catalogue.build(catalogue.PREFIX + name if name in TOPOLOGIES else name)
    with torch.device("meta"):
        definition = TOPOLOGIES[name]() if name in TOPOLOGIES else torchvision.models.resnet18()
    round_trip(prune(model, inputs), definition, path, inputs)
    assert all(parameter.is_meta for parameter in definition.parameters())
    round_trip(prune(Rich(1).eval(), images(2, 8)), Rich(2).to("meta"), path, images(2, 8))


# What a definition may be.


@pytest.mark.parametrize("change", ["weights", "mode", "dtype", "frozen", "format"])
def test_only_the_structure_of_the_definition_matters(change: str, path: Path) -> None:
    pruned = prune(catalogue.build("topology/residual_stage"), images(2, 8))
    changes: dict[str, Callable[[nn.Module], object]] = {
        "weights": lambda model: [functional.relu_(p.data) for p in model.parameters()],
        "mode": lambda model: model.train(),
        "dtype": lambda model: model.half(),
        "frozen": lambda model: model.requires_grad_(False),
        "format": lambda model: model.to(memory_format=torch.channels_last),
    }
    definition = catalogue.build("topology/residual_stage", seed=8)
    changes[change](definition)
    before = copy.deepcopy(definition)
    round_trip(pruned, definition, path, images(2, 8))
    assert same_state(state(before), state(definition))
    assert [m.training for m in before.modules()] == [m.training for m in definition.modules()]


def test_a_definition_may_be_loaded_into_twice(path: Path) -> None:
    definition = catalogue.build("topology/residual_stage")
    pruned = prune(catalogue.randomize(copy.deepcopy(definition), 1), images(2, 8))
    uo.save(pruned, path)
    one, two = uo.load(definition, path), uo.load(definition, path)
    assert storages(one).isdisjoint(storages(two))
    assert_same(one, two, images(2, 8))
