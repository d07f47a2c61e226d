"""Calls to try that have parameters, arguments or shapes of their own, family by family."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from drawn_calls import Draws, Shape, Tried, Tries, pieces
from torch import Tensor, nn
from torch.nn import functional

KEEPS = "channelwise, zero"
"""What tracing should find of calls that treat each channel for itself, and keep zeros."""


# Layers.


def convolution(groups: str = "one", transposed: bool = False) -> Tries:
    def tries(d: Draws) -> Tried:
        dims, kernel, dilation = d.whole(1, 3), d.whole(1, 3), d.whole(1, 2)
        number = d.whole(2, 3)
        inputs, outputs = d.channels(), d.whole(1, 5)
        if groups != "one":
            inputs = number * d.size(3)
            outputs = number * d.whole(1, 3)
        if groups == "depthwise":
            number = outputs = inputs
        elif groups == "multiplied":
            number, outputs = inputs, inputs * d.whole(2, 3)
        mode: Any = "zeros" if transposed else d.pick(["zeros", "reflect", "replicate", "circular"])
        kind = (
            (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
            if transposed
            else (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        )
        options: dict[str, Any] = {"bias": d.flag(), "stride": d.whole(1, 2), "dilation": dilation}
        if groups != "one":
            options["groups"] = number
        options["padding"] = d.whole(0, (kernel - 1) // 2)
        conv = kind[dims - 1](inputs, outputs, kernel, padding_mode=mode, **options)
        shape = d.image(dims, inputs, side=1 + dilation * (kernel - 1))
        kinds = None
        if groups in ("depthwise", "multiplied"):
            kinds = KEEPS + ": scale" + (" shift" if conv.bias is not None else "")
        if mode != "zeros" or d.flag():
            return Tried(lambda parts, x: parts.m(x), [shape], 1, {"m": conv}, kinds)
        f: list[Any] = [functional.conv1d, functional.conv2d, functional.conv3d]
        if transposed:
            f = [
                functional.conv_transpose1d,
                functional.conv_transpose2d,
                functional.conv_transpose3d,
            ]
        given = {"weight": conv.weight} | ({} if conv.bias is None else {"bias": conv.bias})
        del options["bias"]
        return Tried(
            lambda parts, x: f[dims - 1](
                x, parts.weight, parts.bias if "bias" in given else None, **options
            ),
            [shape],
            1,
            given,
            kinds,
        )

    return tries


def linear(d: Draws) -> Tried:
    shape = (*(d.size(3) for _ in range(d.whole(1, 3))), d.channels())
    layer = nn.Linear(shape[-1], d.whole(1, 5), bias=d.flag())
    form = d.pick(["module", "function", "positional"])

    def run(parts: Any, x: Tensor) -> Any:
        if form == "module":
            return parts.m(x)
        if form == "function":
            return functional.linear(x, parts.m.weight, bias=parts.m.bias)
        return functional.linear(x, parts.m.weight, parts.m.bias)

    return Tried(run, [shape], -1, {"m": layer})


def product(run: Callable[[Tensor, Tensor], Tensor], rank: int, flipped: bool = False) -> Tries:
    """A matrix that is a parameter, behind vectors or tokens."""

    def tries(d: Draws) -> Tried:
        shape = d.vector() if rank == 2 else d.tokens()
        sizes = (d.whole(2, 5), shape[-1]) if flipped else (shape[-1], d.whole(1, 5))
        weight = nn.Parameter(torch.randn(sizes))
        return Tried(lambda parts, x: run(x, parts.w), [shape], -1, {"w": weight})

    return tries


def bilinear(d: Draws) -> Tried:
    shape, other = d.vector(), d.channels()
    layer = nn.Bilinear(shape[1], other, 3)
    return Tried(lambda p, x, y: p.m(x, y), [shape, (shape[0], other)], -1, {"m": layer})


# Norms.


def batch_norm(mode: str) -> Tries:
    def tries(d: Draws) -> Tried:
        affine, tracks = d.flag(), mode == "train" or d.flag()
        if d.flag():
            shape: Shape = d.vector()
            kind: Any = nn.BatchNorm1d
        else:
            shape = d.image()
            kind = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[len(shape) - 3]
        shape = (max(2, shape[0]), *shape[1:])
        norm = kind(shape[1], affine=affine, track_running_stats=tracks)
        shift = " shift" if affine else ""
        kinds = "channelwise" + (", zero:" if affine or tracks else ", zero")
        kinds += (" scale" if affine else "") + shift + (" mean neutral" if tracks else "")
        training = mode == "train"
        return Tried(lambda parts, x: parts.m(x), [shape], 1, {"m": norm}, kinds, training)

    return tries


def layer_norm(last: int) -> Tries:
    def tries(d: Draws) -> Tried:
        shape = d.tokens()
        affine = d.flag()
        sizes = shape[-last:]
        norm = nn.LayerNorm(sizes, elementwise_affine=affine, bias=d.flag())
        if d.flag():
            return Tried(lambda parts, x: parts.m(x), [shape], -1, {"m": norm})
        return Tried(lambda parts, x: functional.layer_norm(x, sizes), [shape], -1)

    return tries


def rms_norm(d: Draws) -> Tried:
    shape = d.tokens()
    norm = nn.RMSNorm(shape[-1], elementwise_affine=d.flag())
    return Tried(lambda parts, x: parts.m(x), [shape], -1, {"m": norm})


def group_norm(d: Draws) -> Tried:
    groups = d.whole(1, 3)
    shape = d.image(channels=groups * d.whole(d.least, 3))
    norm = nn.GroupNorm(groups, shape[1], affine=d.flag())
    return Tried(lambda parts, x: parts.m(x), [shape], 1, {"m": norm})


def instance_norm(d: Draws) -> Tried:
    shape = d.image(side=2)
    affine, tracks = d.flag(), d.flag()
    kind = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[len(shape) - 3]
    norm = kind(shape[1], affine=affine, track_running_stats=tracks)
    roles = (" scale shift" if affine else "") + (" mean neutral" if tracks else "")
    kinds = KEEPS + (":" if roles else "") + roles
    return Tried(lambda parts, x: parts.m(x), [shape], 1, {"m": norm}, kinds)


def norm(run: Callable[[Tensor, Any], Any], over: str) -> Tries:
    """A call along the channel axis, or along all others behind the batch."""

    def tries(d: Draws) -> Tried:
        shape = d.image(side=2)
        dims = 1 if over == "channels" else tuple(range(2, len(shape)))
        if over == "everything":
            dims = tuple(range(1, len(shape)))
        return Tried(lambda parts, x: run(x, dims), [shape])

    return tries


# Pooling and resizing.


def pool(kind: str, *ranks: int) -> Tries:
    def tries(d: Draws) -> Tried:
        shape = d.image(d.pick(ranks or (1, 2, 3)), side=3)
        dims = len(shape) - 2
        name = f"{kind}{dims}d"
        form = d.pick(["module", "function"])
        given: tuple[int, ...] = (2, d.whole(1, 2))
        if kind.startswith("Adaptive"):
            given = (d.whole(1, 3),)
        elif kind == "LPPool":
            given = (2, 2)
        if kind == "FractionalMaxPool":
            module: nn.Module = nn.FractionalMaxPool2d(2, output_size=2)
            form = "module"
        elif kind in ("MaxPool", "AvgPool"):
            module = getattr(nn, name)(*given, padding=d.whole(0, 1))
        else:
            module = getattr(nn, name)(*given)
        f = getattr(functional, _snake(name), None)
        if form == "module":
            return Tried(lambda parts, x: parts.m(x), [shape], 1, {"m": module})
        assert f is not None
        return Tried(lambda parts, x: f(x, *given), [shape])

    return tries


def _snake(name: str) -> str:
    """``adaptive_avg_pool2d`` for ``AdaptiveAvgPool2d``."""
    return re.sub("(?<=[a-z])([A-Z])", r"_\1", name.replace("LP", "Lp")).lower()


def interpolate(d: Draws) -> Tried:
    shape = d.image(side=2)
    modes = {3: ["nearest", "linear"], 4: ["nearest", "bilinear", "bicubic"]}
    mode = d.pick(modes.get(len(shape), ["nearest", "trilinear"]))
    return Tried(lambda p, x: functional.interpolate(x, scale_factor=2, mode=mode), [shape])


def pad(where: str) -> Tries:
    def tries(d: Draws) -> Tried:
        shape = d.image(side=2)
        dims = len(shape) - 2
        amounts = [d.whole(0, 1) for _ in range(2 * dims)]
        amounts[0] = 1
        if where == "channels":
            amounts += [0, 1]
        if where == "value":
            return Tried(lambda p, x: functional.pad(x, amounts, value=0.5), [shape])
        modes = ["constant"] if where == "channels" else ["constant", "reflect", "replicate"]
        mode = d.pick(modes)
        return Tried(lambda p, x: functional.pad(x, amounts, mode=mode), [shape])

    return tries


# Moving.


def flatten(d: Draws) -> Tried:
    shape = d.image()
    form = d.pick(["module", "function", "method", "view", "reshape"])
    last = shape[1]
    for side in shape[2:]:
        last *= side

    def run(parts: Any, x: Tensor) -> Any:
        if form == "module":
            return parts.m(x)
        if form == "function":
            return torch.flatten(x, 1)
        if form == "method":
            return x.flatten(1)
        return x.view(x.size(0), -1) if form == "view" else x.reshape(-1, last)

    return Tried(run, [shape], 1, {"m": nn.Flatten()})


def unflatten(d: Draws) -> Tried:
    shape = d.vector(channels=d.channels(2))
    return Tried(lambda p, x: p.m(x), [shape], 1, {"m": nn.Unflatten(1, (2, shape[1] // 2))})


def stacked_space(d: Draws) -> Tried:
    shape = d.image(2)
    return Tried(lambda p, x: x.view(x.size(0), shape[1], -1), [shape])


def permuted(run: Callable[[Tensor], Tensor]) -> Tries:
    return lambda d: Tried(lambda parts, x: run(x), [d.image(2)])


def to_windows(d: Draws) -> Tried:
    n, c = d.size(3), d.channels()
    shape = (n, c, 4, 4)
    return Tried(
        lambda p, x: x.view(n, c, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 2, 2),
        [shape],
    )


def heads(d: Draws) -> Tried:
    shape = d.tokens(channels=2 * d.whole(d.least, 3))
    n, length, c = shape
    return Tried(lambda p, x: x.view(n, length, 2, c // 2).transpose(1, 2), [shape], -1)


def cut(kind: str) -> Tries:
    """Slices of the channels."""

    def tries(d: Draws) -> Tried:
        count = d.whole(3, 6)
        shape, axis = d.anything(count)
        dim = 1 if axis == 1 else len(shape) - 1
        start = d.whole(0, count - 2)
        stop = d.whole(start + 1, count - (start == 0))
        step = d.whole(1, 2)
        number = -(-count // -(-count // 2))

        def run(parts: Any, x: Tensor) -> Any:
            if kind == "chunk":
                return pieces(x.chunk(2, dim), number)
            if kind == "split":
                return pieces(torch.split(x, [start + 1, count - start - 1], dim), 2)
            if kind == "narrow":
                return x.narrow(dim, start, stop - start)
            place: Any = slice(start, stop, step)
            if kind == "list":
                place = [start, count - 1, 0]
            return x[:, place] if axis == 1 else x[..., place]

        return Tried(run, [shape], axis)

    return tries


def along(run: Callable[[Tensor, int], Any], where: str) -> Tries:
    """A call along the channel axis, or along the last of an image."""

    def tries(d: Draws) -> Tried:
        shape = d.image(side=2)
        dim = 1 if where == "channels" else len(shape) - 1
        return Tried(lambda parts, x: run(x, dim), [shape])

    return tries


def joined(where: str, run: Callable[..., Tensor] = torch.cat) -> Tries:
    """Two tensors one behind the other along some axis."""

    def tries(d: Draws) -> Tried:
        shape, axis = d.anything()
        if where == "space" and len(shape) == 2:
            shape = (*shape, d.size())
        channels = axis % len(shape)
        dim = {"batch": 0, "channels": channels}.get(where, 3 - channels)
        longer = d.size(3) if run is torch.cat else shape[dim]
        other = (*shape[:dim], longer, *shape[dim + 1 :])
        return Tried(lambda parts, x, y: run([x, y], dim), [shape, other], axis)

    return tries


def index_select(d: Draws) -> Tried:
    shape = d.image()
    index = torch.randperm(shape[1])
    return Tried(lambda p, x: x.index_select(1, p.index), [shape], 1, {"index": index})


# Elementwise.


def broadcast(run: Callable[[Tensor, Tensor], Tensor]) -> Tries:
    """An image and one value per channel of it (as squeeze-and-excitation multiplies)."""

    def tries(d: Draws) -> Tried:
        shape = d.image(side=2)
        return Tried(lambda parts, x, y: run(x, y), [shape, (*shape[:2], *(1 for _ in shape[2:]))])

    return tries


def single(run: Callable[[Tensor, Tensor], Tensor]) -> Tries:
    """An image and an image of one channel."""

    def tries(d: Draws) -> Tried:
        shape = d.image(side=2, channels=d.whole(2, 5))
        return Tried(lambda parts, x, y: run(x, y), [shape, (shape[0], 1, *shape[2:])])

    return tries


def parameter(run: Callable[[Tensor, Tensor], Tensor], form: str, buffer: bool = False) -> Tries:
    """Calls with a parameter of some shape, such as ``"C11"`` beside images."""

    def tries(d: Draws) -> Tried:
        shape: Shape = {"NLC": d.tokens(), "NCHW": d.image(2, side=2), "NC": d.vector()}[
            {"C": "NC", "NC": "NLC", "1NC": "NLC", "LC": "NLC", "LAST": "NLC"}.get(form, "NCHW")
        ]
        sizes: dict[str, Shape] = {
            "C": (shape[-1],),
            "LAST": (shape[-1],),
            "C11": (shape[1], 1, 1),
            "1C11": (1, shape[1], 1, 1),
            "1NC": (1, *shape[1:]),
            "NC": shape[1:],
            "1CHW": (1, *shape[1:]),
            "CHW": shape[1:],
            "1": (1,),
            "HW": shape[2:],
        }
        value = torch.randn(sizes[form])
        axis = -1 if len(shape) == 3 or form == "C" else 1
        part = value if buffer else nn.Parameter(value)
        return Tried(lambda parts, x: run(x, parts.p), [shape], axis, {"p": part})

    return tries


# Weights that are computed.


def standardised(d: Draws) -> Tried:
    shape = d.image(2)
    weight = nn.Parameter(torch.randn(3, shape[1], 1, 1))

    def run(parts: Any, x: Tensor) -> Tensor:
        mean = parts.w.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(x, parts.w - mean)

    return Tried(run, [shape], 1, {"w": weight})


def weight_norm(d: Draws) -> Tried:
    shape = d.image(2)
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(shape[1], 3, 1))
    return Tried(lambda parts, x: parts.m(x), [shape], 1, {"m": conv})


# Attention and the like.


def dot_product(d: Draws) -> Tried:
    shape = d.tokens()
    f = functional.scaled_dot_product_attention
    return Tried(lambda p, q, k, v: f(q, k, v), [shape] * 3, -1)


def embedding(d: Draws) -> Tried:
    shape = d.tokens()
    index = torch.arange(shape[1]) % 3
    table = nn.Embedding(3, shape[2])
    return Tried(lambda p, x: x + p.table(p.index), [shape], -1, {"table": table, "index": index})


def shared(d: Draws) -> Tried:
    c = d.channels()
    shape = d.image(2, channels=c)
    return Tried(lambda p, x: p.m(p.m(x)), [shape], 1, {"m": nn.Conv2d(c, c, 1)})


def channel_shuffle(form: str) -> Tries:
    def tries(d: Draws) -> Tried:
        groups = d.whole(2, 3)
        shape = d.image(2, channels=groups * d.whole(2, 3))
        n, c, h, w = shape

        def run(parts: Any, x: Tensor) -> Any:
            if form == "module":
                return parts.m(x)
            y = x.view(n, groups, c // groups, h, w).transpose(1, 2)
            return y.contiguous().view(n, -1, h, w)

        return Tried(run, [shape], 1, {"m": nn.ChannelShuffle(groups)})

    return tries


def shuffled_join(d: Draws) -> Tried:
    """As ShuffleNetV2's blocks end."""
    shape = d.image(2)
    n, c, h, w = shape

    def run(parts: Any, x: Tensor, y: Tensor) -> Tensor:
        z = torch.cat([x, y], 1).view(n, 2, c, h, w)
        return z.transpose(1, 2).contiguous().view(n, -1, h, w)

    return Tried(run, [shape, shape])


def prelu(d: Draws) -> Tried:
    shape = d.image() if d.flag() else d.vector()
    many = d.flag()
    layer = nn.PReLU(shape[1] if many else 1)
    kinds = KEEPS + (": neutral" if many and shape[1] > 1 else "")
    if d.flag():
        return Tried(lambda p, x: functional.prelu(x, p.m.weight), [shape], 1, {"m": layer}, kinds)
    return Tried(lambda p, x: p.m(x), [shape], 1, {"m": layer}, kinds)
