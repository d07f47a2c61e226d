"""Something unusual in the middle of a network: it is exported rightly, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comparing import call, deviation, size
from sample_networks import exported
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.tracing.examples import Inputs

IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double()


class Around(nn.Module):
    """Something in the middle, between layers that can be pruned."""

    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.middle = nn.Identity() if middle is None else middle
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.second(self.middle(x)))
        y: Tensor = self.last(x)
        return y


class Does(nn.Module):
    """Calls a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class Weighted(nn.Module):
    """A layer inside the function."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 1)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layer, x)


class Flipping(nn.Module):
    """Adds a layer's result, with its channels the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x).flip(1) + x
        return y


class Flip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.flip(1) * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def assert_exports(
    make: Callable[[], nn.Module], inputs: Inputs = IMAGES, *, smaller: bool = True
) -> None:
    """Smaller, and right at the first call and at later ones."""
    torch.manual_seed(0)
    masked, pruned = exported(make().double().eval(), inputs)
    for again in range(3):
        torch.manual_seed(again)
        want = call(masked, inputs)
        torch.manual_seed(again)
        assert deviation(want, call(pruned, inputs)) < 1e-10
    assert not smaller or size(pruned) < size(masked)


def assert_exports_or_refuses(make: Callable[[], nn.Module], inputs: Inputs, reason: str) -> None:
    """Right, or refused in words that hold ``reason``."""
    refusal = ""
    try:
        assert_exports(make, inputs, smaller=False)
    except uo.UpscaleError as error:
        refusal = str(error)
    assert not refusal or reason in refusal


def refused(make: Callable[[], nn.Module], inputs: Inputs = IMAGES) -> str | None:
    """Why there is no export, if there is none."""
    try:
        exported(make().double().eval(), inputs)
    except uo.UpscaleError as error:
        return str(error)
    return None


def reasons(model: nn.Module, inputs: Inputs = IMAGES) -> list[str]:
    graph = uo.trace(model.double(), inputs)
    return [op.reason for op in graph.operations if op.kind == "opaque"]
