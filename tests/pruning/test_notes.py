"""What a pruning says about itself, rather than have it found."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune as torch_prune

import upscale_opt as uo
from upscale_opt.errors import LittleRemovedWarning

X = torch.randn(2, 3, 8, 8)


def shifted(seed: int) -> tuple[nn.Sequential, list[nn.Conv2d]]:
    """Convolutions with shifting norms between."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    layers: list[nn.Module] = []
    width = 3
    for _ in range(draw.randint(1, 3)):
        wider = draw.choice([8, 12, 16])
        norm = nn.BatchNorm2d(wider)
        nn.init.normal_(norm.bias)
        layers += [nn.Conv2d(width, wider, 1), norm, draw.choice([nn.ReLU, nn.GELU])()]
        width = wider
    layers.append(nn.Conv2d(width, 4, 1))
    model = nn.Sequential(*layers).eval()
    return model, [layer for layer in model[:-1] if isinstance(layer, nn.Conv2d)]


@pytest.mark.parametrize("seed", range(5))
def test_constants_that_stay(seed: int) -> None:
    """Filters dropped in front of a norm with a shift, as torch.nn.utils.prune leaves them."""
    model, layers = shifted(seed)
    for layer in layers:
        torch_prune.ln_structured(layer, "weight", 0.5, 2, dim=0)  # type: ignore[no-untyped-call]
        torch_prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
    with pytest.warns(LittleRemovedWarning, match="nothing was removed"):
        result = uo.prune(model, X)
    assert any(note.startswith("nothing was removed") for note in result.notes)
    assert any("to drop the constants as well" in note for note in result.notes)
    assert "note: nothing was removed" in str(result)
    masks = uo.masks_of(model, uo.trace(model, X))
    followed = uo.prune(model, X, masks=masks)  # the way out that the note names
    assert not followed.notes
    assert sum(p.numel() for p in followed.model.parameters()) < sum(
        p.numel() for p in model.parameters()
    )


def test_nothing_masked_and_enough_removed() -> None:
    model, _ = shifted(0)
    assert any("nothing was masked" in note for note in uo.prune(model, X).notes)
    assert not uo.prune(model, X, amount=0.5).notes


def test_scales_that_are_zero_throughout() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
            self.last = nn.BatchNorm2d(8)
            nn.init.zeros_(self.last.weight)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return x + self.last(self.inner(x))  # type: ignore[no-any-return]

    notes = uo.prune(Residual().eval(), X, amount=0.5).notes
    assert any("last.weight" in note and "zero_init_last" in note for note in notes)


def test_dropout_that_is_fixed() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(functional.dropout(self.layer(x), 0.5, self.training))
            return y

    model = Dropping().eval()
    assert any("1 dropout function" in note for note in uo.prune(model, X, amount=0.5).notes)
    with pytest.raises(uo.VerificationError, match="training mode"):
        uo.prune(model.train(), X, amount=0.5)


# Masks of another graph.


def chain(width: int, depth: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 1), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(width, width, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, 4, 1)).eval()


@pytest.mark.parametrize("seed", range(5))
def test_masks_of_another_graph(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    width, depth = draw.choice([6, 8]), draw.randint(1, 3)
    model = chain(width, depth)
    graph = uo.trace(model, X)
    masks = uo.choose_masks(model, graph, 0.5)
    masks.save(tmp_path / "masks.json")
    masks = uo.Masks.load(tmp_path / "masks.json")
    for other in (chain(width, depth + 1), chain(width + 2, depth), chain(width, depth - 1)):
        another = uo.trace(other, X)
        for use in (
            lambda another=another: uo.solve(another, masks),
            lambda another=another, other=other: uo.apply_masks(other, another, masks),
            lambda another=another: uo.constrain(another, masks),
        ):
            with pytest.raises(uo.MaskError, match="these masks are of another graph: "):
                use()
    larger = uo.trace(model, torch.randn(4, 3, 16, 12))
    uo.apply_masks(model, larger, masks)  # inputs may have any size
    uo.solve(larger, uo.constrain(graph, uo.masks_of(model, graph)))
    uo.Masks(kept={"0.weight": {0: (0, 1)}}).check(uo.trace(chain(8, 2), X))  # of no graph


class Halved(nn.Module):
    """A backbone with a dropout function, in a model that depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Dropped()
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.backbone(x))
        return y if float(y.detach().sum()) > 0 else y * 2


class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(functional.dropout(self.first(x).relu(), 0.1, self.training))
        return y


def test_submodules_have_notes() -> None:
    done = uo.prune_submodules(Halved().eval(), torch.randn(2, 3, 6, 6), ["backbone"], amount=0.5)
    assert any(note.startswith("backbone: 1 dropout function") for note in done.notes), done.notes


class Ungraded(nn.Module):
    """Computes without gradients, and in a way that torch.fx does not capture, if so wished."""

    def __init__(self, through_view: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.through_view = through_view

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.first(x).relu()
        if self.through_view:
            y[:, :4].mul_(2)
        parts = [y[:, :4], y[:, 4:]]
        z: Tensor = self.last(torch.cat(parts[::-1], 1))
        return z


@pytest.mark.parametrize("through_view", [False, True])
def test_gradients_that_export_does_not_keep(through_view: bool) -> None:
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    done = uo.prune(Ungraded(through_view).eval(), x.detach(), amount=0.5)
    assert done.graph.capture == ("export" if through_view else "fx")
    assert any("torch.no_grad" in note for note in done.notes) is through_view
    reached = torch.autograd.grad(done.model(x).sum(), x, allow_unused=True)[0]
    assert (reached is not None) is through_view
