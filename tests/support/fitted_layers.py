"""Layers of every kind behind something that writes their inputs, and their losses by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from comparing import call
from torch import Tensor, nn

N = 12
"""Samples."""


def stir_norms(model: nn.Module) -> None:
    """Have batch norms do something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)


class Behind(nn.Module):
    """A 1x1 convolution (or linear layer), tanh, and the layer in question."""

    def __init__(self, first: nn.Module, layer: nn.Module, last: nn.Module | None = None) -> None:
        super().__init__()
        self.first = first
        self.layer = layer
        self.last = last or nn.Identity()

    def read(self, x: Tensor) -> Tensor:
        """The inputs of the layer."""
        y: Tensor = self.first(x)
        return torch.tanh(y)

    def forward(self, x: Tensor) -> Tensor:
        """The network's outputs."""
        y: Tensor = self.last(self.layer(self.read(x)))
        return y


class Product(nn.Module):
    """A product with a matrix whose first axis reads."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """The product."""
        return x @ self.weight


class Flat(nn.Module):
    """A linear layer behind the flattening of images."""

    def __init__(self, channels: int, places: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels * places, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs for all places at once."""
        y: Tensor = self.linear(x.flatten(1))
        return y


class Exported(Behind):
    """The same, which torch.fx cannot capture."""

    def forward(self, x: Tensor) -> Tensor:
        """The network's outputs."""
        return super().forward(x) if isinstance(call(nn.Identity(), x), Tensor) else x


@dataclass(frozen=True)
class Kind:
    """A kind of layer.

    Attributes:
        build: makes the network.
        shape: of its inputs, but for the batch.
        weight: the name of the layer's weight in :attr:`Behind.layer`.
        in_axis: its axis that reads.
        groups: of the layer.
        unit: slices of an entry.
    """

    build: Callable[[], Behind]
    shape: tuple[int, ...]
    weight: str = "weight"
    in_axis: int = 1
    groups: int = 1
    unit: int = 1


KINDS: dict[str, Kind] = {
    "conv2d": Kind(
        lambda: Behind(nn.Conv2d(2, 5, 1), nn.Conv2d(5, 3, 3, stride=2, padding=1)), (2, 7, 6)
    ),
    "dilated": Kind(
        lambda: Behind(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, (2, 3), padding=2, dilation=(1, 2))),
        (2, 5, 6),
    ),
    "circular": Kind(
        lambda: Behind(
            nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular", bias=False)
        ),
        (2, 5, 5),
    ),
    "same": Kind(
        lambda: Behind(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, (2, 3), padding="same")), (2, 5, 6)
    ),
    "conv1d": Kind(lambda: Behind(nn.Conv1d(2, 6, 1), nn.Conv1d(6, 4, 3, padding=1)), (2, 9)),
    "conv3d": Kind(
        lambda: Behind(nn.Conv3d(2, 4, 1), nn.Conv3d(4, 3, (1, 2, 2), stride=2)), (2, 3, 5, 4)
    ),
    "grouped": Kind(
        lambda: Behind(nn.Conv2d(2, 8, 1), nn.Conv2d(8, 6, 3, padding=1, groups=2)),
        (2, 5, 5),
        groups=2,
    ),
    "transposed": Kind(
        lambda: Behind(
            nn.Conv2d(2, 4, 1),
            nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1),
        ),
        (2, 4, 5),
        in_axis=0,
    ),
    "transposed and grouped": Kind(
        lambda: Behind(
            nn.Conv1d(2, 8, 1), nn.ConvTranspose1d(8, 4, 4, stride=3, dilation=2, groups=2)
        ),
        (2, 5),
        in_axis=0,
        groups=2,
    ),
    "transposed 3d": Kind(
        lambda: Behind(
            nn.Conv3d(2, 4, 1), nn.ConvTranspose3d(4, 2, (1, 2, 3), stride=(1, 2, 1), bias=False)
        ),
        (2, 2, 3, 3),
        in_axis=0,
    ),
    "linear": Kind(lambda: Behind(nn.Linear(3, 6), nn.Linear(6, 4)), (3,)),
    "tokens": Kind(lambda: Behind(nn.Linear(3, 6), nn.Linear(6, 8, bias=False)), (5, 3)),
    "product": Kind(lambda: Behind(nn.Linear(3, 6), Product(6, 4)), (3,), in_axis=0),
    "flat": Kind(
        lambda: Behind(nn.Conv2d(2, 3, 1), Flat(3, 2, 3)), (2, 1, 2), "linear.weight", unit=2
    ),
    "exported": Kind(
        lambda: Exported(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 3, stride=2, padding=1)), (2, 7, 6)
    ),
    "exported tokens": Kind(lambda: Exported(nn.Linear(3, 6), nn.Linear(6, 8, bias=False)), (5, 3)),
    "normed": Kind(
        lambda: Behind(nn.Conv2d(2, 5, 1), nn.Conv2d(5, 3, 3, bias=False), nn.BatchNorm2d(3)),
        (2, 5, 6),
    ),
}


def made(kind: Kind, samples: int = N) -> tuple[Behind, Tensor]:
    """The network in float64, in eval mode, and inputs."""
    return kind.build().double().eval(), torch.randn(samples, *kind.shape, dtype=torch.float64)


def least_loss(network: Behind, kind: Kind, x: Tensor, kept: Sequence[int]) -> float:
    """The squared deviation of the layer's best weights on the ``kept`` slices, by NumPy.

    One column per weight: what the layer writes if this weight is one and all others are zero.
    """
    layer, read = copy.deepcopy(network.layer), network.read(x)
    weight = layer.get_parameter(kind.weight)
    biases = [p for name, p in layer.named_parameters() if name.endswith("bias")]
    with torch.no_grad():
        for bias in biases:
            bias.zero_()
        want = call(layer, read)
        width = weight.shape[1]
        columns = []
        for index in np.ndindex(*weight.shape):
            slice = index[kind.in_axis]
            if kind.groups > 1 and kind.in_axis == 1:
                slice += width * (index[0] * kind.groups // weight.shape[0])
            if slice in kept:
                weight.zero_()
                weight[index] = 1
                columns.append(call(layer, read).flatten())
        weight.zero_()
        if biases or not isinstance(network.last, nn.Identity):  # which makes good any constant
            axis = want.ndim - 1 if isinstance(layer, (nn.Linear, Product, Flat)) else 1
            for channel in range(want.shape[axis]):
                constant = torch.zeros_like(want)
                constant.select(axis, channel).fill_(1)
                columns.append(constant.flatten())
    target = want.flatten().numpy()
    if not columns:
        return float(target @ target)
    matrix = torch.stack(columns, 1).numpy()
    found = np.linalg.lstsq(matrix, target, rcond=None)[0]
    rest = target - matrix @ found
    return float(rest @ rest)
