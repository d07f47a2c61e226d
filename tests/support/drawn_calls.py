"""Calls to try, of random sizes: what one is, and those that a single function makes."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Tried:
    """One or a few calls to try.

    Attributes:
        run: the calls: of the parts below (as attributes of the first argument) and the tensors.
        shapes: of the tensors.
        axis: their channel axis, 1 or -1.
        parts: modules, parameters and buffers.
        kinds: what tracing should find, if that depends on the arguments.
        training: the mode.
    """

    run: Callable[..., Any]
    shapes: Sequence[Shape]
    axis: int = 1
    parts: Mapping[str, nn.Module | Tensor] = field(default_factory=dict)
    kinds: str | None = None
    training: bool = False


class Draws:
    """Random sizes and arguments.

    Attributes:
        least: no axis is shorter.
    """

    def __init__(self, rng: random.Random, least: int) -> None:
        self.rng = rng
        self.least = least

    def whole(self, low: int, high: int) -> int:
        return self.rng.randint(low, high)

    def pick(self, items: Sequence[Any]) -> Any:
        return items[self.rng.randrange(len(items))]

    def flag(self) -> bool:
        return self.rng.random() < 0.5

    def size(self, high: int = 4) -> int:
        return self.rng.randint(self.least, high)

    def channels(self, factor: int = 1) -> int:
        """A number of channels that can be divided by ``factor``."""
        least = -(-self.least // factor)
        return factor * self.rng.randint(least, max(least, 6 // factor))

    def image(self, dims: int | None = None, channels: int | None = None, side: int = 1) -> Shape:
        """(N, C, spatial …), no side shorter than ``side``."""
        dims = self.whole(1, 3) if dims is None else dims
        spatial = [self.whole(max(self.least, side), side + 3) for _ in range(dims)]
        return (self.size(3), self.channels() if channels is None else channels, *spatial)

    def tokens(self, channels: int | None = None) -> Shape:
        return (self.size(3), self.size(), self.channels() if channels is None else channels)

    def vector(self, channels: int | None = None) -> Shape:
        return (self.size(3), self.channels() if channels is None else channels)

    def anything(self, channels: int | None = None) -> tuple[Shape, int]:
        """Images, vectors or tokens, and their channel axis."""
        kind = self.pick(["image", "vector", "tokens"])
        shape: Shape = getattr(self, kind)(channels=channels)
        return shape, -1 if kind == "tokens" else 1


Tries = Callable[[Draws], Tried]


def each(run: Callable[[Tensor], Any]) -> Tries:
    """A call on anything with channels."""

    def tries(d: Draws) -> Tried:
        shape, axis = d.anything()
        return Tried(lambda parts, x: run(x), [shape], axis)

    return tries


def modules(
    *kinds: Callable[[], nn.Module], dims: int | None = None, training: bool = False
) -> Tries:
    """One of some modules, on anything with channels, or on images with ``dims`` dimensions."""

    def tries(d: Draws) -> Tried:
        shape, axis = d.anything() if dims is None else (d.image(dims), 1)
        module = d.pick(kinds)()
        return Tried(lambda p, x: p.m(x), [shape], axis, {"m": module}, training=training)

    return tries


def two(run: Callable[[Tensor, Tensor], Any]) -> Tries:
    """A call on two tensors of one shape."""

    def tries(d: Draws) -> Tried:
        shape, axis = d.anything()
        return Tried(lambda parts, x, y: run(x, y), [shape, shape], axis)

    return tries


def three(run: Callable[[Tensor, Tensor, Tensor], Any]) -> Tries:
    """A call on three tensors of one shape."""

    def tries(d: Draws) -> Tried:
        shape, axis = d.anything()
        return Tried(lambda parts, x, y, z: run(x, y, z), [shape] * 3, axis)

    return tries


def images(run: Callable[[Tensor], Any], dims: int | None = None, side: int = 1) -> Tries:
    """A call on images of 1 to 3 dimensions."""
    return lambda d: Tried(lambda parts, x: run(x), [d.image(dims, side=side)])


def even(run: Callable[[Tensor, int], Any], factor: int = 2, dims: int | None = None) -> Tries:
    """A call on images whose channels can be divided by ``factor``, and their number."""

    def tries(d: Draws) -> Tried:
        shape = d.image(dims, channels=d.channels(factor))
        return Tried(lambda parts, x: run(x, shape[1]), [shape])

    return tries


def pieces(result: Any, count: int) -> list[Any]:
    """The members of what FX has no length for."""
    return [result[i] for i in range(count)]
