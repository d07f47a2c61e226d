"""Numbers: sizes of parameters, numbers computed from sizes, numbers given as arguments."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hazard_networks import Around, around, drawn, images, other_sizes, resized
from hazards import Builder, Call, Case, holds, variants
from torch import Tensor, nn
from torch.nn import functional

# A: sizes of parameters, which are those of the original.

SIZES_OF_PARAMETERS: dict[str, Builder] = {
    "root of the inputs": around(lambda m, x, y: y / m.reader.weight.shape[1] ** 0.5, sizes=True),
    "root of the outputs": around(lambda m, x, y: y / math.sqrt(len(m.writer.weight)), sizes=True),
    "numel": around(lambda m, x, y: y * m.reader.weight.numel() / 100, sizes=True),
    "nelement": around(lambda m, x, y: y - m.writer.weight.nelement(), sizes=True),
    "size()": around(lambda m, x, y: y * m.writer.weight.size(0), sizes=True),
    "size() unpacked": around(lambda m, x, y: y * m.reader.weight.size()[:2][1], sizes=True),
    "shape unpacked": around(lambda m, x, y: y * tuple(m.reader.weight.shape)[1], sizes=True),
    "length of a bias": around(lambda m, x, y: y + len(m.writer.bias), sizes=True),
    "product of a shape": around(
        lambda m, x, y: y / math.prod(m.reader.weight.shape[1:]), sizes=True
    ),
    "numel of a shape": around(lambda m, x, y: y / m.reader.weight.shape.numel(), sizes=True),
    "out_channels": around(lambda m, x, y: y / m.writer.out_channels, sizes=True),
    "a weight over its size": around(
        lambda m, x, y: functional.conv2d(
            y, m.more.gate.weight / m.more.gate.weight.shape[1] ** 0.5
        ),
        sizes=True,
    ),
    "size of a transposed weight": around(
        lambda m, x, y: y * m.reader.weight.transpose(0, 1).shape[0], sizes=True
    ),
    "size of a flat weight": around(
        lambda m, x, y: y * m.reader.weight.flatten(1).size(1) ** -0.5, sizes=True
    ),
    "ones of the shape": around(
        lambda m, x, y: y * torch.ones(m.writer.bias.shape, dtype=y.dtype).sum(), sizes=True
    ),
    "new ones of the shape": around(
        lambda m, x, y: y + x.new_ones(m.writer.bias.shape).view(1, -1, 1, 1), sizes=True
    ),
    "a range of the shape": around(
        lambda m, x, y: y * torch.arange(m.writer.weight.shape[0]).view(1, -1, 1, 1), sizes=True
    ),
    "size of the next layer's parameter list": around(
        lambda m, x, y: y * sum(p.shape[0] for p in [m.writer.weight, m.reader.weight]),
        sizes=True,
    ),
}


class Normed(Around):
    def __init__(self, rng: random.Random, middle: Callable[..., Any]) -> None:
        super().__init__(rng, middle)
        self.norm = nn.BatchNorm2d(self.width)


def _of_a_statistic(rng: random.Random) -> Case:
    x = images(rng)
    make = drawn(lambda r: Normed(r, lambda m, x, y: m.norm(y) * len(m.norm.running_mean)), rng)
    return Case(make, x, other_sizes(rng, x, sizes=True))


SIZES_OF_PARAMETERS["size of a statistic"] = _of_a_statistic


@variants("A", SIZES_OF_PARAMETERS)
def test_sizes_of_parameters(builder: Builder, seed: int) -> None:
    holds(builder, seed)


# E: numbers from sizes.


def _sized(middle: Callable[..., Any], **options: Any) -> Builder:
    """A middle that gets the height at the trace as well, which later calls change."""

    def build(rng: random.Random) -> Case:
        side = rng.randint(4, 6)
        case = around(lambda m, x, y: middle(m, x, y, side), **options)(rng)
        x = images(rng, 2, side)
        calls = [
            Call("another batch", (resized(rng, x, 3),), right=options.get("batches", True)),
            Call("one more row", (resized(rng, x, by=(1, 0)),), right=options.get("sizes", False)),
            Call("more columns", (resized(rng, x, by=(0, 3)),), right=options.get("sizes", False)),
            Call("all at once", (resized(rng, x, 4, (2, 1)),), right=options.get("sizes", False)),
        ]
        return Case(case.make, x, calls)

    return build


def _halves(m: Any, x: Any, y: Any) -> Any:
    left, right = y.flatten(1).chunk(2, 1)
    return left.sum(1) + 2 * right.cumsum(1).sum(1)


def _view_all(m: Any, x: Any, y: Any) -> Any:
    _, c, h, w = y.shape
    flat = y.view(-1, c * h * w)
    return flat * torch.arange(c * h * w, dtype=y.dtype)


def _shuffled(m: Any, x: Any, y: Any) -> Any:
    n, c, h, w = y.shape
    return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


FROM_SIZES: dict[str, Builder] = {
    "roll by the height": _sized(lambda m, x, y, s: y.roll(x.shape[2], 1)),
    "roll by the batch": _sized(lambda m, x, y, s: y.roll(x.shape[0], 1), batches=False),
    "roll of a layer": _sized(lambda m, x, y, s: m.more.gate(y).roll(x.size(-1) // 2, 1) + y),
    "slice from the height": _sized(lambda m, x, y, s: _wide(y, x.shape[2] - s)),
    "slice from the batch": _sized(lambda m, x, y, s: _wide(y, len(x) - 2), batches=False),
    "narrow": _sized(lambda m, x, y, s: _padded(y.narrow(1, x.shape[2] - s, 2), m)),
    "take a channel": _sized(lambda m, x, y, s: y + y[:, x.shape[2] - s, None]),
    "index by a range": _sized(
        lambda m, x, y, s: _padded(y[:, torch.arange(x.shape[2] - s, x.shape[2] - s + 2)], m)
    ),
    "a sum that was nothing": _sized(lambda m, x, y, s: y + (x.shape[2] - s), sizes=True),
    "a difference that was nothing": _sized(lambda m, x, y, s: y - (x.shape[-1] - s), sizes=True),
    "a power of nothing": _sized(lambda m, x, y, s: y ** (x.shape[2] - s + 1), sizes=True),
    "a sum of computed sizes": _sized(
        lambda m, x, y, s: y + (x.shape[2] * x.shape[3] - s * s) / 7, sizes=True
    ),
    "a factor that was one": _sized(lambda m, x, y, s: y * (x.shape[2] / s), sizes=True),
    "a factor of nothing": _sized(lambda m, x, y, s: y * (x.shape[2] - s), sizes=True),
    "clamped from a size": _sized(lambda m, x, y, s: y.clamp(min=x.shape[2] - s), sizes=True),
    "hardtanh from sizes": _sized(
        lambda m, x, y, s: functional.hardtanh(y, (x.shape[2] - s) * 0.5, 9.0), sizes=True
    ),
    "threshold from sizes": _sized(
        lambda m, x, y, s: functional.threshold(y, 0.1, x.shape[2] - s), sizes=True
    ),
    "full from a size": _sized(
        lambda m, x, y, s: y + torch.full((1, m.width, 1, 1), x.shape[2] - s, dtype=y.dtype),
        sizes=True,
    ),
    "full_like from a size": _sized(
        lambda m, x, y, s: y + torch.full_like(y, x.shape[2] - s), sizes=True
    ),
    "padding's value": _sized(
        lambda m, x, y, s: functional.pad(y, (1, 1), value=x.shape[2] - s), sizes=True
    ),
    "channels padded": _sized(
        lambda m, x, y, s: functional.pad(y, (0, 0, 0, 0, x.shape[2] - s, s - x.shape[2]))
    ),
    "axis from a size": _sized(lambda m, x, y, s: y.softmax(1 + (x.shape[2] != s))),
    "axis from the rank": _sized(lambda m, x, y, s: y.softmax(x.dim() - 3), sizes=True),
    "groups from the batch": _sized(
        lambda m, x, y, s: functional.group_norm(y, len(x)), batches=False
    ),
    "features as a factor": _sized(lambda m, x, y, s: y * (y.flatten(1).size(1) / 100), sizes=True),
    "channels as a factor": _sized(lambda m, x, y, s: y * y.shape[1] ** -0.5, sizes=True),
    "numel as a factor": _sized(lambda m, x, y, s: y * (y.numel() / 99), sizes=True),
    "length of the batch": _sized(lambda m, x, y, s: y + len(y) / 3, sizes=True),
    "halves of flat features": around(_halves, flat=True),
    "viewed by all sizes": around(_view_all, flat=True),
    "shuffled by sizes": around(_shuffled, sizes=True),
    "resized to sizes": around(
        lambda m, x, y: functional.interpolate(y[:, :, ::2], size=x.shape[2:]), sizes=True
    ),
    "positions from sizes": around(
        lambda m, x, y: (
            y
            + torch.linspace(-1, 1, x.shape[2], dtype=y.dtype).view(1, 1, -1, 1)
            * torch.arange(x.shape[3])
        ),
        sizes=True,
    ),
    "split by sizes": _sized(lambda m, x, y, s: _cat_split(y, 1 + x.shape[2] - s)),
    "repeated by a size": _sized(
        lambda m, x, y, s: y.repeat(1, 1 + x.shape[2] - s, 1, 1)[:, : m.width]
    ),
    "moved by a size": _sized(lambda m, x, y, s: torch.roll(y, (x.shape[2], 1), (1, 3))),
    "larger of sizes": _sized(lambda m, x, y, s: y + (max(x.shape[2], s) - s), sizes=True),
    "rounded": _sized(lambda m, x, y, s: y + int((x.shape[2] - s) / 2), sizes=False),
    "by math": _sized(lambda m, x, y, s: y + math.floor((x.shape[2] - s) / 2), sizes=False),
    "branch on a size": _sized(lambda m, x, y, s: y.flip(1) if x.shape[2] > s else y * 2),
    "loop over a size": _sized(lambda m, x, y, s: y + sum(range(x.shape[2] - s + 1))),
    "arange masked": _sized(
        lambda m, x, y, s: y * (torch.arange(m.width) >= x.shape[2] - s).view(1, -1, 1, 1)
    ),
    "lookup of a size": _sized(lambda m, x, y, s: y + [0.0, 1.0, 2.0, 3.0][x.shape[2] - s]),
}


def _wide(y: Tensor, start: int) -> Tensor:
    """A slice of two channels, spread over all."""
    return y * y[:, start : start + 2].mean(1, keepdim=True) + y[:, start : start + 1]


def _padded(two: Tensor, m: Any) -> Tensor:
    return torch.cat([two] * (m.width // 2), 1)


def _cat_split(y: Any, first: int) -> Tensor:
    left, right = y.split([first, y.shape[1] - first], 1)
    return torch.cat([right, left], 1)


@variants("E", FROM_SIZES)
def test_numbers_from_sizes(builder: Builder, seed: int) -> None:
    holds(builder, seed)


# F: number inputs.


class Numbered(Around):
    def forward(self, x: Tensor, k: Any = 0) -> Any:
        assert self.middle is not None
        return self.leave(self.middle(self, x, self.enter(x), k))


def given(middle: Callable[..., Any], traced: Any, *later: Any) -> Builder:
    """Traced with one argument `k`, called with others; a batch of its own each time."""

    def build(rng: random.Random) -> Case:
        x = images(rng)
        by_name = rng.random() < 0.5
        calls = [Call("another batch", (resized(rng, x, 3), traced), right=not by_name)]
        for k in later:
            calls.append(Call(f"k={k!r:.40}", (resized(rng, x, rng.randint(1, 3)), k)))
            calls.append(Call(f"k by name={k!r:.40}", (x,), {"k": k}))
        inputs: Any = {"x": x, "k": traced} if by_name else (x, traced)
        return Case(drawn(lambda r: Numbered(r, middle), rng), inputs, calls)

    return build


NUMBERS: dict[str, Builder] = {
    "a sum": given(lambda m, x, y, k: y + k, 0, 1, 2.5, True),
    "a difference": given(lambda m, x, y, k: k - y, 0, 2),
    "a sum of floats": given(lambda m, x, y, k: y + k / 2, 0.0, 0.5, 1),
    "a product with nothing": given(lambda m, x, y, k: y * k, 0.0, 1.0, -2.0),
    "a product": given(lambda m, x, y, k: y * k, 1.0, 2.0, 0),
    "a quotient": given(lambda m, x, y, k: y / k, 2, 3, 4.0),
    "a power": given(lambda m, x, y, k: y**k, 1, 2, 0),
    "clamp": given(lambda m, x, y, k: y.clamp(min=k), 0, 0.5, -1),
    "clamp above": given(lambda m, x, y, k: torch.clamp(y, max=k), 1.0, -0.5),
    "roll": given(lambda m, x, y, k: y.roll(k, 1), 1, 2, 0),
    "softmax": given(lambda m, x, y, k: y.softmax(k), 1, 2, 3, -1),
    "a slice": given(lambda m, x, y, k: _wide(y, k), 0, 1, 2),
    "a channel": given(lambda m, x, y, k: y + y[:, k, None], 0, 2, -1),
    "flip": given(lambda m, x, y, k: y.flip(k), 1, 2),
    "axis of a sum": given(lambda m, x, y, k: y + y.sum(k, keepdim=True), 1, 2),
    "axis of a concatenation": given(lambda m, x, y, k: torch.cat([y, y], k)[:, : m.width], 2, 1),
    "a slope": given(lambda m, x, y, k: functional.leaky_relu(y, k), 0.0, 0.5),
    "a padded value": given(lambda m, x, y, k: functional.pad(y, (1, 0), value=k), 0, 1),
    "a filled value": given(lambda m, x, y, k: y + torch.full_like(y, k), 0, 3),
    "masked_fill": given(lambda m, x, y, k: y.masked_fill(y < 0, k), 0, 0.5),
    "where": given(lambda m, x, y, k: torch.where(y > 0.1, y, k), 0.0, 1.0),
    "a flag": given(lambda m, x, y, k: y.flip(1) if k else y * 2, False, True),
    "a flag as a number": given(lambda m, x, y, k: y + k, False, True),
    "a branch on a number": given(lambda m, x, y, k: y + 1 if k > 2 else -y, 1, 3),
    "a word": given(lambda m, x, y, k: torch.relu(y) if k == "relu" else y + 1, "relu", "other"),
    "an axis from a number": given(lambda m, x, y, k: y.cumsum(k + 1), 0, 1),
    "groups": given(lambda m, x, y, k: functional.group_norm(y, k), 1, 2),
    "a tensor": given(
        lambda m, x, y, k: y + k,
        torch.tensor(0.0, dtype=torch.float64),
        torch.tensor(1.5, dtype=torch.float64),
    ),
    "a tensor of channels": given(
        lambda m, x, y, k: y + k.sum() - 1,
        torch.ones(1, dtype=torch.float64),
        torch.full((3,), 1.5, dtype=torch.float64),
    ),
    "a pair": given(lambda m, x, y, k: y * k[0] + k[1], (1.0, 0.0), (2.0, 1.0), (0.0, -1.0)),
    "a slice object": given(lambda m, x, y, k: y + y[:, k].sum(1, True), slice(0, 2), slice(1, 3)),
    "a dtype": given(lambda m, x, y, k: y.to(k).double(), torch.float64, torch.float32),
    "an order": given(lambda m, x, y, k: y + y[:, k], [0, 0, 1, 2], [3, 2, 1, 0]),
    "a number of rounds": given(lambda m, x, y, k: y + sum(range(k)), 1, 3),
}


def _of_width(build: Builder) -> Builder:
    """Four channels, for the order of them."""

    def again(rng: random.Random) -> Case:
        case = build(rng)
        seed = rng.getrandbits(32)
        middle: Any = case.make().middle

        def make() -> nn.Module:
            return Numbered(random.Random(seed), middle, 4)

        return Case(make, case.inputs, case.calls)

    return again


NUMBERS["an order"] = _of_width(NUMBERS["an order"])


@variants("F", NUMBERS)
def test_number_inputs(builder: Builder, seed: int) -> None:
    holds(builder, seed)


# Numbers on which pruned models crashed.


def _monai(m: Any, x: Any, y: Any) -> Any:
    batch, channels = y.shape[:2]
    gate = torch.sigmoid(m.more.gate(y.mean((2, 3), keepdim=True)))
    return y * gate.view([batch, channels] + [1] * (y.dim() - 2))


def _leading(m: Any, x: Any, y: Any) -> Any:
    return y.view(*y.shape[:2], -1).softmax(-1).view(y.shape)


def _trailing(m: Any, x: Any, y: Any) -> Any:
    return y.flatten(2).view(y.shape[0], -1, *y.shape[2:])


NUMPYS_HALF: Any = np.float32(0.5)
CRASHING: dict[str, Builder] = {
    "monai's squeeze and excitation": around(_monai, sizes=True),
    "the leading sizes": around(_leading, sizes=True),
    "the trailing sizes": around(_trailing, sizes=True),
    "the shape as a list": around(
        lambda m, x, y: torch.zeros(list(y.shape), dtype=y.dtype) + y, sizes=True
    ),
    "numpy's root": around(lambda m, x, y: y / np.sqrt(8), sizes=True),
    "numpy's number": around(lambda m, x, y: y * NUMPYS_HALF + np.int64(1), sizes=True),
    "numpy's number in a function": around(
        lambda m, x, y: functional.leaky_relu(y, np.float64(0.3)), sizes=True
    ),
    "numpy's product of a shape": around(
        lambda m, x, y: y / float(np.prod(m.reader.weight.shape[1:])), sizes=True
    ),
    "infinity": around(lambda m, x, y: y.masked_fill(y < 0, -math.inf).softmax(1)),
    "new ones of a bias": around(
        lambda m, x, y: y + x.new_ones(m.writer.bias.shape)[:, None, None], sizes=True
    ),
    "new zeros of a bias": around(
        lambda m, x, y: torch.relu(y + x.new_zeros(m.writer.bias.shape).view(1, -1, 1, 1)),
        sizes=True,
    ),
    "new full of a weight": around(
        lambda m, x, y: y + y.new_full(m.writer.weight.shape[:1], 0.5).view(-1, 1, 1), sizes=True
    ),
    "sum of two flat tensors": around(
        lambda m, x, y: y.flatten(1) + torch.relu(m.more.gate(y)).flatten(1), flat=True, sizes=True
    ),
    "product of flat tensors": around(
        lambda m, x, y: y.flatten(1) * m.more.side(x).flatten(1), flat=True, sizes=True
    ),
    "squeeze of all": around(lambda m, x, y: m.leave(y.mean((2, 3), keepdim=True)).squeeze()),
}


@variants("numbers that crash", CRASHING)
def test_numbers_that_crash(builder: Builder, seed: int) -> None:
    holds(builder, seed)
