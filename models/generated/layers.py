"""Random steps about norms, what sees all channels at once, constants, and shared parameters."""

from __future__ import annotations

import copy
import math

from torch import nn

from upscale_opt.models.blocks import (
    AcrossChannels,
    Constant,
    ImageNorm,
    Lookup,
    RawConv,
    RawLinear,
    RawNorm,
    ResponseNorm,
    TiedAutoencoder,
)
from upscale_opt.models.generated.basics import full_convolution
from upscale_opt.models.generated.builder import Builder, Kind, Value


def norm(b: Builder) -> None:
    """Add a norm that takes its statistics from the tensor itself."""
    x = b.pick(lambda value: math.prod(value.rest) > 1 or (value.is_last and value.channels > 1))
    if x.is_last:
        last_norm(b, x)
        return
    affine, eps = b.rng.random() < 0.8, b.rng.choice([1e-5, 0.01, 0.01])
    styles = ["group", "group", "group", "local"]
    styles += ["instance"] if len(x.shape) in (2, 3) else []
    styles += ["image", "response", "whole"] if x.is_image else []
    style = b.rng.choice(styles)
    if style == "group":
        groups = b.rng.choice([1, x.channels, b.divisor(x.channels), b.divisor(x.channels)])
        b.layer(x, nn.GroupNorm(groups, x.channels, eps, affine))
    elif style == "instance":
        kind = nn.InstanceNorm2d if x.is_image else nn.InstanceNorm1d
        tracked = b.rng.random() < 0.2
        b.layer(x, kind(x.channels, eps, affine=affine, track_running_stats=tracked))
    elif style == "local":
        b.layer(x, nn.LocalResponseNorm(b.rng.choice([2, 3]), alpha=0.5))
    elif style == "image":
        b.layer(x, ImageNorm(x.channels))
    elif style == "response":
        b.layer(x, ResponseNorm(x.channels, last=False))
    else:
        b.layer(x, nn.LayerNorm(x.shape, eps, affine))


def last_norm(b: Builder, x: Value) -> Value:
    """Add a norm over channels that come last."""
    affine, eps = b.rng.random() < 0.8, b.rng.choice([1e-5, 0.01, 0.01])
    if len(x.shape) == 3 and b.rng.random() < 0.2:
        return b.layer(x, ResponseNorm(x.channels, last=True))
    if b.rng.random() < 0.3:
        return b.layer(x, nn.RMSNorm(x.channels, eps, affine))
    if b.rng.random() < 0.3:
        return b.layer(x, RawNorm(x.channels, "layer"))
    return b.layer(x, nn.LayerNorm(x.channels, eps, affine))


def all_channels(b: Builder) -> None:
    """Add a function of all channels at once: softmax, mean, cumulative sum and the like."""
    x = b.pick(lambda value: value.channels > 1)
    dim = -1 if x.is_last else 1
    calls = ["softmax", "softmax", "log_softmax", "centre", "unit_norm", "cumsum"]
    op = b.rng.choice([*calls, "mean_channels", "mean_channels", "amax_channels"])
    if not op.endswith("_channels"):
        b.append(op, [x], x.shape, numbers=(dim,))
        return
    shape = (*x.shape[: x.axis], 1, *x.shape[x.axis + 1 :])
    y = b.append(op, [x], shape, numbers=(dim,))
    if b.rng.random() < 0.7:
        b.append(b.rng.choice(["mul", "sub"]), [x, y], x.shape)


def across_channels(b: Builder) -> None:
    """Add an image times what a convolution along its channels makes of their means."""
    x = b.image()
    y = b.layer(b.append("mean", [x], (x.channels,)), AcrossChannels())
    y = b.append("sigmoid", [y], y.shape)
    b.append("mul", [x, b.view("spread", y, (x.channels, 1, 1))], x.shape)


def prelu(b: Builder) -> None:
    """Add a leaky relu whose slopes are learnt: one for all channels, or one each."""
    x = b.pick()
    b.layer(x, nn.PReLU(x.channels if x.axis == 0 and b.rng.random() < 0.7 else 1))


def constant(b: Builder) -> None:
    """Add an elementwise operation with a buffer, or with a parameter in place."""
    x = b.pick()
    shape = (x.channels, *(1,) * (len(x.shape) - 1 - x.axis))
    if x.storage not in b.frozen and b.rng.random() < 0.3:
        b.parameter(x, shape, ["mul_", "add_"])
        return
    style = b.rng.choice(["add", "mul", "rsub", "maximum", "where"])
    b.layer(x, Constant(b.rng.choice([shape, shape, (1, *shape), x.shape]), style))


def position(b: Builder) -> None:
    """Add a learnt value per channel and place, such as a positional encoding."""
    x = b.pick(lambda value: len(value.shape) > 1)
    b.parameter(x, b.rng.choice([x.shape, (1, *x.shape)]), ["add", "add", "mul"])


def in_place(b: Builder) -> None:
    """Add an in-place function call on memory that is no view."""
    writable = [v for v in b.values if v.storage not in b.frozen]
    if writable:
        x = b.recent(writable)
        b.append("relu_", [x], x.shape)


def raw(b: Builder) -> None:
    """Add a function call on raw parameters: a convolution, linear layer or norm."""
    x = b.pick(lambda value: value.is_image or value.is_last)
    if not x.is_image:
        b.layer(x, RawLinear(x.channels, b.width(), b.rng.choice(["linear", "matmul"])))
        return
    if b.rng.random() < 0.3 and math.prod(x.rest) > 1:
        b.layer(x, RawNorm(x.channels, b.rng.choice(["batch", "group"])))
        return
    style = b.rng.choice(["plain", "plain", "transposed", "scaled", "standardised", "einsum"])
    groups = 1 if style == "einsum" or b.rng.random() < 0.5 else b.divisor(x.channels)
    outputs = groups * b.rng.randint(1, max(1, 12 // groups))
    b.layer(x, RawConv(x.channels, outputs, groups, style))


def again(b: Builder) -> None:
    """Add a second call of a layer, norm or block, on another tensor if one fits."""
    found = []
    for step in b.steps:
        module = b.layers.get(step.layer) if step.op == "layer" else None
        if module is None or not any(True for _ in module.parameters()):
            continue
        old = b.values[step.operands[0]]
        found += [(v, step.layer) for v in b.values if v != old and _fits(module, v, old)]
    if found:
        x = b.recent([value for value, _ in found])
        b.append_layer_result(x, b.rng.choice([key for value, key in found if value == x]))


def block_again(b: Builder) -> None:
    """Add a small block that keeps the shape, called two or three times, on other tensors."""
    x = b.image()
    groups = b.divisor(x.channels)
    wide = groups * b.rng.randint(1, max(1, 12 // groups))
    block = nn.Sequential(
        nn.Conv2d(x.channels, wide, 1),
        nn.BatchNorm2d(wide),
        b.rng.choice([nn.ReLU(inplace=True), nn.PReLU(wide), nn.GELU()]),
        nn.Conv2d(wide, x.channels, 3, padding=1, groups=groups),
    )
    y = b.layer(x, block)
    key = b.steps[-1].layer
    for _ in range(b.rng.randint(1, 2)):
        if b.rng.random() < 0.5:
            y = b.append("add", [x, y], x.shape)
        other = b.pick(lambda value: value.is_image and value.channels == x.channels)
        y = b.append_layer_result(b.rng.choice([y, y, other]), key)


def tied(b: Builder) -> None:
    """Add a layer that holds the weight of an earlier one, and a bias of its own."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d)
    found: list[tuple[Value, _Tieable]] = []
    for step in b.steps:
        module = b.layers.get(step.layer) if step.op == "layer" else None
        if isinstance(module, kinds) and module.weight is not None:
            old = b.values[step.operands[0]]
            found += [(v, module) for v in b.values if _fits(module, v, old)]
        elif isinstance(module, Lookup):
            last = [v for v in b.values if v.is_last]
            wanted = module.table.embedding_dim
            found += [(v, module.table) for v in last if v.channels == wanted]
    if not found:
        if b.rng.random() < 0.5:
            x = b.image()
            full_convolution(b, x, x.channels, bias=True, same=True)
        return
    x = b.recent([value for value, _ in found])
    first = b.rng.choice([module for value, module in found if value == x])
    if isinstance(first, nn.Embedding):  # a language model's last layer
        second: _Tieable = nn.Linear(first.embedding_dim, first.num_embeddings, bias=False)
    else:
        second = copy.deepcopy(first)
    b.layer(x, second)
    second.weight = first.weight


def autoencoder(b: Builder) -> None:
    """Add one weight that is used as it is and transposed."""
    x = b.find(lambda value: value.is_last)
    if x is None:
        image = b.image()
        x = b.view("to_tokens", image, (math.prod(image.rest), image.channels))
    b.layer(x, TiedAutoencoder(x.channels, b.width()))


_Tieable = nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.BatchNorm2d | nn.Embedding
_ANY_SIZE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.BatchNorm2d, nn.PReLU)


def _fits(module: nn.Module, value: Value, old: Value) -> bool:
    """Tell whether a module that was called on ``old`` can be called on ``value``."""
    if value.shape == old.shape and value.axis == old.axis:
        return True
    same = len(value.shape) == len(old.shape) and value.axis == old.axis
    if isinstance(module, nn.Linear) and not old.is_last:  # it mixes places
        return False
    return same and isinstance(module, _ANY_SIZE) and value.channels == old.channels


LAYERS: list[tuple[Kind, float]] = [
    (norm, 6),
    (all_channels, 3),
    (across_channels, 1),
    (prelu, 4),
    (constant, 4),
    (position, 4),
    (in_place, 2),
    (raw, 4),
    (again, 4),
    (block_again, 4),
    (tied, 6),
    (autoencoder, 1.5),
]
"""The kinds of steps of this file, and how likely each is in a program that has it."""
