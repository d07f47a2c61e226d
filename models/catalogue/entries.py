"""Entries of the catalogue: how a network is built, and what it is called with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ExampleInputs = Tensor | tuple[Any, ...] | dict[str, Tensor]
"""The inputs of a network: a tensor, positional arguments, or keyword arguments."""


@dataclass(frozen=True)
class Entry:
    """A network of the catalogue.

    Attributes:
        make: Builds it, with random weights from the global generator; downloads nothing.
        inputs: Given a batch size, what it is called with; the same at every call.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int], ExampleInputs]


Group = Mapping[str, Entry]
"""The networks of a kind by their full names, in their order."""


def noise(*sizes: int, batch: int, seed: int = 0) -> Tensor:
    """Return random values of the shape (batch, ...), the same at every call."""
    return torch.randn(batch, *sizes, generator=torch.Generator().manual_seed(seed))


def picture(size: int, batch: int) -> Tensor:
    """Return random images of the shape (batch, 3, size, size)."""
    return noise(3, size, size, batch=batch)
