"""What tracing cannot look into is exported conservatively: never silently wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparing import call, deviation
from sample_networks import exported
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from unusual_middles import (
    IMAGES,
    Around,
    Does,
    Flip,
    Flipping,
    Weighted,
    assert_exports,
    assert_exports_or_refuses,
)

import upscale_opt as uo
from upscale_opt.tracing.examples import Inputs

# Functions with a gradient of their own.


class Accumulate(Flip):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.cumsum(1)


class Step(Flip):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x > 0.3).to(x.dtype)


class Two(Flip):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2, x.roll(1, 1)  # type: ignore[return-value]


class InPlace(Flip):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)


@pytest.mark.parametrize("function", [Flip, Accumulate, Step, InPlace])
def test_autograd_functions(function: Any) -> None:
    assert_exports(lambda: Around(Does(function.apply)))


def test_autograd_functions_with_two_results() -> None:
    assert_exports(lambda: Around(Does(lambda x: sum(Two.apply(x)))))


# Everything else that is exported.


def _masked(x: Tensor) -> Tensor:
    y = x.clone()
    y[x > 0.2] = x.sum()
    return y


def _written(x: Tensor) -> Tensor:
    x = x * 1
    x[:, 0] = x[:, 1] * 2
    x[:, 2:4] += 1
    return x


def _rows(x: Tensor) -> Tensor:
    for row in x:
        x = x + row
    return x


def _checked(x: Tensor) -> Tensor:
    if x.shape[1] != 8 or x.dim() != 4:
        raise ValueError
    assert x.shape[0] > 1
    return x.flip(1)


def _numbered(x: Tensor) -> Tensor:
    numbers = torch.arange(x.shape[1], dtype=x.dtype)
    return x * numbers[:, None, None] / x.shape[1] + x.numel() + len(x[0]) + x[0].nelement()


def _without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.flip(1) * 2


def _without_autocast(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        y: Tensor = layer(x)
    return y + x


def _gathered(x: Tensor) -> Tensor:
    return x.gather(1, torch.arange(7, -1, -1)[None, :, None, None].expand_as(x))


FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "where": lambda x: torch.where(x > 0.2, x, x.flip(1)),
    "masked assignment": _masked,
    "slice assignment": _written,
    "loop over a batch": _rows,
    "checks of shapes": _checked,
    "channel numbers and sizes": _numbered,
    "no_grad": _without_gradient,
    "vmap over the batch": lambda x: torch.vmap(lambda t: t.flip(0) + t)(x),
    "einsum": lambda x: torch.einsum("bchw,bchw->bch", x, x)[..., None] + x,
    "fft over pixels": lambda x: torch.fft.ifft2(torch.fft.fft2(x) * 2).real,
    "fft over channels": lambda x: torch.fft.fft(x, dim=1).abs(),
    "complex": lambda x: torch.view_as_real(torch.complex(x, x.flip(1))).sum(-1),
    "sort": lambda x: x.sort(1)[0],
    "topk": lambda x: x.topk(8, 1)[0],
    "gather": _gathered,
    "index_add": lambda x: x.index_add(1, torch.tensor([0, 1]), x[:, 2:4]),
    "tril": lambda x: x.permute(0, 2, 3, 1).tril().permute(0, 3, 1, 2),
    "random": lambda x: x + torch.rand(x.shape, dtype=x.dtype),
    "random like": lambda x: x + torch.rand_like(x),
    "normalize over channels": lambda x: nn.functional.normalize(x, dim=1),
    "normalize over rows": lambda x: nn.functional.normalize(x, dim=2),
    "compiled": torch.compile(lambda x: x.flip(1) + x, backend="eager"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    assert_exports(lambda: Around(Does(FUNCTIONS[name])))


LAYERED: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "checkpoint": lambda layer, x: checkpoint(layer, x, use_reentrant=False),
    "reentrant checkpoint": lambda layer, x: checkpoint(layer, x, use_reentrant=True),
    "autocast switched off": _without_autocast,
    "functional call": lambda layer, x: torch.func.functional_call(
        layer, dict(layer.named_parameters()), (x,)
    ),
}


@pytest.mark.parametrize("name", LAYERED)
def test_functions_with_layers(name: str) -> None:
    assert_exports(lambda: Around(Weighted(LAYERED[name])))


class Constant(nn.Module):
    """A plain tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.single = torch.randn(1, 8, 1, 1, dtype=torch.float64)
        self.listed = [torch.randn(8, 1, 1, dtype=torch.float64) for _ in range(2)]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.single + self.listed[0] * self.listed[1]


class Cache(nn.Module):
    """Makes something at the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Tensor | None = None
        self.by_size: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.made is None:
            self.made = torch.arange(8, dtype=torch.float64)[:, None, None]
        if 8 not in self.by_size:
            self.by_size[8] = torch.arange(8, dtype=torch.float64)[:, None, None]
        return x * self.made + self.by_size[8]


class Updating(nn.Module):
    """Modifies its buffers in place."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Tensor
        self.means: Tensor
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("means", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.means.copy_(x.mean((0, 2, 3)))
        return x * self.count + self.means[:, None, None]


class Observed(nn.Module):
    """Stores what it computes, and never reads it."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x * 2


def _parametrized(function: Callable[..., nn.Module], **options: Any) -> Callable[[], nn.Module]:
    return lambda: function(nn.Conv2d(8, 8, 1), **options)


class Sequence(nn.Module):
    """A module of sequences, over the rows of pixels."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner(x.mean(3).permute(2, 0, 1))
        found = found[0] if isinstance(found, tuple) else found
        y: Tensor = x + found.permute(1, 2, 0).unsqueeze(3)
        return y


MODULES: dict[str, Callable[[], nn.Module]] = {
    "constants": Constant,
    "cache": Cache,
    "buffers updated in place": Updating,
    "observed": Observed,
    "weight norm": _parametrized(parametrizations.weight_norm),
    "spectral norm": _parametrized(parametrizations.spectral_norm),
    "old spectral norm": _parametrized(nn.utils.spectral_norm),
    "orthogonal": _parametrized(parametrizations.orthogonal),
    "stubs": lambda: nn.Sequential(
        torch.ao.quantization.QuantStub(), nn.ReLU(), torch.ao.quantization.DeQuantStub()
    ),
    "observer": lambda: torch.ao.quantization.MinMaxObserver(dtype=torch.quint8),
    "fake quantisation": lambda: nn.Sequential(nn.Hardtanh(), nn.Conv2d(8, 8, 1)),
    "rnn": lambda: Sequence(nn.RNN(8, 8)),
    "lstm": lambda: Sequence(nn.LSTM(8, 8)),
    "gru": lambda: Sequence(nn.GRU(8, 8, num_layers=2)),
    "bidirectional gru": lambda: Sequence(nn.GRU(8, 4, bidirectional=True)),
    "transformer layer": lambda: Sequence(nn.TransformerEncoderLayer(8, 2, 16, 0.0)),
    "attention": lambda: Sequence(Attends()),
    "local response norm": lambda: nn.LocalResponseNorm(3),
    "pixel shuffle": lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.PixelShuffle(2)),
    "compiled in place": lambda: _compiled(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())),
}


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x, x, x)[0]
        return y


def _compiled(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    assert_exports(lambda: Around(MODULES[name]()))


def test_what_torch_itself_cannot_copy() -> None:
    assert_exports(lambda: Around(_parametrized(nn.utils.weight_norm)()))


def test_compiled_submodules() -> None:
    def make() -> nn.Module:
        model = Around()
        model.middle = torch.compile(Flipping(), backend="eager")  # type: ignore[assignment]
        return model

    assert_exports(make)


def test_a_compiled_model() -> None:
    model = torch.compile(Around().double().eval(), backend="eager")
    graph = uo.trace(model, IMAGES)  # type: ignore[arg-type]
    assert graph.operations


# Inputs and outputs of all kinds.


class Outputs(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.left = nn.Conv2d(8, 8, 1)
        self.right = nn.Conv2d(8, 4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.stem(x))
        return self.function(torch.relu(self.left(x)), self.right(x))


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "dict": lambda a, b: {"a": a, "deep": {"b": [b, a]}},
    "list": lambda a, b: [a, (b,)],
    "with constants": lambda a, b: (a, None, 3, "text", b),
    "the same twice": lambda a, b: (a, a, b),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs(name: str) -> None:
    masked, pruned = exported(Outputs(OUTPUTS[name]).double().eval(), IMAGES)
    want, got = call(masked, IMAGES), call(pruned, IMAGES)
    tensors = [[v for v in _leaves(out) if isinstance(v, Tensor)] for out in (want, got)]
    assert deviation(*tensors) < 1e-10
    plain = [[v for v in _leaves(out) if not isinstance(v, Tensor)] for out in (want, got)]
    assert plain[0] == plain[1]
    assert type(want) is type(got)


def _leaves(tree: Any) -> list[Any]:
    return torch.utils._pytree.tree_leaves(tree)


class Inputful(nn.Module):
    """Takes arguments of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.other = nn.Conv2d(3, 8, 1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(
        self,
        x: Tensor,
        side: Tensor | None = None,
        *more: Tensor,
        flip: bool = False,
        parts: dict[str, Tensor] | None = None,
        **named: Tensor,
    ) -> Tensor:
        x = torch.relu(self.stem(x))
        if side is not None:
            x = x + self.other(side)
        for extra in more:
            x = x * self.other(extra)
        if flip:
            x = x.flip(1)
        if parts is not None:
            x = x + self.other(parts["a"])
        if "late" in named:
            x = x + self.other(named["late"])
        y: Tensor = self.last(x)
        return y


INPUTS: dict[str, Inputs] = {
    "one": IMAGES,
    "optional": (IMAGES, IMAGES * 2),
    "none": (IMAGES, None),
    "by keyword": {"x": IMAGES, "side": IMAGES * 3},
    "a flag": {"x": IMAGES, "flip": True},
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs(name: str) -> None:
    class Fewer(Inputful):
        def forward(  # type: ignore[override]
            self, x: Tensor, side: Tensor | None = None, flip: bool = False
        ) -> Tensor:
            return super().forward(x, side, flip=flip)

    assert_exports(Fewer, INPUTS[name])


VARIADIC: dict[str, Inputs] = {
    "dict": {"x": IMAGES, "parts": {"a": IMAGES}},
    "more": (IMAGES, IMAGES, IMAGES * 2),
    "named": {"x": IMAGES, "late": IMAGES},
}


@pytest.mark.parametrize("name", VARIADIC)
def test_variadic_inputs_are_right_or_refused(name: str) -> None:
    assert_exports_or_refuses(Inputful, VARIADIC[name], "Inputful")


def test_embedding_bags_and_integers() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(11, 8)
            self.hidden = nn.Linear(8, 8)
            self.last = nn.Linear(8, 3)

        def forward(self, words: Tensor) -> Tensor:
            y: Tensor = self.last(torch.relu(self.hidden(self.bag(words))))
            return y

    assert_exports(Bag, torch.arange(10).reshape(2, 5))
