"""Modules that are not understood without a rule, and a network around them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from comparing import assert_lossless
from sample_networks import exported
from torch import Tensor, nn

import upscale_opt as uo

CHANNELS = 8
IMAGES = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).double()


class Around(nn.Module):
    """Something in the middle, between convolutions."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, CHANNELS, 1)
        self.middle = middle
        self.last = nn.Conv2d(CHANNELS, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.relu(self.middle(torch.relu(self.first(x)))))
        return y


def around(middle: nn.Module) -> Around:
    return Around(middle).double().eval()


def pruned_at_random(model: nn.Module, seed: int) -> tuple[nn.Module, nn.Module]:
    """A copy of the model with random masks on both sides, and its export."""
    return exported(copy.deepcopy(model), IMAGES, seed)


def assert_exports(model: nn.Module) -> None:
    for seed in range(2):
        masked, pruned = pruned_at_random(model, seed)
        assert_lossless(masked, pruned, IMAGES)


def opaque(model: nn.Module) -> list[str]:
    graph = uo.trace(model, IMAGES)
    return [op.reason for op in graph.operations if op.kind == "opaque"]


class Power(nn.Module):
    """One exponent for every channel, and a constant that is added."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.channels = channels
        self.exponent = nn.Parameter(torch.rand(1, channels, 1, 1) + 0.5)
        self.gain = nn.Parameter(torch.rand(channels) + 0.5)
        self.offset = nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        x = x.clone()
        x.view(x.shape).mul_(1)  # which torch.fx does not capture
        x = torch.cummax(x.sign() * x.abs() ** self.exponent, dim=-1).values
        return x * self.gain[:, None, None] + self.offset[:, None, None]


POWER: dict[str, Any] = {"exponent": "neutral", "gain": "scale", "offset": "shift"}


def power(call: uo.rules.Call) -> uo.rules.Claim:
    return call.channelwise(keeps_zero=True, parameters=POWER)


class Competition(nn.Module):
    """Each channel over the sum of all, and a gain."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(CHANNELS) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x.exp() / torch.cumsum(x.exp().sum(1, keepdim=True), 2)
        return y * self.gain[:, None, None]


class Widest(nn.Module):
    """The largest channel minus the smallest, beside the input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.aminmax(x, dim=1, keepdim=True).max


class Mix(nn.Module):
    """A linear layer over channels, written with einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.written = CHANNELS, CHANNELS
        self.matrix = nn.Parameter(torch.randn(CHANNELS, CHANNELS))
        self.offset = nn.Parameter(torch.randn(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.read
        y = torch.einsum("bihw,io->bohw", x, self.matrix) + self.offset[:, None, None]
        assert y.shape[1] == self.written
        return y


class Grouped(nn.Module):
    """A grouped convolution that scales its weight at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = 2
        self.weight = nn.Parameter(torch.randn(CHANNELS, CHANNELS // 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight * 3, groups=self.groups)


class Pair(nn.Module):
    """Calls a module of two tensors."""

    def __init__(self, both: nn.Module) -> None:
        super().__init__()
        self.side = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.both = both

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.both(x, self.side(x))
        return y


class Gate(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cummax(x, -1).values * y


class Norms(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.renorm(x, 2, 0, 1.0) * 0 + torch.cummax(x, -1).values + y
