"""Networks, with masks and pruned: the chain in pieces, for the tests of all rooms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.ir.graph import maskable_axes, slices_of
from upscale_opt.masking.segments import Side
from upscale_opt.models import catalogue
from upscale_opt.tracing.examples import Inputs
from upscale_opt.tracing.recent import copied_with_trace


def keep(weight: Tensor, axis: int, kept: list[int]) -> None:
    """Zero, in place, all slices along ``axis`` that are not ``kept``."""
    gone = [index for index in range(weight.shape[axis]) if index not in kept]
    with torch.no_grad():
        weight.index_fill_(axis, torch.tensor(gone, dtype=torch.long), 0)


@cache
def built(name: str, image: int = 64) -> tuple[nn.Module, uo.ChannelGraph]:
    """A network of the catalogue in which nothing is zero, and its graph. Not to be changed."""
    inputs = images(2, image)
    model = catalogue.randomize(catalogue.build(name, seed=1), 2, inputs)
    return model, uo.trace(model, inputs)


def masked_resnet18(side: Side = "input", amount: float = 0.5) -> nn.Module:
    """A ResNet-18 with masks, in float64, with nothing else zero."""
    return copy.deepcopy(_masked_resnet18(side, amount))


@cache
def _masked_resnet18(side: Side, amount: float) -> nn.Module:
    model = copy.deepcopy(built("resnet18")[0]).double()
    uo.MaskingManager(model, side=side).importance().mask(amount)
    return model


def images(batch: int, height: int, width: int = 0, seed: int = 0) -> Tensor:
    """Random images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, height, width or height, generator=generator)


@dataclass(frozen=True)
class Documents:
    """A masked model and what belongs to it."""

    model: nn.Module
    graph: uo.ChannelGraph
    masks: uo.Masks
    solution: uo.Solution


@cache
def documents_of(name: str, amount: float, side: Side = "input") -> Documents:
    """Mask a network of the catalogue by magnitude, and solve it. Not to be changed."""
    model, graph = built(name)
    masked = copied_with_trace(model, graph)
    uo.apply_masks(masked, graph, uo.choose_masks(masked, graph, amount, side=side))
    masks = uo.masks_of(masked, graph)
    return Documents(masked, graph, masks, uo.solve(graph, masks))


def documents_in(folder: Path, name: str) -> Path:
    """The folder, with the graph's and the masks' JSON of a network of the catalogue."""
    model, graph = built(name)
    graph.save(folder / f"{name}.graph.json")
    uo.choose_masks(model, graph, 0.5).save(folder / f"{name}.masks.json")
    return folder


def random_masks(graph: uo.ChannelGraph, seed: int) -> uo.Masks:
    """Some six in ten slices kept, along every axis that can be masked."""
    generator = torch.Generator().manual_seed(seed)
    kept = {
        name: {
            axis: tuple(torch.nonzero(torch.rand(slices, generator=generator) < 0.6)[:, 0].tolist())
            for axis in axes
            for slices in [slices_of(graph, name, axis)]
        }
        for name, axes in maskable_axes(graph).items()
    }
    return uo.Masks(kept=kept)


def exported(model: nn.Module, inputs: Inputs, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """The model, masked in place at random on both sides, and its export."""
    graph = uo.trace(model, inputs)
    uo.apply_masks(model, graph, random_masks(graph, seed))
    return model, uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))


def pruned_of(model: nn.Module, inputs: Inputs, amount: float = 0.5) -> uo.Pruned:
    """What pruning on both sides makes of a model, checked."""
    return uo.prune(model, inputs, amount=amount, side="both")


class Net(nn.Module):
    """Layers by name, and what to do with them."""

    def __init__(self, run: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


class ManyReaders(nn.Module):
    """Seventy readers of one tensor: with random masks, too hard to prove in a minute."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 60, 1)
        self.readers = nn.ModuleList(nn.Conv2d(60, 1, 1) for _ in range(70))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        return [reader(x) for reader in self.readers]
