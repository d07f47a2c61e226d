"""Sums in place behind modules that hand on what they get: no copies, and none that is missed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from comparing import assert_lossless
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

import upscale_opt as uo

X = torch.randn(4, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

HANDING_ON: dict[str, Callable[[], nn.Module]] = {
    "stochastic depth": lambda: StochasticDepth(0.5, "row"),
    "dropout": lambda: nn.Dropout(0.5),
    "dropout of channels": lambda: nn.Dropout2d(0.5),
    "identity": nn.Identity,
}


class Residual(nn.Module):
    """Two residual blocks, whose sums are written into the branch, as torchvision's are."""

    def __init__(self, drop: Callable[[], nn.Module], twice: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first, self.second = (
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)) for _ in range(2)
        )
        self.drop = drop()
        self.head = nn.Conv2d(8, 4, 1)
        self.twice = twice
        self.again = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for block in (self.first, self.second):
            branch = block(x)
            kept = branch * 2 if self.twice else branch
            y = self.drop(kept)
            y += x
            x = y + self.again(kept) if self.twice else y
        out: Tensor = self.head(x)
        return out


def masked(drop: Callable[[], nn.Module], twice: bool = False) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = Residual(drop, twice).double().eval()
    for name in ("first.1", "second.1"):
        model.get_submodule(name).get_buffer("running_mean").normal_()
    readers = ("first.0.weight", "second.0.weight", "head.weight")
    masks = uo.Masks(kept={name: {1: tuple(range(5))} for name in readers})
    result = uo.prune(model, X, masks=masks)
    assert result.model.get_submodule("stem").out_channels == 5
    return result.masked, result.model


@pytest.mark.parametrize("drop", HANDING_ON.values(), ids=HANDING_ON)
def test_nothing_is_copied_for_what_is_handed_on(drop: Callable[[], nn.Module]) -> None:
    model, pruned = masked(drop)
    assert_lossless(model, pruned, X)
    assert not uo.measuring.moved_bytes(pruned, X).by_op
    model.train()
    pruned.train()
    for _ in range(3):  # running statistics move, too
        found = []
        for each in (model, pruned):
            torch.manual_seed(1)
            found.append(each(X))
        if isinstance(model.get_submodule("drop"), (StochasticDepth, nn.Identity)):
            torch.testing.assert_close(*found)  # the others draw a number per channel


@pytest.mark.parametrize("drop", HANDING_ON.values(), ids=HANDING_ON)
def test_what_is_read_again_is_not_written_to(drop: Callable[[], nn.Module]) -> None:
    model, pruned = masked(drop, twice=True)
    assert_lossless(model, pruned, X)


def test_hooks_may_keep_what_is_handed_on() -> None:
    torch.manual_seed(0)
    model = Residual(nn.Identity).double().eval()
    seen: list[Tensor] = []
    model.drop.register_forward_hook(lambda module, args, output: seen.append(output))
    want = model(X)
    result = uo.prune(model, X)
    seen.clear()
    torch.testing.assert_close(result.model(X), want)
