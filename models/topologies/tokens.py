"""Small networks about tokens and sharing: attention, perceptrons, embeddings, tied parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from upscale_opt.models.attention import ATTENTION
from upscale_opt.models.blocks import ClassToken, SelfAttention, TokenTable


class Encoder(nn.Module):
    """A transformer block behind a patch embedding: class token, positions, attention, MLP.

    Args:
        fused: Queries, keys and values come from one layer instead of three.
    """

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.first = ClassToken(8)
        self.positions = nn.Parameter(torch.randn(1, 5, 8) / 2)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.parts = nn.ModuleList(nn.Linear(8, 24 if fused else 8) for _ in range(3 - 2 * fused))
        self.project = nn.Linear(8, 8)
        self.wide = nn.Linear(8, 12)
        self.narrow = nn.Linear(12, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores, from the class token alone."""
        x = self.first(self.stem(x).flatten(2).transpose(1, 2)) + self.positions
        y = self.norms[0](x)
        parts = [part(y) for part in self.parts]
        (mixed,) = ATTENTION["heads_unbound" if self.fused else "attend"](*parts, 2)
        x = x + self.project(mixed)
        x = x + self.narrow(functional.gelu(self.wide(self.norms[1](x))))
        scores: Tensor = self.head(self.norms[2](x)[:, 0])
        return scores


class ModuleAttention(nn.Module):
    """``nn.MultiheadAttention``: one matrix holds queries, keys and values, one above another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.attention = SelfAttention(8, 2, bias=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the tokens after attention."""
        x = self.stem(x)
        y: Tensor = self.head(x + self.attention(x))
        return y


class SharedKeys(nn.Module):
    """Two heads share keys and values, which are half as wide as the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.query = nn.Linear(8, 8)
        self.key = nn.Linear(8, 4)
        self.value = nn.Linear(8, 4)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the mixed values."""
        x = self.stem(x)
        parts = self.query(x), self.key(x), self.value(x)
        (mixed,) = ATTENTION["attend_shared"](*parts, 2)
        y: Tensor = self.head(mixed)
        return y


class FusedAttention(nn.Module):
    """A layer writes queries, keys and values at once; the subject is what is done with them.

    Args:
        style: A key of ``ATTENTION``.
    """

    def __init__(self, style: str) -> None:
        super().__init__()
        self.style = style
        self.stem = nn.Linear(6, 8)
        self.parts = nn.Linear(8, 24)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the mixed values."""
        (mixed,) = ATTENTION[self.style](self.parts(self.stem(x)), 2)
        y: Tensor = self.head(mixed)
        return y


class Windows(nn.Module):
    """Swin: attention within shifted windows, then four pixels' channels are merged and reduced."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, stride=2)
        self.parts = nn.Linear(8, 24)
        self.project = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(32)
        self.reduce = nn.Linear(32, 12, bias=False)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores of the merged patches."""
        x = self.stem(x).permute(0, 2, 3, 1)
        (mixed,) = ATTENTION["windows"](self.parts(x), 2, 1)
        x = x + self.project(mixed)
        corners = [x[:, i::2, j::2] for j in range(2) for i in range(2)]
        scores: Tensor = self.head(self.reduce(self.norm(torch.cat(corners, dim=-1))).mean((1, 2)))
        return scores


class GatedPerceptron(nn.Module):
    """SwiGLU: one layer writes both factors of a product, behind a root-mean-square norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.norm = nn.RMSNorm(8)
        self.wide = nn.Linear(8, 20)
        self.narrow = nn.Linear(10, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the tokens after the block."""
        x = self.stem(x)
        left, right = self.wide(self.norm(x)).chunk(2, dim=-1)
        y: Tensor = self.head(x + self.narrow(functional.silu(left) * right))
        return y


class Mixer(nn.Module):
    """MLP-Mixer: one linear layer runs along tokens, the next along channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.tokens = nn.Linear(5, 5)
        self.channels = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the tokens after both."""
        x = self.stem(x)
        x = x + torch.relu(self.tokens(x.transpose(1, 2))).transpose(1, 2)
        y: Tensor = self.head(x + torch.relu(self.channels(x)))
        return y


class Embedded(nn.Module):
    """An embedding of fixed indices is added to one tensor and appended to another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.added = TokenTable([0, 2, 1, 2, 0], 8, add=True)
        self.appended = TokenTable([1, 1, 0, 3, 2], 4, add=False)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of the tokens and what the tables say."""
        y: Tensor = self.head(self.appended(torch.relu(self.added(self.stem(x)))))
        return y


class SharedBlock(nn.Module):
    """A block of three layers is called twice, on two streams that are otherwise unrelated."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, padding=1)
        self.right = nn.Conv2d(3, 8, 1)
        self.block = nn.Sequential(
            nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 1, groups=2)
        )
        self.head = nn.Conv2d(16, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of both streams after the block."""
        streams = [self.block(torch.relu(self.left(x))), self.block(torch.relu(self.right(x)))]
        y: Tensor = self.head(torch.cat(streams, dim=1))
        return y


class SharedNorm(nn.Module):
    """One batch norm and one PReLU serve two streams whose producers disagree."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, padding=1)
        self.right = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.slopes = nn.PReLU(8)
        self.heads = nn.ModuleList(nn.Conv2d(8, 6, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the readers of both streams."""
        left, right = (self.slopes(self.norm(conv(x))) for conv in (self.left, self.right))
        y: Tensor = self.heads[0](left) + self.heads[1](right)
        return y


class TiedTranspose(nn.Module):
    """A decoder is the encoder's weight transposed: its rows are the other's columns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(16, 12)
        self.weight = nn.Parameter(torch.randn(8, 12) / 3)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head of what comes back."""
        hidden = torch.relu(functional.linear(torch.relu(self.stem(x)), self.weight))
        y: Tensor = self.head(functional.linear(hidden, self.weight.t()))
        return y


class TiedEmbedding(nn.Module):
    """A language model: the last layer's weight is the embedding of the words it predicts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.table = TokenTable([0, 2, 1, 2, 0], 8, add=True)
        self.head = nn.Linear(8, 3, bias=False)
        self.head.weight = self.table.table.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return scores of every word for every token."""
        y: Tensor = self.head(torch.relu(self.table(self.stem(x))))
        return y


TOKENS: dict[str, Callable[[], nn.Module]] = {
    "transformer_fused": lambda: Encoder(fused=True),
    "transformer": lambda: Encoder(fused=False),
    "module_attention": ModuleAttention,
    "shared_keys": SharedKeys,
    "chunked_attention": lambda: FusedAttention("heads_chunked"),
    "channel_attention": lambda: FusedAttention("heads_transposed"),
    "windows": Windows,
    "gated_perceptron": GatedPerceptron,
    "mixer": Mixer,
    "embedded": Embedded,
    "shared_block": SharedBlock,
    "shared_norm": SharedNorm,
    "tied_transpose": TiedTranspose,
    "tied_embedding": TiedEmbedding,
}
"""Topology name → constructor, for this file's networks."""

TOKEN_SHAPES: dict[str, tuple[int, ...]] = {
    "module_attention": (5, 6),
    "shared_keys": (5, 6),
    "chunked_attention": (5, 6),
    "channel_attention": (5, 6),
    "gated_perceptron": (5, 6),
    "mixer": (5, 6),
    "embedded": (5, 6),
    "tied_transpose": (16,),
    "tied_embedding": (5, 6),
}
"""The shape of one example, for this file's networks that do not take a ``(3, 8, 8)`` image."""
