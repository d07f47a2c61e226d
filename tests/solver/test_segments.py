"""Segments: whatever is read of a tensor, it stores."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from network_strategies import SEEDS, network_and_masks
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.models.generated.basics import convolution
from upscale_opt.models.generated.builder import Builder
from upscale_opt.models.generated.convolutions import parted_block
from upscale_opt.models.generated.masks import (
    WeightMasks,
    apply_weight_masks,
    random_weight_masks,
)
from upscale_opt.models.generated.networks import RandomNetwork
from upscale_opt.solver.network.segments import SELECTIONS, Selection, find_segments

IN_PLACE = ("channelwise", "symmetric", "elementwise", "concat")


def assert_stored(graph: ChannelGraph, masks: Masks, selection: Selection) -> None:
    """All that is selected of a tensor, or kept in its place, is among what it stores."""
    sets, segments = find_segments(graph, masks, selection)
    for op in graph.operations:
        for operand, name in enumerate(op.inputs):
            edge = op.name, operand
            if op.name not in sets.live or not sets.wants.get(edge) or name not in segments.stored:
                continue
            taken = segments.selects.get(edge, frozenset())
            if edge not in segments.selects and edge not in segments.places:
                result = op.outputs[0] if op.kind in IN_PLACE else name
                if result in segments.stored:
                    taken = segments.stored[result].intersection(graph.tensors[name].channels)
            assert taken <= segments.stored[name], (edge, sorted(taken))
            assert sets.wants[edge] <= segments.stored[name], edge


@settings(max_examples=40, deadline=None)
@given(network_and_masks(max_ops=12))
def test_all_that_is_read_is_stored(drawn: tuple[RandomNetwork, WeightMasks]) -> None:
    model, masks = drawn
    graph = uo.trace(model, model.example_inputs())
    apply_weight_masks(model, masks)
    for rules in SELECTIONS:
        assert_stored(graph, uo.masks_of(model, graph), rules)


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_all_that_is_read_of_parts_is_stored(seed: int) -> None:
    """Splits whose parts go different ways, one behind the other, with zeros on both sides."""
    rng = random.Random(seed)
    with torch.random.fork_rng(devices=[]):
        program = Builder(rng, wide=True).build(30, convolution, [(parted_block, 1)])
        model = RandomNetwork(program).eval()
    graph = uo.trace(model, model.example_inputs())
    apply_weight_masks(model, random_weight_masks(model, rng, "both", styles=["half"]), biases=True)
    for rules in SELECTIONS:
        assert_stored(graph, uo.masks_of(model, graph), rules)


class Mixer(nn.Module):
    """Parts of an image go different ways: as InceptionNeXt mixes places."""

    def __init__(self, width: int = 8, part: int = 2) -> None:
        super().__init__()
        self.sizes = [width - 2 * part, part, part]
        self.square = nn.Conv2d(part, part, 3, padding=1, groups=part)
        self.band = nn.Conv2d(part, part, (1, 5), padding=(0, 2), groups=part)

    def forward(self, x: Tensor) -> Tensor:
        same, square, band = torch.split(x, self.sizes, 1)
        return torch.cat((same, self.square(square), self.band(band)), 1)


class Block(nn.Module):
    """A mixer, two layers, a scale and the residual sum."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.mixer, self.norm = Mixer(width), nn.BatchNorm2d(width)
        self.wide, self.narrow = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)
        self.scale = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(torch.relu(self.wide(self.norm(self.mixer(x)))))
        return torch.add(x, y * self.scale.view(1, -1, 1, 1))


def mixers(blocks: int) -> nn.Sequential:
    stem = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
    return nn.Sequential(*stem, *(Block() for _ in range(blocks)), nn.Conv2d(8, 3, 1)).eval()


def spoil(model: nn.Module, seed: int) -> None:
    """Zero half of the columns and of the rows of every full layer, with the norm right behind."""
    draw = torch.Generator().manual_seed(seed)
    modules = list(model.modules())
    layers = [m for m in modules if isinstance(m, nn.Conv2d) and m.groups == 1]
    with torch.no_grad():
        for place, layer in enumerate(layers):
            assert layer.bias is not None
            rows, columns = layer.weight.shape[:2]
            if place:
                layer.weight[:, torch.randperm(columns, generator=draw)[: columns // 2]] = 0
            if place < len(layers) - 1:
                gone = torch.randperm(rows, generator=draw)[: rows // 2]
                behind = modules[modules.index(layer) + 1]
                norm = [behind.weight, behind.bias] if isinstance(behind, nn.BatchNorm2d) else []
                for parameter in (layer.weight, layer.bias, *norm):
                    parameter[gone] = 0


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_parts_of_a_residual_stream_are_stored(blocks: int) -> None:
    """A sum leaves out zeros of the stream, but not what a slice of the stream must deliver."""
    graph = uo.trace(mixers(blocks), torch.rand(2, 3, 6, 6))
    for seed in range(100):
        model = mixers(blocks)
        spoil(model, seed)
        for rules in SELECTIONS:
            assert_stored(graph, uo.masks_of(model, graph), rules)


@pytest.mark.parametrize("seed", [56, 223, 288])
def test_parts_of_a_residual_stream_are_lossless(seed: int) -> None:
    torch.manual_seed(seed)
    model = mixers(3).double()
    spoil(model, seed)
    images = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    graph = uo.trace(model, images)
    pruned = uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph), solver="greedy"))
    torch.testing.assert_close(pruned(images), model(images))
