"""What several test files need: running models, comparing them, and the chain in pieces."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import upscale_opt as uo
from upscale_opt.errors import UpscaleError
from upscale_opt.ir.graph import maskable_axes, slices_of
from upscale_opt.masking.segments import Side
from upscale_opt.models import catalogue
from upscale_opt.tracing.examples import Inputs

EXACT = 1e-10
"""What lossless means in float64."""

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


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


def keep(weight: Tensor, axis: int, kept: list[int]) -> None:
    """Zero, in place, all slices along ``axis`` that are not ``kept``."""
    gone = [index for index in range(weight.shape[axis]) if index not in kept]
    with torch.no_grad():
        weight.index_fill_(axis, torch.tensor(gone, dtype=torch.long), 0)


@cache
def built(name: str, image: int = 64) -> tuple[nn.Module, uo.ChannelGraph]:
    """A network of the catalogue in which nothing is zero, and its graph. Not to be changed."""
    inputs = images(2, image)
    model = catalogue.randomize(catalogue.build(name, seed=1), 2, inputs)
    return model, uo.trace(model, inputs)


def masked_resnet18(side: Side = "input", amount: float = 0.5) -> nn.Module:
    """A ResNet-18 with masks, in float64, with nothing else zero."""
    model = copy.deepcopy(built("resnet18")[0]).double()
    uo.MaskingManager(model, side=side).importance().mask(amount)
    return model


def images(batch: int, height: int, width: int = 0, seed: int = 0) -> Tensor:
    """Random images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, height, width or height, generator=generator)


@dataclass(frozen=True)
class Documents:
    """A masked model and what belongs to it."""

    model: nn.Module
    graph: uo.ChannelGraph
    masks: uo.Masks
    solution: uo.Solution


def documents_of(name: str, amount: float, side: Side = "input") -> Documents:
    """Mask a network of the catalogue by magnitude, and solve it."""
    model, graph = built(name)
    masked = copy.deepcopy(model)
    uo.apply_masks(masked, graph, uo.magnitude_masks(masked, graph, amount, side))
    masks = uo.Masks.from_model(masked, graph)
    return Documents(masked, graph, masks, uo.solve(graph, masks))


def random_masks(graph: uo.ChannelGraph, seed: int) -> uo.Masks:
    """Some six in ten slices kept, along every axis that can be masked."""
    generator = torch.Generator().manual_seed(seed)
    kept = {
        name: {
            axis: tuple(torch.nonzero(torch.rand(slices, generator=generator) < 0.6)[:, 0].tolist())
            for axis in axes
            for slices in [slices_of(graph, name, axis)]
        }
        for name, axes in maskable_axes(graph).items()
    }
    return uo.Masks(kept=kept)


def exported(model: nn.Module, inputs: Inputs, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """The model, masked in place at random on both sides, and its export."""
    graph = uo.trace(model, inputs)
    uo.apply_masks(model, graph, random_masks(graph, seed))
    return model, uo.materialize(model, uo.solve(graph, uo.Masks.from_model(model, graph)))


def pruned_of(model: nn.Module, inputs: Inputs, amount: float = 0.5) -> uo.Pruned:
    """What pruning on both sides makes of a model, checked."""
    return uo.prune(model, inputs, amount=amount, side="both")


class Net(nn.Module):
    """Layers by name, and what to do with them."""

    def __init__(self, run: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


class ManyReaders(nn.Module):
    """Seventy readers of one tensor: with random masks, too hard to prove in a minute."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 60, 1)
        self.readers = nn.ModuleList(nn.Conv2d(60, 1, 1) for _ in range(70))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        return [reader(x) for reader in self.readers]


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """All parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


def complaint(error: type[UpscaleError], action: Callable[[], object]) -> str:
    """The message of the error that ``action`` raises: one line, not endless."""
    with pytest.raises(error) as caught:
        action()
    assert type(caught.value) is error
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
