"""Small networks about single layers: one layer kind each, between a producer and a consumer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class Between(nn.Module):
    """One layer of interest between a producer and a consumer; the subject is in the name.

    Args:
        layer: The layer of interest.
        channels: What the producer writes.
        out_channels: What the layer writes, ``channels`` unless it changes their number.
    """

    def __init__(self, layer: nn.Module, channels: int = 8, out_channels: int = 0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.layer = layer
        self.head = nn.Conv2d(out_channels or channels, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the layer of the stem."""
        y: Tensor = self.head(self.layer(self.stem(x)))
        return y


class TwoScales(nn.Module):
    """Depthwise, full and grouped convolutions read the same stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.full = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the sum of the three readers."""
        stream = torch.relu(self.stem(x))
        y: Tensor = self.head(self.depthwise(stream) + self.grouped(stream) + self.full(stream))
        return y


class SqueezeExcite(nn.Module):
    """Squeeze-and-excite: pooled channels pass two linear layers and gate their own stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.squeeze = nn.Linear(12, 4)
        self.excite = nn.Linear(4, 12)
        self.head = nn.Conv2d(12, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the gated stream."""
        stream = torch.relu(self.stem(x))
        pooled = torch.flatten(functional.adaptive_avg_pool2d(stream, 1), 1)
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(pooled))))
        y: Tensor = self.head(stream * gate[:, :, None, None])
        return y


class SharedModule(nn.Module):
    """One convolution is called twice, on two tensors that must agree on its columns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the shared layer applied twice."""
        once = torch.relu(self.shared(torch.relu(self.stem(x))))
        y: Tensor = self.head(torch.relu(self.shared(once)))
        return y


class TiedWeights(nn.Module):
    """Two modules hold the same ``Parameter``, so neither can be cut without the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.Conv2d(8, 8, 1)
        self.second = nn.Conv2d(8, 8, 1)
        self.second.weight = self.first.weight
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of both layers in sequence."""
        y: Tensor = self.head(self.second(torch.relu(self.first(torch.relu(self.stem(x))))))
        return y


class FunctionalConv(nn.Module):
    """Convolutions are function calls on raw parameters; no module marks them as layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem_weight = nn.Parameter(torch.randn(8, 3, 3, 3) / 5)
        self.stem_bias = nn.Parameter(torch.randn(8) / 5)
        self.head_weight = nn.Parameter(torch.randn(4, 8, 1, 1) / 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the stem."""
        stream = torch.relu(functional.conv2d(x, self.stem_weight, self.stem_bias, padding=1))
        return functional.conv2d(stream, self.head_weight)


class SpatialAttention(nn.Module):
    """A ``(N, 1, H, W)`` map, computed from all channels, multiplies every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.map = nn.Conv2d(8, 1, 1)
        self.head = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the weighted stream."""
        stream = torch.relu(self.stem(x))
        y: Tensor = self.head(stream * torch.sigmoid(self.map(stream)))
        return y


class ChannelPoolAttention(nn.Module):
    """CBAM: mean and maximum over the channels see every channel, pruned or not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.map = nn.Conv2d(2, 1, 3, padding=1)
        self.head = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the weighted stream."""
        stream = torch.relu(self.stem(x))
        pooled = torch.cat([stream.mean(1, keepdim=True), stream.amax(1, keepdim=True)], dim=1)
        y: Tensor = self.head(stream * torch.sigmoid(self.map(pooled)))
        return y


class LayerScale(nn.Module):
    """A ``(C, 1, 1)`` parameter multiplies a stream and a constant buffer is added to it."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.register_buffer("shift", torch.rand(1, 8, 1, 1) + 0.5)
        self.head = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the scaled and shifted stream."""
        y: Tensor = self.head(self.stem(x) * self.scale + self.shift)
        return y


class SoftmaxChannels(nn.Module):
    """Softmax over channels: even a channel that is zero changes all others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the normalised stream."""
        y: Tensor = self.head(functional.softmax(self.stem(x), dim=1))
        return y


class Conv1d(nn.Module):
    """The one-dimensional layers: convolution, batch norm, transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(8)
        self.up = nn.ConvTranspose1d(8, 6, 2, stride=2)
        self.head = nn.Conv1d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the upsampled sequence."""
        y: Tensor = self.head(self.up(torch.relu(self.norm(self.stem(x)))))
        return y


class Conv3d(nn.Module):
    """The three-dimensional layers: convolution, batch norm, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm3d(8)
        self.conv = nn.Conv3d(8, 8, (1, 3, 3), padding=(0, 1, 1))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the pooled volume."""
        stream = torch.relu(self.norm(self.stem(x)))
        pooled = functional.adaptive_avg_pool3d(stream + self.conv(stream), 1)
        y: Tensor = self.head(pooled.flatten(1))
        return y


class BareBatchNorm(nn.Module):
    """Batch norms without affine parameters and without running statistics stand side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.plain = nn.BatchNorm2d(8, affine=False)
        self.batch = nn.BatchNorm2d(8, track_running_stats=False)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the sum of both norms."""
        stream = torch.relu(self.stem(x))
        y: Tensor = self.head(self.plain(stream) + self.batch(stream))
        return y


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "transposed_conv": lambda: Between(nn.ConvTranspose2d(8, 12, 2, stride=2), 8, 12),
    "grouped_transposed_conv": lambda: Between(nn.ConvTranspose2d(8, 12, 3, groups=2), 8, 12),
    "depthwise_conv": lambda: Between(nn.Conv2d(8, 8, 3, padding=1, groups=8)),
    "depthwise_multiplier": lambda: Between(nn.Conv2d(8, 16, 3, padding=1, groups=8), 8, 16),
    "grouped_conv": lambda: Between(nn.Conv2d(12, 16, 3, padding=1, groups=4), 12, 16),
    "depthwise_grouped_full": TwoScales,
    "circular_conv": lambda: Between(
        nn.Conv2d(8, 12, 3, padding=1, padding_mode="circular"), 8, 12
    ),
    "same_padding_conv": lambda: Between(nn.Conv2d(8, 12, 3, padding="same", dilation=2), 8, 12),
    "biased_relu": lambda: Between(nn.ReLU()),
    "sigmoid": lambda: Between(nn.Sigmoid()),
    "prelu": lambda: Between(nn.PReLU(8)),
    "prelu_shared": lambda: Between(nn.PReLU()),
    "group_norm": lambda: Between(nn.GroupNorm(2, 8)),
    "instance_norm": lambda: Between(nn.InstanceNorm2d(8, affine=True)),
    "layer_norm_image": lambda: Between(nn.LayerNorm([8, 8, 8])),
    "batch_norm": lambda: Between(nn.BatchNorm2d(8)),
    "bare_batch_norm": BareBatchNorm,
    "dropout": lambda: Between(nn.Sequential(nn.Dropout(0.5), nn.Dropout2d(0.5))),
    "glu": lambda: Between(nn.GLU(dim=1), 12, 6),
    "squeeze_excite": SqueezeExcite,
    "shared_module": SharedModule,
    "tied_weights": TiedWeights,
    "functional_conv": FunctionalConv,
    "spatial_attention": SpatialAttention,
    "channel_pool_attention": ChannelPoolAttention,
    "layer_scale": LayerScale,
    "softmax_channels": SoftmaxChannels,
    "conv1d": Conv1d,
    "conv3d": Conv3d,
}
"""Topology name → constructor, for this file's networks."""
