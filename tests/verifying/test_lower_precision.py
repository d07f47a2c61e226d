"""Models that compute in lower precision inside: rounding is accepted, errors are found."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import upscale_opt as uo


class Root(nn.Module):
    """The norm of Llama, Qwen2 and T5."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(self.dtype)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * y.to(x.dtype)


class Soft(nn.Module):
    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return functional.softmax(x, -1, dtype=self.dtype).to(x.dtype)


class Cast(nn.Module):
    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.dtype) + 1).sum(-1, keepdim=True).to(x.dtype) * x


class Network(nn.Module):
    def __init__(self, kinds: list[type[nn.Module]], width: int, dtype: torch.dtype) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(8, width), nn.ReLU()]
        for kind in kinds:
            layers += [kind(width, dtype), nn.Linear(width, width), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x))
        return y


@pytest.mark.parametrize("seed", range(8))
def test_drawn_networks(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    kinds = [draw.choice([Root, Soft, Cast]) for _ in range(draw.randint(1, 3))]
    dtype = draw.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16])
    model = Network(kinds, draw.choice([12, 24, 40]), dtype).eval()
    x = torch.randn(2, 4, 8)
    result = uo.prune(model, x, amount=0.5)
    assert result.report is not None
    if result.report.float64_error > 1e-10:
        assert any("computes in " + str(dtype)[6:] in note for note in result.report.notes)
    wrong = copy.deepcopy(result.model)
    with torch.no_grad():
        bias = wrong.get_parameter("head.bias")
        bias[draw.randrange(5)] += 0.01 if dtype == torch.float32 else 2.0
    with pytest.raises(uo.VerificationError, match="deviates"):
        uo.verify(result.masked, wrong, x)


def test_full_precision_is_not_excused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong.get_parameter("2.bias")[0] += 1e-6
    with pytest.raises(uo.VerificationError, match="1e-10 is allowed"):
        uo.verify(model, wrong, torch.randn(2, 8))


def test_randomness_and_modes_are_named() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(functional.dropout(x, 0.5, self.training or self.always))
            return y

        always = True

    one, other = Noisy().eval(), Noisy().eval()
    with torch.no_grad():
        other.layer.bias += 1  # type: ignore[misc]
    x = torch.randn(2, 16)
    with pytest.raises(uo.VerificationError, match="draws random numbers"):
        uo.verify(one, other, x)
    one.train()
    with pytest.raises(uo.VerificationError, match=r"training mode.*model\.eval\(\)"):
        uo.verify(one, other, x)
