"""Inputs made from given ones: at random, of another batch, and of other sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch.utils import _pytree as pytree

from upscale_opt.tracing.examples import Inputs, as_call, map_tensors

_LARGE = 64
"""Sizes from here on are halved, smaller ones doubled."""


@dataclass(frozen=True)
class Shapes:
    """The shapes of some inputs' tensors.

    Attributes:
        sizes: of every tensor.
        constant: no floating-point tensor holds two different numbers, though one could.
    """

    sizes: tuple[tuple[int, ...], ...]
    constant: bool

    def __str__(self) -> str:
        return ", ".join(" x ".join(map(str, size)) or "a number" for size in self.sizes)


def shapes(inputs: Inputs) -> Shapes:
    """The shapes of the tensors among ``inputs``."""
    tensors = _tensors(inputs)
    floats = [t for t in tensors if t.is_floating_point() and t.numel() > 1]
    constant = bool(floats) and all(bool((t == t.flatten()[0]).all()) for t in floats)
    return Shapes(tuple(tuple(t.shape) for t in tensors), constant)


def at_random(inputs: Inputs) -> list[Inputs]:
    """Inputs of the same shapes with random numbers: of both signs, then positive ones."""

    def normal(tensor: torch.Tensor, source: torch.Generator) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=source, dtype=torch.float64)

    def positive(tensor: torch.Tensor, source: torch.Generator) -> torch.Tensor:
        return torch.rand(tensor.shape, generator=source, dtype=torch.float64) * 0.8 + 0.1

    made = []
    for draw in (normal, positive):
        source = torch.Generator().manual_seed(0)

        def drawn(tensor: torch.Tensor, draw: Any = draw, source: Any = source) -> torch.Tensor:
            if not tensor.is_floating_point():
                return tensor
            return torch.as_tensor(draw(tensor, source)).to(tensor.device, tensor.dtype)

        made.append(_mapped(inputs, drawn))
    return made


def another_batch(inputs: Inputs) -> Inputs | None:
    """Half of a batch of four or more, or twice a smaller one; ``None`` if no tensor has axes."""
    sizes = [len(tensor) for tensor in _tensors(inputs) if tensor.ndim]
    if not sizes or not sizes[0]:
        return None
    batch = sizes[0]

    def resized(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.ndim or len(tensor) != batch:
            return tensor
        return tensor[: batch // 2] if batch >= 4 else torch.cat([tensor, tensor.roll(1, 0)])

    return _mapped(inputs, resized)


def longer_lists(inputs: Inputs) -> Inputs | None:
    """Twice as many tensors in every list of tensors, as detectors take images; or ``None``."""
    found = False

    def longer(thing: Any) -> Any:
        nonlocal found
        if isinstance(thing, list) and thing and all(isinstance(t, torch.Tensor) for t in thing):
            found = True
            return [*thing, *(tensor.flip(-1) if tensor.ndim else tensor for tensor in thing)]
        if isinstance(thing, dict):
            return {key: longer(value) for key, value in thing.items()}
        return tuple(longer(part) for part in thing) if type(thing) is tuple else thing

    made: Inputs = longer(tuple(inputs) if isinstance(inputs, list) else inputs)
    return made if found else None


def of_other_sizes(inputs: Inputs) -> list[Inputs]:
    """Inputs with other sizes along the axes that may be space or time; none if there are none.

    Height and width get factors of their own at first, then one. What was halved comes half as
    large again at last: where maps are small, code often takes other ways.
    """
    tensors = _tensors(inputs)
    made: list[Inputs] = []
    tried: set[tuple[tuple[int, ...], ...]] = {tuple(tuple(t.shape) for t in tensors)}
    for axes_of, square in product(_GUESSES, (False, True)):

        def resized(
            tensor: torch.Tensor, axes_of: Any = axes_of, square: bool = square
        ) -> torch.Tensor:
            axes = axes_of(tensor)
            for axis in axes:
                size, even = tensor.shape[axis], len(axes) == 1 or axis % 2 == 0 or square
                if size >= _LARGE:
                    tensor = tensor.narrow(axis, 0, size // 2 if even else size // 4 * 3)
                elif size > 1:
                    parts = [tensor, tensor.flip(axis), tensor]
                    tensor = torch.cat(parts[: 2 if even else 3], axis)
            return tensor

        candidate = _mapped(inputs, resized)
        found = tuple(tuple(t.shape) for t in _tensors(candidate))
        if found not in tried:
            tried.add(found)
            made.append(candidate)
    if any(tensor.shape[axis] >= _LARGE for tensor in tensors for axis in _space(tensor)):
        made.append(_mapped(inputs, _half_more))
    return made


def _half_more(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor half as large again along the axes of an image that are long."""
    for axis in _space(tensor):
        size = tensor.shape[axis]
        if size >= _LARGE:
            tensor = torch.cat([tensor, tensor.narrow(axis, 0, size // 2).flip(axis)], axis)
    return tensor


def _space(tensor: torch.Tensor) -> range:
    return range(2, tensor.ndim)


def _time(tensor: torch.Tensor) -> range:
    return range(1, 2) if tensor.ndim == 3 or _are_ids(tensor) else range(2, tensor.ndim)


def _before_last(tensor: torch.Tensor) -> range:
    return range(1, tensor.ndim - 1)


_GUESSES: tuple[Callable[[torch.Tensor], range], ...] = (_space, _time, _before_last)
"""The axes of a tensor that may have any size, if channels are the second axis, or the last."""


def _are_ids(tensor: torch.Tensor) -> bool:
    return tensor.ndim == 2 and not tensor.is_floating_point()


def _tensors(inputs: Inputs) -> list[torch.Tensor]:
    leaves = pytree.tree_leaves(as_call(inputs))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _mapped(inputs: Inputs, function: Callable[[torch.Tensor], torch.Tensor]) -> Inputs:
    if isinstance(inputs, torch.Tensor):
        return function(inputs)
    made: Inputs = map_tensors(inputs, function)
    return made
