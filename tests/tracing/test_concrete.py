"""Code that looks at what a proxy stands for keeps its modules, and its sizes free."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import upscale_opt as uo


class Around(nn.Module):
    """A convolution, what a test is about, and a convolution."""

    def __init__(self, middle: Callable[[Any, Tensor], Any] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.inner = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.middle = middle

    def forward(self, x: Tensor) -> Any:
        y = self.enter(x)
        return self.leave(self.middle(self, y) if self.middle is not None else y)


def images(batch: int = 2, size: int = 16) -> Tensor:
    return torch.randn(batch, 3, size, size + 2, generator=torch.Generator().manual_seed(1))


OTHERS = (images(2), images(3, 12), images(1, 18), images(2))


def holds(model: nn.Module, capture: str = "fx", others: tuple[Tensor, ...] = OTHERS) -> Any:
    """Prune by half, compare at other inputs, and return what is refused, by number."""
    model = model.double().eval()
    done = uo.prune(model, images().double(), amount=0.5)
    assert done.graph.capture == capture
    if capture == "fx":
        assert isinstance(done.model.get_submodule("enter"), nn.Conv2d)
    refused = {}
    for number, x in enumerate(others):
        want = done.masked(x.double())
        try:
            got = done.model(x.double())
        except uo.ArgumentError as error:
            refused[number] = str(error)
            continue
        assert type(got) is type(want)
        for a, b in zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True):
            torch.testing.assert_close(a, b)
    return refused


def split_transform(m: Any, y: Tensor) -> Tensor:
    parts = list(y.chunk(2, 1))
    parts.extend(layer(parts[-1]) for layer in m.inner)
    return torch.cat(parts[-2:], 1)


def fused(m: Any, y: Tensor) -> Tensor:
    first, *rest = torch.split(y, [4, 2, 2], 1)
    return torch.cat([*rest, m.inner[0](first)], 1)


def by_kind(m: Any, y: Any) -> Tensor:
    if isinstance(y, (list, tuple)) or not isinstance(y, Tensor) or not torch.is_tensor(y):
        raise TypeError("a tensor, please")
    if not torch.jit.isinstance(y, Tensor):  # type: ignore[no-untyped-call]
        return y * 2
    if isinstance(y.shape, torch.Size) and isinstance(y.shape[2], int):
        y = y / y.shape[2]
    z: Tensor = y.sample() if hasattr(y, "sample") else y
    return z


def halves(m: Any, y: Tensor) -> Tensor:
    top, bottom = (part.relu() for part in y.tensor_split(2, 2))
    return torch.cat([bottom, top], 2)


def limits(m: Any, y: Tensor) -> Tensor:
    return y.clamp(min=torch.finfo(y.dtype).min / 2) + torch.finfo(y.dtype).eps


def strides(m: Any, y: Tensor) -> Tensor:
    given = torch.tensor([8.0, 16.0])
    sizes = y.shape[2], y.shape[3]
    return y + sum(y.new_full((1, 1, *sizes), step) for step in given)


def assigned(m: Any, y: Tensor) -> Tensor:
    z = y.clone()
    z[:, 2:4] = y[:, 2:4].sigmoid()
    z[..., 0] += 1
    return z.relu()


def border(m: Any, y: Tensor) -> Tensor:
    z = torch.zeros_like(y)
    z[:, :, 1:-1, 1:-1] = y[:, :, 1:-1, 1:-1]
    return z + y


def layers_dropped(m: Any, y: Tensor) -> Tensor:
    drawn = random.random(), np.random.uniform(0, 1)
    return y if m.training and drawn[0] < 0.5 and drawn[1] < 0.5 else y.relu()


def resized(m: Any, y: Tensor) -> Tensor:
    height, width = int(y.shape[2] * 1.5), int(float(y.shape[3]) / 2)
    return nn.functional.interpolate(y, (height, width)) / float(height)


def padded(m: Any, y: Tensor) -> Tensor:
    missing = int(y.shape[3]) % 4
    return nn.functional.pad(y, (0, missing, 0, int(2.0)))


def arrays(m: Any, y: Tensor) -> Tensor:
    """Sizes as arrays of NumPy: what decides is whether they are even."""
    sizes = np.array(y.shape[2:])
    if (sizes % np.power(2, 1) > 0).any():
        raise ValueError("even sizes, please")
    more = np.ceil((sizes + 1) / np.array([2, 4])) - np.sqrt(sizes * sizes) + sizes
    z: Tensor = nn.functional.interpolate(y, tuple(int(size) for size in more)) * more[0]
    return z


def by_dtype(m: Any, y: Tensor) -> Tensor:
    return y * {torch.float32: 2.0, torch.float64: 3.0}[y.dtype]


@functools.lru_cache
def ramp(size: int) -> Tensor:
    return torch.linspace(0, 1, size)


def from_a_cache(m: Any, y: Tensor) -> Tensor:
    return y + ramp(y.shape[3])


def made(m: Any, y: Tensor) -> Tensor:
    """Tensors made of sizes, and of tensors."""
    sides = torch.tensor([y.shape[2], 2.0]).sum() * torch.tensor(y.shape[3])
    return torch.as_tensor(torch.as_tensor(y, dtype=torch.float64) / sides, dtype=y.dtype)


KEPT = (
    *(split_transform, fused, by_kind, halves, limits, strides, assigned, border, made),
    *(layers_dropped, by_dtype, arrays, resized, padded, from_a_cache),
)


@pytest.mark.parametrize("middle", KEPT)
def test_modules_are_kept_and_sizes_are_free(middle: Callable[[Any, Tensor], Any]) -> None:
    assert holds(Around(middle)) == {}


# What decides is checked.


def rows(m: Any, y: Tensor) -> Tensor:
    return torch.stack([row + number for number, row in enumerate(y)])


def strips(m: Any, y: Any) -> Tensor:
    return torch.cat([strip.relu() for strip in y.split(4, 2)][::-1], 2)


def in_numpy(m: Any, y: Tensor) -> Tensor:
    if (np.array(y.shape[2:]) % 2).any():
        raise ValueError("even sizes, please")
    return y * float(np.array(y.shape[2]))


def looked_up(m: Any, y: Tensor) -> Tensor:
    height, width = y.shape[2:]
    return y * {(16, 18): 2.0, (12, 14): 3.0, (18, 20): 4.0}[height, width]


@pytest.mark.parametrize(
    ("middle", "refused"),
    [(rows, {1, 2}), (strips, {1, 2}), (looked_up, {1, 2}), (in_numpy, {1, 2})],
)
def test_what_decides_is_checked(middle: Callable[[Any, Tensor], Any], refused: set[int]) -> None:
    found = holds(Around(middle))
    assert found.keys() == refused
    assert all("shape" in message for message in found.values())


# What is stored in attributes.


class Anchors(Around):
    """Keeps what depends on sizes alone, as the heads of detectors do."""

    shape: Any = None
    grid = torch.empty(0)

    def forward(self, x: Tensor) -> Any:
        y = self.enter(x)
        if self.shape != y.shape:
            self.shape, self.grid = y.shape, torch.arange(y.shape[3]).type_as(y)
        return self.leave(y * self.grid)


class Levels(Around):
    """Keeps a list of sizes for each level."""

    shapes: Any = None
    grid = torch.empty(0)

    def forward(self, x: Tensor) -> Any:
        y = self.enter(x)
        shapes = [[y.shape[2], y.shape[3]]]
        if self.shapes != shapes:
            self.shapes, self.grid = shapes, torch.arange(y.shape[3]).type_as(y)
        return self.leave(y * self.grid)


class Rows(Around):
    """Keeps the last grid in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.grids: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Any:
        y = self.enter(x)
        if "grid" not in self.grids or len(self.grids["grid"]) != y.shape[3]:
            self.grids["grid"] = torch.arange(y.shape[3]).type_as(y)
        return self.leave(y * self.grids["grid"])


@pytest.mark.parametrize("before", [None, 0, 1])
@pytest.mark.parametrize("make", [Anchors, Levels, Rows])
def test_what_is_kept_for_sizes(make: Callable[[], nn.Module], before: int | None) -> None:
    model = make().double()
    if before is not None:
        model(OTHERS[before].double())
    assert holds(model) == {}
    assert not any(isinstance(v, torch.fx.Proxy) for v in pytree.tree_leaves(vars(model)))


class Conditioned(nn.Module):
    """An image beside a sequence, whose channels come last."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.read = nn.Linear(6, 8)

    def forward(self, x: Tensor, text: Tensor) -> Any:
        y = self.enter(x)
        batch, width, height, breadth = y.shape
        rows = y.permute(0, 2, 3, 1).reshape(batch, height * breadth, width)
        rows = rows + self.read(text).mean(1, keepdim=True)
        return self.leave(rows.reshape(batch, height, breadth, width).permute(0, 3, 1, 2))


def test_images_beside_sequences() -> None:
    model = Conditioned().double().eval()
    text = torch.randn(3, 9, 6, dtype=torch.float64)
    done = uo.prune(model, (images().double(), text[:2, :7]), amount=0.5)
    for x, beside in ((images(2, 12), text[:2]), (images(3, 18), text[:, :4])):
        torch.testing.assert_close(
            done.model(x.double(), beside), done.masked(x.double(), beside), rtol=1e-9, atol=1e-9
        )


class Columns(Around):
    """Attention within columns of pixels, which asks for the sizes of what heads gave."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        y = nn.functional.avg_pool2d(self.enter(x), 2)
        batch, width, height, breadth = y.shape
        rows = y.permute(0, 3, 2, 1).reshape(batch * breadth, height, width)
        query, key, value = (
            layer(rows).view(batch * breadth, height, 2, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        weights = (query @ key.transpose(2, 3)).softmax(-1)
        joined = (weights @ value).permute(0, 2, 1, 3).contiguous()
        rows = joined.view(*joined.size()[:-2], 8)
        return self.leave(rows.reshape(batch, breadth, height, width).permute(0, 3, 2, 1))


def test_sizes_of_one_that_are_more_elsewhere() -> None:
    model = Columns().double().eval()
    done = uo.prune(model, torch.randn(2, 3, 2, 6, dtype=torch.float64), amount=0.5)
    assert not any(op.kind == "opaque" and "single" in op.reason for op in done.graph.operations)
    for shape in ((3, 3, 2, 6), (2, 3, 8, 4)):
        x = torch.randn(*shape, dtype=torch.float64)
        torch.testing.assert_close(done.model(x), done.masked(x), rtol=1e-9, atol=1e-9)


class Remembering(Around):
    """Has a method that keeps what it returned."""

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def ramp(self, size: int) -> Tensor:
        return torch.linspace(1, 2, size)

    def forward(self, x: Tensor) -> Any:
        return self.leave(self.enter(x) * self.ramp(x.shape[3]))


def test_what_functions_keep() -> None:
    ramp.cache_clear()
    assert holds(Remembering()) == {}
    assert isinstance(vars(Remembering)["ramp"], functools._lru_cache_wrapper)
    assert isinstance(ramp(3), Tensor)


class First(Around):
    """Keeps what the first call made of its input."""

    kept: Any = None

    def forward(self, x: Tensor) -> Any:
        y = self.enter(x)
        if self.kept is None:
            self.kept = y.mean((2, 3), keepdim=True)
        return self.leave(y * self.kept)


class FirstOfItsSize(Around):
    """And so for every size."""

    kept: Any = None

    def forward(self, x: Tensor) -> Any:
        y = self.enter(x)
        if self.kept is None or self.kept.shape != y.shape:
            self.kept = y.relu()
        return self.leave(y + self.kept)


class Averaging(Around):
    """Keeps an average over its calls, for whoever asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.average: Any = 0.0

    def forward(self, x: Tensor) -> Any:
        y = self.enter(x)
        self.average = 0.9 * self.average + 0.1 * y.mean()
        return self.leave(y)


@pytest.mark.parametrize("make", [First, FirstOfItsSize, Averaging])
def test_what_is_kept_of_data_is_refused(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(uo.TraceError):
        uo.trace(make().eval(), images())


# What is returned.


@dataclasses.dataclass
class Record:
    """A record."""

    first: Tensor
    more: list[Tensor]
    loss: Tensor | None = None


@dataclasses.dataclass
class Output(OrderedDict):  # type: ignore[type-arg]
    """A dict and a record in one, as transformers has them."""

    first: Any = None
    last: Any = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                self[field.name] = value


class Returning(Around):
    def __init__(self, make: Callable[..., Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.leave(self.enter(x)))


def test_records_are_returned() -> None:
    for make in (lambda y: Record(y, [y + 1]), lambda y: Output(last=y)):
        done = uo.prune(Returning(make).double().eval(), images().double(), amount=0.5)
        assert done.graph.capture == "fx"
        for x in OTHERS:
            want, got = done.masked(x.double()), done.model(x.double())
            assert type(got) is type(want)
            assert vars(got).keys() == vars(want).keys()
            for a, b in zip(*(pytree.tree_leaves(vars(r)) for r in (got, want)), strict=True):
                torch.testing.assert_close(a, b)


# Decorators, and what the trace leaves alone.


def with_default(forward: Any) -> Any:
    """Refuse an argument that is given twice, as decorators do that pass defaults on."""

    @functools.wraps(forward)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("scale", 2.0)
        return forward(self, *args, **kwargs)

    return wrapper


class Decorated(Around):
    @with_default
    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        return self.leave(self.enter(x) * scale)


def test_decorators_see_what_was_left_out() -> None:
    assert holds(Decorated()) == {}


class Making(OrderedDict):  # type: ignore[type-arg]
    """Makes an object of the class that it holds, for whoever asks."""

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key)()


ACTIVATIONS = Making(relu=nn.ReLU)


def test_what_a_dict_holds_is_left_alone() -> None:
    model = Around(lambda m, y: ACTIVATIONS["relu"](y))
    with pytest.raises(uo.TraceError):
        uo.trace(model, {"wrong": images()})
    assert OrderedDict.__getitem__(ACTIVATIONS, "relu") is nn.ReLU


def test_drawn_numbers_that_decide_are_refused() -> None:
    with pytest.raises(uo.TraceError, match="random numbers"):
        uo.trace(Around(lambda m, y: y * 2 if random.random() < 0.5 else y), images())


class Asking(nn.Module):
    """Asks for the parts of a batch norm's result, and for its own mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Any:
        first, second = list(self.norm(x).chunk(2, 1))
        return first * second if self.training else first + second


@pytest.mark.parametrize("training", [False, True])
def test_answers_leave_buffers_alone(training: bool) -> None:
    model = Asking().train(training)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert uo.trace(model, images()).capture == "fx"
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
