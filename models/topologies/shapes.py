"""Small networks about shapes, aliasing and interfaces: views, tokens, in-place writes, outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class Flatten(nn.Module):
    """A spatial tensor is flattened into a linear layer: several features per channel.

    Args:
        how: The spelling of the flattening: a function from ``(N, 8, 4, 4)`` to ``(N, 128)``.
    """

    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.how = how
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.side = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(128, 10)
        self.side_head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores from the flattened stream and from a second reader of it."""
        stream = functional.max_pool2d(torch.relu(self.stem(x)), 2)
        y: Tensor = self.head(self.how(stream)) + self.side_head(self.side(stream).mean((2, 3)))
        return y


class MeanSpace(nn.Module):
    """``mean`` over the spatial axes stands between a producer and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.Linear(8, 5)
        self.second = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of two readers of the pooled stream."""
        pooled = torch.relu(self.stem(x)).mean([2, 3])
        y: Tensor = self.first(pooled) + self.second(pooled)
        return y


class MLP(nn.Module):
    """Linear layers alone, with a residual: channels are the last and only axis."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(16, 24)
        self.block = nn.Sequential(nn.Linear(24, 16), nn.GELU(), nn.Linear(16, 24))
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores."""
        stream = torch.relu(self.stem(x))
        y: Tensor = self.head(stream + self.block(stream))
        return y


class Tokens(nn.Module):
    """Linear layers on ``(N, T, C)`` tokens coming from and returning to ``(N, C, H, W)``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 2, stride=2)
        self.mix = nn.Linear(12, 16)
        self.back = nn.Linear(16, 12)
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the map after one token block."""
        image = self.stem(x)
        tokens = image.flatten(2).transpose(1, 2)
        tokens = tokens + self.back(functional.gelu(self.mix(tokens)))
        y: Tensor = self.head(tokens.transpose(1, 2).reshape(-1, 12, 4, 4))
        return y


class TokenNorm(nn.Module):
    """A layer norm over the channels of ``(N, T, C)`` tokens, read by two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 12)
        self.norm = nn.LayerNorm(12)
        self.first = nn.Linear(12, 8)
        self.second = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated product of both readers."""
        tokens = self.norm(self.stem(x))
        return torch.sigmoid(self.first(tokens)) * torch.tanh(self.second(tokens))


class Attention(nn.Module):
    """Self-attention with two heads: channels vary along two axes inside, along one outside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.qkv = nn.Linear(8, 24)
        self.proj = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the tokens after attention."""
        tokens = self.stem(x)
        batch, length, channels = tokens.shape
        heads = self.qkv(tokens).reshape(batch, length, 3, 2, channels // 2).permute(2, 0, 3, 1, 4)
        query, key, value = heads[0], heads[1], heads[2]
        weights = torch.softmax(query @ key.transpose(-2, -1) * 0.5, dim=-1)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, length, channels)
        y: Tensor = self.head(tokens + self.proj(mixed))
        return y


class PixelShuffle(nn.Module):
    """Pixel shuffle turns four channels into the pixels of one, and back for a second reader."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.head = nn.Conv2d(4, 4, 3, padding=1)
        self.side = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the shuffled reader minus the upsampled plain reader."""
        stream = torch.relu(self.stem(x))
        side = functional.interpolate(self.side(stream), scale_factor=2.0)
        y: Tensor = self.head(self.shuffle(stream)) - side
        return y


class Upsample(nn.Module):
    """Bilinear upsampling, average pooling and zero padding leave channels where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.head = nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the resampled stream."""
        stream = functional.avg_pool2d(
            functional.pad(self.up(torch.relu(self.stem(x))), (1, 1, 1, 1)), 3, stride=2
        )
        y: Tensor = self.head(stream)
        return y


class PaddedChannels(nn.Module):
    """A shortcut is padded with zero *channels* before the sum, as in CIFAR ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.widen = nn.Conv2d(8, 12, 3, padding=1)
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the widened stream."""
        stream = torch.relu(self.stem(x))
        shortcut = functional.pad(stream, (0, 0, 0, 0, 2, 2))
        y: Tensor = self.head(torch.relu(self.widen(stream) + shortcut))
        return y


class ShapeScale(nn.Module):
    """The number of channels is itself a factor: ``x / x.shape[1]`` must not change when pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the scaled stream."""
        stream = torch.relu(self.stem(x))
        y: Tensor = self.head(stream * stream.size(1) / (stream.shape[1] + 1) ** 0.5)
        return y


class InplaceReadAgain(nn.Module):
    """An in-place relu rewrites a tensor that is read again later under its old name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.after = nn.Conv2d(8, 4, 1)
        self.old_name = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return both readers: each sees the values after the relu."""
        stream = self.stem(x)
        y = torch.relu_(stream)
        z: Tensor = self.after(y) + self.old_name(stream)
        return z


class InplaceBetweenReads(nn.Module):
    """A tensor is read, rewritten in place, and read again: the reads see different values."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.before = nn.Conv2d(8, 8, 1)
        self.relu = nn.ReLU(inplace=True)
        self.after = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of a reader before and one after the rewriting."""
        stream = self.stem(x)
        before = self.before(stream)
        self.relu(stream)
        stream.add_(before)
        y: Tensor = before + self.after(stream)
        return y


class InplaceAdd(nn.Module):
    """``x += y`` into a stream, nothing else holding the old tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the stream after the block."""
        stream = torch.relu(self.stem(x))
        stream += self.block(stream)
        y: Tensor = self.head(stream)
        return y


class InplaceAddAliased(nn.Module):
    """``x += y`` while a second name holds ``x``: plain ``torch.fx`` wrongly records ``x + y``.

    ``torch.fx.Proxy`` has no ``__iadd__``, so Python falls back to ``__add__`` and the trace
    computes something else than the model. The tracer must see this and the test suite says so.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Conv2d(8, 8, 3, padding=1)
        self.alias = nn.Conv2d(8, 4, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return both readers: each sees the stream after the addition."""
        stream = torch.relu(self.stem(x))
        alias = stream
        stream += self.block(stream)
        y: Tensor = self.head(stream) + self.alias(alias)
        return y


class InplaceOnSlice(nn.Module):
    """An in-place relu on a slice rewrites part of the stream it was cut from."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.part = nn.Conv2d(5, 6, 1)
        self.whole = nn.Conv2d(12, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a reader of the slice plus a reader of the rewritten whole."""
        stream = self.stem(x)
        part = stream[:, 2:7].relu_()
        y: Tensor = self.part(part) + self.whole(stream)
        return y


class StreamOutput(nn.Module):
    """The stream itself is the output, so none of its channels may move or go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream after one block."""
        stream = torch.relu(self.stem(x))
        y: Tensor = stream + self.block(stream)
        return y


class TupleOutput(nn.Module):
    """A tuple of two outputs, one of which is read further inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the head and the features in front of it."""
        features = torch.relu(self.middle(torch.relu(self.stem(x))))
        return self.head(features), features


class DictInput(nn.Module):
    """Two keyword inputs and a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.image_stem = nn.Conv2d(3, 8, 3, padding=1)
        self.guide_stem = nn.Conv2d(1, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)
        self.scores = nn.Linear(8, 5)

    def forward(self, image: Tensor, guide: Tensor) -> dict[str, Tensor]:
        """Return a map and scores, both computed from image plus guide."""
        stream = torch.relu(self.image_stem(image) + self.guide_stem(guide))
        return {"map": self.head(stream), "scores": self.scores(stream.mean((2, 3)))}


class DataDependent(nn.Module):
    """Control flow depends on the values: no trace can hold both branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the stream, negated if its sum is not positive."""
        stream = self.stem(x)
        if stream.sum() > 0:
            stream = -stream
        y: Tensor = self.head(stream)
        return y


SHAPES: dict[str, Callable[[], nn.Module]] = {
    "flatten": lambda: Flatten(lambda x: torch.flatten(x, 1)),
    "flatten_module": lambda: Flatten(nn.Flatten()),
    "view_batch": lambda: Flatten(lambda x: x.view(x.size(0), -1)),
    "view_hard_coded": lambda: Flatten(lambda x: x.view(-1, 8 * 4 * 4)),
    "mean_space": MeanSpace,
    "mlp": MLP,
    "tokens": Tokens,
    "token_norm": TokenNorm,
    "attention": Attention,
    "pixel_shuffle": PixelShuffle,
    "upsample": Upsample,
    "padded_channels": PaddedChannels,
    "shape_scale": ShapeScale,
    "inplace_read_again": InplaceReadAgain,
    "inplace_between_reads": InplaceBetweenReads,
    "inplace_add": InplaceAdd,
    "inplace_add_aliased": InplaceAddAliased,
    "inplace_on_slice": InplaceOnSlice,
    "stream_output": StreamOutput,
    "tuple_output": TupleOutput,
    "dict_input": DictInput,
}
"""Topology name → constructor, for this file's networks."""
