"""Small networks whose zeros are put there by hand, and everything that is found out about them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from comparing import assert_lossless, cast
from sample_networks import keep
from torch import Tensor, fx, nn

import upscale_opt as uo
from upscale_opt.models import catalogue
from upscale_opt.runtime.modules import Gather
from upscale_opt.solver.network.sets import ChannelSets, channel_sets


@dataclass(frozen=True)
class Chain:
    graph: uo.ChannelGraph
    sets: ChannelSets
    solution: uo.Solution
    pruned: fx.GraphModule

    def needed(self, tensor: str) -> set[int]:
        """The positions in the tensor's channel sequence that must be there."""
        ids = self.sets.needed[tensor]
        return {i for i, c in enumerate(self.graph.tensors[tensor].channels) if c in ids}

    def defined(self, tensor: str) -> set[int]:
        """The positions that can be non-zero."""
        ids = self.sets.defined[tensor]
        return {i for i, c in enumerate(self.graph.tensors[tensor].channels) if c in ids}

    def stored(self, tensor: str) -> set[int]:
        """The positions that are stored."""
        return set(self.solution.tensors.get(tensor, ()))

    def shape(self, parameter: str) -> tuple[int, ...]:
        return tuple(self.pruned.get_parameter(parameter).shape)

    def gathers(self) -> list[Gather]:
        return [m for m in self.pruned.modules() if isinstance(m, Gather)]

    def calls(self) -> set[str]:
        return {node.name for node in self.pruned.graph.nodes}


def run_chain(model: nn.Module, inputs: Tensor | None = None) -> Chain:
    """Everything from the model's zeros to the pruned model, which is lossless."""
    x = torch.randn(2, 3, 8, 8) if inputs is None else inputs
    model.double().eval()
    x = cast(x, torch.float64)
    graph = uo.trace(model, x)
    masks = uo.masks_of(model, graph)
    solution = uo.solve(graph, masks)
    assert solution.status == "optimal"
    assert sum(read.copied for read in solution.reads) == solution.objective_value
    pruned = uo.materialize(model, solution)
    assert isinstance(pruned, fx.GraphModule)
    assert_lossless(model, pruned, x)
    return Chain(graph, channel_sets(graph, masks), solution, pruned)


def conv(inputs: int, outputs: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


def norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    catalogue.randomize(layer, 1)
    return layer


def rows(layer: nn.Conv2d, kept: list[int]) -> nn.Conv2d:
    """``layer`` with filters and biases zero but for those kept."""
    keep(layer.weight, 0, kept)
    if layer.bias is not None:
        keep(layer.bias, 0, kept)
    return layer


def columns(layer: nn.Conv2d, kept: list[int]) -> nn.Conv2d:
    """``layer``, reading only the channels kept."""
    keep(layer.weight, 1, kept)
    return layer
