"""The mock model: the masked model, without changing the model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.masking.masks import dropped_slices, state_of


class MockModel(nn.Module):
    """Computes what a model would compute if it obeyed its masks.

    It shares the model's parameters, so that training it trains the model; what is masked gets no
    gradient.

    Attributes:
        net: the model.

    Args:
        net: the model. It is not changed.
        graph: its channel graph.
        masks: what it shall obey.
    """

    def __init__(self, net: nn.Module, graph: ChannelGraph, masks: Masks) -> None:
        super().__init__()
        self.net = net
        self._factors: dict[str, list[Tensor]] = {}
        tensors = state_of(net, graph)
        for name, axis, indices in dropped_slices(graph, masks):
            shape = [1] * tensors[name].ndim
            shape[axis] = -1
            factor = torch.ones(tensors[name].shape[axis])
            factor[indices] = 0
            self._factors.setdefault(name, []).append(factor.reshape(shape))

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
        self.net = copy.deepcopy(self.net)
