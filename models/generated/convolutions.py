"""Random steps about grouped convolutions and the blocks built of them, and about other ranks."""

from __future__ import annotations

import math

from torch import nn

from upscale_opt.models.generated.basics import add, full_convolution
from upscale_opt.models.generated.builder import LARGEST_SIDE, Builder, Kind, Value
from upscale_opt.models.generated.orders import uneven_split

_WIDEST = 16


def grouped(b: Builder) -> None:
    """Add a grouped convolution with any number of groups, plain or transposed."""
    grouped_convolution(b, _several(b))


def grouped_pair(b: Builder) -> None:
    """Add two grouped convolutions of different groups, with something between them at times."""
    x = grouped_convolution(b, _several(b))
    style = b.rng.choice(["", "", "relu", "norm", "shuffle"])
    if style == "relu":
        x = b.layer(x, nn.ReLU())
    elif style == "norm":
        x = b.layer(x, nn.BatchNorm2d(x.channels))
    elif style == "shuffle":
        x = shuffle(b, x)
    grouped_convolution(b, x)


def grouped_behind_cat(b: Builder) -> None:
    """Add a concatenation whose parts don't end where the groups of its reader do."""
    x = b.image()
    fits = [v for v in b.values if v.is_image and v.rest == x.rest]
    y = b.recent(fits)
    if x.channels + y.channels > _WIDEST:
        y = full_convolution(b, x, b.rng.randint(2, 4), bias=True, same=True)
    both = b.append("cat", [x, y], (x.channels + y.channels, *x.rest))
    grouped_convolution(b, both)


def grouped_block(b: Builder) -> None:
    """Add the residual block of ResNeXt: narrow, grouped, wide, and the sum."""
    x = b.image()
    y = full_convolution(b, x, b.rng.choice([4, 6, 8, 12]), bias=False, same=True)
    y = b.layer(y, nn.BatchNorm2d(y.channels))
    y = b.layer(y, nn.ReLU(inplace=b.rng.random() < 0.5))
    y = grouped_convolution(b, y, same=True)
    y = b.layer(y, nn.ReLU())
    y = full_convolution(b, y, x.channels, bias=True, same=True)
    add(b, x, y)


def grouped_residual(b: Builder) -> None:
    """Add a sum of an image and a grouped convolution of it: two orders that must agree."""
    x = _several(b)
    groups = b.divisor(x.channels, least=2)
    y = b.layer(x, nn.Conv2d(x.channels, x.channels, 3, 1, 1, groups=groups))
    add(b, x, y)


def shuffle_block(b: Builder) -> None:
    """Add the unit of ShuffleNet V2: one half passes a branch, then both are shuffled."""
    x = _several(b)
    if x.channels % 2:
        x = full_convolution(b, x, 8, bias=True, same=True)
    half = x.channels // 2
    left = b.view("chunk", x, (half, *x.rest), (half, *x.rest), numbers=(2, 2))
    right = b.values[-1]
    y = full_convolution(b, right, half, bias=False, same=True)
    y = b.layer(y, nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False))
    y = b.layer(y, nn.BatchNorm2d(half))
    y = full_convolution(b, y, half, bias=True, same=True)
    y = b.append("cat", [left, b.layer(y, nn.ReLU())], x.shape)
    y = shuffle(b, y, groups=2)
    if b.rng.random() < 0.5:
        b.view("chunk", y, (half, *x.rest), (half, *x.rest), numbers=(2, 2))


def parted_block(b: Builder) -> None:
    """Add the block of InceptionNeXt: parts of an image go different ways, and come together."""
    x = _several(b)
    if b.rng.random() < 0.5:
        x = full_convolution(b, x, b.rng.choice([4, 6, 8]), bias=False, same=True)
    parts = [_way(b, part) for part in uneven_split(b, x)]
    y = b.append("cat", parts, x.shape)
    if b.rng.random() < 0.7:
        y = b.layer(y, nn.BatchNorm2d(x.channels))
    y = full_convolution(b, y, b.rng.choice([4, 8, 12]), bias=True, same=True)
    y = full_convolution(b, b.layer(y, nn.ReLU()), x.channels, bias=True, same=True)
    if b.rng.random() < 0.7:
        y = b.parameter(y, (x.channels, 1, 1), ops=["mul"])
    add(b, x, y)


def _way(b: Builder, x: Value) -> Value:
    """Add what may become of a part of an image: nothing, a depthwise convolution, or more."""
    style = b.rng.choice(["", "depthwise", "depthwise", "relu", "full"])
    if style == "depthwise":
        return b.layer(x, nn.Conv2d(x.channels, x.channels, 3, 1, 1, groups=x.channels))
    if style == "relu":
        return b.layer(x, nn.ReLU())
    return full_convolution(b, x, x.channels, bias=True, same=True) if style == "full" else x


def shuffled(b: Builder) -> None:
    """Add a channel shuffle in one of the ways people write it."""
    shuffle(b, _several(b))


def shuffle(b: Builder, x: Value, groups: int = 0) -> Value:
    """Add a channel shuffle of an image; any number of groups unless one is given."""
    groups = groups or b.divisor(x.channels, least=2)
    style = b.rng.choice(["shuffle", "shuffle", "unflatten_shuffle", "torch_shuffle", "module"])
    if style == "module":
        b.frozen.add(x.storage)
        y = b.layer(x, nn.ChannelShuffle(groups))
        b.frozen.add(y.storage)
        return y
    return b.view(style, x, x.shape, numbers=(groups,))


def bottleneck_gate(b: Builder) -> None:
    """Add squeeze-and-excite, by convolutions or by linear layers."""
    x = b.image()
    narrow, flat = b.rng.randint(1, 4), b.rng.random() < 0.4
    y = b.append(
        "mean" if flat else "mean_keepdim", [x], x.shape[:1] if flat else (x.channels, 1, 1)
    )
    for outputs, function in [(narrow, nn.ReLU()), (x.channels, nn.Sigmoid())]:
        new = nn.Linear(y.channels, outputs) if flat else nn.Conv2d(y.channels, outputs, 1)
        y = b.layer(b.layer(y, new), function)
    if flat:
        y = b.view("spread", y, (x.channels, 1, 1))
    b.append("mul", [x, y], x.shape)


def sequence(b: Builder) -> None:
    """Add 1-d layers on an image whose pixels are put in a row, and often the way back."""
    x = b.image()
    length = math.prod(x.rest)
    y = b.view("to_sequence", x, (x.channels, length), axis=0)
    outputs, groups = _grouping(b, x.channels)
    if b.rng.random() < 0.2 and length <= 36:
        layer: nn.Module = nn.ConvTranspose1d(x.channels, outputs, 2, 2, groups=groups)
    else:
        kernel = b.rng.choice([1, 3])
        layer = nn.Conv1d(x.channels, outputs, kernel, padding=kernel // 2, groups=groups)
    y = b.layer(y, layer)
    if b.rng.random() < 0.4:
        y = b.layer(y, nn.BatchNorm1d(outputs))
    if y.shape[1] == length and b.rng.random() < 0.7:
        b.view("from_sequence", y, (outputs, *x.rest), numbers=x.rest)


def volume(b: Builder) -> None:
    """Add 3-d layers on an image that becomes a volume of depth one, and often the way back."""
    x = b.image()
    y = b.view("to_volume", x, (x.channels, 1, *x.rest))
    outputs, groups = _grouping(b, x.channels)
    depth = b.rng.choice([1, 3])
    padding = (depth // 2, 1, 1)
    y = b.layer(y, nn.Conv3d(x.channels, outputs, (depth, 3, 3), 1, padding, groups=groups))
    if b.rng.random() < 0.4:
        y = b.layer(y, b.rng.choice([nn.BatchNorm3d(outputs), nn.ReLU(), nn.PReLU(outputs)]))
    style = b.rng.choice(["squeeze_depth", "mean_depth", ""])
    if style == "squeeze_depth":
        b.view(style, y, (outputs, *x.rest))
    elif style:
        b.append(style, [y], (outputs, *x.rest))


def channels_as_depth(b: Builder) -> None:
    """Add a 3-d convolution to which channels are an axis of space, and their order matters."""
    x = b.image()
    y = b.view("to_depth", x, (1, *x.shape))
    y = b.layer(y, nn.Conv3d(1, b.rng.randint(1, 3), 3, padding=1))
    b.append("mean_features", [y], x.shape, axis=0)


def grouped_convolution(b: Builder, x: Value, same: bool = False) -> Value:
    """Add a grouped convolution of an image; of stride 1 and not transposed if ``same``."""
    outputs, groups = _grouping(b, x.channels, least=min(2, x.channels))
    bias = b.rng.random() < 0.6
    if not same and b.rng.random() < 0.2 and max(x.rest) * 2 <= LARGEST_SIDE:
        layer = nn.ConvTranspose2d(x.channels, outputs, 2, 2, groups=groups, bias=bias)
        return b.layer(x, layer)
    kernel = b.rng.choice([1, 3])
    stride = 1 if same or min(x.rest) < 4 else b.rng.choice([1, 1, 1, 2])
    pad = kernel // 2
    conv = nn.Conv2d(x.channels, outputs, kernel, stride, pad, groups=groups, bias=bias)
    return b.layer(x, conv)


def _several(b: Builder) -> Value:
    """Pick an image of more than one channel; the input is one."""
    return b.pick(lambda value: value.is_image and value.channels > 1)


def _grouping(b: Builder, inputs: int, least: int = 1) -> tuple[int, int]:
    """Draw the number of outputs and of groups for a grouped convolution of ``inputs`` channels."""
    groups = b.divisor(inputs, least)
    return groups * b.rng.randint(1, max(1, 12 // groups)), groups


CONVOLUTIONS: list[tuple[Kind, float]] = [
    (grouped, 6),
    (grouped_pair, 8),
    (grouped_behind_cat, 4),
    (grouped_block, 4),
    (grouped_residual, 4),
    (shuffle_block, 4),
    (parted_block, 4),
    (shuffled, 4),
    (bottleneck_gate, 4),
    (sequence, 4),
    (volume, 4),
    (channels_as_depth, 1),
]
"""The kinds of steps of this file, and how likely each is in a program that has it."""
