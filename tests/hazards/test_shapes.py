"""Shapes: broadcasting otherwise, another rank, and summands that vanish but gave the shape."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hazard_networks import Around, around, drawn, images, resized
from hazards import Builder, Call, Case, holds, variants
from torch import Tensor, nn
from torch.nn import functional

# G: broadcasting otherwise.


class Gated(Around):
    def forward(self, x: Tensor, g: Any = 1.0) -> Any:
        assert self.middle is not None
        return self.leave(self.middle(self, self.enter(x), g))


def _gate(rng: random.Random, shape: str, x: Tensor, width: int) -> Any:
    """A gate; its shape is written as NCHW with 1 where it is broadcast, or it is a float."""
    if shape == "float":
        return rng.uniform(0.5, 2)
    sizes = {"N": len(x), "C": width, "H": x.shape[2], "W": x.shape[3], "1": 1}
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    return torch.randn([sizes[s] for s in shape], generator=generator, dtype=torch.float64)


SHAPES = ("N1HW", "NC11", "1C11", "NCHW", "C11", "N111", "1111", "HW", "float")


def gated(middle: Callable[[Any, Tensor, Any], Any], traced: str) -> Builder:
    """Traced with a gate of one shape, called with all others."""

    def build(rng: random.Random) -> Case:
        x, width = images(rng), rng.choice([4, 6])
        other = resized(rng, x, 3)
        calls = [Call("another batch", (other, _gate(rng, traced, other, width)), right=True)]
        for shape in SHAPES:
            given = resized(rng, x, rng.choice([1, 2, 3]))
            calls.append(Call(f"a gate of {shape}", (given, _gate(rng, shape, given, width))))
        seed = rng.getrandbits(32)
        inputs = (x, _gate(rng, traced, x, width))
        return Case(lambda: Gated(random.Random(seed), middle, width), inputs, calls)

    return build


COMBINED: dict[str, Callable[[Any, Tensor, Any], Any]] = {
    "times": lambda m, y, g: y * g,
    "plus": lambda m, y, g: y + g,
    "times of a layer": lambda m, y, g: m.more.gate(y) * g + y,
    "the larger": lambda m, y, g: torch.maximum(y, torch.as_tensor(g).to(y)),
    "where": lambda m, y, g: torch.where(torch.as_tensor(g) > 0, y, y * 2),
}
GATES: dict[str, Builder] = {
    f"{name}, {shape}": gated(middle, shape)
    for name, middle in COMBINED.items()
    for shape in ("N1HW", "NC11", "N111", "float")
    if name in ("times", "plus") or shape == "N1HW"
}
GATES |= {
    "a sigmoid of it": gated(lambda m, y, g: y * torch.sigmoid(g), "N1HW"),
    "a sum of it and one": gated(lambda m, y, g: y * (1 + g), "N1HW"),
    "in place": gated(lambda m, y, g: y.clone().mul_(g), "N1HW"),
    "twice": gated(lambda m, y, g: y * g + g, "N1HW"),
    "one row": gated(lambda m, y, g: y * g, "HW"),
    "expanded": gated(lambda m, y, g: y * g.expand_as(y), "N1HW"),
    "averaged": gated(lambda m, y, g: y * g.mean(), "N1HW"),
    "between": gated(lambda m, y, g: torch.lerp(y, y * 2, torch.as_tensor(g).to(y)), "N1HW"),
}


@variants("G", GATES)
def test_broadcasting_otherwise(builder: Builder, seed: int) -> None:
    holds(builder, seed)


# H: another rank.


class Perceptron(nn.Module):
    def __init__(self, rng: random.Random, middle: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.middle = middle
        self.width = rng.choice([4, 6])
        self.first = nn.Linear(5, self.width)
        self.side = nn.Linear(5, self.width)
        self.norm = nn.LayerNorm(self.width)
        self.same = nn.Linear(self.width, self.width)
        self.act = rng.choice([nn.ReLU(), nn.Tanh(), nn.GELU()])
        self.last = nn.LazyLinear(rng.randint(2, 4))
        self(torch.zeros(2, 5))

    def forward(self, x: Tensor) -> Any:
        self_side = self.side(x)
        return self.last(self.middle(self, self.act(self.first(x)) + 0 * self_side))


def ranked(middle: Callable[[Any, Tensor], Any], shapes: Sequence[Sequence[int]] = ()) -> Builder:
    """Traced with vectors, called with tokens, a grid, and one vector."""

    def build(rng: random.Random) -> Case:
        generator = torch.Generator().manual_seed(rng.getrandbits(32))

        def vectors(*shape: int) -> Tensor:
            return torch.randn(*shape, 5, generator=generator, dtype=torch.float64)

        ranks = [(rng.randint(2, 4),), (2, rng.randint(1, 4)), (3, 5), (1, 2, 3), ()]
        traced = ranks.pop(rng.choice([0, 0, 0, 1]))
        calls = [Call("another batch", (vectors(5, *traced[1:]),), right=True)]
        calls += [Call(f"of shape {(*shape, 5)}", (vectors(*shape),)) for shape in ranks]
        return Case(drawn(lambda r: Perceptron(r, middle), rng), vectors(*traced), calls)

    return build


def _last_two(m: Any, y: Tensor) -> Tensor:
    left, right = y.chunk(2, -1)
    return torch.cat([right, torch.relu(left)], -1)


def _split(m: Any, y: Any) -> Tensor:
    left, right = y.split([1, m.width - 1], -1)
    return torch.cat([right, left], dim=-1)


RANKS: dict[str, Builder] = {
    "cat": ranked(lambda m, y: torch.cat([y, m.same(y)], -1)),
    "cat of itself": ranked(lambda m, y: torch.cat([y, -y], dim=-1)),
    "cat of three": ranked(lambda m, y: torch.cat((y, m.same(y), y), -1)),
    "chunk": ranked(_last_two),
    "split": ranked(_split),
    "slice": ranked(lambda m, y: y[..., 1:]),
    "slice by commas": ranked(lambda m, y: y[:, 1:]),
    "a stride": ranked(lambda m, y: y[..., ::2]),
    "an index": ranked(lambda m, y: y + y[..., 1, None]),
    "flip": ranked(lambda m, y: y.flip(-1)),
    "roll": ranked(lambda m, y: y.roll(1, -1)),
    "softmax": ranked(lambda m, y: y.softmax(-1)),
    "softmax of axis one": ranked(lambda m, y: y.softmax(1)),
    "layer norm": ranked(lambda m, y: m.norm(y)),
    "mean": ranked(lambda m, y: y - y.mean(-1, keepdim=True)),
    "mean of axis one": ranked(lambda m, y: y - y.mean(1, keepdim=True)),
    "norm": ranked(lambda m, y: functional.normalize(y, dim=-1)),
    "norm of the default axis": ranked(lambda m, y: functional.normalize(y)),
    "glu": ranked(lambda m, y: functional.glu(y, -1)),
    "heads": ranked(lambda m, y: torch.unflatten(y, -1, (2, -1)).transpose(-1, -2).flatten(-2)),
    "maxout": ranked(lambda m, y: torch.unflatten(y, -1, (-1, 2)).amax(-1)),
    "stacked": ranked(lambda m, y: torch.stack([y, m.same(y)], -1).flatten(-2)),
    "padded": ranked(lambda m, y: functional.pad(y, (1, 2))),
    "cumulated": ranked(lambda m, y: y.cumsum(-1)),
    "taken": ranked(lambda m, y: y.index_select(-1, torch.tensor([2, 0, 1]))),
    "narrowed": ranked(lambda m, y: y.narrow(-1, 1, 2)),
    "squeezed": ranked(lambda m, y: y.unsqueeze(-1).squeeze(-1)),
    "repeated": ranked(lambda m, y: y.repeat_interleave(2, -1)),
    "moved": ranked(lambda m, y: y.movedim(-1, 0).movedim(0, -1).flip(-1)),
    "sum over tokens": ranked(lambda m, y: y + y.sum(0, keepdim=True)),
    "product with itself": ranked(lambda m, y: y * (y * y).sum(-1, keepdim=True)),
    "einsum": ranked(lambda m, y: torch.einsum("...c,dc->...d", y, m.same.weight)),
    "matmul": ranked(lambda m, y: y @ m.same.weight.t()),
}


class Unbatched(Around):
    pass


def unbatched(middle: Callable[..., Any]) -> Builder:
    """Traced with a batch of images, called with one image, or the other way round."""

    def build(rng: random.Random) -> Case:
        x = images(rng)
        one = resized(rng, x, 1)[0]
        seed, turned = rng.getrandbits(32), rng.random() < 0.4
        first, later = (one, x) if turned else (x, one)
        calls = [Call("the other rank", (later,))]
        calls.append(Call("again", (first * 2,), right=True))
        return Case(lambda: Unbatched(random.Random(seed), middle), first, calls)

    return build


RANKS |= {
    "images: cat": unbatched(lambda m, x, y: torch.cat([y, y], -3)[..., : m.width, :, :]),
    "images: flip": unbatched(lambda m, x, y: y.flip(-3)),
    "images: roll": unbatched(lambda m, x, y: y.roll(1, -3)),
    "images: softmax": unbatched(lambda m, x, y: y.softmax(-3)),
    "images: pool": unbatched(lambda m, x, y: y * y.mean((-2, -1), keepdim=True)),
    "images: slice": unbatched(lambda m, x, y: y + y[..., :1, :, :]),
    "images: flip of axis one": unbatched(lambda m, x, y: y.flip(1)),
}


@variants("H", RANKS)
def test_another_rank(builder: Builder, seed: int) -> None:
    holds(builder, seed)


# I: summands that are all zero, and gave the shape.


class Dead(Around):
    def __init__(self, rng: random.Random, middle: Callable[..., Any]) -> None:
        super().__init__(rng, middle)
        self.dead = nn.Conv2d(3, self.width, 1)
        self.row = nn.Parameter(torch.randn(1, self.width, 1, 1))

    def leave(self, y: Tensor) -> Any:
        return self.reader(y)


def dead(middle: Callable[..., Any], side: int = 0) -> Builder:
    """A layer `dead` of zeros, whose result gives another tensor its shape."""

    def build(rng: random.Random) -> Case:
        x = images(rng, side=side or rng.choice([0, 1]))
        calls = [
            Call("another batch", (resized(rng, x, 4),), right=True),
            Call("another size", (resized(rng, x, 3, (2, 1)),), right=True),
        ]
        return Case(drawn(lambda r: Dead(r, middle), rng), x, calls, dead=("dead",))

    return build


SUMMANDS: dict[str, Builder] = {
    "a pooled summand": dead(lambda m, x, y: functional.adaptive_avg_pool2d(y, 1) + m.dead(x)),
    "at one pixel": dead(lambda m, x, y: functional.adaptive_avg_pool2d(y, 1) + m.dead(x), side=1),
    "the other way round": dead(lambda m, x, y: m.dead(x) + y.mean((2, 3), keepdim=True), side=1),
    "a difference": dead(lambda m, x, y: y.amax((2, 3), keepdim=True) - m.dead(x), side=1),
    "negated": dead(lambda m, x, y: m.dead(x) - y.mean((2, 3), keepdim=True)),
    "in place": dead(lambda m, x, y: m.dead(x).add_(y.mean((2, 3), keepdim=True)), side=1),
    "a parameter": dead(lambda m, x, y: m.row + m.dead(x)),
    "a parameter at one pixel": dead(lambda m, x, y: m.dead(x) + m.row, side=1),
    "behind a relu": dead(
        lambda m, x, y: y.mean((2, 3), keepdim=True) + torch.relu(m.dead(x)), side=1
    ),
    "rows": dead(lambda m, x, y: y.mean(2, keepdim=True) + m.dead(x)),
    "columns": dead(lambda m, x, y: y.mean(3, keepdim=True) + m.dead(x), side=1),
    "three summands": dead(
        lambda m, x, y: y.mean((2, 3), keepdim=True) + m.dead(x) + m.row, side=1
    ),
    "a sum of a list": dead(lambda m, x, y: sum([y.mean((2, 3), keepdim=True), m.dead(x)]), side=1),
    "the first of the batch": dead(lambda m, x, y: y[:1] + m.dead(x)),
    "torch.add": dead(
        lambda m, x, y: torch.add(y.mean((2, 3), keepdim=True), m.dead(x), alpha=2), side=1
    ),
    "upsampled": dead(
        lambda m, x, y: (
            y.mean((2, 3), keepdim=True) + functional.interpolate(m.dead(x), scale_factor=2.0)
        ),
        side=1,
    ),
    "a concatenation": dead(
        lambda m, x, y: (torch.cat([y, m.dead(x)], 1) + y.mean())[:, : m.width], side=1
    ),
}


@variants("I", SUMMANDS)
def test_dead_summands(builder: Builder, seed: int) -> None:
    holds(builder, seed)


# Shapes on which pruned models crashed: one channel is left, and `squeeze` sees it.


def _squeezed(m: Any, x: Any, y: Any) -> Any:
    return y.mean((2, 3), keepdim=True).squeeze() * m.more.gate.weight[:, 0, 0, 0]


class Squeezing(nn.Module):
    """Pooled channels, of which one is left."""

    def __init__(self, rng: random.Random, squeeze: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        width = rng.choice([3, 5])
        self.squeeze = squeeze
        self.first, self.last = nn.Conv2d(3, width, 1), nn.Linear(width, rng.randint(1, 3))
        with torch.no_grad():
            for tensor in (self.first.weight, self.first.bias):
                assert tensor is not None
                tensor[1:] = 0
            self.last.weight[:, 1:] = 0

    def forward(self, x: Tensor) -> Any:
        y = torch.relu(self.first(x)).mean((2, 3), keepdim=True)
        return self.last(self.squeeze(y))


def one_left(squeeze: Callable[[Tensor], Tensor]) -> Builder:
    def build(rng: random.Random) -> Case:
        x = images(rng)
        calls = [
            Call("another batch", (resized(rng, x, 3),), right=True),
            Call("a batch of one", (resized(rng, x, 1),)),
        ]
        return Case(drawn(lambda r: Squeezing(r, squeeze), rng), x, calls)

    return build


SQUEEZED: dict[str, Builder] = {
    "one is left": one_left(lambda y: y.squeeze()),
    "one is left, by torch": one_left(lambda y: torch.squeeze(y)),
    "one is left, of its axes": one_left(lambda y: y.squeeze((-1, -2))),
    "one is left, one at a time": one_left(lambda y: y.squeeze(-1).squeeze(-1)),
    "one is left, in place": one_left(lambda y: y.squeeze_()),
    "of pooled channels": around(_squeezed, flat=True),
    "of all": around(lambda m, x, y: y.mean((2, 3), keepdim=True).squeeze(), flat=True),
    "of a slice": around(lambda m, x, y: y[:, :2].squeeze(), flat=True),
    "of axis one": around(lambda m, x, y: y.mean((2, 3), keepdim=True).squeeze(1), flat=True),
    "of the last axes": around(
        lambda m, x, y: y.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1), flat=True
    ),
    "of the result": around(lambda m, x, y: m.leave(y).mean((2, 3)).squeeze(), flat=True),
    "before a linear layer": around(
        lambda m, x, y: functional.linear(
            y.mean((2, 3), keepdim=True).squeeze(), m.more.gate.weight.flatten(1)
        ),
        flat=True,
    ),
}


@variants("squeeze", SQUEEZED)
def test_squeeze_without_an_axis(builder: Builder, seed: int) -> None:
    holds(builder, seed)
