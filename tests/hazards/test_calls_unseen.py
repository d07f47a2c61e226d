"""Calls that a trace cannot see into, and what it believes of them."""

from __future__ import annotations

import functools
import random
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hazard_networks import Around, around, drawn, images, other_sizes
from hazards import Builder, Case, holds, variants
from torch import Tensor, nn
from torch.nn import functional

# C: the root's call.


class Called(Around):
    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng, lambda m, x, y: y)


class CallsTwice(Called):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs) * 2


class CallsBefore(Called):
    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x.flip(2) + 1)


class CallsAnother(Called):
    def __call__(self, x: Tensor) -> Any:
        return self.leave(self.enter(x).flip(1))


class CallsImpl(Called):
    def _call_impl(self, *args: Any, **kwargs: Any) -> Any:
        inner: Any = super()._call_impl
        return inner(*args, **kwargs) - 1

    __call__ = _call_impl


def _replaced(change: Callable[[Any], Any]) -> Callable[[random.Random], nn.Module]:
    """A model whose instance is changed after it was made."""

    def make(rng: random.Random) -> nn.Module:
        model = Called(rng)
        change(model)
        return model

    return make


def _set_forward(forward: Callable[[Any], Any]) -> Callable[[random.Random], nn.Module]:
    return _replaced(lambda model: setattr(model, "forward", forward(model)))


def _scaled(x: Tensor, model: Any, by: float) -> Any:
    return type(model).forward(model, x) * by


ROOTS: dict[str, Callable[[random.Random], nn.Module]] = {
    "call overridden": CallsTwice,
    "call that prepares": CallsBefore,
    "call of other methods": CallsAnother,
    "the inner call overridden": CallsImpl,
    "forward a lambda": _set_forward(lambda m: lambda x: type(m).forward(m, x) * 2),
    "forward another method": _set_forward(lambda m: lambda x: m.leave(m.enter(x).flip(1))),
    "forward a method of another class": _set_forward(
        lambda m: types.MethodType(lambda self, x: self.leave(self.enter(x) + 1), m)
    ),
    "forward a partial": _set_forward(lambda m: functools.partial(_scaled, model=m, by=3.0)),
    "forward wrapped": _set_forward(
        lambda m: functools.wraps(m.forward)(lambda x: type(m).forward(m, x).relu())
    ),
    "forward with another default": _set_forward(
        lambda m: lambda x, k=2.0: type(m).forward(m, x) * k
    ),
    "hook": _replaced(lambda m: m.register_forward_hook(lambda mod, args, y: y * 2)),
    "hook before": _replaced(lambda m: m.register_forward_pre_hook(lambda mod, a: (a[0] + 1,))),
}


def rooted(kind: Callable[[random.Random], nn.Module]) -> Builder:
    def build(rng: random.Random) -> Case:
        x = images(rng)
        return Case(drawn(kind, rng), x, other_sizes(rng, x))

    return build


@variants("C", {name: rooted(kind) for name, kind in ROOTS.items()})
def test_calls_of_the_root(builder: Builder, seed: int) -> None:
    holds(builder, seed)


# D: one call of many operations.


@torch.fx.wrap
def wrapped_scale(x: Tensor) -> Any:
    return x * x.shape[1] ** -0.5


@torch.fx.wrap
def wrapped_positions(x: Tensor) -> Tensor:
    return x * torch.ones_like(x).cumsum(1)


@torch.fx.wrap
def wrapped_range(x: Tensor) -> Tensor:
    return x + torch.arange(x.shape[1], dtype=x.dtype).view(1, -1, 1, 1)


@torch.fx.wrap
def wrapped_groups(x: Tensor) -> Tensor:
    return x.reshape(len(x), 2, -1).softmax(-1).reshape(x.shape)


@torch.fx.wrap
def wrapped_flip(x: Tensor, g: Tensor) -> Tensor:
    return x * g.flip(0).view(1, -1, 1, 1)


@torch.fx.wrap
def wrapped_order(x: Tensor) -> Tensor:
    return x[:, torch.arange(x.shape[1] - 1, -1, -1)]


@torch.fx.wrap
def wrapped_half(x: Tensor) -> Tensor:
    return torch.cat([x[:, x.shape[1] // 2 :], x[:, : x.shape[1] // 2]], 1)


@torch.fx.wrap
def wrapped_mean(x: Tensor) -> Tensor:
    return x - x.sum(1, keepdim=True) / x.shape[1]


@torch.fx.wrap
def wrapped_norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[1:])


@torch.fx.wrap
def wrapped_weight(x: Tensor, w: Tensor) -> Tensor:
    return functional.conv2d(x, w / w.shape[1] ** 0.5)


@torch.fx.wrap
def wrapped_pointwise(x: Tensor) -> Tensor:
    return torch.relu(x) * 0.5


@torch.fx.wrap
def wrapped_branch(x: Tensor) -> Tensor:
    return x * 2 if x.shape[1] > 5 else x.flip(1)


def _plain_scale(x: Tensor) -> Tensor:
    return x / x.size(1)


class DropPath(nn.Module):
    """A leaf by its name, with what it does given."""

    def __init__(self, does: Callable[[Any, Tensor], Tensor], width: int = 0) -> None:
        super().__init__()
        self.does = does
        self.g = nn.Parameter(torch.randn(width or 1))
        self.conv = nn.Conv2d(width or 2, width or 2, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.does(self, x)


class StochasticDepth(DropPath):
    pass


class Holding(Around):
    """Calls a leaf."""

    def __init__(self, rng: random.Random, make: Callable[[int], nn.Module]) -> None:
        super().__init__(rng, lambda m, x, y: m.leaf(y))
        self.leaf = make(self.width)


def leaf(make: Callable[[int], nn.Module], honest: bool = True) -> Builder:
    def build(rng: random.Random) -> Case:
        x = images(rng)
        calls = other_sizes(rng, x) if honest else []
        return Case(drawn(lambda r: Holding(r, make), rng), x, calls, honest)

    return build


def _patched(
    kind: Callable[[], nn.Module], does: Callable[[Tensor], Tensor]
) -> Callable[[int], Any]:
    def make(width: int) -> nn.Module:
        module: Any = kind()
        module.forward = does
        return module  # type: ignore[no-any-return]

    return make


OPAQUE_CALLS: dict[str, Builder] = {
    "wrapped: a scale": around(lambda m, x, y: wrapped_scale(y), sizes=True),
    "wrapped: positions": around(lambda m, x, y: wrapped_positions(y), sizes=True),
    "wrapped: a range": around(lambda m, x, y: wrapped_range(y), sizes=True),
    "wrapped: groups": around(lambda m, x, y: wrapped_groups(y), sizes=True),
    "wrapped: a flipped parameter": around(
        lambda m, x, y: wrapped_flip(y, m.more.gate.bias), sizes=True
    ),
    "wrapped: another order": around(lambda m, x, y: wrapped_order(y), sizes=True),
    "wrapped: halves": around(lambda m, x, y: wrapped_half(y), sizes=True),
    "wrapped: a mean by hand": around(lambda m, x, y: wrapped_mean(y), sizes=True),
    "wrapped: a norm": around(lambda m, x, y: wrapped_norm(y), sizes=True),
    "wrapped: a weight": around(lambda m, x, y: wrapped_weight(y, m.more.gate.weight), sizes=True),
    "wrapped: pointwise": around(lambda m, x, y: wrapped_pointwise(y), sizes=True),
    "wrapped: a branch": around(lambda m, x, y: wrapped_branch(y), sizes=True),
    "inline: positions": around(lambda m, x, y: y * torch.ones_like(y).cumsum(1), sizes=True),
    "inline: a range of ones": around(
        lambda m, x, y: y + torch.ones_like(y).cumsum(1).flip(1), sizes=True
    ),
    "inline: zeros": around(lambda m, x, y: y + torch.zeros_like(y).add_(1).cumsum(1), sizes=True),
    "DropPath: a scale": leaf(lambda w: DropPath(lambda m, x: x * x.shape[1] ** -0.5)),
    "DropPath: positions": leaf(lambda w: DropPath(lambda m, x: x * torch.ones_like(x).cumsum(1))),
    "DropPath: a flipped parameter": leaf(
        lambda w: DropPath(lambda m, x: x * m.g.flip(0).view(1, -1, 1, 1), w)
    ),
    "DropPath: a rolled parameter": leaf(
        lambda w: StochasticDepth(lambda m, x: x + m.g.roll(1).view(-1, 1, 1), w)
    ),
    "DropPath: groups": leaf(
        lambda w: StochasticDepth(lambda m, x: x.reshape(len(x), 2, -1).softmax(-1).view_as(x))
    ),
    "DropPath: another order": leaf(lambda w: DropPath(lambda m, x: x.flip(1))),
    "DropPath: a grouped convolution": leaf(lambda w: DropPath(lambda m, x: m.conv(x), w)),
    "DropPath: the identity": leaf(lambda w: DropPath(lambda m, x: x)),
    "a patched relu: a scale": leaf(_patched(nn.ReLU, lambda x: x * x.shape[1] ** -0.5)),
    "a patched relu: positions": leaf(_patched(nn.ReLU, wrapped_positions)),
    "a patched identity: another order": leaf(_patched(nn.Identity, lambda x: x.flip(1))),
    "a patched dropout: groups": leaf(_patched(nn.Dropout, wrapped_groups)),
    "a patched activation: a sum": leaf(_patched(nn.Tanh, lambda x: x + 1)),
    "a patched flatten: a plain function": leaf(_patched(nn.Flatten, _plain_scale)),
}


@variants("D", OPAQUE_CALLS)
def test_one_call_of_many_operations(builder: Builder, seed: int) -> None:
    holds(builder, seed)


# J: a layer's forward is replaced by a closure.


class Lora(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1)


def _lora(width: int) -> nn.Module:
    layer: Any = nn.Conv2d(width, width, 1)
    old, more = layer.forward, Lora(width)
    layer.lora = more
    layer.forward = lambda x: old(x) + more.up(more.down(x))
    return layer  # type: ignore[no-any-return]


def _closed(kind: Callable[[int], nn.Module], close: Callable[[Any], Any]) -> Callable[[int], Any]:
    def make(width: int) -> nn.Module:
        layer: Any = kind(width)
        layer.forward = close(layer.forward)
        return layer  # type: ignore[no-any-return]

    return make


def _conv(width: int) -> nn.Module:
    return nn.Conv2d(width, width, 1)


def _block(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(), nn.BatchNorm2d(width))


def _of_another(width: int) -> nn.Module:
    layer, other = _conv(width), _conv(width)
    both: Any = nn.Sequential(layer)
    both.hidden = [other]
    layer.forward = lambda x: other(x) + 1
    return both  # type: ignore[no-any-return]


def _by_class(width: int) -> nn.Module:
    layer: Any = _conv(width)
    layer.__class__ = type("Doubled", (nn.Conv2d,), {"forward": lambda s, x: _doubled(s, x)})
    return layer  # type: ignore[no-any-return]


def _doubled(layer: Any, x: Tensor) -> Tensor:
    return functional.conv2d(x, layer.weight, layer.bias) * 2


CLOSURES: dict[str, Builder] = {
    "as it was": leaf(_closed(_conv, lambda old: lambda x: old(x))),
    "doubled": leaf(_closed(_conv, lambda old: lambda x: old(x) * 2)),
    "counted by arguments": leaf(_closed(_conv, lambda old: lambda *a, **k: old(*a, **k) + 1)),
    "LoRA": leaf(_lora),
    "of a block": leaf(_closed(_block, lambda old: lambda x: old(x) + x)),
    "a partial": leaf(_closed(_conv, lambda old: functools.partial(lambda f, x: f(x) - 1, old))),
    "wraps": leaf(_closed(_conv, lambda old: functools.wraps(old)(lambda x: old(x).flip(1)))),
    "of another layer": leaf(_of_another, honest=False),
    "another class": leaf(_by_class),
    "of a norm": leaf(_closed(nn.BatchNorm2d, lambda old: lambda x: old(x) * 2)),
    "of an activation": leaf(_closed(lambda w: nn.PReLU(w), lambda old: lambda x: old(x) + 1)),
}


@variants("J", CLOSURES)
def test_closures_as_forward(builder: Builder, seed: int) -> None:
    holds(builder, seed)


# M: raw parameters.

RAW: dict[str, Builder] = {
    name: around(middle, honest=False, late=late)
    for name, middle in {
        "sum of all": lambda m, x, y: y * sum(p.abs().sum() for p in m.parameters()),
        "sum of all by name": lambda m, x, y: y + sum(p.sum() for _, p in m.named_parameters()),
        "a dict of them": lambda m, x, y: y * dict(m.named_parameters())["writer.weight"].mean(),
        "the first": lambda m, x, y: y * next(m.parameters()).mean(),
        "the state": lambda m, x, y: y * m.state_dict()["writer.weight"].abs().sum(),
        "its slot": lambda m, x, y: y * m.writer._parameters["weight"].abs().sum(),
        "of a layer": lambda m, x, y: y * sum(p.norm() for p in m.reader.parameters()),
        "a vector of them": lambda m, x, y: (
            y * torch.nn.utils.parameters_to_vector(m.reader.parameters()).norm()
        ),
        "stacked norms": lambda m, x, y: (
            y * torch.stack([p.norm() for p in m.writer.parameters()]).sum()
        ),
        "looked up": lambda m, x, y: y * m.get_parameter("writer.weight").abs().mean(),
        "all modules": lambda m, x, y: (
            y * sum(c.weight.abs().sum() for c in m.modules() if isinstance(c, nn.Conv2d))
        ),
        "data": lambda m, x, y: y * m.writer.weight.data.abs().sum(),
        "detached": lambda m, x, y: y * m.reader.weight.detach().abs().sum(),
        "an item": lambda m, x, y: y * float(m.reader.weight.abs().sum()),
        "seen": lambda m, x, y: y * m.reader.weight.abs().sum(),
    }.items()
    for late in [True]
}


@variants("M", RAW)
def test_raw_parameters(builder: Builder, seed: int) -> None:
    holds(builder, seed)


# O: random numbers of fixed size.

NOISE: dict[str, Builder] = {
    name: around(middle, honest=False)
    for name, middle in {
        "randn": lambda m, x, y: y + torch.randn(1, m.width, 1, 1, dtype=y.dtype),
        "rand": lambda m, x, y: y * torch.rand(m.width, 1, 1, dtype=y.dtype),
        "one number": lambda m, x, y: y * torch.rand(1, dtype=y.dtype),
        "an item": lambda m, x, y: y * torch.rand(()).item(),
        "randint": lambda m, x, y: y + torch.randint(0, 5, (1, m.width, 1, 1)),
        "randperm": lambda m, x, y: y[:, torch.randperm(m.width)],
        "normal": lambda m, x, y: y + torch.normal(0.0, 1.0, (m.width, 1, 1), dtype=y.dtype),
        "normal_": lambda m, x, y: y + torch.empty(m.width, 1, 1, dtype=y.dtype).normal_(),
        "bernoulli": lambda m, x, y: (
            y * torch.bernoulli(torch.full((m.width, 1, 1), 0.5, dtype=y.dtype))
        ),
        "of the activation's shape": lambda m, x, y: y + torch.randn_like(y),
        "of its sizes": lambda m, x, y: y + torch.randn(y.shape, dtype=y.dtype),
        "dropout of ones": lambda m, x, y: y * functional.dropout(torch.ones(4), 0.5, True).sum(),
        "python's": lambda m, x, y: y * random.random(),
        "python's choice": lambda m, x, y: y * 2 if random.random() < 0.5 else y.flip(1),
        "numpy's": lambda m, x, y: y * float(np.random.rand()),
    }.items()
}


@variants("O", NOISE)
def test_random_numbers(builder: Builder, seed: int) -> None:
    holds(builder, seed)
