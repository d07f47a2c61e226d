"""Save and load: the loaded model is the saved one, bit for bit, whatever it is made of."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from helpers import (
    call,
    cast,
    documents_of,
    images,
    keep,
    same_state,
    size,
    state,
    storages,
    tensors_of,
)
from hypothesis import HealthCheck, given, settings
from strategies import network_and_masks
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils import _pytree as pytree

import upscale_opt as uo
from upscale_opt.models import catalogue
from upscale_opt.models.random_masks import WeightMasks, apply_weight_masks
from upscale_opt.models.random_networks import RandomNetwork
from upscale_opt.models.topologies import TOPOLOGIES, example_inputs
from upscale_opt.modules import Gather, PlacedSum
from upscale_opt.origin import calls_of, registered
from upscale_opt.pruned_file import unpack
from upscale_opt.pruned_module import PrunedModule, replace
from upscale_opt.tracing.examples import Inputs

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    torch.manual_seed(5)  # for models in training mode
    return [leaf for leaf in pytree.tree_leaves(call(model, inputs)) if isinstance(leaf, Tensor)]


def same_bits(left: Tensor, right: Tensor) -> bool:
    """NaN is NaN, and -0.0 is not 0.0."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    one, other = (t.detach().cpu().contiguous().reshape(-1) for t in (left, right))
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def ties(model: nn.Module) -> list[list[str]]:
    """The names that each parameter or buffer has."""
    names: dict[int, list[str]] = {}
    for pairs in (
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    ):
        for name, tensor in pairs:
            names.setdefault(id(tensor), []).append(name)
    return list(names.values())


def assert_same(saved: PrunedModule, loaded: PrunedModule, inputs: Inputs | None = None) -> None:
    """Whatever can be seen of the two is the same."""
    assert repr(loaded) == repr(saved)
    assert type(loaded).__name__ == type(saved).__name__
    assert ties(loaded) == ties(saved)
    for name, parameter in saved.named_parameters():
        assert loaded.get_parameter(name).requires_grad == parameter.requires_grad, name
        assert loaded.get_parameter(name).is_leaf
    for (name, module), (other, twin) in zip(
        saved.named_modules(), loaded.named_modules(), strict=True
    ):
        assert name == other
        assert module.training == twin.training, name
    assert calls_of(saved.graph) == calls_of(loaded.graph)
    for tensor, copied in zip(tensors_of(saved), tensors_of(loaded), strict=True):
        assert same_bits(tensor, copied)
        assert tensor.stride() == copied.stride()
    if inputs is not None:
        expected = outputs(copy.deepcopy(saved), inputs)
        actual = outputs(copy.deepcopy(loaded), inputs)
        assert len(expected) == len(actual)
        assert all(map(same_bits, expected, actual))


def prune(model: nn.Module, inputs: Inputs, amount: float = 0.5) -> PrunedModule:
    """Prune by magnitude, without checks; a model in training mode, too."""
    model = copy.deepcopy(model)
    graph = uo.trace(model, inputs)
    uo.apply_masks(model, graph, uo.magnitude_masks(model, graph, amount, "both"))
    return uo.materialize(model, uo.solve(graph, uo.Masks.from_model(model, graph)))


def round_trip(
    pruned: PrunedModule, definition: nn.Module, path: Path, inputs: Inputs | None = None
) -> PrunedModule:
    """Save, load, compare; and save and load what was loaded."""
    uo.save(pruned, path)
    loaded = uo.load(definition, path)
    assert_same(pruned, loaded, inputs)
    assert loaded.solution == pruned.solution
    assert loaded.origin == pruned.origin
    assert storages(loaded).isdisjoint(storages(definition))
    again = path.with_name("again.safetensors")
    uo.save(loaded, again)
    one, two = unpack(path.read_bytes()), unpack(again.read_bytes())
    assert (one.solution, one.manifest) == (two.solution, two.manifest)
    assert one.tensors.keys() == two.tensors.keys()
    assert all(same_bits(one.tensors[name], two.tensors[name]) for name in one.tensors)
    return loaded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pruned.safetensors"


# All sorts of networks.


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "densenet121", "mobilenet_v3_small", "efficientnet_b0"),
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


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", TOPOLOGIES)
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
    assert {Gather, PlacedSum} <= kinds


loaded_networks = 0


@settings(
    max_examples=80,
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
    solution = uo.solve(graph, uo.Masks.from_model(network, graph))
    pruned = uo.materialize(network, solution)
    uo.save(pruned, path)
    assert_same(pruned, uo.load(definition, path), network.example_inputs(3, seed=1))
    loaded_networks += 1


def test_random_networks(path: Path) -> None:
    loads(path)
    assert loaded_networks >= 80


class Exported(nn.Module):
    """FX gives up at the ``if``; the program that torch.export makes has constants of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.readers = nn.ModuleList(nn.Conv2d(12, 6, 1) for _ in range(3))
        self.drop = nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Any:
        if x.mean(dim=(1, 2, 3)).numel() < 1:
            return x
        x = self.norm(self.stem(x)).relu() * torch.tensor([0.5], dtype=x.dtype)
        y = self.readers[0](x)
        for reader in self.readers[1:]:
            y = y + reader(x)
        return self.drop(y) + torch.arange(6, dtype=x.dtype).view(1, -1, 1, 1)


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
    pruned = uo.materialize(model, uo.solve(graph, uo.Masks.from_model(model, graph)))
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


# The pruned model's life before and after.


def test_what_prune_returns_can_be_saved(path: Path) -> None:
    model = catalogue.randomize(catalogue.build("topology/unet"), 1)
    pruned = uo.prune(model, images(2, 8), amount=0.5)
    uo.save(pruned, str(path))
    assert isinstance(pruned.model, PrunedModule)
    assert_same(pruned.model, uo.load(model, str(path)), images(2, 8))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_can_be_saved(how: str, path: Path) -> None:
    model = catalogue.randomize(catalogue.build("topology/residual_stage"), 1)
    pruned: Any = prune(model, images(2, 8))
    if how == "deepcopy":
        copied = copy.deepcopy(pruned)
    else:
        buffer = io.BytesIO()
        torch.save(pruned, buffer)
        buffer.seek(0)
        copied = torch.load(buffer, weights_only=False)
    assert (copied.solution, copied.origin) == (pruned.solution, pruned.origin)
    round_trip(copied, model, path, images(2, 8))


def double_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 2


def test_hooks_come_from_the_definition(path: Path) -> None:
    seen: list[Tensor] = []

    class Watcher:
        def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
            seen.append(output)

    def build() -> nn.Module:
        model = catalogue.build("topology/residual_stage", seed=4)
        model.get_submodule("stem").register_forward_hook(double_output)
        return model

    uo.save(prune(build(), images(2, 8)), path)
    definition = build()
    definition.register_forward_hook(Watcher())
    loaded = uo.load(definition, path)
    seen.clear()
    out = call(loaded, images(2, 8))
    assert len(seen) == 1
    assert seen[0] is out
    assert torch.equal(out, call(uo.load(build(), path), images(2, 8)))


def train_a_little(model: nn.Module, inputs: Inputs) -> None:
    """One step of fine-tuning, in training mode; then in evaluation mode."""
    results = [leaf for leaf in pytree.tree_leaves(model.train()(inputs)) if leaf.requires_grad]
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    torch.autograd.backward(torch.stack([leaf.square().mean() for leaf in results]).sum())
    optimizer.step()
    optimizer.zero_grad()
    model.eval()


def test_a_pruned_model_pruned_again(path: Path) -> None:
    """It is loaded into the original, or into the model pruned once."""
    model = catalogue.randomize(catalogue.build("topology/residual_stage"), 1)
    once = prune(model, images(2, 8), 0.3)
    uo.save(once, path.with_name("once.safetensors"))
    twice = prune(once, images(2, 8), 0.3)
    assert size(twice) < size(once)
    assert [stage.solution for stage in twice.earlier] == [once.solution]
    definition = catalogue.build("topology/residual_stage")
    loaded = round_trip(twice, definition, path, images(2, 8))
    assert loaded.earlier == twice.earlier
    first = uo.load(definition, path.with_name("once.safetensors"))
    assert first.earlier == ()
    round_trip(twice, first, path, images(2, 8))
    round_trip(twice, once, path, images(2, 8))


def prune_in_place(model: nn.Module, inputs: Inputs, amount: float) -> None:
    manager = uo.MaskingManager(model, side="both", inputs=inputs, layers="all")
    manager.importance()
    manager.mask(amount)
    uo.PruningManager(model).compute(inputs).prune()


@pytest.mark.parametrize(
    "name", ["resnet18", "topology/dense_block", "topology/residual_stage", "topology/unet"]
)
def test_models_pruned_in_place_again_and_again(name: str, path: Path) -> None:
    """Prune, fine-tune, and prune further: every file loads into the original definition."""
    inputs = images(2, 32 if name == "resnet18" else 8)
    model = catalogue.randomize(catalogue.build(name), 1, inputs)
    sizes = [size(model)]
    before: nn.Module = catalogue.build(name, seed=3)
    for turn in range(1, 4):
        prune_in_place(model, inputs, 0.2)
        train_a_little(model, inputs)
        sizes.append(size(model))
        assert isinstance(model, PrunedModule)
        assert len(model.earlier) == turn - 1
        added = {n for n, m in model.named_modules() if isinstance(m, (Gather, PlacedSum))}
        used = {str(node.target) for node in model.graph.nodes}
        assert added <= used | {name.rpartition(".")[0] for name in used}
        uo.save(model, path)
        loaded = uo.load(catalogue.build(name, seed=7), path)
        assert sizes[-1] == size(loaded) < sizes[-2]
        assert all(map(same_bits, outputs(loaded, inputs), outputs(model, inputs)))
        assert same_state(state(loaded), state(model))
        assert (loaded.earlier, loaded.origin) == (model.earlier, model.origin)
        step = uo.load(before, path)  # what was loaded before, too
        assert all(map(same_bits, outputs(step, inputs), outputs(model, inputs)))
        before = step
        copied = pickled(model) if turn % 2 else copy.deepcopy(model)
        assert (copied.earlier, copied.solution) == (model.earlier, model.solution)
        uo.save(copied, path)
        again = unpack(path.read_bytes())
        assert again.manifest.earlier == loaded.earlier
        assert_same(loaded, uo.load(catalogue.build(name), path), inputs)


def pickled(model: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_topologies_pruned_twice(name: str, path: Path) -> None:
    """With and without what the first pruning added being read by the second."""
    inputs = example_inputs(name, 2)
    model = catalogue.randomize(catalogue.build(catalogue.PREFIX + name), 1, inputs)
    replace(model, prune(model, inputs, 0.3))
    replace(model, prune(model, inputs, 0.3))
    uo.save(model, path)
    loaded = uo.load(catalogue.build(catalogue.PREFIX + name, seed=3), path)
    assert len(loaded.earlier) == 1
    assert all(map(same_bits, outputs(loaded, inputs), outputs(model, inputs)))


@pytest.mark.parametrize("in_place", [False, True])
def test_models_captured_by_export_pruned_again(in_place: bool, path: Path) -> None:
    model: Any = catalogue.randomize(Exported().eval(), 1)
    x = images(2, 8)
    for turn in range(3):
        pruned = prune(model, x, 0.25)
        if in_place:
            replace(model, pruned)
        else:
            model = pruned
        train_a_little(model, x)
        uo.save(model, path)
        loaded = uo.load(Exported(), path)
        assert [stage.solution.capture for stage in loaded.earlier] == (["export"] + ["fx"] * 5)[
            :turn
        ]
        assert torch.equal(call(loaded, x), call(model, x))
        round_trip(loaded, Exported(), path, x)


def test_stages_of_several_dtypes_modes_and_kinds(path: Path) -> None:
    """Each stage is repeated as it was."""
    name = "topology/residual_stage"
    model = catalogue.randomize(catalogue.build(name), 1)
    x = images(2, 8)
    once = prune(model.double().train(), x.double(), 0.3).half().eval()
    once.get_submodule("blocks.0.bn1").train()
    graph = uo.trace(once, x.half())
    uo.apply_masks(once, graph, uo.magnitude_masks(once, graph, 0.3, "both"))
    solution = uo.solve(graph, uo.Masks.from_model(once, graph))
    twice = uo.materialize(once, solution, gather_views=True).float()
    loaded = round_trip(twice, catalogue.build(name), path, x)
    assert [stage.origin.dtype for stage in loaded.earlier] == ["float64"]
    assert loaded.origin is not None
    assert loaded.origin.dtype == "float16"
    assert loaded.origin.gather_views


def test_a_pruned_model_edited_and_pruned_again(path: Path) -> None:
    """What was edited cannot be repeated; the edited model is the definition."""
    model = catalogue.randomize(catalogue.build("topology/residual_stage"), 1)
    edited: Any = prune(model, images(2, 8), 0.3)
    edited.head = nn.Conv2d(edited.head.in_channels, 5, 1)
    twice = prune(edited, images(2, 8), 0.3)
    assert twice.earlier == ()
    round_trip(twice, edited, path, images(2, 8))
    with pytest.raises(uo.MaterializeError, match="another model"):
        uo.load(catalogue.build("topology/residual_stage"), path)


class Learner(nn.Module):
    """Holds more than its forward uses: a loss, a temperature, a step counter."""

    steps: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.temperature = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.register_buffer("steps", torch.zeros(2, dtype=torch.int64))
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(4))
        self.unused = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.stem = nn.Conv2d(3, 8, 3)
        self.body = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.body(self.stem(x)).relu()
        return self.head(x.mean(dim=(2, 3)))


@pytest.mark.parametrize("how", ["attached", "in place", "loaded"])
def test_what_forward_does_not_use_is_not_saved(how: str, path: Path) -> None:
    x = images(2, 8)
    model: Any = catalogue.randomize(Learner(1).eval(), 1)
    if how == "attached":
        model = prune(model, x)
        model.temperature = nn.Parameter(torch.ones((), dtype=torch.float64))
        model.register_buffer("steps", torch.ones(2))
        model.loss = nn.CrossEntropyLoss(weight=torch.ones(4))
        model.unused = Extra()
        model.body.unused = nn.Linear(2, 2, device="meta")
    elif how == "in place":
        for _ in range(2):
            replace(model, prune(model, x, 0.3))
    else:
        uo.save(prune(model, x, 0.3), path)
        model = uo.load(model, path)
        model.loss = nn.CrossEntropyLoss(weight=torch.ones(4))
    model.aside = model.head.weight  # a further name for what is used
    model.head.weight.requires_grad_(False)
    model.register_module("loss_", nn.MSELoss().train())
    uo.save(model, path)
    loaded = uo.load(Learner(2).eval(), path)
    assert torch.equal(call(loaded, x), call(model, x))
    stored = unpack(path.read_bytes())
    assert {name.partition(".")[0] for name in stored.tensors} == {"stem", "body", "head"}
    assert stored.tensors.keys() == set(dict(registered(loaded)))
    assert not loaded.get_parameter("head.weight").requires_grad
    assert loaded.get_parameter("head.bias").requires_grad
    assert not hasattr(loaded, "temperature")
    assert not hasattr(loaded, "loss")
    again = path.with_name("again.safetensors")
    uo.save(loaded, again)
    assert unpack(again.read_bytes()).manifest == stored.manifest

    # And pruned further: the stages count, whatever lies beside them.
    del model.aside
    further = prune(model, x, 0.3)
    assert len(further.earlier) == (2 if how == "in place" else 1)
    round_trip(further, Learner(2), path, x)


class Extra(nn.Module):
    """Has more state than tensors."""

    def get_extra_state(self) -> Any:
        return {"some": object()}


def test_models_pruned_in_place(path: Path) -> None:
    """Once and twice; into the original, and what was loaded before."""
    model = catalogue.randomize(catalogue.build("topology/residual_stage"), 1)
    replace(model, prune(model, images(2, 8), 0.3))
    first = uo.load(catalogue.build("topology/residual_stage"), saved_to(model, path))
    assert torch.equal(call(first, images(2, 8)), call(model, images(2, 8)))
    replace(model, prune(model, images(2, 8), 0.3))
    for definition in (first, catalogue.build("topology/residual_stage")):
        second = uo.load(definition, saved_to(model, path))
        assert size(second) < size(first)
        assert torch.equal(call(second, images(2, 8)), call(model, images(2, 8)))


def saved_to(model: nn.Module, path: Path) -> Path:
    uo.save(model, path)
    return path


@pytest.mark.parametrize("name", ["resnet18", "topology/residual_stage", "topology/nested_cat"])
def test_everything_gathered(name: str, path: Path) -> None:
    """The baseline export: no read that selects channels is a view."""
    inputs = images(2, 64 if name == "resnet18" else 8)
    model = catalogue.randomize(catalogue.build(name), 1, inputs).double()
    inputs = cast(inputs, torch.float64)
    graph = uo.trace(model, inputs)
    uo.apply_masks(model, graph, uo.magnitude_masks(model, graph, 0.5))
    solution = uo.solve(graph, uo.Masks.from_model(model, graph))
    pruned = uo.materialize(model, solution)
    baseline = uo.materialize(model, solution, gather_views=True)
    assert torch.equal(call(pruned, inputs), call(baseline, inputs))

    def narrows(module: Any) -> int:
        return sum(node.target is torch.narrow for node in module.graph.nodes)

    def gathers(module: nn.Module) -> int:
        return sum(isinstance(part, Gather) for part in module.modules())

    assert narrows(pruned) > 0
    assert narrows(baseline) == 0
    assert gathers(baseline) == gathers(pruned) + narrows(pruned)
    assert gathers(round_trip(baseline, catalogue.build(name), path, inputs)) == gathers(baseline)
    assert gathers(round_trip(pruned, catalogue.build(name), path, inputs)) == gathers(pruned)


# In a new process.

NET = '''
import torch
from torch import nn


class Net(nn.Module):
    """Two residual blocks."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.first = nn.ModuleList([nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)])
        self.second = nn.ModuleList([nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)])
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.stem(x).relu()
        for conv, norm in (self.first, self.second):
            x = x + norm(conv(x)).relu()
        return self.head(x.amax(dim=(2, 3)))


def examples(count, seed):
    """Noisy images of one of four shapes, somewhere."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=draw)
    x = torch.randn(count, 1, 8, 8, generator=draw) * 0.3
    places = torch.randint(6, (count, 2), generator=draw)
    shapes = torch.tensor([
        [[1, 1, 1], [0, 0, 0], [0, 0, 0]], [[1, 0, 0], [1, 0, 0], [1, 0, 0]],
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, 0, 1], [0, 1, 0], [1, 0, 0]],
    ])
    for image, label, (row, column) in zip(x, labels, places.tolist()):
        image[0, row:row + 3, column:column + 3] += shapes[label]
    return x, labels


def train(model, epochs, rate):
    x, labels = examples(512, 1)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], rate)
    model.train()
    for _ in range(epochs):
        for batch, wanted in zip(x.split(32), labels.split(32)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch), wanted).backward()
            optimizer.step()
    return model.eval()


def quality(model):
    """Loss and accuracy on examples not trained on."""
    x, labels = examples(256, 2)
    with torch.no_grad():
        out = model(x)
    loss = nn.functional.cross_entropy(out, labels)
    return loss.item(), (out.argmax(1) == labels).float().mean().item()
'''

SECOND_PROCESS = """
import sys
import torch
import upscale_opt as uo
from net import Net, examples, quality, train

torch.set_num_threads(1)
model = uo.load(Net(), "pruned.safetensors")
torch.save((model(examples(256, 2)[0]).detach(), quality(model)), "outputs.pt")
train(model, 1, 1e-3)
print(*quality(model))
uo.save(model, "tuned.safetensors")
"""


def test_train_prune_save_load_elsewhere_tune_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "second.py").write_text(SECOND_PROCESS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import net  # type: ignore[import-not-found]

    model = net.train(net.Net(), 4, 3e-3)
    trained = net.quality(model)
    assert trained[1] > 0.9
    pruned = uo.prune(model, torch.zeros(1, 1, 8, 8), amount=0.4)
    uo.save(pruned, tmp_path / "pruned.safetensors")
    x, _ = net.examples(256, 2)
    before = net.quality(pruned.model)
    assert before[0] > trained[0]

    done = subprocess.run(
        [sys.executable, "second.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    there, quality_there = torch.load(tmp_path / "outputs.pt", weights_only=True)
    assert torch.equal(there, pruned.model(x))
    assert quality_there == before
    loss, accuracy = map(float, done.stdout.split())
    assert loss < before[0]
    assert accuracy > before[1]
    tuned = uo.load(net.Net(), tmp_path / "tuned.safetensors")
    assert net.quality(tuned) == (loss, accuracy)
    assert not any(module.training for module in tuned.modules())


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
