"""Verification that cannot be empty: what a result holds is compared, or nothing was verified."""

from __future__ import annotations

import collections
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from hazard_networks import Around, drawn, images
from hazards import hazard
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.tracing.unchanged import reseed


@dataclass
class Result:
    logits: Tensor
    loss: Any = None


class Named(NamedTuple):
    logits: Tensor
    name: str


class Plain:
    def __init__(self, logits: Any) -> None:
        self.logits = logits


class Keyed(dict[str, Any]):
    pass


class Output(collections.OrderedDict[str, Any]):
    """As transformers' `ModelOutput`: a dict whose entries are attributes, too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Slotted:
    __slots__ = ("logits",)

    def __init__(self, logits: Any) -> None:
        self.logits = logits


class Wrapped(Around):
    """Returns its result wrapped, after a step that may be wrong."""

    def __init__(self, rng: random.Random, wrap: Callable[[Any, Tensor], Any]) -> None:
        super().__init__(rng, lambda m, x, y: y)
        self.wrap = wrap
        self.wrong = 1.0
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self, self.leave(self.enter(x)) * self.wrong)


def _counted(m: Any, z: Tensor) -> Any:
    m.count += m.wrong
    return z / m.wrong


def _imaginary(m: Any, z: Tensor) -> Tensor:
    return torch.complex(z / m.wrong, z)


def _tiny(m: Any, z: Tensor) -> Any:
    return torch.ones_like(z) * 1e9, z * 1e-9


WRAPS: dict[str, Callable[[Any, Tensor], Any]] = {
    "a tensor": lambda m, z: z,
    "a tuple": lambda m, z: (1, z),
    "a dict": lambda m, z: {"a": z, "b": None},
    "a dataclass": lambda m, z: Result(z),
    "a dataclass in a list": lambda m, z: [Result(z), 3],
    "a named tuple": lambda m, z: Named(z, "x"),
    "an object": lambda m, z: Plain(z),
    "an object in an object": lambda m, z: Plain(Plain([z])),
    "an object with slots": lambda m, z: Slotted(z),
    "a kind of dict": lambda m, z: Keyed(logits=z),
    "a model output": lambda m, z: Output(logits=z, loss=None),
    "a default dict": lambda m, z: collections.defaultdict(list, {"a": [z]}),
    "a deque": lambda m, z: collections.deque([z]),
    "a set": lambda m, z: {z},
    "a number": lambda m, z: float(z.sum()),
    "a number in a list": lambda m, z: [z / m.wrong, float(z.abs().sum())],
    "a string": lambda m, z: (z / m.wrong, f"{float(z.sum()):.3f}"),
    "none or not": lambda m, z: (z / m.wrong, None if m.wrong == 1 else 5),
    "an imaginary part": _imaginary,
    "tiny beside huge": _tiny,
    "a buffer afterwards": _counted,
    "a length": lambda m, z: [z / m.wrong] * (1 if m.wrong == 1 else 2),
    "integers": lambda m, z: (z * 1000).long(),
    "a sparse tensor": lambda m, z: z.mean((2, 3)).to_sparse(),
    "a class": lambda m, z: {"x": z / m.wrong} if m.wrong == 1 else Keyed(x=z / m.wrong),
}


def _pair(name: str, seed: int) -> tuple[Any, Any, Tensor]:
    rng = random.Random(seed)
    x = images(rng)
    make = drawn(lambda r: Wrapped(r, WRAPS[name]), rng)
    reseed(seed)
    model, wrong = make().double().eval(), make().double().eval()
    wrong.load_state_dict(model.state_dict())
    return model, wrong, x


@pytest.mark.parametrize("name", [pytest.param(n, marks=hazard("V", n)) for n in WRAPS])
@pytest.mark.parametrize("seed", range(2))
def test_wrong_results_are_found(name: str, seed: int) -> None:
    model, wrong, x = _pair(name, seed)
    wrong.wrong = 1.5
    with pytest.raises(uo.VerificationError):
        uo.verify(model, wrong, x)


@pytest.mark.parametrize("name", [pytest.param(n, marks=hazard("V", n)) for n in WRAPS])
def test_right_results_are_right_or_cannot_be_compared(name: str) -> None:
    model, same, x = _pair(name, 0)
    deviation, error = 0.0, ""
    try:
        deviation = uo.verify(model, same, x).float64_error
    except uo.VerificationError as refusal:
        error = str(refusal)
    assert deviation == 0
    assert "deviates" not in error


def _empty(x: Tensor) -> Tensor:
    return x[:0]


INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "an empty batch": _empty,
    "no rows": lambda x: x[:, :, :0],
    "all zero": torch.zeros_like,
}


class Unbiased(nn.Module):
    """Zero for zeros, whatever its weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1, bias=False)
        self.last = nn.Conv2d(4, 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.relu(self.first(x)))
        return y


@pytest.mark.parametrize("name", [pytest.param(n, marks=hazard("V", n)) for n in INPUTS])
def test_inputs_that_show_nothing(name: str) -> None:
    x = INPUTS[name](images(random.Random(0)))
    with pytest.raises(uo.VerificationError):
        uo.verify(Unbiased().double(), Unbiased().double(), x)


class Nothing(Around):
    def __init__(self, rng: random.Random, result: Any) -> None:
        super().__init__(rng, lambda m, x, y: y)
        self.result = result

    def forward(self, x: Tensor) -> Any:
        super().forward(x)
        return self.result


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(result, marks=hazard("V", f"nothing: {result!r}"), id=repr(result))
        for result in list[Any]([None, (), [], {}, set()])
    ],
)
def test_nothing_to_compare(result: Any) -> None:
    rng = random.Random(0)
    x = images(rng)
    model, other = (Nothing(random.Random(s), result).double().eval() for s in (1, 2))
    with pytest.raises(uo.VerificationError):
        uo.verify(model, other, x)


# Models that compute in a lower precision inside: their own noise is not a deviation.


class Rms(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(1, keepdim=True) + 1e-6)
        return self.weight.view(-1, 1, 1) * y.to(x.dtype)


PRECISIONS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "RMS norm": lambda m, x, y: m.norm(y),
    "softmax": lambda m, x, y: y.softmax(1, dtype=torch.float32).to(y.dtype),
    "softmax of products": lambda m, x, y: (
        y
        * (y.flatten(2) @ y.flatten(2).transpose(1, 2))
        .softmax(-1, dtype=torch.float32)
        .to(y.dtype)
        .mean((1, 2))
        .view(-1, 1, 1, 1)
    ),
    "float functions": lambda m, x, y: torch.sigmoid(y.float() * 3).to(y.dtype) * y,
    "half": lambda m, x, y: (y.half() + y.half()).to(y.dtype),
}


class Precise(Around):
    def __init__(self, rng: random.Random, middle: Callable[..., Any]) -> None:
        super().__init__(rng, middle)
        self.norm = Rms(self.width)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=hazard("precision", n)) for n in PRECISIONS]
)
@pytest.mark.parametrize("seed", range(3))
def test_own_noise_is_no_deviation(name: str, seed: int) -> None:
    rng = random.Random(seed)
    x = images(rng).float()
    model = drawn(lambda r: Precise(r, PRECISIONS[name]), rng)().eval()
    report = uo.prune(model, x, amount=0.5, side="both").report
    assert report is not None
    assert report.own_error < 1e-2


# W: submodules' insides.


class Parent(nn.Module):
    def __init__(self, rng: random.Random, reads: Callable[[Any], Any]) -> None:
        super().__init__()
        self.backbone = Around(rng, lambda m, x, y: y)
        self.reads = reads

    def forward(self, x: Tensor) -> Any:
        return self.backbone(x) * self.reads(self.backbone)


READS: dict[str, Callable[[Any], Any]] = {
    "a weight": lambda b: b.writer.weight.abs().mean() * b.reader.weight.abs().sum(),
    "a size": lambda b: b.reader.weight.shape[1],
    "an attribute": lambda b: b.reader.in_channels,
    "a state": lambda b: sum(p.numel() for p in b.parameters()) / 100,
    "a norm": lambda b: torch.stack([p.norm() for p in b.parameters()]).sum(),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=hazard("W", n)) for n in READS])
@pytest.mark.parametrize("seed", range(2))
def test_insides_of_submodules(name: str, seed: int) -> None:
    rng = random.Random(seed)
    x = images(rng)
    model = drawn(lambda r: Parent(r, READS[name]), rng)().double().eval()
    backbone: Any = model.backbone
    with torch.no_grad():
        backbone.reader.weight[:, ::2] = 0
        if hasattr(backbone, "skip"):
            backbone.skip.weight[:, 0] = 0
        want = model(x)
        try:
            uo.prune_submodules(model, x, ["backbone"])
        except uo.UpscaleError:
            return
        try:
            got = model(x)
        except uo.UpscaleError:
            return
    assert torch.allclose(want, got, rtol=1e-10, atol=1e-12)
