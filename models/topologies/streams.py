"""Small networks about streams: who writes a tensor, who reads it, and how tensors are joined.

Every class here is one difficulty. All take a ``(N, 3, 8, 8)`` image unless
``upscale_opt.models.topologies.INPUT_SHAPES`` says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class TwoProducers(nn.Module):
    """Two producers write into one sum, so their rows share one order."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, padding=1)
        self.right = nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the sum of the two producers."""
        y: Tensor = self.head(self.left(x) + self.right(x))
        return y


class ManyConsumers(nn.Module):
    """Several consumers read one tensor, each wanting channels of its own.

    Args:
        readers: The number of consumers. Two can always be views; three overlapping sets can
            form a Tucker obstruction.
    """

    def __init__(self, readers: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.readers = nn.ModuleList(nn.Conv2d(12, 8, 3, padding=1) for _ in range(readers))
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the sum of all readers' activations."""
        stream = torch.relu(self.stem(x))
        total = torch.relu(self.readers[0](stream))
        for reader in self.readers[1:]:
            total = total + torch.relu(reader(stream))
        y: Tensor = self.head(total)
        return y


class AddAndCat(nn.Module):
    """One tensor is an operand of a sum and of a concatenation, and read alone as well."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, padding=1)
        self.right = nn.Conv2d(3, 8, 3, padding=1)
        self.side = nn.Conv2d(3, 6, 1)
        self.reads_cat = nn.Conv2d(14, 8, 3, padding=1)
        self.reads_sum = nn.Conv2d(8, 8, 3, padding=1)
        self.reads_left = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the three readers."""
        left, side = torch.relu(self.left(x)), torch.relu(self.side(x))
        total = left + torch.relu(self.right(x))
        joined = torch.cat([side, total], dim=1)
        y: Tensor = self.reads_cat(joined) + self.reads_sum(total) + self.reads_left(left)
        return y


class NestedCat(nn.Module):
    """Concatenations of concatenations, read in two different sequences of the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in range(3))
        self.forwards = nn.Conv2d(12, 6, 3, padding=1)
        self.backwards = nn.Conv2d(12, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both readers."""
        a, b, c = (torch.relu(part(x)) for part in self.parts)
        one = torch.cat([torch.cat([a, b], dim=1), c], dim=1)
        two = torch.cat((c, torch.cat((b, a), 1)), 1)
        y: Tensor = self.forwards(one) + self.backwards(two)
        return y


class PreActivation(nn.Module):
    """Pre-activation residual block: batch norm and relu private to the reader of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(12) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(12, 12, 3, padding=1, bias=False) for _ in range(2))
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the normalised stream after two blocks."""
        stream = self.stem(x)
        for norm, conv in zip(self.norms[:2], self.convs, strict=True):
            stream = stream + conv(torch.relu(norm(stream)))
        y: Tensor = self.head(torch.relu(self.norms[2](stream)))
        return y


class ResidualBlock(nn.Module):
    """The basic ResNet block: two convolutions with batch norm, added to the stream."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream after this block."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        z: Tensor = self.relu(y)
        return z


class ResidualStage(nn.Module):
    """Three blocks on one stream: the last needs no filters for channels only earlier ones read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(12) for _ in range(3)))
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the stream after three blocks."""
        y: Tensor = self.head(self.blocks(torch.relu(self.stem(x))))
        return y


class DenseBlock(nn.Module):
    """A DenseNet block: each layer reads the cat of everything before, through its own norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        widths = [6, 10, 14]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.convs = nn.ModuleList(nn.Conv2d(width, 4, 3, padding=1) for width in widths)
        self.head = nn.Conv2d(18, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of all features."""
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(torch.relu(norm(torch.cat(features, 1)))))
        y: Tensor = self.head(torch.cat(features, 1))
        return y


class UNet(nn.Module):
    """U-Net: a skip tensor is pooled for the way down and concatenated on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, padding=1)
        self.bottom = nn.Conv2d(8, 12, 3, padding=1)
        self.up = nn.Conv2d(20, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return an image of the input's size."""
        skip = torch.relu(self.down(x))
        low = torch.relu(self.bottom(functional.max_pool2d(skip, 2)))
        high = functional.interpolate(low, scale_factor=2.0, mode="nearest")
        y: Tensor = self.head(torch.relu(self.up(torch.cat([skip, high], dim=1))))
        return y


class UselessBranch(nn.Module):
    """A branch joins the stream through one consumer; zero its weights and the branch is dead."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branch = nn.Conv2d(8, 12, 3, padding=1)
        self.reader = nn.Conv2d(12, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of stream plus branch."""
        stream = torch.relu(self.stem(x))
        y: Tensor = self.head(stream + self.reader(torch.relu(self.branch(stream))))
        return y


class UnusedResult(nn.Module):
    """A branch is computed and thrown away: its producer has no consumer at all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.unused = nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the stream."""
        stream = torch.relu(self.stem(x))
        torch.relu(self.unused(stream))
        y: Tensor = self.head(stream)
        return y


class Combine(nn.Module):
    """Two streams meet in an elementwise operation that is not a sum.

    Args:
        combine: The operation, such as ``torch.maximum``.
    """

    def __init__(self, combine: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.combine = combine
        self.left = nn.Conv2d(3, 8, 3, padding=1)
        self.right = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the combined streams."""
        y: Tensor = self.head(self.combine(self.left(x), self.right(x)))
        return y


def divide(x: Tensor, y: Tensor) -> Tensor:
    """Divide by a positive stream: zero over non-zero is zero, but not the other way round."""
    return x / (1.0 + y.square())


STREAMS: dict[str, Callable[[], nn.Module]] = {
    "two_producers": TwoProducers,
    "two_consumers": lambda: ManyConsumers(2),
    "three_consumers": lambda: ManyConsumers(3),
    "four_consumers": lambda: ManyConsumers(4),
    "add_and_cat": AddAndCat,
    "nested_cat": NestedCat,
    "preactivation": PreActivation,
    "residual_stage": ResidualStage,
    "dense_block": DenseBlock,
    "unet": UNet,
    "useless_branch": UselessBranch,
    "unused_result": UnusedResult,
    "subtraction": lambda: Combine(torch.sub),
    "division": lambda: Combine(divide),
    "maximum": lambda: Combine(torch.maximum),
    "product": lambda: Combine(torch.mul),
}
"""Topology name → constructor, for this file's networks."""
