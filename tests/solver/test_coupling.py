"""Coupled layers: groups, and masks grown until coupled layers agree."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from comparing import assert_lossless, cast, deviation
from hypothesis import given, settings
from hypothesis import strategies as st
from network_strategies import network_and_masks
from sample_networks import built, keep
from torch import Tensor, nn
from torchvision.models import VisionTransformer

import upscale_opt as uo
from upscale_opt.masking.segments import Side, find_segments
from upscale_opt.masking.zeros import masked_copy
from upscale_opt.models import catalogue
from upscale_opt.models.generated.masks import WeightMasks, apply_weight_masks
from upscale_opt.models.generated.networks import RandomNetwork
from upscale_opt.models.topologies import TOPOLOGIES, example_inputs

X = torch.zeros(1, 3, 4, 4)


class Block(nn.Module):
    """A residual block with a depthwise convolution: what is coupled is plain to see."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.expand = nn.Conv2d(4, 6, 1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.project = nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        y = torch.relu(self.norm(self.expand(stem)))
        y = stem + self.project(self.depthwise(y))
        pooled: Tensor = nn.functional.adaptive_avg_pool2d(y, 2).flatten(1)
        scores: Tensor = self.head(pooled)
        return scores


def block() -> tuple[nn.Module, uo.ChannelGraph]:
    torch.manual_seed(0)
    model = Block().double().eval()
    return model, uo.trace(model, X.double())


def names(members: tuple[uo.solver.Member, ...]) -> set[str]:
    return {member.parameter for member in members}


def test_groups_say_which_layers_are_coupled() -> None:
    _, graph = block()
    by_size = {len(group.channels): group for group in uo.groups(graph)}
    stream, inner = by_size[4], by_size[6]
    assert names(stream.producers) == {"stem.weight", "project.weight"}
    assert names(stream.consumers) == {"expand.weight", "head.weight"}
    assert names(stream.biases) == {"stem.bias", "project.bias"}
    assert stream.fixed is None
    assert stream.layers == ("stem.weight", "project.weight", "expand.weight", "head.weight")
    assert names(inner.producers) == {"expand.weight"}
    assert names(inner.consumers) == {"project.weight"}
    assert names(inner.norms) == {
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "depthwise.weight",
        "depthwise.bias",
    }
    assert by_size[3].fixed == "network input"
    assert by_size[2].fixed == "network output"


def test_a_flattened_channel_has_several_columns() -> None:
    _, graph = block()
    stream = next(group for group in uo.groups(graph) if len(group.channels) == 4)
    head = next(member for member in stream.consumers if member.parameter == "head.weight")
    assert head.axis == 1
    assert head.slices == ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14, 15))


def test_masks_grow_until_coupled_layers_agree() -> None:
    _, graph = block()
    masks = uo.Masks(
        kept={
            "expand.weight": {1: (0, 2, 3), 0: (0, 1, 2, 3, 4)},  # reads not 1, writes not 5
            "stem.weight": {0: (0, 1, 3)},  # writes not 2
            "head.weight": {1: tuple(range(1, 16))},  # reads all channels, if not all of them
        }
    )
    grown = uo.constrain(graph, masks).kept
    for weight, axis in (("stem", 0), ("project", 0), ("expand", 1)):
        assert grown[f"{weight}.weight"][axis] == (0, 3)
    assert grown["stem.bias"][0] == grown["project.bias"][0] == (0, 3)
    assert grown["head.weight"][1] == (0, 1, 2, 3, 12, 13, 14, 15)
    for name, axis in (("norm.weight", 0), ("norm.bias", 0), ("depthwise.weight", 0)):
        assert grown[name][axis] == (0, 1, 2, 3, 4)
    assert grown["expand.weight"][0] == grown["project.weight"][1] == (0, 1, 2, 3, 4)


def test_fixed_channels_are_kept_by_all() -> None:
    _, graph = block()
    masks = uo.Masks(kept={"stem.weight": {1: (0,)}, "head.weight": {0: (1,)}})
    grown = uo.constrain(graph, masks).kept
    assert grown["stem.weight"][1] == (0, 1, 2)
    assert grown["head.weight"][0] == (0, 1)


def test_what_is_read_as_it_is_is_fixed() -> None:
    model = TOPOLOGIES["attention"]().eval()
    graph = uo.trace(model, example_inputs("attention"))
    space_of = {c: i for i, space in enumerate(graph.spaces) for c in space.channels}
    whole = {
        space_of[c]
        for op in graph.operations
        for name in op.whole
        for c in graph.tensors[name].channels
    }
    found = uo.groups(graph)
    assert len(found) == len(graph.spaces)
    assert all(found[number].fixed for number in whole)


@pytest.mark.parametrize("batch", [1, 2])
def test_what_an_opaque_operation_writes_is_fixed(batch: int) -> None:
    model = VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16)
    catalogue.randomize(model.eval())
    inputs = torch.randn(batch, 3, 32, 32)
    for side in ("output", "both"):
        pruned = uo.prune(model, inputs, amount=0.5, side=side, method="constrained")
        assert pruned.solution.objective_value == 0
        free = uo.prune(model, inputs, amount=0.5, side=side)
        grown = uo.prune(free.masked, inputs, method="constrained")
        assert grown.solution.objective_value == 0


def test_masks_of_another_model_are_refused() -> None:
    _, graph = block()
    with pytest.raises(uo.MaskError, match=r"'other\.weight'"):
        uo.constrain(graph, uo.Masks(kept={"other.weight": {0: (0,)}}))


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("mobilenet_v3_small", "input"),
        ("squeezenet1_1", "output"),
        ("mobilenet_v3_small", "both"),
        ("shufflenet_v2_x0_5", "both"),
    ],
)
def test_a_constrained_export_copies_nothing(name: str, side: Side) -> None:
    model, graph = built(name)
    wanted = uo.choose_masks(model, graph, 0.3, side=side, method="constrained", layers="conv")
    masked = masked_copy(model, graph, wanted)
    grown = uo.constrain(graph, uo.masks_of(masked, graph))
    masked = masked_copy(masked, graph, grown)
    solution = uo.solve(graph, grown)
    assert (solution.objective_value, solution.gathers, solution.status) == (0, 0, "optimal")
    pruned = uo.materialize(masked, solution)
    size = sum(p.numel() for p in pruned.parameters())
    assert size < sum(p.numel() for p in model.parameters())
    report = uo.verify(masked, pruned, torch.randn(1, 3, 64, 64))
    assert report.float64_error < 1e-10


@pytest.mark.parametrize("name", list(TOPOLOGIES)[1::2])
def test_topologies_are_exported_without_copies(name: str) -> None:
    model = catalogue.randomize(catalogue.build(f"topology/{name}")).double()
    inputs = cast(example_inputs(name), torch.float64)
    graph = uo.trace(model, inputs)
    if not find_segments(model, graph, "both", "constrained"):
        assert all(group.fixed or not group.layers for group in uo.groups(graph))
        return
    pruned = uo.prune(model, inputs, amount=0.4, side="both", method="constrained")
    kinds = {op.name: op.kind for op in graph.operations}
    gathered = {read.op for read in pruned.solution.reads if read.plan == "gather"}
    assert all(kinds[op] == "select" for op in gathered)  # flips and rolls of the network itself
    assert bool(gathered) == (name in ("add_flipped", "shuffle_v1"))
    assert pruned.report is not None
    assert pruned.report.float64_error < 1e-10


@given(network_and_masks(kinds="basic"), st.booleans())
@settings(max_examples=30, deadline=None)
def test_constrained_exports_are_lossless_and_copy_nothing(
    case: tuple[RandomNetwork, WeightMasks], biases: bool
) -> None:
    network, weight_masks = case
    model = apply_weight_masks(copy.deepcopy(network), weight_masks, biases=biases).double()
    inputs = network.example_inputs(dtype=torch.float64)
    graph = uo.trace(model, inputs)
    before = uo.masks_of(model, graph)
    grown = uo.constrain(graph, before)
    assert uo.constrain(graph, grown) == grown
    _assert_agreed(graph, grown)
    masked = masked_copy(model, graph, grown)
    solution = uo.solve(graph, grown, solver="identity")
    scattered = any(  # then the network itself copies
        op.kind == "select" and any(b - a != 1 for a, b in pairwise(op.positions))
        for op in graph.operations
    )
    assert scattered or solution.objective_value == solution.gathers == 0
    with torch.no_grad():
        want = masked(inputs)
    finite = all(t.isfinite().all() for t in (want if isinstance(want, tuple) else (want,)))
    if finite:
        assert_lossless(masked, uo.materialize(masked, solution), inputs)


def _assert_agreed(graph: uo.ChannelGraph, masks: uo.Masks) -> None:
    """Every channel is kept by all members of its group, or by none."""
    for group in uo.groups(graph):
        for place in range(len(group.channels)):
            everyone = (
                *group.consumers,
                *group.producers,
                *group.biases,
                *group.norms,
                *group.constants,
            )
            answers = {
                index in masks.kept_on(m.parameter, m.axis, graph.parameters[m.parameter][m.axis])
                for m in everyone
                for index in m.slices[place]
            }
            assert len(answers) < 2
            assert group.fixed is None or answers != {False}


def test_masks_that_disagree_everywhere_leave_one_channel() -> None:
    model, graph = block()
    keep(model.get_parameter("expand.weight"), 1, [0, 1])
    keep(model.get_parameter("head.weight"), 1, list(range(8, 16)))
    grown = uo.constrain(graph, uo.masks_of(model, graph))
    assert grown.kept["stem.weight"][0] == (0,)
    assert grown.kept["head.weight"][1] == (0, 1, 2, 3)
    masked = masked_copy(model, graph, grown)
    pruned = uo.materialize(masked, uo.solve(graph, grown))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert deviation(masked(x).detach(), pruned(x).detach()) < 1e-10


class Fork(nn.Module):
    """A layer reads all of a tensor, and another one a slice in the middle of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.all = nn.Conv2d(6, 2, 1)
        self.some = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.stem(x))
        y: Tensor = self.all(x) + self.some(x[:, 2:4])
        return y


def test_a_layer_that_loses_everything_keeps_a_channel_that_all_keep() -> None:
    torch.manual_seed(0)
    model = Fork().double().eval()
    keep(model.all.weight, 1, [1, 5])  # not 2 and 3: the other layer has nothing left
    graph = uo.trace(model, X.double())
    grown = uo.constrain(graph, uo.masks_of(model, graph))
    assert grown.kept["all.weight"][1] == grown.kept["stem.weight"][0] == (1, 2, 5)
    assert grown.kept["some.weight"][1] == (0,)
    masked = masked_copy(model, graph, grown)
    solution = uo.solve(graph, grown)
    assert solution.objective_value == 0
    assert_lossless(masked, uo.materialize(masked, solution), X.double())
