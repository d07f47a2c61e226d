"""Modules that are called more than once, and parameters with several owners: cut alike."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from comparing import assert_lossless
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.materializing.pruned_module import PrunedModule
from upscale_opt.models.generated.masks import apply_weight_masks, random_weight_masks

X = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).double()


class Siamese(nn.Module):
    """A convolution and a norm that two branches share."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(3, 8, 1)
        self.c = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.heads = nn.ModuleList([nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)])

    def forward(self, x: Tensor) -> Tensor:
        p = torch.relu(self.norm(self.c(torch.relu(self.a(x)))))
        q = torch.relu(self.norm(self.c(torch.relu(self.b(x)))))
        y: Tensor = self.heads[0](p) + self.heads[1](q)
        return y


class Recurrent(nn.Module):
    """A layer that reads what it wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.step = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        for _ in range(3):
            y = torch.relu(self.step(y))
        z: Tensor = self.head(y)
        return z


class TiedLayers(nn.Module):
    """Two linear layers with one weight but biases of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.down = nn.Linear(8, 6)
        self.up = nn.Linear(6, 8, bias=False)
        self.again = nn.Linear(8, 6)
        self.again.weight = self.down.weight
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.down(self.stem(x).mean((2, 3))))
        z: Tensor = self.head(torch.relu(self.again(torch.relu(self.up(y)))))
        return z


class TiedGroups(nn.Module):
    """Two grouped convolutions with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.first = nn.Conv2d(8, 8, 1, groups=2)
        self.second = nn.Conv2d(8, 8, 1, groups=2)
        self.second.weight = self.first.weight
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.second(torch.relu(self.first(self.stem(x))))))
        return y


NETWORKS: list[type[nn.Module]] = [Siamese, Recurrent, TiedLayers, TiedGroups]


def build(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = kind().double().eval()
        with torch.no_grad():
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand_like(tensor) + 0.2 if "var" in name else tensor)
    return model


@pytest.mark.parametrize("kind", NETWORKS)
def test_nothing_is_opaque(kind: type[nn.Module]) -> None:
    graph = uo.trace(build(kind), X)
    assert [op.name for op in graph.operations if op.kind == "opaque"] == []


@pytest.mark.parametrize("kind", NETWORKS)
@given(
    seed=st.integers(0, 10**6),
    side=st.sampled_from(["in", "out", "both"]),
    biases=st.booleans(),
)
@settings(max_examples=12, deadline=None)
def test_exports_are_lossless(kind: type[nn.Module], seed: int, side: Any, biases: bool) -> None:
    model = build(kind, seed)
    masks = random_weight_masks(model, random.Random(seed), side)
    apply_weight_masks(model, masks, biases=biases)
    graph = uo.trace(model, X)
    solution = uo.solve(graph, uo.masks_of(model, graph))
    assert_lossless(model, uo.materialize(model, solution), X)


def pruned_of(model: nn.Module) -> PrunedModule:
    graph = uo.trace(model, X)
    return uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))


def test_both_branches_get_what_either_needs() -> None:
    model = build(Siamese)
    with torch.no_grad():
        for number, kept in enumerate(([0, 1], [1, 2])):  # of the eight shared channels
            weight = model.get_parameter(f"heads.{number}.weight")
            weight[:, [i for i in range(8) if i not in kept]] = 0
        model.get_parameter("c.weight")[:, 5:] = 0
    pruned = pruned_of(model)
    assert tuple(pruned.get_parameter("c.weight").shape) == (3, 5, 3, 3)
    assert tuple(pruned.get_parameter("norm.weight").shape) == (3,)
    assert tuple(pruned.get_parameter("a.weight").shape) == (5, 3, 1, 1)
    assert tuple(pruned.get_parameter("heads.0.weight").shape) == (4, 2, 1, 1)
    assert pruned.get_submodule("norm").num_features == 3
    uo.verify(model, pruned, X)


def test_tied_weights_remain_tied() -> None:
    model = build(TiedLayers)
    with torch.no_grad():
        model.get_parameter("down.weight")[:, 3:] = 0
    pruned = pruned_of(model)
    assert pruned.get_parameter("again.weight") is pruned.get_parameter("down.weight")
    assert tuple(pruned.get_parameter("down.weight").shape) == (6, 3)
    assert tuple(pruned.get_parameter("stem.weight").shape) == (3, 3, 1, 1)


def test_a_plan_that_cuts_one_parameter_in_two_ways_is_refused() -> None:
    model = build(Siamese)
    graph = uo.trace(model, X)
    solution = uo.solve(graph, uo.masks_of(model, graph))
    first, second = (op.outputs[0] for op in graph.operations if op.name in ("c", "c_1"))
    order = solution.tensors[first]
    tensors = {**solution.tensors, second: (*order[1:], order[0])}
    with pytest.raises(uo.MaterializeError, match="damaged"):
        uo.materialize(model, solution.model_copy(update={"tensors": tensors}))


class HalfTied(nn.Module):
    """A table of embeddings that is also the output layer: rows are no channels when looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.mix(self.table(x))))
        return y


def test_what_cannot_be_cut_alike_stays_and_says_so() -> None:
    model = build(HalfTied)
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    graph = uo.trace(model, tokens)
    reasons = [op.reason for op in graph.operations if op.kind == "opaque"]
    assert reasons
    assert all("table.weight" in reason for reason in reasons)
    with torch.no_grad():
        model.get_parameter("mix.weight")[:, :3] = 0
    solution = uo.solve(graph, uo.masks_of(model, graph))
    assert_lossless(model, uo.materialize(model, solution), tokens)
