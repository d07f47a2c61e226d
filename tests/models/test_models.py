"""The networks we test with: they build, run, trace, repeat, and leave global state alone."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import inspect
import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from network_strategies import network_and_masks, networks
from torch import Tensor, fx, nn

from upscale_opt.errors import UpscaleError
from upscale_opt.models import blocks as random_blocks
from upscale_opt.models import catalogue, topologies
from upscale_opt.models.generated.masks import (
    PrunableWeight,
    Side,
    WeightMasks,
    apply_weight_masks,
    prunable_weights,
    random_weight_masks,
)
from upscale_opt.models.generated.networks import RandomNetwork, random_network
from upscale_opt.models.generated.programs import Kinds
from upscale_opt.models.generated.steps import STEPS

# `y += x` on a `torch.fx.Proxy` is recorded as `y + x`: plain symbolic tracing changes the model.
MISTRACED_BY_FX = {"inplace_add_aliased"}
KINDS: tuple[Kinds, ...] = ("basic", "all")
BLOCKS = {  # the modules of our own that networks call
    name
    for name, value in inspect.getmembers(random_blocks, inspect.isclass)
    if value.__module__ == random_blocks.__name__
}


@pytest.fixture(autouse=True)
def global_state_untouched() -> Iterator[None]:
    torch.manual_seed(1234)
    before = torch.get_rng_state(), random.getstate(), torch.get_default_dtype()
    yield
    after = torch.get_rng_state(), random.getstate(), torch.get_default_dtype()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def run(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Run in float64 and return the outputs as a list."""
    with torch.no_grad():
        if isinstance(inputs, dict):
            out = model(**{key: value.double() for key, value in inputs.items()})
        else:
            out = model(inputs.double())
    return (
        [out] if isinstance(out, Tensor) else list(out.values() if isinstance(out, dict) else out)
    )


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


def check(model: nn.Module, again: nn.Module, inputs: Any) -> nn.Module:
    """Check what every test network promises; return what `torch.fx` makes of it."""
    assert not any(module.training for module in model.modules())
    model, again = model.double(), again.double()
    before = copy.deepcopy(inputs)
    first = run(model, inputs)
    assert all(bool(out.isfinite().all()) for out in first)
    assert same(first, run(model, inputs)), "two runs differ"
    assert same(first, run(again, inputs)), "two networks from one seed differ"
    assert same(first, run(copy.deepcopy(model), inputs)), "a deep copy differs"
    leaves = zip(before.values(), inputs.values(), strict=True) if isinstance(inputs, dict) else []
    assert all(torch.equal(a, b) for a, b in leaves or [(before, inputs)]), "the input changed"
    return fx.symbolic_trace(model)


@pytest.mark.parametrize("name", topologies.TOPOLOGIES)
@pytest.mark.parametrize("batch", [1, 2])
def test_topology(name: str, batch: int) -> None:
    full_name = catalogue.PREFIX + name
    inputs = catalogue.example_inputs(full_name, batch)
    model, again = (
        catalogue.randomize(catalogue.build(full_name, seed=5), 6, inputs) for _ in range(2)
    )
    traced = check(model, again, inputs)
    assert same(run(model, inputs), run(traced, inputs)) == (name not in MISTRACED_BY_FX)


@pytest.mark.parametrize("name", topologies.UNTRACEABLE)
def test_untraceable_topology_runs_but_cannot_be_traced(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        model = topologies.UNTRACEABLE[name]().eval()
    inputs = topologies.example_inputs(name)
    assert same(run(model.double(), inputs), run(model, inputs))
    with pytest.raises(fx.proxy.TraceError):
        fx.symbolic_trace(model)


def test_every_topology_says_in_its_docstring_what_it_isolates() -> None:
    with torch.random.fork_rng(devices=[]):
        for name, make in (topologies.TOPOLOGIES | topologies.UNTRACEABLE).items():
            assert (type(make()).__doc__ or "").strip(), name


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("seed", range(50))
def test_random_network(seed: int, kinds: Kinds) -> None:
    network, again = (random_network(random.Random(seed), kinds=kinds) for _ in range(2))
    assert network.describe() == again.describe()
    assert len(network.steps) <= 14
    inputs = network.example_inputs()
    traced = check(network, again, inputs)
    assert same(run(network, inputs), run(traced, inputs)), network.describe()
    one = network.example_inputs(1)
    assert same(run(network, one), run(traced, one)), network.describe()


@pytest.mark.parametrize("seed", range(50))
def test_shapes_and_sizes_are_what_the_program_says(seed: int) -> None:
    network = random_network(random.Random(seed)).double()
    shapes = [network.program.input_shape]
    shapes += [shape for step in network.steps for shape in step.shapes]
    everything = RandomNetwork(
        dataclasses.replace(network.program, outputs=tuple(range(len(shapes))), as_tuple=True)
    ).eval()
    values = run(everything, network.example_inputs(3))
    assert [tuple(value.shape) for value in values] == [(3, *shape) for shape in shapes]
    assert all(float(value.abs().max()) < 1e5 for value in values)


def test_random_networks_use_every_kind_of_step() -> None:
    plain = {"Conv2d", "ConvTranspose2d", "BatchNorm2d", "BatchNorm1d", "Linear", "Dropout"}
    wanted: dict[Kinds, set[str]] = {"basic": plain, "all": set(STEPS) | plain | BLOCKS}
    for kinds, all_kinds in wanted.items():
        used: set[str] = set()
        for seed in range(700):
            network = random_network(random.Random(seed), kinds=kinds)
            used.update(step.op for step in network.steps)
            used.update(type(layer).__name__ for layer in network.layers.values())
            if seed >= 100 and used >= all_kinds:
                break
        assert used >= all_kinds
        assert kinds == "all" or used.isdisjoint(BLOCKS)


def test_random_networks_share_parameters_and_layers() -> None:
    tied = called_again = 0
    for seed in range(100):
        network = random_network(random.Random(seed))
        names = len(list(network.named_parameters(remove_duplicate=False)))
        tied += names > len(list(network.parameters()))
        calls = [step.layer for step in network.steps if step.layer in network.layers]
        called_again += len(calls) > len(set(calls))
    assert tied >= 3
    assert called_again >= 6


def test_grouped_convolutions_have_any_number_of_groups() -> None:
    wanted = {(4, 2), (6, 2), (6, 3), (8, 2), (8, 4), (12, 2), (12, 3), (12, 4), (12, 6)}
    found: set[tuple[int, int]] = set()
    chained = 0
    for seed in range(300):
        if found >= wanted and chained >= 10:
            return
        network = random_network(random.Random(seed))
        writers: dict[int, bool] = {}
        count = 1
        for step in network.steps:
            layer = network.program.layers.get(step.layer)
            grouped = False
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                grouped = 1 < layer.groups < layer.in_channels
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and grouped:
                found.add((layer.in_channels, layer.groups))
                chained += writers.get(step.operands[0], False)
            for _ in step.shapes:
                writers[count] = grouped
                count += 1
    raise AssertionError(f"missing {wanted - found}, or {chained} chains only")


# Whoever finds a failure names a seed: what it means must not change with the vocabulary.
@pytest.mark.parametrize(
    ("seed", "known"),
    [(88, "0fce38b00d409e65"), (1079, "2774548bdeb0c0a3"), (4711, "1cfe4bd0c19b9fb3")],
)
def test_seeds_of_basic_networks_keep_their_meaning(seed: int, known: str) -> None:
    network = random_network(random.Random(seed), kinds="basic")
    digest = hashlib.sha256(repr(network.steps).encode())
    for value in network.state_dict().values():
        digest.update(value.numpy().tobytes())
    assert digest.hexdigest()[:16] == known


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("seed", range(12))
def test_fewer_steps_are_a_beginning_of_the_same_program(seed: int, kinds: Kinds) -> None:
    whole = random_network(random.Random(seed), max_ops=14, kinds=kinds)
    part = random_network(random.Random(seed), max_ops=6, kinds=kinds)
    assert len(part.steps) < len(whole.steps)
    assert part.steps == whole.steps[: len(part.steps)]
    for key, value in part.state_dict().items():
        assert torch.equal(value, whole.state_dict()[key])


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("side", ["in", "out", "both"])
@pytest.mark.parametrize("seed", range(6))
def test_masks_zero_what_they_do_not_keep(seed: int, side: Side, per_group: bool) -> None:
    network = random_network(random.Random(seed))
    before = {name: value.clone() for name, value in network.named_parameters()}
    masks = random_weight_masks(network, random.Random(12), side, per_group=per_group)
    weights = {weight.name: weight for weight in prunable_weights(network)}
    assert set(masks) == {(name, axis) for name, w in weights.items() for axis in w.axes(side)}
    apply_weight_masks(network, masks, biases=True)
    for name, weight in weights.items():
        kept = torch.ones_like(weight.parameter, dtype=torch.bool)
        for axis in weight.axes(side):
            channels = torch.zeros(weight.channels(axis), dtype=torch.bool)
            channels[masks[name, axis]] = True
            kept &= along(channels, weight, axis)
        assert torch.equal(weight.parameter, before[name] * kept)


def along(channels: Tensor, weight: PrunableWeight, axis: int) -> Tensor:
    """Which elements of a weight belong to given channels along an axis, found the slow way."""
    shape = weight.parameter.shape
    result = torch.zeros(shape, dtype=torch.bool)
    for first, second in itertools.product(range(shape[0]), range(shape[1])):
        group = first // (shape[0] // weight.groups)
        result[first, second] = channels[first if axis == 0 else group * shape[1] + second]
    return result


def test_masks_tell_groups_apart() -> None:
    with torch.random.fork_rng(devices=[]):
        conv = nn.Sequential(nn.Conv2d(12, 12, 1, groups=3))
    seen: set[str] = set()
    for seed in range(200):
        kept = random_weight_masks(conv, random.Random(seed))["0.weight", 1]
        groups = [frozenset(c % 4 for c in kept if c // 4 == group) for group in range(3)]
        sizes = {len(group) for group in groups}
        if len(set(groups)) == 1:
            seen.add("the same places")
        elif len(sizes) == 1:
            seen.add("equally many")
        elif sizes == {0, 4}:
            seen.add("whole dead groups")
        else:
            seen.add("whatever each likes")
    assert len(seen) == 4


def test_masks_count_the_channels_of_transposed_groups() -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.ConvTranspose2d(4, 6, 1, groups=2)).double()
    (weight,) = prunable_weights(model)
    assert (weight.out_axis, weight.in_axis, weight.groups) == (1, 0, 2)
    assert (weight.channels(0), weight.channels(1)) == (4, 6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1)
    apply_weight_masks(model, {("0.weight", 1): [0, 1, 2, 4, 5]}, biases=True)
    assert run(model, torch.ones(1, 4, 1, 1))[0].flatten().tolist() == [3, 3, 3, 0, 3, 3]


def test_masks_cover_raw_parameters_and_tied_weights_once() -> None:
    def names(name: str) -> list[str]:
        return sorted(weight.name for weight in prunable_weights(catalogue.build(name)))

    assert names("topology/functional_conv") == ["head_weight", "stem_weight"]
    assert names("topology/tied_weights") == ["first.weight", "head.weight", "stem.weight"]
    assert names("topology/tied_embedding") == ["stem.weight", "table.table.weight"]
    assert "attention.attention.in_proj_weight" in names("topology/module_attention")
    raw = catalogue.build("topology/raw_transposed_conv")
    (weight,) = (weight for weight in prunable_weights(raw) if weight.name == "layer.weight")
    assert (weight.out_axis, weight.channels(1), weight.groups) == (1, 12, 4)


@settings(max_examples=25, deadline=None)
@given(networks(max_ops=6))
def test_strategy_networks_run(network: RandomNetwork) -> None:
    assert len(network.steps) <= 6
    run(network.double(), network.example_inputs())


@settings(max_examples=25, deadline=None)
@given(network_and_masks(max_ops=6))
def test_strategy_masks_fit(drawn: tuple[RandomNetwork, WeightMasks]) -> None:
    network, masks = drawn
    run(apply_weight_masks(network, masks).double(), network.example_inputs())


def test_catalogue_names() -> None:
    names = catalogue.names()
    assert len(names) == len(set(names))
    assert sum(not name.startswith(catalogue.PREFIX) for name in names) == 80
    assert {"resnet50", "inception_v3", "vit_h_14", "topology/unet"} <= set(names)


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_catalogue_network(name: str) -> None:
    inputs = catalogue.example_inputs(name)
    model, again = (catalogue.build(name, seed=3) for _ in range(2))
    other = catalogue.build(name, seed=4)
    assert model.state_dict().keys() == other.state_dict().keys()
    assert not same(run(model.double(), inputs), run(other.double(), inputs))
    traced = check(model, again, inputs)
    assert same(run(model, inputs), run(traced, inputs))


def test_inception_takes_its_own_size() -> None:
    for name, batch, side in [("inception_v3", 1, 299), ("resnet18", 4, 224)]:
        inputs = catalogue.example_inputs(name, batch)
        assert isinstance(inputs, Tensor)
        assert inputs.shape == (batch, 3, side, side)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("resnet5", "resnet50"), ("unet", "topology/unet"), ("no such thing", "upscale-opt models")],
)
def test_unknown_name_suggests_a_known_one(name: str, hint: str) -> None:
    with pytest.raises(UpscaleError, match="no network called") as caught:
        catalogue.build(name)
    assert hint in str(caught.value)
    with pytest.raises(UpscaleError):
        catalogue.example_inputs(name)


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "topology/residual_stage"])
def test_randomize_leaves_no_zero_and_no_faint_signal(name: str, follow: bool) -> None:
    inputs = catalogue.example_inputs(name)
    model = catalogue.build(name)
    assert catalogue.randomize(model, 1, inputs if follow else None) is model
    for key, value in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert bool((value != 0).all()), key
        if key.endswith("running_var"):
            assert bool((value > 0).all()), key
    assert isinstance(inputs, Tensor)
    noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(1))
    (left,), (right,) = run(model.double(), inputs), run(model, inputs + 0.1 * noise)
    assert left.abs().max() < 1e4
    assert (left - right).std() > 1e-4 * left.std()


def test_randomize_keeps_zero_weights_and_depends_on_the_seed() -> None:
    models = [catalogue.build("topology/residual_stage") for _ in range(3)]
    for model, seed in zip(models, [1, 1, 2], strict=True):
        with torch.no_grad():
            model.get_parameter("stem.weight")[:, 1] = 0
        catalogue.randomize(model, seed)
        assert not model.get_parameter("stem.weight")[:, 1].any()
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["stem.bias"], states[2]["stem.bias"])
