"""The networks we test with: they build, run, trace, repeat, and leave global state alone."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from strategies import network_and_masks, networks
from torch import Tensor, fx, nn

from upscale_opt.errors import UpscaleError
from upscale_opt.models import catalogue, topologies
from upscale_opt.models.random_masks import (
    WeightMasks,
    apply_weight_masks,
    prunable_weights,
    random_weight_masks,
)
from upscale_opt.models.random_networks import RandomNetwork, random_network
from upscale_opt.models.random_steps import STEPS

# `y += x` on a `torch.fx.Proxy` is recorded as `y + x`: plain symbolic tracing changes the model.
MISTRACED_BY_FX = {"inplace_add_aliased"}


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


@pytest.mark.parametrize("seed", range(200))
def test_random_network(seed: int) -> None:
    network, again = (random_network(random.Random(seed)) for _ in range(2))
    assert network.describe() == again.describe()
    assert len(network.steps) <= 14
    inputs = network.example_inputs()
    traced = check(network, again, inputs)
    assert same(run(network, inputs), run(traced, inputs)), network.describe()


def test_random_networks_use_every_kind_of_step() -> None:
    used: set[str] = set()
    for seed in range(200):
        network = random_network(random.Random(seed))
        used.update(step.op for step in network.steps)
        used.update(type(layer).__name__ for layer in network.layers.values())
    layers = {"Conv2d", "ConvTranspose2d", "BatchNorm2d", "BatchNorm1d", "Linear", "Dropout"}
    assert used >= set(STEPS) - {"mean_tokens"} | layers


def test_fewer_steps_are_a_beginning_of_the_same_program() -> None:
    whole = random_network(random.Random(7), max_ops=14)
    part = random_network(random.Random(7), max_ops=6)
    assert len(part.steps) < len(whole.steps)
    assert part.steps == whole.steps[: len(part.steps)]
    for key, value in part.state_dict().items():
        assert torch.equal(value, whole.state_dict()[key])


@pytest.mark.parametrize("side", ["in", "out", "both"])
def test_masks_zero_what_they_do_not_keep(side: Any) -> None:
    network = random_network(random.Random(11))
    masks = random_weight_masks(network, random.Random(12), side)
    axes = {name: pair for name, _, pair in prunable_weights(network)}
    wanted = {"in": [1], "out": [0], "both": [0, 1]}[side]
    assert set(masks) == {(name, pair[i]) for name, pair in axes.items() for i in wanted}
    apply_weight_masks(network, masks, biases=True)
    for (name, axis), kept in masks.items():
        weight = network.get_parameter(name)
        removed = sorted(set(range(weight.shape[axis])) - set(kept))
        assert not weight.index_select(axis, torch.tensor(removed, dtype=torch.long)).any()


def test_masks_cover_raw_parameters_and_tied_weights_once() -> None:
    functional = catalogue.build("topology/functional_conv")
    assert {name for name, _, _ in prunable_weights(functional)} == {"stem_weight", "head_weight"}
    tied = catalogue.build("topology/tied_weights")
    names = [name for name, _, _ in prunable_weights(tied)]
    assert sorted(names) == ["first.weight", "head.weight", "stem.weight"]


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
    [("resnet5", "resnet50"), ("unet", "topology/unet"), ("no such thing", "names()")],
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
