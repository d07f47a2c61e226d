"""Code that asks what it is given, while it is traced: sizes, lengths and numbers, and squeezes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hazard_networks import Around, Flat, around, drawn, images, resized
from hazards import Builder, Call, Case, holds, variants
from test_numbers import given
from test_shapes import dead
from torch import Tensor
from torch.nn import functional

import upscale_opt as uo

# Sizes of activations and parameters, asked for in all ways of Python.


def _pads(m: Any, x: Any, y: Any) -> Any:
    height, width = y.shape[-2:]
    if height % 2 or width % 2:
        y = functional.pad(y, (0, width % 2, 0, height % 2))
    return y


def _grid(m: Any, x: Any, y: Any) -> Any:
    rows, columns = torch.meshgrid(
        torch.arange(y.shape[2]), torch.arange(y.shape[3]), indexing="ij"
    )
    return y + (rows * columns).to(y)


def _asserts(m: Any, x: Any, y: Any) -> Any:
    assert y.shape[1] == m.width
    assert list(y.shape[1:2]) == [m.width]
    return torch.relu(y)


def _rest(m: Any, x: Any, y: Any) -> Any:
    batch, *rest = y.shape
    return y.reshape(batch, *rest) * len(rest)


def _halves(m: Any, x: Any, y: Any) -> Any:
    half = int(y.shape[1] // 2)
    return torch.cat([y[:, half:], y[:, :half]], 1)


def _weights(m: Any, x: Any, y: Any) -> Any:
    weight = m.more.gate.weight
    flat = weight.view(len(weight), -1) / np.sqrt(weight.numel())
    return functional.linear(y.movedim(1, -1), flat).movedim(-1, 1)


ASKED: dict[str, tuple[Callable[..., Any], bool]] = {
    "rest": (_rest, True),
    "padded": (_pads, False),
    "a grid": (_grid, True),
    "asserted": (_asserts, True),
    "halves": (_halves, True),
    "weights": (_weights, True),
    "channels decide": (lambda m, x, y: y * 2 if y.shape[1] > 3 else y, True),
    "int of channels": (lambda m, x, y: y * int(y.shape[1]), True),
    "a loop over channels": (lambda m, x, y: sum(y * (i + 1) for i in range(y.size(1))), True),
    "larger of channels": (lambda m, x, y: y * max(y.shape[1], 2), True),
    "length of a row": (lambda m, x, y: y * len(y[0]), True),
    "contiguous": (lambda m, x, y: y * 2 if y.is_contiguous() else y * 3, False),
    "strides": (lambda m, x, y: y * 2 if y.stride()[1] > 1 else y * 3, False),
    "rows": (lambda m, x, y: sum(y[:, :, i : i + 1] for i in range(y.shape[2])), False),
    "ones": (lambda m, x, y: y * torch.ones(y.shape[0], 1, y.shape[2], 1).to(y), True),
    "full": (lambda m, x, y: y + torch.full((y.size(0), y.size(1), 1, 1), 2.0).to(y), True),
    "mean of all": (lambda m, x, y: y - y.sum() / math.prod(y.shape), True),
    "root of channels": (lambda m, x, y: y / math.sqrt(y.shape[1]), True),
    "numpy's root of channels": (lambda m, x, y: y / np.sqrt(y.shape[1]), True),
    "numpy's product": (lambda m, x, y: y / float(np.prod(y.shape[2:])), False),
    "rounded": (lambda m, x, y: y * round(y.shape[2] / 2), True),
    "length of a shape": (lambda m, x, y: y * {3: 1.0, 4: 2.0}.get(len(y.shape), 1.0), True),
    "joined shapes": (
        lambda m, x, y: y.flatten(1).view(x.shape[:1] + (m.width,) + x.shape[2:]),  # noqa: RUF005
        True,
    ),
    "a list of sizes": (lambda m, x, y: y.view([*y.shape[:1], m.width, *y.shape[2:]]), True),
    "turned": (lambda m, x, y: y * y.shape[::-1][0], True),
    "any": (lambda m, x, y: y * 2 if any(size > 3 for size in y.shape[2:]) else y, False),
    "numbered": (lambda m, x, y: y * sum(i * s for i, s in enumerate(y.shape[2:])), True),
    "cropped": (lambda m, x, y: y[:, :, : min(y.shape[2], y.shape[3])], True),
    "a bias": (lambda m, x, y: y * m.writer.bias.view(1, -1, *[1] * (y.dim() - 2)), True),
    "an expanded bias": (
        lambda m, x, y: y + m.writer.bias.expand(len(y), -1).view(len(y), -1, 1, 1),
        True,
    ),
}


@variants("answers", {name: around(what, sizes=sizes) for name, (what, sizes) in ASKED.items()})
def test_code_that_asks_for_sizes(builder: Builder, seed: int) -> None:
    holds(builder, seed)


# Numbers, dtypes and slices among the inputs.

DTYPES = torch.float32, torch.float64
SLICES = slice(0, 2), slice(1, 3), slice(None)
INPUTS: dict[str, Builder] = {
    "a power": given(lambda m, x, y, k: y ** (k + 1), 1, 2, 0),
    "an index of a list": given(lambda m, x, y, k: y * [1.0, 2.0, 3.0][k], 0, 1, 2),
    "an index of chunks": given(lambda m, x, y, k: torch.cat([y.chunk(2, 1)[k]] * 2, 1), 0, 1),
    "the largest": given(lambda m, x, y, k: y * y.topk(k, 1).values[:, -1:], 1, 2),
    "truth": given(lambda m, x, y, k: y * 2 if k else y * 3, 1, 0, 2),
    "int": given(lambda m, x, y, k: y * int(k), 1.5, 2.5),
    "a view": given(lambda m, x, y, k: y.view(len(y), k, -1, *y.shape[2:]).flatten(1, 2), 2, 1),
    "repeated": given(lambda m, x, y, k: y.repeat(1, k, 1, 1)[:, : m.width], 1, 2),
    "chunks": given(lambda m, x, y, k: torch.cat(list(reversed(y.chunk(k, 1))), 1), 2, 1),
    "compared": given(lambda m, x, y, k: (y > k).to(y), 0.1, -1, 0),
    "filled": given(lambda m, x, y, k: y.clone().fill_(k), 0.0, 1.0),
    "in place": given(lambda m, x, y, k: y.clone().add_(k), 0.0, 1.0),
    "between": given(lambda m, x, y, k: torch.lerp(y, y * 2, k), 0.0, 1.0, 0.5),
    "alpha": given(lambda m, x, y, k: torch.add(y, y.relu(), alpha=k), 0.0, 1.0, 2),
    "clamped": given(lambda m, x, y, k: y.clamp(-k, k), 0.0, 1.0, 2),
    "padded channels": given(lambda m, x, y, k: functional.pad(y, (0, 0, 0, 0, k, -k)), 0, 1, -1),
    "transposed": given(lambda m, x, y, k: y.transpose(1, k).transpose(1, k), 2, 3),
    "sizes": given(lambda m, x, y, k: functional.adaptive_avg_pool2d(y, k), (2, 2), (1, 1)),
    "a norm's axis": given(lambda m, x, y, k: functional.normalize(y, dim=k), 1, 2),
    "in a dict": given(lambda m, x, y, k: y * k["a"] + k["b"], {"a": 1.0, "b": 0.0}),
    "in a list": given(lambda m, x, y, k: y * k[0] + len(k), [1.0, 0.0], [2.0, 1.0], [1.0]),
    "shifted": given(lambda m, x, y, k: torch.cat([y[:, k:], y[:, :k]], 1), 1, 2, 0),
    "none": given(lambda m, x, y, k: y * 2 if k is None else y + k, None, 1.0),
    "dtypes": given(lambda m, x, y, k: y.to(k).to(y.dtype), *DTYPES),
    "slices of channels": given(lambda m, x, y, k: y + y[:, k].sum(1, True), *SLICES),
    "slices of rows": given(lambda m, x, y, k: y[:, :, k], *SLICES),
}


@variants("inputs", INPUTS)
def test_numbers_among_the_inputs(builder: Builder, seed: int) -> None:
    holds(builder, seed)


# Squeezes that remove another number of axes.


def squeezing(middle: Callable[..., Any], *, flat: bool = True, batch: int = 2) -> Builder:
    """Called at all batches from one to four, and also with images of one row."""

    def build(rng: random.Random) -> Case:
        x, kind, seed = images(rng, batch), Flat if flat else Around, rng.getrandbits(32)
        by = [(0, 0), (1, 0), (0, 2), (1 - x.shape[2], 0)]
        calls = [
            Call(
                f"a batch of {n} and {d} more", (resized(rng, x, n, d),), right=n > 1 and d[0] >= 0
            )
            for n in (1, 2, 3, 4)
            for d in by
        ]
        return Case(lambda: kind(random.Random(seed), middle), x, calls if batch > 1 else calls[:0])

    return build


def _pooled(y: Tensor) -> Tensor:
    return y.mean((2, 3), keepdim=True).squeeze()


def _matrix(m: Any) -> Tensor:
    weight: Tensor = m.more.gate.weight
    return weight.flatten(1)


def _excited(m: Any, x: Any, y: Any) -> Any:
    gate = functional.linear(functional.relu(functional.linear(_pooled(y), _matrix(m))), _matrix(m))
    return y * torch.sigmoid(gate)[..., None, None]


SQUEEZES: dict[str, Builder] = {
    "the batch": squeezing(lambda m, x, y: y.squeeze(0), flat=False),
    "the batch at last": squeezing(lambda m, x, y: y.squeeze(0)),
    "batch and rows": squeezing(lambda m, x, y: y.squeeze((0, 2))),
    "rows": squeezing(lambda m, x, y: y.squeeze(2)),
    "all, between": squeezing(lambda m, x, y: y.squeeze(), flat=False),
    "pooled, from one": squeezing(lambda m, x, y: _pooled(y), batch=1),
    "joined": squeezing(
        lambda m, x, y: functional.linear(
            torch.cat([_pooled(y), _pooled(y).relu()], -1), torch.cat([_matrix(m)] * 2, 1)
        )
    ),
    "a gate": squeezing(_excited, flat=False),
    "sliced": squeezing(lambda m, x, y: _pooled(y)[..., :2]),
    "a softmax": squeezing(lambda m, x, y: _pooled(y).softmax(-1)),
    "a sum of two": squeezing(lambda m, x, y: _pooled(y) + _pooled(m.more.gate(y))),
    "a product": squeezing(lambda m, x, y: _pooled(y) * y.amax((2, 3))),
    "a matrix": squeezing(lambda m, x, y: _pooled(y) @ _matrix(m).t()),
    "its size": squeezing(lambda m, x, y: _pooled(y).shape[0] * y),
    "columns": squeezing(lambda m, x, y: y.mean(3, keepdim=True).squeeze() * 2),
}


@variants("squeezes", SQUEEZES)
def test_squeezes(builder: Builder, seed: int) -> None:
    holds(builder, seed)


# What is asked of tensors that are all zero.


def _asserted(m: Any, x: Any, y: Any) -> Any:
    torch._assert(m.dead(x).ndim == 4, "images")
    torch._assert(m.dead(x).shape[2] < 9, "too high")
    return torch.relu(y)


DEAD: dict[str, Builder] = {
    "asserted": dead(_asserted),
    "branched on": dead(lambda m, x, y: y * 2 if m.dead(x).shape[2] > 0 else y * 3),
    "its dtype": dead(lambda m, x, y: y.to(m.dead(x).dtype) * 2),
    "its rank": dead(lambda m, x, y: y * m.dead(x).dim()),
    "its rows": dead(lambda m, x, y: y * m.dead(x).shape[2]),
}


@variants("dead", DEAD)
def test_what_is_asked_of_zeros(builder: Builder, seed: int) -> None:
    holds(builder, seed)


def test_other_decisions_are_refused_by_name() -> None:
    rng = random.Random(0)
    model = drawn(lambda r: Around(r, lambda m, x, y: y if x.shape[2] > 4 else y * 2), rng)()
    pruned = uo.prune(model.double().eval(), images(rng, 2, 6), amount=0.5).model
    assert uo.trace(model, images(rng, 2, 6)).capture == "fx"
    pruned(images(rng, 3, 5))
    with pytest.raises(uo.ArgumentError, match=r"'\(x\.shape\[2\] > 4\)' is False, but .* True"):
        pruned(images(rng, 3, 4))
