"""The kinds of steps of plain convolutional networks: each function adds one, or does nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from upscale_opt.models.generated.builder import LARGEST_SIDE, Builder, Kind, Value


def convolution(b: Builder) -> None:
    """Add a convolution: full, transposed, depthwise or grouped; at times a layer again."""
    x = b.image()
    again = [k for k, v in b.layers.items() if _reads_images(v) and v.in_channels == x.channels]
    if again and b.rng.random() < 0.1:
        key = b.rng.choice(again)
        b.append_layer_result(x, key)
        return
    style = b.rng.choice(["full"] * 6 + ["transposed", "depthwise", "grouped"])
    channels, bias = b.width(), b.rng.random() < 0.6
    if style == "transposed" and max(x.shape[1:]) * 2 <= LARGEST_SIDE:
        b.layer(x, nn.ConvTranspose2d(x.channels, channels, 2, stride=2, bias=bias))
    elif style == "depthwise":
        times = b.rng.choice([1, 1, 2]) if x.channels <= 8 else 1
        wide = x.channels * times
        b.layer(x, nn.Conv2d(x.channels, wide, 3, 1, 1, groups=x.channels, bias=bias))
    elif style == "grouped" and x.channels % 2 == 0:
        channels += channels % 2
        b.layer(x, nn.Conv2d(x.channels, channels, 3, 1, 1, groups=2, bias=bias))
    else:
        full_convolution(b, x, channels, bias)


def full_convolution(b: Builder, x: Value, channels: int, bias: bool, same: bool = False) -> Value:
    """Add a 1x1 or 3x3 convolution, of stride 1 if ``same``."""
    kernel = b.rng.choice([1, 3])
    stride = 1 if same or min(x.shape[1:]) < 4 else b.rng.choice([1, 1, 1, 2])
    conv = nn.Conv2d(x.channels, channels, kernel, stride, kernel // 2, bias=bias)
    return b.layer(x, conv)


def batch_norm(b: Builder) -> None:
    """Add a batch norm with random statistics, some channels of it constant zero at times."""
    x = b.pick(lambda value: value.axis == 0)
    kinds = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}
    norm = kinds[len(x.shape)](x.channels, affine=b.rng.random() < 0.85)
    b.layer(x, norm)
    if norm.affine and b.rng.random() < 0.3:
        dead = [c for c in range(x.channels) if b.rng.random() < 0.4]
        with torch.no_grad():
            norm.weight[dead] = 0
            norm.bias[dead] = 0


def activation(b: Builder) -> None:
    """Add an elementwise function as a module or as a call, with f(0) = 0 or without."""
    x = b.pick()
    if b.rng.random() < 0.6:
        modules: list[Callable[[], nn.Module]] = [nn.ReLU, nn.ReLU, nn.SiLU, nn.GELU, nn.Tanh]
        modules += [nn.Hardswish, nn.LeakyReLU, nn.Sigmoid, nn.Softplus, nn.Dropout]
        b.layer(x, b.rng.choice(modules)())
    else:
        calls = ["relu", "relu", "silu", "tanh", "sigmoid", "exp", "softplus", "add_one"]
        b.append(b.rng.choice(calls), [x], x.shape)


def inplace_relu(b: Builder) -> None:
    """Add an in-place relu of memory that is no view."""
    writable = [v for v in b.values if v.storage not in b.frozen]
    if writable:
        b.layer(b.recent(writable), nn.ReLU(inplace=True))


def residual(b: Builder) -> None:
    """Add an in-place or plain sum of an image and a convolution of the same shape."""
    x = b.image()
    y = full_convolution(b, x, x.channels, bias=b.rng.random() < 0.5, same=True)
    add(b, x, y)


def add(b: Builder, x: Value, y: Value) -> Value:
    """Add the sum of two tensors of one shape, in place at times."""
    operands = [x, y] if b.rng.random() < 0.5 else [y, x]
    inplace = operands[0].storage not in b.frozen and b.rng.random() < 0.3
    return b.append("add_" if inplace else "add", operands, x.shape)


def combine(b: Builder) -> None:
    """Add a sum, difference or product of two tensors, projecting one if none fits."""
    x = b.pick()
    fits = [v for v in b.values[1:] if v.shape == x.shape and v.axis == x.axis]
    images = [v for v in b.values if v.is_image and v.shape[1:] == x.shape[1:]]
    if x.is_image and (len(fits) < 2 or b.rng.random() < 0.3):
        y = full_convolution(b, b.recent(images), x.channels, bias=True, same=True)
    else:
        y = b.recent(fits or [x])
    op = b.rng.choice(["add", "add", "add", "add_", "sub", "mul"])
    if op == "add_" and x.storage in b.frozen:
        op = "add"
    b.append(op, [x, y], x.shape)


def gate(b: Builder) -> None:
    """Add a product of an image with its own spatial mean, or with a one-channel map."""
    x = b.image()
    if b.rng.random() < 0.5:
        weights = b.append("mean_keepdim", [x], (x.channels, 1, 1))
        if b.rng.random() < 0.5:
            weights = full_convolution(b, weights, x.channels, bias=True, same=True)
    else:
        weights = full_convolution(b, x, 1, bias=True, same=True)
    weights = b.append("sigmoid", [weights], weights.shape)
    b.append("mul", [x, weights], x.shape)


def cat(b: Builder) -> None:
    """Add a concatenation of two to four tensors, the same one twice at times."""
    x = b.pick()
    fits = [v for v in b.values if v.axis == x.axis and v.rest == x.rest]
    operands = [x]
    for _ in range(b.rng.choice([1, 1, 2, 3])):
        y = b.recent(fits)
        if sum(v.channels for v in operands) + y.channels <= _LARGEST_CAT:
            operands.append(y)
    b.rng.shuffle(operands)
    channels = sum(v.channels for v in operands)
    if len(operands) > 1:
        shape = (*x.shape[: x.axis], channels, *x.shape[x.axis + 1 :])
        b.append("cat_last" if x.is_last else "cat", operands, shape)


def cut(b: Builder) -> None:
    """Add a slice, or all pieces of a chunk, of an image's channels; both are views."""
    x = b.pick(lambda value: value.is_image and value.channels > 1)
    if b.rng.random() < 0.6:
        start = b.rng.randint(0, x.channels - 1)
        stop = b.rng.randint(start + 1, x.channels)
        b.view("slice", x, (stop - start, *x.shape[1:]), numbers=(start, stop))
    else:
        pieces = b.rng.choice([2, 2, 3])
        size = math.ceil(x.channels / pieces)
        sizes = [min(size, x.channels - at) for at in range(0, x.channels, size)]
        shapes = [(channels, *x.shape[1:]) for channels in sizes]
        b.view("chunk", x, *shapes, numbers=(pieces, len(sizes)))


def resample(b: Builder) -> None:
    """Add a pooling or an upsampling."""
    x = b.pick(lambda value: value.is_image and min(value.shape[1:]) >= 2)
    channels, height, width = x.shape
    style = b.rng.choice(["avg", "max", "adaptive", "up"])
    if style == "up" and max(height, width) * 2 <= LARGEST_SIDE:
        mode = b.rng.choice(["nearest", "bilinear"])
        b.layer(x, nn.Upsample(scale_factor=2.0, mode=mode))
    elif style == "adaptive":
        side = b.rng.randint(1, 4)
        b.append("adaptive_pool", [x], (channels, side, side), numbers=(side,))
    elif style == "avg":
        b.append("avg_pool", [x], (channels, height // 2, width // 2))
    else:
        b.layer(x, nn.MaxPool2d(2))


def to_vector(b: Builder) -> None:
    """Add a mean over space or tokens, or a flattening, and often a linear layer behind it."""
    x = b.pick(lambda value: value.is_image or value.is_tokens)
    features = math.prod(x.shape)
    if b.rng.random() < 0.5:
        y = b.append("mean" if x.is_image else "mean_tokens", [x], (x.channels,))
    else:
        op = b.rng.choice(["flatten", "reshape_batch", "reshape_fixed"])
        y = b.view(op, x, (features,), numbers=(features,) if op == "reshape_fixed" else ())
    if y.channels > 8 or b.rng.random() < 0.5:
        b.layer(y, nn.Linear(y.channels, b.width()))


def linear(b: Builder) -> None:
    """Add a linear layer on the channels of tokens or of a vector, or of a permuted image."""
    x = b.pick(lambda value: value.is_image or value.is_last)
    channels, bias = b.width(), b.rng.random() < 0.6
    if not x.is_image:
        b.layer(x, nn.Linear(x.channels, channels, bias=bias))
        return
    tokens = b.view("to_tokens", x, (math.prod(x.shape[1:]), x.channels))
    y = b.layer(tokens, nn.Linear(x.channels, channels, bias=bias))
    if b.rng.random() < 0.4:
        shape = (channels, *x.shape[1:])
        b.view("from_tokens", y, shape, numbers=x.shape[1:])


def scale(b: Builder) -> None:
    """Add a per-channel parameter, multiplied or added, with some zeros at times."""
    x = b.pick()
    b.parameter(x, (x.channels, *(1,) * (len(x.shape) - 1 - x.axis)))


_LARGEST_CAT = 16


def _reads_images(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.ConvTranspose2d)


BASICS: list[tuple[Kind, float]] = [
    (convolution, 6),
    (batch_norm, 2),
    (activation, 4),
    (inplace_relu, 1),
    (residual, 1.5),
    (combine, 3),
    (gate, 0.5),
    (cat, 2.5),
    (cut, 1.5),
    (resample, 1.5),
    (to_vector, 0.7),
    (linear, 1),
    (scale, 1),
]
"""The kinds of steps of this file, and how likely each is."""
