"""Small networks about the order of channels: streams cut, repeated, mirrored or shuffled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Slices(nn.Module):
    """Two halves of a stream, ``x[:, :k]`` and ``x[:, k:]``, are read apart, and the whole, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.first = nn.Conv2d(5, 8, 1)
        self.rest = nn.Conv2d(7, 8, 1)
        self.whole = nn.Conv2d(12, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the three readers."""
        stream = torch.relu(self.stem(x))
        y: Tensor = self.first(stream[:, :5]) + self.rest(stream[:, 5:]) + self.whole(stream)
        return y


class StridedSlice(nn.Module):
    """Every second channel is read, ``x[:, ::2]``, which no contiguous order of slices explains."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.even = nn.Conv2d(6, 8, 1)
        self.odd = nn.Conv2d(6, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the readers of even and odd channels."""
        stream = torch.relu(self.stem(x))
        y: Tensor = self.even(stream[:, ::2]) + self.odd(stream[:, 1::2])
        return y


class SplitReordered(nn.Module):
    """A stream is cut into pieces that are concatenated again in another sequence.

    Args:
        by_chunk: Cut with ``chunk(3)`` instead of ``split([2, 6, 4])``.
    """

    def __init__(self, by_chunk: bool) -> None:
        super().__init__()
        self.by_chunk = by_chunk
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.straight = nn.Conv2d(12, 8, 1)
        self.reordered = nn.Conv2d(12, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of a reader of the stream and one of the reordered stream."""
        stream = torch.relu(self.stem(x))
        if self.by_chunk:
            a, b, c = stream.chunk(3, dim=1)
        else:
            a, b, c = torch.split(stream, [2, 6, 4], dim=1)
        y: Tensor = self.straight(stream) + self.reordered(torch.cat([c, a, b], dim=1))
        return y


class CatTwice(nn.Module):
    """``cat([x, x])``: each channel stands twice in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(16, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the doubled stream."""
        stream = torch.relu(self.stem(x))
        y: Tensor = self.head(torch.cat([stream, stream], dim=1))
        return y


class AddSelf(nn.Module):
    """A tensor is added to itself: both operands are the same edge."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the doubled values."""
        stream = torch.relu(self.stem(x))
        y: Tensor = self.head(stream + stream)
        return y


class AddOfSlices(nn.Module):
    """Two slices of one stream are added, which ties channels of one tensor to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.head = nn.Conv2d(6, 6, 3, padding=1)
        self.whole = nn.Conv2d(12, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a reader of the sum of the halves plus a reader of the whole."""
        stream = torch.relu(self.stem(x))
        y: Tensor = self.head(stream[:, :6] + stream[:, 6:]) + self.whole(stream)
        return y


class AddFlipped(nn.Module):
    """``x + x.flip(1)`` ties each channel to its mirror image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the stream plus its mirror image."""
        stream = torch.relu(self.stem(x))
        y: Tensor = self.head(stream + stream.flip(1))
        return y


class AddRolled(nn.Module):
    """``x + x.roll(1, 1)`` ties all channels of a stream into one cycle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the stream plus its rolled copy."""
        stream = torch.relu(self.stem(x))
        y: Tensor = self.head(stream + torch.roll(stream, 1, 1))
        return y


class RolledRead(nn.Module):
    """A rolled and a plain copy of one stream are read apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.plain = nn.Conv2d(8, 6, 1)
        self.rolled = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both readers."""
        stream = torch.relu(self.stem(x))
        y: Tensor = self.plain(stream) + self.rolled(stream.roll(3, 1))
        return y


class ChannelShuffle(nn.Module):
    """A ShuffleNet shuffle (reshape, transpose, reshape) between two readers of one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.plain = nn.Conv2d(12, 6, 1)
        self.shuffled = nn.Conv2d(12, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of a reader of the stream and one of the shuffled stream."""
        stream = torch.relu(self.stem(x))
        batch, channels, height, width = stream.size()
        groups = stream.view(batch, 3, channels // 3, height, width)
        shuffled = torch.transpose(groups, 1, 2).contiguous().view(batch, -1, height, width)
        y: Tensor = self.plain(stream) + self.shuffled(shuffled)
        return y


ORDERS: dict[str, Callable[[], nn.Module]] = {
    "slices": Slices,
    "strided_slice": StridedSlice,
    "chunk_reordered": lambda: SplitReordered(by_chunk=True),
    "split_reordered": lambda: SplitReordered(by_chunk=False),
    "cat_twice": CatTwice,
    "add_self": AddSelf,
    "add_of_slices": AddOfSlices,
    "add_flipped": AddFlipped,
    "add_rolled": AddRolled,
    "rolled_read": RolledRead,
    "channel_shuffle": ChannelShuffle,
}
"""Topology name → constructor, for this file's networks."""
