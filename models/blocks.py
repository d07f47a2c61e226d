"""Modules that random networks call as if they were layers, and that are not PyTorch's own.

Their parameters are raw, shared within the module, or computed with before they are used.
``groups`` and ``transposed`` say, as convolutions do, how to read a weight's axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class RawConv(nn.Module):
    """A convolution as a function call on raw parameters.

    Args:
        inputs: The channels read.
        outputs: The channels written.
        groups: Divides both.
        style: "plain"; "transposed"; "scaled", by a learnt gain per output channel;
            "standardised" (weights without mean, of variance one per filter, as in NFNets), where
            a zero in the parameter is none in what is computed; "einsum".
    """

    def __init__(self, inputs: int, outputs: int, groups: int, style: str) -> None:
        super().__init__()
        self.style = style
        self.groups = groups
        self.transposed = style == "transposed"
        shape = (inputs, outputs // groups) if self.transposed else (outputs, inputs // groups)
        self.weight = nn.Parameter(torch.randn(*shape, 1, 1))
        self.bias = nn.Parameter(torch.randn(outputs))
        if style == "scaled":
            self.gain = nn.Parameter(torch.randn(outputs, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of an image."""
        if self.style == "transposed":
            return functional.conv_transpose2d(x, self.weight, self.bias, groups=self.groups)
        if self.style == "einsum":
            product = torch.einsum("nchw,oc->nohw", x, self.weight.flatten(1))
            return product + self.bias.view(1, -1, 1, 1)
        weight: Tensor = self.weight
        if self.style == "scaled":
            weight = weight * self.gain
        elif self.style == "standardised":
            centred = weight - weight.mean((1, 2, 3), keepdim=True)
            weight = centred / (centred.square().mean((1, 2, 3), keepdim=True) + 0.1).sqrt()
        return functional.conv2d(x, weight, self.bias, groups=self.groups)

    def extra_repr(self) -> str:
        """Say what cannot be seen from children."""
        return f"{tuple(self.weight.shape)}, groups={self.groups}, {self.style}"


class RawLinear(nn.Module):
    """A linear layer as a function call, or a matrix product, on raw parameters.

    Args:
        inputs: The features read.
        outputs: The features written.
        style: "linear", or "matmul" with the weight the other way round.
    """

    def __init__(self, inputs: int, outputs: int, style: str) -> None:
        super().__init__()
        self.transposed = style == "matmul"
        shape = (inputs, outputs) if self.transposed else (outputs, inputs)
        self.weight = nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's result along the last axis."""
        if self.transposed:
            return x @ self.weight + self.bias
        return functional.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Say what cannot be seen from children."""
        return f"{tuple(self.weight.shape)}, transposed={self.transposed}"


class RawNorm(nn.Module):
    """A norm as a function call on raw parameters.

    Args:
        channels: Of the image, or of the last axis for "layer".
        style: "batch", "layer", or "group" with two groups where that divides.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, style: str) -> None:
        super().__init__()
        self.style = style
        self.scale = nn.Parameter(torch.randn(channels))
        self.bias = nn.Parameter(torch.randn(channels))
        if style == "batch":
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised tensor."""
        size = self.scale.numel()
        if self.style == "batch":
            return functional.batch_norm(
                x, self.running_mean, self.running_var, self.scale, self.bias, False, 0.0, 0.1
            )
        if self.style == "layer":
            return functional.layer_norm(x, (size,), self.scale, self.bias, 0.01)
        return functional.group_norm(x, 1 + (size % 2 == 0), self.scale, self.bias, 0.01)

    def extra_repr(self) -> str:
        """Say what cannot be seen from children."""
        return f"{self.scale.numel()}, {self.style}"


class ImageNorm(nn.Module):
    """A layer norm over the channels of an image, permuted there and back, as in ConvNeXt."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised image."""
        y: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return y


class ResponseNorm(nn.Module):
    """Global response normalisation (ConvNeXt V2): each channel by its share in the mean norm.

    Args:
        channels: Of the image.
        last: Whether channels come last.
    """

    def __init__(self, channels: int, last: bool) -> None:
        super().__init__()
        self.space, self.axis = ((1, 2), -1) if last else ((2, 3), 1)
        shape = (1, 1, 1, channels) if last else (1, channels, 1, 1)
        self.gain = nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return the calibrated image."""
        norms: Tensor = torch.linalg.vector_norm(x, dim=self.space, keepdim=True)
        shares = norms / (norms.mean(dim=self.axis, keepdim=True) + 0.01)
        return self.gain * (x * shares) + self.bias + x

    def extra_repr(self) -> str:
        """Say what cannot be seen from children."""
        return f"{self.gain.numel()}, axis={self.axis}"


class Constant(nn.Module):
    """An elementwise operation with a buffer that is broadcast.

    Args:
        shape: Of the buffer, such as ``(C, 1, 1)``.
        style: "add", "mul", "rsub" (buffer minus tensor), "maximum", "where" (the tensor where
            the buffer is positive, half of it elsewhere).
    """

    constant: Tensor

    def __init__(self, shape: Sequence[int], style: str) -> None:
        super().__init__()
        self.style = style
        self.register_buffer("constant", torch.randn(*shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return the operation's result, of the shape of ``x``."""
        if self.style == "rsub":
            return self.constant - x
        if self.style == "maximum":
            return torch.maximum(x, self.constant)
        if self.style == "where":
            return torch.where(self.constant > 0, x, x * 0.5)
        return x * self.constant if self.style == "mul" else x + self.constant

    def extra_repr(self) -> str:
        """Say what cannot be seen from children."""
        return f"{tuple(self.constant.shape)}, {self.style}"


class AcrossChannels(nn.Module):
    """A convolution *along* the channels of a vector (ECA): to it they are a sequence in order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the vector filtered."""
        y: Tensor = self.conv(x.unsqueeze(1)).squeeze(1)
        return y


class ClassToken(nn.Module):
    """Puts a learnt token in front of all others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return one token more."""
        return torch.cat([self.token.expand(x.size(0), -1, -1), x], dim=1)

    def extra_repr(self) -> str:
        """Say what cannot be seen from children."""
        return f"{self.token.numel()}"


class TokenTable(nn.Module):
    """An embedding of fixed indices, added to tokens or appended to their channels.

    Args:
        rows: For every token the row of the table.
        channels: Of the table; those of the tokens if ``add``.
        add: Add instead of append.
    """

    rows: Tensor

    def __init__(self, rows: Sequence[int], channels: int, add: bool) -> None:
        super().__init__()
        self.add = add
        self.table = nn.Embedding(max(rows) + 1, channels)
        self.register_buffer("rows", torch.tensor(rows))

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens with what the table says of their places."""
        found: Tensor = self.table(self.rows)
        if self.add:
            return x + found
        return torch.cat([x, found.expand(x.size(0), -1, -1)], dim=-1)


class Lookup(nn.Module):
    """An embedding whose indices come from one channel of an image.

    Args:
        channel: Which.
        rows: Of the table.
        channels: Of the table.
    """

    def __init__(self, channel: int, rows: int, channels: int) -> None:
        super().__init__()
        self.channel = channel
        self.table = nn.Embedding(rows, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return one token per pixel."""
        place = (torch.tanh(x[:, self.channel].flatten(1)) + 1) / 2
        # No boundary lies where values gather: at zero, or at either end.
        rows = (place * (self.table.num_embeddings - 0.1) + 0.037).long()
        y: Tensor = self.table(rows)
        return y


class SelfAttention(nn.Module):
    """PyTorch's own multi-head attention of tokens among themselves."""

    def __init__(self, channels: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, bias=bias, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens mixed."""
        y: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return y

    def extra_repr(self) -> str:
        """Say what cannot be seen from children."""
        return f"heads={self.attention.num_heads}"


class TiedAutoencoder(nn.Module):
    """One weight is used twice: as it is, and transposed on the way back."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(hidden, channels))
        self.bias = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return what comes back, of the shape of ``x``."""
        hidden = torch.relu(functional.linear(x, self.weight))
        return functional.linear(hidden, self.weight.t(), self.bias)

    def extra_repr(self) -> str:
        """Say what cannot be seen from children."""
        return f"{tuple(self.weight.shape)}"
