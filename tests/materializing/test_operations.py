"""What is understood beyond layers and sums: groups, shuffles, norms over channels, embeddings."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparing import assert_lossless
from sample_networks import keep
from torch import Tensor, nn
from torch.nn import functional

import upscale_opt as uo
from upscale_opt.masking.slices import (
    channel_rows,
    nonzero_slices,
    sliced,
    zero_slices,
)
from upscale_opt.materializing.pruned_module import PrunedModule
from upscale_opt.models import catalogue

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double()


class Around(nn.Module):
    """A convolution to eight channels, something, and a convolution that reads eight."""

    def __init__(self, middle: Callable[..., Any]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.middle = middle
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.middle(self.stem(x)))
        return y


def around(middle: Callable[..., Any]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Around(middle).double().eval()


def export(model: nn.Module, inputs: Tensor = X) -> tuple[uo.Solution, PrunedModule]:
    graph = uo.trace(model, inputs)
    solution = uo.solve(graph, uo.masks_of(model, graph))
    pruned = uo.materialize(model, solution)
    assert_lossless(model, pruned, inputs)
    return solution, pruned


def opaque(model: nn.Module, inputs: Tensor = X) -> list[str]:
    graph = uo.trace(model, inputs)
    return [op.name for op in graph.operations if op.kind == "opaque"]


# Orders that the network itself has.


@pytest.mark.parametrize(
    "rearranged",
    [
        lambda x: x.flip(1),
        lambda x: x.roll(3, 1),
        lambda x: x[:, [3, 1, 0, 2, 7, 6, 5, 4]],
        lambda x: x.view(2, 2, 4, 6, 6).transpose(1, 2).reshape(2, 8, 6, 6),
        lambda x: functional.channel_shuffle(x, 4),
    ],
)
def test_a_rearrangement_of_all_channels_vanishes(rearranged: Callable[[Tensor], Tensor]) -> None:
    model = around(rearranged)
    keep(model.get_parameter("head.weight"), 1, [0, 3, 4])
    solution, pruned = export(model)
    assert solution.gathers == 0
    assert tuple(pruned.get_parameter("stem.weight").shape) == (3, 3, 1, 1)
    assert not any(isinstance(m, nn.ChannelShuffle) for m in pruned.modules())


def test_every_other_channel_is_a_view() -> None:
    model = around(lambda x: torch.cat([x[:, ::2], x[:, ::2]], 1))
    solution, _ = export(model)
    assert solution.gathers == 0


def test_a_shuffled_concatenation_is_written_once() -> None:
    model = catalogue.build("shufflenet_v2_x0_5")
    inputs = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    catalogue.randomize(model, 0, inputs)
    before = uo.measuring.moved_bytes(model, inputs).total
    graph = uo.trace(model, torch.cat([inputs, inputs]))
    assert sum(op.kind == "concat" and op.positions is not None for op in graph.operations) == 16
    solution = uo.solve(graph, uo.masks_of(model, graph))
    assert solution.gathers == 0
    pruned = uo.materialize(model, solution)
    assert_lossless(model.double(), pruned.double(), inputs.double())
    assert uo.measuring.moved_bytes(pruned.float(), inputs).total <= before / 2


# Groups.


def grouped(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(8, 8, 3, padding=1, groups=4, **options)


def test_masks_of_grouped_weights_count_channels() -> None:
    model = around(grouped())
    again = copy.deepcopy(model)
    weight = model.get_parameter("middle.weight")
    with torch.no_grad():
        weight[2:4, 1] = 0  # the second group's second channel
    graph = uo.trace(model, X)
    masks = uo.masks_of(model, graph)
    assert masks.kept["middle.weight"][1] == (0, 1, 2, 4, 5, 6, 7)
    uo.apply_masks(again, graph, masks)
    assert torch.equal(again.get_parameter("middle.weight"), weight)
    with pytest.raises(uo.MaskError, match="only 8 slices"):
        uo.Masks(kept={"middle.weight": {1: (8,)}}).check(graph)


def test_slices_of_grouped_weights() -> None:
    weight = torch.arange(24.0).reshape(4, 3, 2) + 1  # two groups, three channels each
    part = sliced(weight, {0: (0, 1, 3), 1: (0, 2, 4, 5)}, 2)
    assert torch.equal(part, torch.stack([weight[0, [0, 2]], weight[1, [0, 2]], weight[3, [1, 2]]]))
    zeroed = weight.clone()
    zero_slices(zeroed, 1, [1, 3], 2)
    assert nonzero_slices(zeroed, 1, 2) == (0, 2, 4, 5)
    assert bool((zeroed[:2, 1] == 0).all())
    assert bool((zeroed[2:, 0] == 0).all())
    assert torch.equal(channel_rows(weight, 1, 2)[4], weight[2:, 1].flatten())


@pytest.mark.parametrize("side", ["input", "output", "both"])
def test_chosen_masks_leave_groups_equal(side: Any) -> None:
    model = around(grouped())
    graph = uo.trace(model, X)
    masks = uo.choose_masks(model, graph, 0.5, side=side)
    for axis, kept in masks.kept["middle.weight"].items():
        counts = [sum(index // 2 == group for index in kept) for group in range(4)]
        assert counts == [1, 1, 1, 1], axis
    uo.apply_masks(model, graph, masks)
    _, pruned = export(model)
    rows, width = pruned.get_parameter("middle.weight").shape[:2]
    assert width == (2 if side == "output" else 1)
    assert rows <= (8 if side == "input" else 4)  # fewer, where the head reads nothing of a group


def test_dead_groups_go_on_both_sides() -> None:
    model = around(grouped())
    keep(model.get_parameter("head.weight"), 1, [0, 1, 6])  # of groups 0 and 3
    _, pruned = export(model)
    middle = pruned.get_submodule("middle")
    assert isinstance(middle, nn.Conv2d)
    assert (middle.groups, middle.in_channels, middle.out_channels) == (2, 4, 4)
    assert tuple(pruned.get_parameter("stem.weight").shape) == (4, 3, 1, 1)


def test_a_depthwise_layer_with_several_filters_follows_its_channels() -> None:
    class Multiplied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.many = nn.Conv2d(8, 24, 3, groups=8)
            self.head = nn.Conv2d(24, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(torch.relu(self.many(self.stem(x))))
            return y

    model = Multiplied().double().eval()
    keep(model.get_parameter("head.weight"), 1, [0, 4, 5, 21])  # of channels 0, 1 and 7
    _, pruned = export(model)
    assert tuple(pruned.get_parameter("many.weight").shape) == (9, 1, 3, 3)
    assert tuple(pruned.get_parameter("stem.weight").shape) == (3, 3, 1, 1)


# Norms, softmax, and means over channels.


@pytest.mark.parametrize(
    ("middle", "groups"),
    [
        (nn.GroupNorm(2, 8), 2),
        (nn.GroupNorm(1, 8), 1),
        (lambda x: functional.layer_norm(x.movedim(1, -1), (8,)).movedim(-1, 1), 1),
        (lambda x: x.softmax(1), 1),
        (lambda x: x - x.mean(1, keepdim=True), 1),
        (lambda x: functional.normalize(x, dim=1), 1),
    ],
)
def test_symmetric_operations_keep_all_channels_in_any_order(middle: Any, groups: int) -> None:
    model = around(middle)
    keep(model.get_parameter("head.weight"), 1, [1, 4, 6])
    graph = uo.trace(model, X)
    found = [op for op in graph.operations if op.kind == "symmetric"]
    assert [op.groups for op in found] == [groups]
    assert opaque(model) == []
    solution, pruned = export(model)
    assert tuple(pruned.get_parameter("stem.weight").shape) == (8, 3, 1, 1)
    assert tuple(pruned.get_parameter("head.weight").shape) == (4, 3, 1, 1)
    assert solution.gathers == 0  # the end of one group, and the beginning of the other


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("norm", ["instance", "group"])
def test_norms_of_single_channels_are_cut(norm: str, affine: bool) -> None:
    made = {
        "instance": nn.InstanceNorm2d(8, affine=affine),
        "group": nn.GroupNorm(8, 8, affine=affine),
    }
    model = around(made[norm])
    keep(model.get_parameter("head.weight"), 1, [1, 4, 6])
    _, pruned = export(model)
    assert tuple(pruned.get_parameter("stem.weight").shape) == (3, 3, 1, 1)


# Parameters that are tensors.


class Tokens(nn.Module):
    """Embeddings, a class token, positions, and an MLP, as in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.first = nn.Parameter(torch.randn(1, 1, 8))
        self.places = nn.Parameter(torch.randn(1, 6, 8))
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.first.expand(x.shape[0], -1, -1), self.words(x)], 1) + self.places
        y = y + self.down(functional.gelu(self.up(y)))
        z: Tensor = self.head(y[:, 0])
        return z


def test_tables_positions_and_tokens_are_cut() -> None:
    model = Tokens().double().eval()
    tokens = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    assert opaque(model, tokens) == []
    keep(model.get_parameter("head.weight"), 1, [0, 2, 5])
    keep(model.get_parameter("up.weight"), 1, [2, 5, 6])
    keep(model.get_parameter("down.weight"), 1, [3, 4, 9])
    _, pruned = export(model, tokens)
    shapes = {name: tuple(p.shape) for name, p in pruned.named_parameters()}
    assert shapes["words.weight"] == (11, 4)
    assert shapes["first"] == (1, 1, 4)
    assert shapes["places"] == (1, 6, 4)
    assert shapes["up.weight"] == (3, 3)
    assert shapes["down.weight"] == (3, 3)


def test_the_size_of_a_tensor_that_nobody_reads() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(3, 4)
            self.table = nn.Parameter(torch.randn(1, 5))
            self.head = nn.Linear(9, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            z: Tensor = self.head(torch.cat([y, self.table.expand(y.size(0), -1)], -1))
            return z

    model = Sized().double().eval()
    keep(model.get_parameter("head.weight"), 1, [4, 6, 8])
    inputs = torch.randn(3, 3).double()
    _, pruned = export(model, inputs)
    assert tuple(pruned(torch.randn(5, 3).double()).shape) == (5, 2)
    assert tuple(pruned.get_parameter("stem.weight").shape) == (1, 3)
