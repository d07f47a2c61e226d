"""Modes that code switches inside of `forward`: gradients, and autocast."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from comparing import size
from hazard_networks import Around, around, drawn, images
from hazards import Builder, Call, Case, holds, variants
from torch import Tensor

import upscale_opt as uo
from upscale_opt.tracing.unchanged import reseed

# S: gradients.


def _shuffle(y: Tensor) -> Tensor:
    n, c, h, w = y.shape
    return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


@torch.no_grad()
def _helper(y: Tensor) -> Tensor:
    return y.sigmoid().flip(1)


GRADIENTS: dict[str, Builder] = {
    name: around(middle, sizes=True, gradients=True)
    for name, middle in {
        "plain": lambda m, x, y: y + m.more.gate(y),
        "detached": lambda m, x, y: y + m.more.gate(y).detach(),
        "detached in a shuffle": lambda m, x, y: _shuffle(_shuffle(y).detach()) + m.more.side(x),
        "detached in a flip": lambda m, x, y: y.flip(1).detach().flip(1) + m.more.side(x),
        "detached as it is": lambda m, x, y: y.detach() + m.more.side(x),
        "detached in a view": lambda m, x, y: (
            y.flatten(1).detach().view(y.shape) * 2 + m.more.side(x)
        ),
        "detached in a sum of nothing": lambda m, x, y: y + (y.flip(1) - y.flip(1).detach()),
        "a straight-through rounding": lambda m, x, y: y + (y.round() - y).detach(),
        "detached chunks": lambda m, x, y: torch.cat(
            [part.detach() if i else part for i, part in enumerate(y.split(m.width // 2, 1))], 1
        ),
        "data": lambda m, x, y: y.data + m.more.side(x),
        "a cloned detachment": lambda m, x, y: y.detach().clone() + m.more.side(x),
    }.items()
}
GRADIENTS |= {
    name: around(middle, honest=False, gradients=True)
    for name, middle in {
        "without gradients": lambda m, x, y: _without(y) + m.more.side(x),
        "a layer without gradients": lambda m, x, y: _layer_without(m, x) + y,
        "parts without gradients": lambda m, x, y: _parts_without(y) + m.more.side(x),
        "gradients within": lambda m, x, y: _within(m, x, y),
        "a decorated helper": lambda m, x, y: _helper(y) + m.more.side(x),
        "through a set flag": lambda m, x, y: y.detach().requires_grad_(False) * 2 + m.more.side(x),
    }.items()
}


def _without(y: Tensor) -> Tensor:
    with torch.no_grad():
        return y.flip(1)


def _layer_without(m: Any, x: Tensor) -> Any:
    with torch.no_grad():
        return m.more.side(x).tanh() / x.shape[2]


def _parts_without(y: Tensor) -> Tensor:
    with torch.no_grad():
        one, two = y.chunk(2, 1)
        return torch.cat([two, one], 1)


def _within(m: Any, x: Tensor, y: Tensor) -> Any:
    with torch.no_grad():
        z = y * 2
        with torch.enable_grad():
            return m.more.side(x) + z


@variants("S", GRADIENTS)
def test_gradients(builder: Builder, seed: int) -> None:
    holds(builder, seed)


# Autocast inside of `forward`.


def _head(m: Any, x: Any, y: Any) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = m.more.gate(y)
    with torch.autocast("cpu", enabled=False):
        return y.float()


def _all(m: Any, x: Any, y: Any) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return m.more.gate(y).float() + y


def _off(m: Any, x: Any, y: Any) -> Any:
    with torch.autocast("cpu", enabled=False):
        return torch.relu(m.more.gate(y.float()))


def autocast(middle: Callable[..., Any]) -> Builder:
    def build(rng: random.Random) -> Case:
        x = images(rng).float()
        return Case(
            drawn(lambda r: Around(r, middle), rng),
            x,
            [Call("another batch", (torch.cat([x, x * 2]),))],
            honest=False,
            allowed=5e-2,
            dtype=torch.float32,
        )

    return build


AUTOCAST = {
    "a float head": autocast(_head),
    "a part": autocast(_all),
    "off": autocast(_off),
}


@variants("autocast", AUTOCAST)
def test_autocast_inside(builder: Builder, seed: int) -> None:
    holds(builder, seed)


@variants("autocast, verified", AUTOCAST)
def test_autocast_inside_is_verified(builder: Builder, seed: int) -> None:
    """Much is removed, and the report says numbers; or the model is refused."""
    case = builder(random.Random(seed))
    reseed(seed)
    model = case.make().float().eval()
    try:
        pruned = uo.prune(model, case.inputs, amount=0.5, side="both")
    except uo.UpscaleError as error:
        words = str(error)
    else:
        words = ""
        assert pruned.report is not None
        assert math.isfinite(pruned.report.float64_error)
        assert size(pruned.model) < 0.8 * size(model)
    assert not words or "autocast" in words
