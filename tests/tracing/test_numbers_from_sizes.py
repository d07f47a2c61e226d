"""Numbers inside of a program: other sizes, arguments and shapes give the same, or are refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import upscale_opt as uo

_WIDTH = 8

Body = Callable[["_Net", Tensor], Tensor]
Draw = Callable[[random.Random], Body]


class _Net(nn.Module):
    """A few layers, and what is done with them."""

    def __init__(self, body: Callable[..., Tensor], leaf: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, _WIDTH, 3, padding=1)
        self.other = nn.Conv2d(3, _WIDTH, 3, padding=1)
        self.norm = nn.BatchNorm2d(_WIDTH)
        self.factor = nn.Parameter(torch.rand(_WIDTH, 1, 1) + 0.5)
        self.wide = nn.Conv2d(2 * _WIDTH, _WIDTH, 1)
        self.head = nn.Conv2d(_WIDTH, 4, 1)
        self.line = nn.Linear(_WIDTH, 4)
        self.leaf = leaf if leaf is not None else nn.Identity()
        self.body = [body]  # out of sight of what looks for modules in closures

    def a(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(x))

    def b(self, x: Tensor) -> Tensor:
        return torch.relu(self.other(x))

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        return self.body[0](self, x, *more)


def _x(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _masked(net: _Net, rng: random.Random, dead: str = "") -> _Net:
    torch.manual_seed(rng.randrange(1000))
    net = net.double().eval()
    for name in ("first", "other"):
        layer = net.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        zeros = rng.sample(range(_WIDTH), _WIDTH if name == dead else rng.randint(2, 5))
        with torch.no_grad():
            layer.weight[zeros] = 0
            layer.bias[zeros] = 0
    return net


_IMAGES = ((_x(2, 3, 8, 8),), (_x(3, 3, 8, 8),), (_x(2, 3, 12, 10),), (_x(2, 3, 16, 16),))


def _check(
    net: _Net, calls: Any = _IMAGES, *, refuses: bool = True, crashes: bool = False
) -> tuple[int, int]:
    """Prune for the first call, and compare on all; how many parameters there were and are.

    Args:
        net: a masked network.
        calls: the arguments of each call.
        refuses: other calls than the first may be refused.
        crashes: the original itself may not take some of them.
    """
    first = calls[0]
    pruned = uo.prune(net, first if len(first) > 1 else first[0]).model
    for number, call in enumerate(calls):
        try:
            want = net(*call)
        except Exception:
            assert crashes
            continue
        try:
            got = pruned(*call)
        except uo.UpscaleError:
            if refuses and number:
                continue
            raise
        assert got.shape == want.shape, number
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)
    return _size(net), _size(pruned)


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# A: sizes of parameters.


def _of_parameters(rng: random.Random) -> Body:
    ask = rng.choice(
        [
            lambda net: net.wide.weight.shape[1] ** 0.5,
            lambda net: net.first.weight.numel(),
            lambda net: net.norm.running_mean.shape[0],
            lambda net: net.first.bias.size(0) / 3,
            lambda net: net.head.weight.shape[:2].numel(),
        ]
    )
    return rng.choice(
        [
            lambda net, x: net.head(net.norm(net.a(x)) / ask(net)),  # type: ignore[no-untyped-call]
            lambda net, x: net.head(net.a(x) - ask(net)),  # type: ignore[no-untyped-call]
            lambda net, x: net.head(
                net.a(x).view(-1, net.first.weight.shape[0], x.shape[2], x.shape[3])
            ),
        ]
    )


# E: numbers from sizes.


def _of_sizes(rng: random.Random) -> Body:
    axis = rng.choice([0, 2, 3])
    by = rng.choice([1, 2, 3])
    at = {0: 2, 2: 8, 3: 8}[axis]
    return rng.choice(
        [
            lambda net, x: net.head(net.a(x).roll(x.shape[axis] * by, 1)),
            lambda net, x: net.head(net.a(x).roll(x.size(axis) % at, 1)),
            lambda net, x: net.head(net.a(x) + (x.shape[axis] - at)),
            lambda net, x: net.head(net.a(x) * 2 - (x.shape[axis] - at) * (x.shape[axis] - 2 * at)),
            lambda net, x: net.head(net.a(x).clamp(min=x.shape[axis] - at)),
            lambda net, x: _twice(net, net.a(x), x.shape[axis] - at + by),
            lambda net, x: net.a(x).repeat(1, x.shape[axis] // at, 1, 1)[:, :_WIDTH].sum(1),
            lambda net, x: net.head(net.a(x) / net.a(x).flatten(1).size(1)),
            lambda net, x: net.head(net.a(x) * net.b(x).flatten(1).shape[1]),
            lambda net, x: _product(*net.a(x).flatten(1).chunk(2, 1)),
            lambda net, x: net.line(functional.avg_pool2d(net.a(x), 8).view(-1, _WIDTH)),
            lambda net, x: _merged(net.head(net.a(x))),
            lambda net, x: _merged(net.a(x)).mean(1),
            lambda net, x: (net.a(x).flatten(1) + net.b(x).flatten(1)).sum(1),
            lambda net, x: net.head(torch.cat(net.a(x).chunk(x.shape[axis] // at + 1, 1)[::-1], 1)),
            lambda net, x: net.head(net.a(x).softmax(x.shape[axis] // at)),
        ]
    )


def _twice(net: _Net, y: Tensor, k: int) -> Tensor:
    part = y[:, k : k + 4]
    return net.head(torch.cat([part, part * 2], 1))  # type: ignore[no-any-return]


def _product(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(1)


def _merged(y: Tensor) -> Tensor:
    return torch.sigmoid(y.view(-1, y.shape[1] * y.shape[2] * y.shape[3]))


# D: what is not looked into.


@torch.fx.wrap
def _scaled(x: Tensor) -> Tensor:
    return x * x.shape[1] ** -0.5  # type: ignore[no-any-return]


@torch.fx.wrap
def _counted(x: Tensor) -> Tensor:
    return x * torch.ones_like(x).cumsum(1)


@torch.fx.wrap
def _flipped(x: Tensor, g: Tensor) -> Tensor:
    return x * g.flip(0)


@torch.fx.wrap
def _rolled(x: Tensor, g: Tensor) -> Tensor:
    return x * g.roll(1, 0)


@torch.fx.wrap
def _in_eights(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], _WIDTH, -1).softmax(-1).reshape(x.shape)


@torch.fx.wrap
def _branching(x: Tensor) -> Tensor:
    return x * 2 if x.size(1) > 6 else x * 3


@torch.fx.wrap
def _plain(x: Tensor, g: Tensor) -> Tensor:
    return torch.relu(x * g) * 0.5


class DropPath(nn.Module):
    """By its name it is kept as one call."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.conv = nn.Conv2d(_WIDTH, _WIDTH, 1, groups=2) if form == "grouped" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is not None:
            y: Tensor = self.conv(x)
            return y
        return x * x.shape[1] ** -0.5 if self.form == "scaled" else x * torch.ones_like(x).cumsum(1)


def _unseen(rng: random.Random) -> Body:
    return rng.choice(
        [
            lambda net, x: net.head(_scaled(net.a(x))),
            lambda net, x: net.head(_counted(net.a(x))),
            lambda net, x: net.head(_flipped(net.a(x), net.factor)),
            lambda net, x: net.head(_rolled(net.a(x), net.factor)),
            lambda net, x: net.head(_in_eights(net.a(x))),
            lambda net, x: net.head(_branching(net.a(x))),
            lambda net, x: net.head(net.leaf(net.a(x))),
        ]
    )


# The rest: crashes, and sums whose summands vanish.


def _monai(net: _Net, x: Tensor) -> Tensor:
    y = net.a(x)
    b, c = y.shape[:2]
    z = torch.sigmoid(functional.adaptive_avg_pool2d(y, 1).view(b, c))
    return net.head(y * z.view([b, c] + [1] * 2))  # type: ignore[no-any-return]


def _others(rng: random.Random) -> Body:
    root: Any = np.sqrt(rng.choice([2, 8]))
    return rng.choice(
        [
            _monai,
            lambda net, x: net.head(net.a(x) / root),
            lambda net, x: net.line(functional.adaptive_avg_pool2d(net.a(x), 1).squeeze()),
            lambda net, x: net.line(net.a(x).mean((2, 3)) + x.new_ones(net.first.bias.shape)),
            lambda net, x: net.head(
                functional.interpolate(functional.avg_pool2d(net.a(x), 2), size=x.shape[-2:])
            ),
        ]
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("draw", [_of_parameters, _of_sizes, _unseen, _others])
def test_other_sizes_give_the_same_or_are_refused(draw: Draw, seed: int) -> None:
    rng = random.Random(f"{draw.__name__} {seed}")
    leaf = DropPath(rng.choice(["scaled", "counted", "grouped"]))
    _check(_masked(_Net(draw(rng), leaf), rng), crashes=True)


@pytest.mark.parametrize(
    "body",
    [
        lambda net, x: net.head(net.a(x) / (x.shape[2] * x.shape[3])),
        lambda net, x: net.head(net.a(x) / net.first.weight.shape[0] ** 0.5),
        lambda net, x: net.head(net.a(x) / net.a(x).flatten(1).size(1)),
        lambda net, x: net.line(net.a(x).view(x.shape[0], _WIDTH, -1).mean(2)),
        lambda net, x: net.head(functional.pad(net.a(x), [0, x.shape[3] % 4, 0, x.shape[2] % 4])),
        lambda net, x: net.head(_plain(net.a(x), net.factor)),
        _monai,
    ],
)
def test_numbers_that_are_only_passed_on_are_free(body: Body) -> None:
    net = _masked(_Net(body), random.Random(0))
    before, after = _check(net, refuses=False)
    assert after < _size(_Net(body)) / 2 <= before


def test_a_refusal_names_the_number() -> None:
    net = _masked(_Net(lambda net, x: net.head(net.a(x).roll(x.shape[2] - 7, 1))), random.Random(1))
    pruned = uo.prune(net, _IMAGES[0][0]).model
    with pytest.raises(uo.UpscaleError, match=r"x\.shape\[2\] - 7.* is 9, but .* for 1 alone"):
        pruned(_x(2, 3, 16, 16))


# F: number inputs.


@pytest.mark.parametrize(
    "body",
    [
        lambda net, x, k: net.head(net.a(x) + k),
        lambda net, x, k: net.head(net.a(x).clamp(min=k)),
        lambda net, x, k: net.head(net.a(x).roll(k, 1)),
        lambda net, x, k: net.head(net.a(x).softmax(k)),
        lambda net, x, k: _twice(net, net.a(x), k),
        lambda net, x, k: net.head(net.a(x) * k),
    ],
)
def test_number_inputs(body: Any) -> None:
    image = _IMAGES[0][0]
    net = _masked(_Net(body), random.Random(2))
    _check(net, [(image, 0), (image, 1), (image, 3), (_x(3, 3, 12, 8), 0)], crashes=True)


# G: broadcasting.


@pytest.mark.parametrize("traced", [(2, 1, 8, 8), (2, _WIDTH, 1, 1), (1, 1, 1), 0.5])
@pytest.mark.parametrize(
    "body",
    [
        lambda net, x, g: net.head(net.a(x) * g),
        lambda net, x, g: net.head(net.a(x) + g.sigmoid() if hasattr(g, "sigmoid") else net.a(x)),
    ],
)
def test_broadcasting_otherwise(body: Any, traced: Any) -> None:
    image = _IMAGES[0][0]
    shapes = [traced, (2, 1, 8, 8), (2, _WIDTH, 1, 1), (2, _WIDTH, 8, 8), (2, 1, 1, 1), (1, 8, 8)]
    shapes = [
        s
        for s in shapes
        if not isinstance(s, tuple) or not isinstance(traced, tuple) or len(s) == len(traced)
    ] + ([(2, _WIDTH, 1, 1)] if traced == 0.5 else [])
    gates = [_x(*shape) if isinstance(shape, tuple) else shape for shape in shapes]
    net = _masked(_Net(body), random.Random(3))
    _check(net, [(image, gate) for gate in gates], crashes=True)


# H: ranks.


@pytest.mark.parametrize("axis", [-1, 1])
def test_another_rank(axis: int) -> None:
    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.c(torch.cat([self.a(x).relu(), self.b(x).relu()], axis))
            return y

    net = Line().double().eval()
    with torch.no_grad():
        for layer in (net.a, net.b):
            layer.weight[::2] = 0
            layer.bias[::2] = 0
    pruned = uo.prune(net, _x(3, 6)).model
    x = _x(5, 6)
    torch.testing.assert_close(pruned(x), net(x))
    try:
        got = pruned(_x(2, 16, 6)[:, :3])
    except uo.UpscaleError as error:
        assert "axes" in str(error)  # noqa: PT017 - it may do without
    else:
        assert axis == -1
        assert got.shape == (2, 3, 4)


# I: summands that vanish.


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("dead", ["other", ""])
def test_a_dead_summand_that_gives_the_shape(flip: bool, dead: str) -> None:
    def body(net: _Net, x: Tensor) -> Tensor:
        one = functional.adaptive_avg_pool2d(net.a(x), 1)
        two = functional.avg_pool2d(net.b(x), 8)
        return net.head(two + one if flip else one + two)  # type: ignore[no-any-return]

    net = _masked(_Net(body), random.Random(4), dead)
    _check(net, [(_x(2, 3, 8, 8),), (_x(2, 3, 16, 24),), (_x(3, 3, 8, 8),)], refuses=False)


# S: gradients.


@pytest.mark.parametrize("place", [0, 1, 2])
def test_gradients_still_end_inside_of_a_shuffle(place: int) -> None:
    def body(net: _Net, x: Tensor) -> Tensor:
        y = net.a(x)
        y = y.detach() if place == 0 else y
        y = y.view(y.shape[0], 2, 4, y.shape[2], y.shape[3])
        y = (y.detach() if place == 1 else y).transpose(1, 2)
        y = (y.detach() if place == 2 else y).reshape(x.shape[0], _WIDTH, x.shape[2], x.shape[3])
        return net.head(y)  # type: ignore[no-any-return]

    net = _masked(_Net(body), random.Random(5))
    pruned = uo.prune(net, _IMAGES[0][0]).model
    x = _x(2, 3, 8, 8).requires_grad_()
    pruned(x).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(pruned(x), net(x))


# squeeze() with a single channel left.


def test_squeeze_of_one_channel() -> None:
    net = _masked(
        _Net(lambda net, x: net.line(functional.adaptive_avg_pool2d(net.a(x), 1).squeeze())),
        random.Random(6),
    )
    assert net.first.bias is not None
    with torch.no_grad():
        net.first.weight[1:] = 0
        net.first.bias[1:] = 0
        net.first.bias[0] = 1
    before, after = _check(net, refuses=False)
    assert after < before / 10
    single = _x(1, 3, 8, 8)  # nothing is left but one number, which the linear layer reads
    torch.testing.assert_close(uo.prune(net, _IMAGES[0][0]).model(single), net(single))
