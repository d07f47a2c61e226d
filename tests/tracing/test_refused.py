"""What no export could keep is refused, with the reason; what may be kept is kept rightly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparing import assert_lossless, call, cast
from sample_networks import exported
from torch import Tensor, nn
from unusual_middles import (
    IMAGES,
    Around,
    Does,
    Flip,
    Flipping,
    Weighted,
    assert_exports,
    assert_exports_or_refuses,
    refused,
)

import upscale_opt as uo


class ByNumpy(Flip):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy()[:, ::-1].copy())


class BehindTheBack(Flip):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clone()
        y.data[:, 0] = x.data.sum(1)
        return y


# Control flow and values that depend on data.


def _loop(x: Tensor) -> Tensor:
    for _ in range(int(x.abs().max()) + 1):
        x = x.roll(1, 1)
    return x


def _behind_the_back(x: Tensor) -> Tensor:
    y = x * 1
    y.data[:, 0] = 5.0
    return y


REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "branch": (lambda x: x.flip(1) if x.sum() > 0 else x * 2, "control flow|data-dependent"),
    "loop": (_loop, "data-dependent"),
    "item": (lambda x: x * x.sum().item(), "DataDependentOutput"),
    "tolist": (lambda x: x * x[0, 0, 0].tolist()[0], "DataDependentOutput"),
    "nonzero": (lambda x: x * x.nonzero().shape[0], "nonzero"),
    "boolean index": (lambda x: x + x[x > 0].sum(), "nonzero"),
    "data": (_behind_the_back, "torch.fx: .*torch.export: "),
    "cond": (
        lambda x: torch.cond(x.sum() > 0, lambda v: v.flip(1), lambda v: v * 2, (x,)),
        "torch.export: ",
    ),
    "numpy": (ByNumpy.apply, "numpy"),
    "data in an autograd function": (BehindTheBack.apply, "torch.export: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_depends_on_data_is_refused(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(uo.TraceError, match=rf"(?s)Around cannot be traced: .*({message})"):
        uo.trace(Around(Does(function)).double().eval(), IMAGES)


def test_lazy_modules_must_be_run_first() -> None:
    model = Around(nn.LazyConv2d(8, 1)).double().eval()
    with pytest.raises(uo.TraceError, match="Around"):
        uo.trace(model, IMAGES)
    call(model, IMAGES)
    masked, pruned = exported(model, IMAGES)
    assert_lossless(masked, pruned, IMAGES)


def test_sparse_and_complex_inputs_are_refused_or_right() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 8)
            self.last = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.to_dense() if x.is_sparse else x
            x = x.abs() if x.is_complex() else x
            y: Tensor = self.last(torch.relu(self.first(x)))
            return y

    dense = torch.randn(4, 6, dtype=torch.float64)
    for inputs in (dense.to_sparse(), torch.complex(dense, dense)):
        assert_exports_or_refuses(Linear, inputs, "Linear")


# TorchScript.


def _traced(module: nn.Module, example: Tensor) -> Any:
    traced: Any = torch.jit.trace(module, example)  # type: ignore[no-untyped-call]
    return traced


class Quantizable(nn.Module):
    """As torchvision's quantizable networks add: by a module, which is to be quantised later."""

    def __init__(self, adding: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.last, self.adding = nn.Conv2d(8, 4, 1), adding
        self.stub = torch.ao.quantization.QuantStub()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stub(x))
        return torch.as_tensor(self.last(self.adding.add_relu(x, self.second(x))))


def test_what_is_to_be_quantised_is_no_more_than_what_it_computes() -> None:
    modules: Any = torch.ao.nn.quantized
    model = Quantizable(modules.FloatFunctional()).double().eval()
    graph = uo.trace(model, IMAGES)
    assert graph.capture == "fx"
    done = uo.prune(model, IMAGES, amount=0.5)
    before = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in done.model.parameters()) < 0.7 * before
    with pytest.raises(uo.TraceError, match=r"'adding' is quantised.*before quantising"):
        uo.trace(Quantizable(modules.QFunctional()).double().eval(), IMAGES)


@pytest.mark.parametrize("trace", [False, True])
def test_torchscript_models_are_refused(trace: bool) -> None:
    model = Around().double().eval()
    script: Any = _traced(model, IMAGES) if trace else torch.jit.script(model)
    with pytest.raises(uo.TraceError, match="trace the Python model that it was made from"):
        uo.trace(script, IMAGES)


@pytest.mark.parametrize("trace", [False, True])
def test_torchscript_submodules_are_refused_or_right(trace: bool) -> None:
    def make() -> nn.Module:
        part = Flipping().double().eval()
        example = torch.randn(2, 8, 6, 6, dtype=torch.float64)
        return Around(_traced(part, example) if trace else torch.jit.script(part))

    assert_exports_or_refuses(make, IMAGES, "Around")


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x.flip(1) * 2 + x


def test_torchscript_functions() -> None:
    class Calls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = scripted(x)
            return y

    assert_exports(lambda: Around(Calls()))


# State between calls: right at every call, or refused.


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * self.count


class PlainState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones((), dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        self.scale = self.scale + 1
        return x * self.scale


class Momentum(nn.Module):
    """Assigns to its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.means: Tensor
        self.register_buffer("means", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.means = self.means * 0.9 + x.mean((0, 2, 3))
        return x + self.means[:, None, None]


class Memory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.last is None else x + self.last
        self.last = x * 1
        return y


class History(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return torch.stack(self.seen).sum(0)


@pytest.mark.parametrize("middle", [Counting, PlainState, Momentum, Memory, History])
def test_state_between_calls_is_kept_or_refused(middle: type[nn.Module]) -> None:
    assert_exports_or_refuses(lambda: Around(middle()), IMAGES, "Around")


# What looks at memory, or changes how the model computes.


MEMORY: dict[str, Callable[[Tensor], Any]] = {
    "as_strided": lambda x: x.as_strided((2, 8, 6, 6), (288, 36, 6, 1)) + x.flip(1),
    "as_strided of a view": lambda x: torch.cat(
        [x.chunk(2, 1)[0].as_strided((2, 4, 6, 6), (288, 36, 6, 1)), x.chunk(2, 1)[1]], 1
    ),
    "storage_offset": lambda x: x * float(x[:, 2:].storage_offset()),
    "stride": lambda x: x * x.stride(1),
    "is_contiguous": lambda x: x * 2 if x.is_contiguous() else x,
    "view as another dtype": lambda x: x.view(torch.int64).double() * 1e-18,
}


@pytest.mark.parametrize("name", MEMORY)
def test_what_looks_at_memory_is_right_or_refused(name: str) -> None:
    assert_exports_or_refuses(lambda: Around(Does(MEMORY[name])), IMAGES, "Around")


def test_autocast_inside_is_kept_or_refused() -> None:
    def cast_inside(layer: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y: Tensor = layer(x)
        return y

    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 1), Weighted(cast_inside)).eval()

    refusal = refused(make)
    if refusal is None:
        inputs = cast(IMAGES, torch.float32)
        masked, pruned = exported(make(), inputs)
        assert call(masked, inputs).dtype == call(pruned, inputs).dtype
    else:
        assert "autocast" in refusal
