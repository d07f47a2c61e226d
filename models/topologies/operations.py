"""Small networks about operations that mix channels in part: groups, shuffles, norms, ConvNets.

Attention, embeddings and what shares parameters are in ``topologies_tokens``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from upscale_opt.models.blocks import (
    AcrossChannels,
    Constant,
    ImageNorm,
    RawConv,
    ResponseNorm,
)
from upscale_opt.models.topologies.layers import Between


class GroupedPair(nn.Module):
    """A grouped convolution directly behind another of other groups: each group reads several."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.first = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.second = nn.Conv2d(12, 8, 1, groups=4)
        self.head = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of both grouped convolutions in sequence."""
        y: Tensor = self.head(torch.relu(self.second(self.first(torch.relu(self.stem(x))))))
        return y


class GroupedReaders(nn.Module):
    """Convolutions of 2, 3 and 6 groups and a full one read one stream, and disagree about it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.readers = nn.ModuleList(nn.Conv2d(12, 12, 1, groups=g) for g in (1, 2, 3, 6))
        self.heads = nn.ModuleList(nn.Conv2d(12, 4, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the heads of all readers."""
        stream = torch.relu(self.stem(x))
        results = [
            head(torch.relu(reader(stream)))
            for reader, head in zip(self.readers, self.heads, strict=True)
        ]
        return torch.stack(results).sum(0)


class GroupedCat(nn.Module):
    """A grouped convolution reads a cat whose parts end inside its groups."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 7, 3, padding=1)
        self.right = nn.Conv2d(3, 5, 3, padding=1)
        self.grouped = nn.Conv2d(12, 8, 3, padding=1, groups=4)
        self.side = nn.Conv2d(7, 8, 1)
        self.head = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the grouped reader plus a reader of the left part alone."""
        left, right = torch.relu(self.left(x)), torch.relu(self.right(x))
        y: Tensor = self.head(self.grouped(torch.cat([left, right], dim=1)) + self.side(left))
        return y


class GroupedChunks(nn.Module):
    """A grouped convolution's result is cut inside its groups, and both parts are read apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.left = nn.Conv2d(6, 6, 1, groups=2)
        self.right = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the readers of the halves."""
        left, right = torch.relu(self.grouped(torch.relu(self.stem(x)))).chunk(2, dim=1)
        y: Tensor = self.left(left) + self.right(right)
        return y


class ResNeXtStage(nn.Module):
    """Two blocks of ResNeXt on one stream: narrow, grouped, wide, each with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(12, 8, 1, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU(inplace=True),
                nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU(inplace=True),
                nn.Conv2d(8, 12, 1, bias=False),
                nn.BatchNorm2d(12),
            )
            for _ in range(2)
        )
        self.head = nn.Conv2d(12, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the stream after both blocks."""
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = torch.relu(x + block(x))
        y: Tensor = self.head(x)
        return y


class GroupedResidual(nn.Module):
    """A stream plus a grouped convolution of itself: rows and columns of a group share an order."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=4)
        self.other = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.head = nn.Conv2d(12, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the stream after two such sums."""
        x = torch.relu(self.stem(x))
        x = x + self.grouped(x)
        y: Tensor = self.head(x + self.other(x))
        return y


class ShuffleV1(nn.Module):
    """The unit of ShuffleNet: grouped, shuffled, depthwise, grouped, added to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.narrow = nn.Conv2d(12, 6, 1, groups=3)
        self.shuffle = nn.ChannelShuffle(3)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.wide = nn.Conv2d(6, 12, 1, groups=3)
        self.head = nn.Conv2d(12, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the stream after one unit."""
        x = torch.relu(self.stem(x))
        inner = self.depthwise(self.shuffle(torch.relu(self.narrow(x))))
        y: Tensor = self.head(torch.relu(x + self.wide(inner)))
        return y


class ShuffleV2(nn.Module):
    """Three units of ShuffleNet V2: one half passes a branch, then cat, shuffle and chunk again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(6, 6, 1),
                nn.Conv2d(6, 6, 3, padding=1, groups=6),
                nn.BatchNorm2d(6),
                nn.Conv2d(6, 6, 1),
                nn.ReLU(),
            )
            for _ in range(3)
        )
        self.head = nn.Conv2d(12, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the stream after three units."""
        x = torch.relu(self.stem(x))
        for branch in self.branches:
            left, right = x.chunk(2, dim=1)
            x = torch.cat([left, branch(right)], dim=1)
            batch, channels, height, width = x.size()
            x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
            x = x.view(batch, channels, height, width)
        y: Tensor = self.head(x)
        return y


class ConvNeXt(nn.Module):
    """Two blocks of ConvNeXt: depthwise, channels last, norm, wide, narrow, scale, and the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, stride=2)
        self.depthwise = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, groups=8) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.wide = nn.ModuleList(nn.Linear(8, 12) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Linear(12, 8) for _ in range(2))
        self.scales = nn.ParameterList(nn.Parameter(torch.rand(8, 1, 1)) for _ in range(2))
        self.norm = ImageNorm(8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the normalised stream after both blocks."""
        x = self.stem(x)
        for index in range(2):
            y = self.norms[index](self.depthwise[index](x).permute(0, 2, 3, 1))
            y = self.narrow[index](functional.gelu(self.wide[index](y))).permute(0, 3, 1, 2)
            x = x + y * self.scales[index]
        result: Tensor = self.head(self.norm(x))
        return result


class ResponseNormLast(nn.Module):
    """The hidden channels of a ConvNeXt V2 block: global response norm with channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, stride=2)
        self.wide = nn.Linear(8, 12)
        self.response = ResponseNorm(12, last=True)
        self.narrow = nn.Linear(12, 8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the stream after the block."""
        x = self.stem(x)
        hidden = self.response(functional.gelu(self.wide(x.permute(0, 2, 3, 1))))
        y: Tensor = self.head(x + self.narrow(hidden).permute(0, 3, 1, 2))
        return y


class GroupNorms(nn.Module):
    """Group norms of 1, 2, 3 and 12 groups on one stream: they allow different orders."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(groups, 12) for groups in (1, 2, 3, 12))
        self.heads = nn.ModuleList(nn.Conv2d(12, 4, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the heads of all norms."""
        stream = self.stem(x)
        results = [
            head(torch.relu(norm(stream)))
            for norm, head in zip(self.norms, self.heads, strict=True)
        ]
        return torch.stack(results).sum(0)


class NormedShared(nn.Module):
    """A layer norm and a plain reader share a stream: only the norm needs its dead channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.more = nn.Conv2d(3, 8, 1)
        self.norm = ImageNorm(8)
        self.normed = nn.Conv2d(8, 6, 1)
        self.plain = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both readers."""
        stream = self.stem(x) + self.more(x)
        y: Tensor = self.normed(self.norm(stream)) + self.plain(torch.relu(stream))
        return y


class ChannelMean(nn.Module):
    """A stream minus the mean of its channels, and times the log-softmax of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the product."""
        stream = self.stem(x)
        centred = stream - stream.mean(dim=1, keepdim=True)
        y: Tensor = self.head(centred * stream.log_softmax(1))
        return y


class EfficientAttention(nn.Module):
    """ECA: a convolution runs *along* the pooled channels, whose order therefore matters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.across = AcrossChannels()
        self.head = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the gated stream."""
        stream = torch.relu(self.stem(x))
        gate = torch.sigmoid(self.across(stream.mean((2, 3))))
        y: Tensor = self.head(stream * gate[:, :, None, None])
        return y


class Volumes(nn.Module):
    """An image becomes a volume, passes a grouped 3-d convolution, and becomes a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.volume = nn.Conv3d(8, 12, 3, padding=1, groups=4)
        self.slopes = nn.PReLU(12)
        self.row = nn.Conv1d(12, 8, 3, padding=1, groups=2)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores of the mean of the sequence."""
        volume = self.slopes(self.volume(torch.relu(self.stem(x)).unsqueeze(2)))
        y: Tensor = self.head(self.row(volume.squeeze(2).flatten(2)).mean(2))
        return y


OPERATIONS: dict[str, Callable[[], nn.Module]] = {
    "grouped_pair": GroupedPair,
    "grouped_readers": GroupedReaders,
    "grouped_cat": GroupedCat,
    "grouped_chunks": GroupedChunks,
    "resnext_stage": ResNeXtStage,
    "grouped_residual": GroupedResidual,
    "shuffle_v1": ShuffleV1,
    "shuffle_v2": ShuffleV2,
    "convnext": ConvNeXt,
    "response_norm": lambda: Between(ResponseNorm(8, last=False)),
    "response_norm_last": ResponseNormLast,
    "group_norms": GroupNorms,
    "instance_norm_plain": lambda: Between(nn.InstanceNorm2d(8)),
    "local_response_norm": lambda: Between(nn.LocalResponseNorm(3)),
    "normed_shared": NormedShared,
    "channel_mean": ChannelMean,
    "across_channels": EfficientAttention,
    "volumes": Volumes,
    "pixel_unshuffle": lambda: Between(nn.PixelUnshuffle(2), 3, 12),
    "standardised_conv": lambda: Between(RawConv(8, 12, 2, "standardised"), 8, 12),
    "raw_transposed_conv": lambda: Between(RawConv(8, 12, 4, "transposed"), 8, 12),
    "einsum_conv": lambda: Between(RawConv(8, 12, 1, "einsum"), 8, 12),
    "where_constant": lambda: Between(Constant((8, 1, 1), "where")),
    "reversed_subtraction": lambda: Between(Constant((1, 8, 1, 1), "rsub")),
}
"""Topology name → constructor, for this file's networks."""
