"""The mock model: the masked model, without changing the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from upscale_opt.ir.graph import ChannelGraph, slices_of
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.masking.slices import zero_slices
from upscale_opt.masking.zeros import masked_slices
from upscale_opt.tracing.copying import copied


class MockModel(nn.Module):
    """Computes what a model's export would compute, with the model's own parameters.

    What the export removes, and what else is to be masked, is multiplied by zero. Training the mock
    model trains the model; what is masked gets no gradient.

    Attributes:
        net: the model.

    Args:
        net: the model. It is not changed.
        graph: its channel graph.
        solution: the plan of the export.
        masks: what the model shall obey but does not by itself.
    """

    def __init__(
        self, net: nn.Module, graph: ChannelGraph, solution: Solution, masks: Masks | None = None
    ) -> None:
        super().__init__()
        self.net = net
        self._factors: dict[str, list[Tensor]] = {}
        removed = _removed(graph, solution)
        masked = [] if masks is None else list(masked_slices(graph, masks))
        buffers = {name for name, _ in net.named_buffers()} - {name for name, *_ in masked}
        for name, axis, indices in (*removed, *masked):
            if name in buffers:  # of channels that are zero or dead, and need no masking
                continue
            sizes = graph.parameters[name]
            groups = graph.grouped.get(name, 1)
            varies = {axis} if groups == 1 else {0, 1}
            factor = torch.ones([size if a in varies else 1 for a, size in enumerate(sizes)])
            zero_slices(factor, axis, indices, groups)
            self._factors.setdefault(name, []).append(factor)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The masked model's output."""
        masked: dict[str, Tensor] = {}
        tensors: dict[str, Tensor] = dict(self.net.named_parameters())
        if not self.net.training:  # in training mode, batch norms update their buffers
            tensors.update(self.net.named_buffers())
        for name, factors in self._factors.items():
            if name in tensors:
                masked[name] = tensors[name]
                for factor in factors:
                    masked[name] = masked[name] * factor.to(masked[name])
        return functional_call(self.net, masked, args, kwargs)

    def part_with_net(self) -> None:
        """Go on with a copy of the model, before that is pruned."""
        self.net = copied(self.net)


def _removed(graph: ChannelGraph, solution: Solution) -> Iterator[tuple[str, int, list[int]]]:
    """Parameter, axis and indices of all slices that the export lacks."""
    for name, by_axis in solution.parameters.items():
        for axis, kept in by_axis.items():
            removed = sorted(set(range(slices_of(graph, name, axis))).difference(kept))
            if removed:
                yield name, axis, removed
