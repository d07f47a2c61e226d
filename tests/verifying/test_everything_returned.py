"""Whatever a model returns is compared: each variant hides a wrong value in another place."""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.verifying.deviation import deviation


class Point(NamedTuple):
    x: Any
    y: Any


@dataclass
class Record:
    name: str
    value: Any


@dataclass(frozen=True)
class Slotted:
    __slots__ = ("value",)
    value: Any


class Output(OrderedDict[str, Any]):
    """As transformers' ModelOutput: entries are attributes, too."""

    def __init__(self, **entries: Any) -> None:
        super().__init__(**entries)
        for name, value in entries.items():
            self.__dict__[name] = value


class Tagged(dict[str, Any]):
    """A dict with something beside its entries."""


class Holder:
    def __init__(self, value: Any) -> None:
        self.value = value


def _tagged(value: Any) -> Tagged:
    made = Tagged(a=1)
    made.extra = value  # type: ignore[attr-defined]
    return made


CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "tuple": lambda v: (1, v),
    "list": lambda v: [v, None],
    "dict": lambda v: {"a": v, 3: "x"},
    "named tuple": lambda v: Point(0, v),
    "dataclass": lambda v: Record("r", v),
    "slots": Slotted,
    "ModelOutput": lambda v: Output(logits=v, hidden=(v,)),
    "dict subclass": _tagged,
    "set": lambda v: {v, "x"},
    "object": Holder,
    "namespace": lambda v: SimpleNamespace(value=v),
    "deque": lambda v: deque([v]),
    "distribution": lambda v: torch.distributions.Normal(v.real if v.is_complex() else v, 1.0),
}


@pytest.mark.parametrize("seed", range(12))
def test_drawn_nestings(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    names = [name for name in CONTAINERS if name not in ("set", "distribution")]
    path = [draw.choice(names) for _ in range(draw.randint(1, 4))]
    inner = draw.choice(list(CONTAINERS))

    def wrapped(value: Tensor) -> Any:
        made = CONTAINERS[inner](value)
        for name in path:
            made = CONTAINERS[name](made)
        return made

    value = torch.randn(2, 3, dtype=torch.float64)
    other = value.clone()
    other[draw.randrange(2), draw.randrange(3)] += 1e-3
    assert deviation(wrapped(value), wrapped(value.clone())) == 0
    assert deviation(wrapped(value), wrapped(other)) > 1e-5, (path, inner)


@pytest.mark.parametrize("container", CONTAINERS)
def test_kinds_of_values(container: str) -> None:
    make = CONTAINERS[container]
    real = torch.randn(4, dtype=torch.float64)
    pairs: list[tuple[Any, Any]] = [(real, real + 1e-3)]
    if container != "distribution":
        pairs.append((torch.complex(real, real), torch.complex(real, real + 1e-3)))
    for want, got in pairs:
        assert deviation(make(want), make(want.clone())) == 0
        assert deviation(make(want), make(got)) > 1e-5


@pytest.mark.parametrize(
    ("want", "got"),
    [
        (1, 2),
        ("a", "b"),
        (None, 0),
        (True, 1),
        ((1, 2), [1, 2]),
        ({"a": 1}, {"b": 1}),
        (Point(1, 2), (1, 2)),
        ({1, 2}, {1, 3}),
        (Record("a", 1), Record("b", 1)),
        (Holder(1), SimpleNamespace(value=1)),
        (torch.float32, torch.float64),
        (torch.Size([1]), torch.Size([2])),
        ([torch.ones(1)], []),
        (Holder([1, (2, {"x": "a"})]), Holder([1, (2, {"x": "b"})])),
        (torch.ones(2), torch.ones(2, dtype=torch.float64)),
    ],
)
def test_what_is_no_floating_point_number_has_to_be_equal(want: Any, got: Any) -> None:
    assert deviation(want, want) == 0
    with pytest.raises(uo.VerificationError):
        deviation(want, got)


def test_numbers_and_arrays() -> None:
    assert deviation(1.0, 1.0 + 1e-6) == pytest.approx(1e-6)
    assert deviation(1j, 1j + 1e-6j) == pytest.approx(1e-6)
    assert deviation(np.ones(3), np.ones(3) + 1e-6) == pytest.approx(1e-6)
    large = torch.tensor([2**60])
    assert deviation(large, large + 1) == 1.0  # float64 cannot tell them apart
    loop: list[Any] = []
    loop.append(loop)
    other: list[Any] = []
    other.append(other)
    assert deviation(loop, other) == 0


# Whole models.


class Returning(nn.Module):
    """A model whose outputs are put into something."""

    def __init__(self, made: Callable[[Tensor], Any], seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        with torch.no_grad():
            self.layer.bias[seed % 4] += 1e-3 * (seed > 0)
        self.made = made

    def forward(self, x: Tensor) -> Any:
        return self.made(self.layer(x))


@pytest.mark.parametrize("container", CONTAINERS)
def test_models_that_return_containers(container: str) -> None:
    make, x = CONTAINERS[container], torch.randn(2, 4)
    assert uo.verify(Returning(make), Returning(make), x).own_error == 0
    with pytest.raises(uo.VerificationError, match="deviates"):
        uo.verify(Returning(make), Returning(make, 1), x)


@pytest.mark.parametrize(
    "made",
    [
        lambda y: None,
        lambda y: "a text",
        lambda y: y.shape[0],
        lambda y: y[:0],
        lambda y: {"a": [], "b": ()},
    ],
)
def test_nothing_to_compare(made: Callable[[Tensor], Any]) -> None:
    with pytest.raises(uo.VerificationError, match="nothing to compare"):
        uo.verify(Returning(made), Returning(made, 1), torch.randn(2, 4))


def test_an_empty_batch_is_nothing_to_compare() -> None:
    model = Returning(lambda y: y)
    with pytest.raises(uo.VerificationError, match="a batch that is not empty"):
        uo.verify(model, Returning(lambda y: y, 2), torch.randn(0, 4))


class NoBias(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


def test_zeros_hide_nothing() -> None:
    with pytest.raises(uo.VerificationError, match="on random inputs"):
        uo.verify(NoBias(0), NoBias(1), torch.zeros(2, 4))
    report = uo.verify(NoBias(0), NoBias(0), torch.zeros(2, 4))
    assert any("random inputs" in what for what in report.also)
    dead = NoBias(0)
    nn.init.zeros_(dead.layer.weight)
    assert any(
        "nothing but zeros" in note for note in uo.verify(dead, dead, torch.ones(2, 4)).notes
    )


@pytest.mark.parametrize("seed", range(6))
def test_what_is_small_beside_what_is_huge(seed: int) -> None:
    """A wrong channel a million times smaller than the others is found; rounding is not."""
    draw = random.Random(seed)
    axis, place = draw.randrange(1, 4), draw.randrange(4)
    scale = 10.0 ** -draw.randint(8, 12)

    def scaled(y: Tensor) -> Tensor:
        y = y.view(1, 4, 1, 4).expand(2, 4, 4, 4) if y.numel() == 16 else y
        factor = torch.ones(4, dtype=y.dtype)
        factor[place] = scale
        shape = [1] * 4
        shape[axis] = 4
        return y * factor.view(shape)

    class Scaled(nn.Module):
        def __init__(self, wrong: float) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.layer = nn.Conv2d(4, 4, 1)
            self.wrong = wrong

        def forward(self, x: Tensor) -> Tensor:
            y = scaled(self.layer(x))
            where = [slice(None)] * 4
            where[axis] = slice(place, place + 1)
            y[tuple(where)] *= 1 + self.wrong
            return y

    x = torch.randn(2, 4, 4, 4)
    uo.verify(Scaled(0.0), Scaled(0.0), x, elsewhere=False)
    with pytest.raises(uo.VerificationError, match="small beside"):
        uo.verify(Scaled(0.0), Scaled(1e-2), x, elsewhere=False)


def test_sums_that_cancel_are_no_error() -> None:
    class Cancelling(nn.Module):
        def __init__(self, order: list[int]) -> None:
            super().__init__()
            self.order = order
            self.weight = nn.Parameter(torch.ones(1, 8))

        def forward(self, x: Tensor) -> Tensor:
            x = x * self.weight
            big = torch.cat([x, -x, 1e-9 * x.roll(1, 1)], 1)
            total = torch.zeros_like(x[:, 0])
            for i in self.order:
                total = total + big[:, i]
            return torch.stack([x[:, 0], total], 1)

    order = list(range(24))
    shuffled = random.Random(0).sample(order, 24)
    report = uo.verify(Cancelling(order), Cancelling(shuffled), torch.randn(4, 8))
    assert report.float64_error < 1e-10


# Buffers.


class Counting(nn.Module):
    def __init__(self, step: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        self.register_buffer("total", torch.zeros(4))
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        assert isinstance(self.total, Tensor)
        self.total.add_(y.mean(0) * self.step)
        return y


def test_buffers_after_the_call() -> None:
    x = torch.randn(2, 4)
    uo.verify(Counting(1.0), Counting(1.0), x)
    with pytest.raises(uo.VerificationError, match="buffers after the call"):
        uo.verify(Counting(1.0), Counting(0.5), x)
    model = Counting(1.0).eval()
    result = uo.prune(model, x, amount=0.5)
    assert result.report is not None
    assert not bool(model.total.any())  # type: ignore[operator]
