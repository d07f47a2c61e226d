"""Run models, compare what they return and hold, and read the errors that calls raise."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from upscale_opt.errors import DocumentError, UpscaleError
from upscale_opt.tracing.examples import Inputs

EXACT = 1e-10

"""What lossless means in float64."""

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def call(model: nn.Module, inputs: Inputs) -> Any:
    """The outputs of ``model``, in whatever mode it is."""
    with torch.no_grad():
        if isinstance(inputs, dict):
            return model(**inputs)
        return model(inputs) if isinstance(inputs, Tensor) else model(*inputs)


def cast(inputs: Any, dtype: torch.dtype) -> Any:
    """``inputs`` with floating-point tensors in another precision."""

    def convert(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return pytree.tree_map_only(Tensor, convert, inputs)


def deviation(want: Any, got: Any) -> float:
    """The largest relative deviation of two outputs, which must have one structure."""
    wanted, structure = pytree.tree_flatten(want)
    actual, other = pytree.tree_flatten(got)
    assert structure == other, f"outputs are a {other} instead of a {structure}"
    worst = 0.0
    for left, right in zip(wanted, actual, strict=True):
        assert left.shape == right.shape
        assert left.dtype == right.dtype
        assert bool(left.isfinite().all()), "nothing to compare with"
        assert bool(right.isfinite().all())
        if left.numel():
            scale = float(left.abs().max())
            difference = float((left - right).abs().max())
            worst = max(worst, difference / scale if scale > 0 else difference)
    return worst


def assert_lossless(masked: nn.Module, pruned: nn.Module, inputs: Inputs) -> None:
    """Both models, as they are in float64, compute the same on ``inputs``."""
    error = deviation(call(masked, inputs), call(pruned, inputs))
    assert error < EXACT, f"deviates by {error:.2e}"


def size(model: nn.Module) -> int:
    """The number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_state(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether two states are equal bit by bit."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name])
        for name in left
    )


def storages(model: nn.Module) -> set[int]:
    """Where the parameters and buffers of ``model`` lie, plain attributes included."""
    found: set[int] = set()
    for module in model.modules():
        values = (*module.parameters(), *module.buffers(), *module.__dict__.values())
        found.update(
            value.untyped_storage().data_ptr()
            for value in values
            if isinstance(value, Tensor) and value.numel()
        )
    return found


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """All parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


def complaint(error: type[UpscaleError], action: Callable[[], object]) -> str:
    """The message of the error that ``action`` raises: one line, not endless."""
    with pytest.raises(error) as caught:
        action()
    assert type(caught.value) in (error, DocumentError)
    message = str(caught.value)
    assert "\n" not in message
    assert 10 < len(message) < 900
    return message


def benchmark(name: str) -> ModuleType:
    """A script among the benchmarks, as a module under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module
