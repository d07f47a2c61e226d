"""Other ways into a model that was pruned in place: right, or refused."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import upscale_opt as uo

X = torch.randn(2, 3, 8, 8)


class Parts(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 8, 1)]
        inner: nn.Module = nn.Sequential(*layers)
        if kind == "own":
            inner = Own(layers)
        if kind == "nested":
            inner = nn.Sequential(inner, nn.ReLU(), nn.Sequential(nn.Conv2d(8, 8, 1)))
        self.backbone, self.head = inner, nn.Conv2d(8, 4, 1)
        self.temp, self.unused = 0.5, 1

    def features(self, x: Tensor) -> Any:
        return self.backbone(x)

    def scaled(self, x: Tensor) -> Any:
        return x * self.temp

    def forward(self, x: Tensor) -> Any:
        return self.scaled(self.head(self.features(x)))


class Own(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.first, self.last = nn.Sequential(*layers[:2]), layers[2]

    def forward(self, x: Tensor) -> Any:
        return self.last(self.first(x))


def in_place(kind: str) -> nn.Module:
    model = Parts(kind).eval()
    uo.MaskingManager(model).importance().mask(amount=0.5)
    uo.PruningManager(model).compute([X]).prune()
    return model


@pytest.mark.parametrize("kind", ["sequential", "own", "nested"])
def test_parts_are_refused(kind: str) -> None:
    model = in_place(kind)
    want = model(X)
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(one(X), want)
        for call in (one.features, one.backbone):
            with pytest.raises(uo.MaterializeError, match=r"'backbone.*pruned in place"):
                call(X)  # type: ignore[operator]
    uo.PruningManager(model).compute([X]).prune()  # once more, with the hooks there
    assert torch.allclose(model(X), want, atol=1e-5)
    with pytest.raises(uo.MaterializeError, match="call the whole model"):
        model.features(X)  # type: ignore[operator]


def test_constants_are_refused() -> None:
    model = in_place("own")
    want = model(X)
    for one in (model, copy.deepcopy(model)):
        with pytest.raises(uo.MaterializeError, match=r"'temp' would change nothing.*0\.5"):
            one.temp = 5.0  # type: ignore[assignment]
        one.temp = 0.5  # type: ignore[assignment]
        one.unused = 2  # type: ignore[assignment]
        one.train().eval()
        assert torch.equal(one(X), want)
