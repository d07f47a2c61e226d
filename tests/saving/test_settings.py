"""Whatever changes the function of a called module is compared on loading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import upscale_opt as uo


class Kind(Enum):
    one = 1
    two = 2


@dataclass
class Config:
    factor: float
    name: str = "x"


def scaled(x: Tensor, factor: float) -> Tensor:
    return x * factor


def factory(factor: float) -> Callable[[Tensor], Tensor]:
    def inner(x: Tensor) -> Tensor:
        return x * factor

    return inner


class Held(nn.Module):
    """A module with something in an attribute, which a rule keeps as one call."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def network(value: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), Held(value), nn.Conv2d(8, 4, 1)).eval()


PAIRS: dict[str, tuple[Any, Any]] = {
    "functions": (functional.silu, functional.mish),
    "builtins": (torch.relu, torch.tanh),
    "lambdas": (lambda x: x * 2, lambda x: x + 2),
    "constants of lambdas": (lambda x: x * 2, lambda x: x * 3),
    "closures": (factory(2.0), factory(3.0)),
    "partials": (partial(scaled, factor=2.0), partial(scaled, factor=3.0)),
    "tensors": (torch.arange(4.0), torch.arange(4.0) + 1),
    "dtypes of tensors": (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
    "tensors in lists": ([torch.zeros(2)], [torch.ones(2)]),
    "arrays": (torch.zeros(2).numpy(), torch.ones(2).numpy()),
    "enums": (Kind.one, Kind.two),
    "dtypes": (torch.float32, torch.float64),
    "dicts": ({"a": 1}, {"a": 2}),
    "sets": ({1, 2}, {1, 3}),
    "slices": (slice(0, 1), slice(0, 2)),
    "complex numbers": (1j, 2j),
    "classes": (nn.ReLU, nn.GELU),
    "dataclasses": (Config(1.0), Config(2.0)),
    "bytes": (b"a", b"b"),
    "plain": ((1, "a", None, (2.0,)), (1, "a", None, (3.0,))),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_values_of_attributes(kind: str, tmp_path: Path) -> None:
    one, other = PAIRS[kind]
    path = tmp_path / "pruned.safetensors"
    with uo.rules.local_rules():

        @uo.rule(Held)
        def held(call: uo.rules.Call) -> uo.rules.Claim:
            return call.channelwise(axis=1, keeps_zero=True)

        uo.save(uo.prune(network(one), torch.randn(2, 3, 4, 4), amount=0.5).model, path)
        uo.load(network(one), path)
        with pytest.raises(uo.MaterializeError, match=r"1\.value"):
            uo.load(network(other), path)


@pytest.mark.parametrize(
    ("saved", "given"), [(functional.silu, functional.mish), (functional.gelu, functional.relu)]
)
def test_activations_of_transformers(saved: Any, given: Any, tmp_path: Path) -> None:
    def model(activation: Any) -> nn.Module:
        layer = nn.TransformerEncoderLayer(8, 2, 16, activation=activation, batch_first=True)
        return nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 3)).eval()

    path = tmp_path / "pruned.safetensors"
    uo.save(uo.prune(model(saved), torch.randn(2, 5, 4), amount=0.5).model, path)
    uo.load(model(saved), path)
    with pytest.raises(uo.MaterializeError, match="activation"):
        uo.load(model(given), path)
