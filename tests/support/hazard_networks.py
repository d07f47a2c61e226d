"""Networks around hazards, and inputs of other batches and sizes for them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import torch
from hazards import Builder, Call, Case
from torch import Tensor, nn


class Around(nn.Module):
    """Something unusual, `middle(self, x, y)`, between layers that can be pruned.

    Args:
        rng: where the layers come from.
        middle: gets this module, its input and the activation.
        width: the channels of the activation; drawn if not given.

    Attributes:
        writer: the last layer with weights before the middle.
        reader: the first one after it.
        width: the number of channels between them.
        more: other layers that the middle may use: `more.side` reads the input and `more.gate`
            the activation; both write as many channels as the activation has.
    """

    def __init__(
        self, rng: random.Random, middle: Callable[..., Any] | None = None, width: int = 0
    ) -> None:
        super().__init__()
        self.width = width or rng.choice([4, 6, 8])
        self.middle = middle
        self.before = rng.choice(["conv", "relu", "relu", "stacked", "residual"])
        self.after = rng.choice(["conv", "relu", "skip", "joined"])
        inner = rng.randint(3, 6) if self.before == "stacked" else 3
        if self.before == "stacked":
            self.stem = nn.Conv2d(3, inner, 1)
        kernel = rng.choice([1, 3])
        self.writer = nn.Conv2d(inner, self.width, kernel, padding="same")
        if self.before == "residual":
            self.other: nn.Module = nn.Conv2d(3, self.width, 1)
        out = rng.randint(2, 5)
        self.reader = nn.Conv2d(self.width, out, rng.choice([1, 3]), padding="same")
        if self.after == "skip":
            self.skip = nn.Conv2d(self.width, out, 1)
        if self.after == "joined":
            self.skip = nn.Conv2d(self.width + out, 3, 1)
        self.more = nn.ModuleDict(
            {"side": nn.Conv2d(3, self.width, 1), "gate": nn.Conv2d(self.width, self.width, 1)}
        )

    def enter(self, x: Tensor) -> Tensor:
        """The activation."""
        y: Tensor = self.writer(torch.tanh(self.stem(x)) if self.before == "stacked" else x)
        if self.before == "relu":
            y = torch.relu(y)
        return y + self.other(x) if self.before == "residual" else y

    @torch.no_grad()
    def kill(self, channel: int) -> None:
        """Let one channel of the activation be zero, so that there is something to be wrong."""
        layers: list[Any] = [self.writer, getattr(self, "other", self.writer)]
        for layer in layers:
            layer.weight[channel] = 0
            layer.bias[channel] = 0

    def leave(self, y: Tensor) -> Any:
        """The result for an activation."""
        z: Tensor = self.reader(torch.relu(y) if self.after == "relu" else y)
        if self.after == "skip":
            z = z + self.skip(y)
        return self.skip(torch.cat([z, y], 1)) if self.after == "joined" else z

    def forward(self, x: Tensor) -> Any:
        assert self.middle is not None
        return self.leave(self.middle(self, x, self.enter(x)))


class Flat(Around):
    """The middle returns the result itself, or vectors, which are summed over channels at last."""

    def leave(self, y: Tensor) -> Any:
        return y


def images(rng: random.Random, batch: int = 2, side: int = 0) -> Tensor:
    """Random images."""
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    sides = (side, side) if side else (rng.randint(4, 7), rng.randint(4, 7))
    return torch.randn(batch, 3, *sides, generator=generator, dtype=torch.float64)


def resized(rng: random.Random, x: Tensor, batch: int = 0, by: tuple[int, int] = (0, 0)) -> Tensor:
    """Other images like ``x``."""
    height, width = x.shape[2] + by[0], x.shape[3] + by[1]
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    shape = (batch or len(x), x.shape[1], height, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def other_sizes(rng: random.Random, x: Tensor, *, sizes: bool = False) -> list[Call]:
    """Other batches, which must be right, and images of other sizes, which may have to be."""
    batch = rng.choice([1, 3, 4, 5])
    by = rng.choice([(1, 0), (0, 1), (2, 3), (3, 1), (1, 2)])
    return [
        Call("another batch", (resized(rng, x, batch),), right=True),
        Call("a batch of one", (resized(rng, x, 1),), right=True),
        Call("another size", (resized(rng, x, by=by),), right=sizes),
        Call("another width", (resized(rng, x, by=(0, 2)),), right=sizes),
        Call("a larger batch of another size", (resized(rng, x, batch + 1, by),), right=sizes),
    ]


def around(
    middle: Callable[[Any, Tensor, Tensor], Any],
    *,
    honest: bool = True,
    sizes: bool = False,
    batches: bool = True,
    flat: bool = False,
    width: int = 0,
    **more: Any,
) -> Builder:
    """A variant: a middle within drawn layers, called at other batches and sizes.

    Args:
        middle: see `Around`.
        honest: see `Case`.
        sizes: other image sizes must be right as well.
        batches: other batches must be right.
        flat: what the middle returns is the result.
        width: see `Around`.
        more: of the `Case`.
    """

    def build(rng: random.Random) -> Case:
        seed = rng.getrandbits(32)
        x = images(rng)
        kind = Flat if flat else Around
        calls = other_sizes(rng, x, sizes=sizes)
        if not honest or not batches:
            calls = [dataclasses.replace(call, right=False) for call in calls]
        return Case(lambda: kind(random.Random(seed), middle, width), x, calls, honest, **more)

    return build


def drawn(kind: Callable[[random.Random], nn.Module], rng: random.Random) -> Callable[[], Any]:
    """Makes the same model each time."""
    seed = rng.getrandbits(32)
    return lambda: kind(random.Random(seed))
