"""Smaller layers in a model of the original's class, whose own code goes on calling them."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import upscale_opt as uo


class Block(nn.Module):
    """Splits by halves, as YOLO's blocks do: one by ``chunk``, one by a width that it keeps."""

    def __init__(self, width: int, *, split: bool) -> None:
        super().__init__()
        self.c = width // 2
        self.split = split
        self.enter = nn.Conv2d(width, width, 1)
        self.norm = nn.BatchNorm2d(width)
        self.inner = nn.Conv2d(self.c, self.c, 3, padding=1)
        self.leave = nn.Conv2d(width + self.c, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.silu(self.norm(self.enter(x)))
        parts = list(torch.split(y, [self.c, self.c], 1) if self.split else y.chunk(2, 1))
        parts.append(parts[-1] + self.inner(parts[-1]))
        left: Tensor = self.leave(torch.cat(parts, 1))
        return nn.functional.silu(left)

    def halves(self, x: Tensor) -> Any:
        return torch.split(self.enter(x), [self.c, self.c], 1)


class Detector(nn.Module):
    """Takes images, or a batch with targets, as frameworks write it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(Block(16, split=False), Block(16, split=True))
        self.head = nn.Conv2d(16, 5, 1)
        self.names = {0: "cat"}

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, dict):
            return self.loss(x)
        return self.predict(x, *args, **kwargs)

    def predict(self, x: Tensor, augment: bool = False, embed: Any = None) -> Tensor:
        y: Tensor = self.head(self.blocks(nn.functional.silu(self.stem(x))))
        return y.flip(0) if augment else y

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.mse_loss(self(batch["image"]).mean((2, 3)), batch["target"])


X = torch.rand(2, 3, 16, 16)


@pytest.fixture(scope="module")
def original() -> Detector:
    torch.manual_seed(0)
    return Detector().eval()


@pytest.fixture(scope="module")
def pruned(original: Detector) -> uo.Pruned:
    return uo.prune(original, X, amount=0.5, method="constrained")


@pytest.fixture
def model(original: Detector, pruned: uo.Pruned) -> Detector:
    model = copy.deepcopy(original)
    found = pruned.into(model)
    assert found == {"blocks.0.c": 4, "blocks.1.c": 4}
    return model


def test_the_class_and_its_code_stay(model: Detector, pruned: uo.Pruned) -> None:
    assert type(model) is Detector
    assert type(model.blocks[0]) is Block
    assert model.blocks[0].enter.out_channels == 8
    assert model.blocks[0].norm.num_features == 8
    assert b"upscale_opt." not in pickle.dumps(model)  # it needs no class of ours
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, pruned.model)]
    assert sizes[0] == sizes[1]
    wide = torch.rand(3, 3, 24, 40)
    assert torch.equal(model(X), pruned.model(X))
    assert torch.equal(model(wide, augment=True, embed=None), pruned.model(wide).flip(0))
    assert len(model.blocks[0].halves(torch.rand(1, 8, 4, 4))) == 2


def test_it_learns_from_batches_and_is_copied_and_pickled(model: Detector) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = model.stem.weight.clone()
    for _ in range(2):
        optimizer.zero_grad()
        model({"image": X, "target": torch.rand(2, 5)}).backward()
        optimizer.step()
    assert not torch.equal(model.stem.weight, before)
    model.eval()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert type(other) is Detector
        assert torch.equal(other(X), model(X))


def test_what_was_learnt_is_saved_and_loaded_into_the_class(
    model: Detector, pruned: uo.Pruned, tmp_path: Path
) -> None:
    with torch.no_grad():
        nn.init.ones_(model.stem.weight)
    learned = copy.deepcopy(pruned.model)  # others use it as it is
    learned.load_state_dict(model.state_dict())
    uo.save(learned, tmp_path / "pruned.safetensors")
    loaded = uo.load(Detector(), tmp_path / "pruned.safetensors", in_place=True)
    assert type(loaded) is Detector
    assert torch.equal(loaded(X, augment=True), model(X, augment=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_it_is_loaded_into_any_device_and_dtype(
    original: Detector, tmp_path: Path, device: str, dtype: torch.dtype
) -> None:
    result = uo.prune(
        copy.deepcopy(original).to(dtype), X.to(dtype), amount=0.5, method="constrained"
    )
    uo.save(result.model, tmp_path / "pruned.safetensors")
    with torch.device(device):
        definition = Detector()
    loaded = uo.load(definition, tmp_path / "pruned.safetensors", in_place=True)
    assert loaded is definition
    assert not loaded.training
    assert loaded.stem.weight.dtype is dtype
    assert torch.equal(loaded(X.to(dtype)), result.model(X.to(dtype)))


def test_the_manager_does_it_in_place(original: Detector) -> None:
    model = copy.deepcopy(original)
    uo.MaskingManager(model, method="constrained").importance().mask(amount=0.5)
    masked = copy.deepcopy(model)
    manager = uo.PruningManager(model).compute([X], constrained=True)
    manager.prune(own_code=True)
    assert type(model) is Detector
    assert model.stem.out_channels == 8
    assert torch.allclose(model(X), masked(X), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_model_of_another_dtype_gets_that_of_the_pruned(
    original: Detector, pruned: uo.Pruned, dtype: torch.dtype
) -> None:
    model = copy.deepcopy(original).to(dtype)
    pruned.into(model)
    assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {
        torch.float32
    }
    for batch, size in ((1, 24), (7, 32)):
        x = torch.rand(batch, 3, size, size)
        torch.testing.assert_close(model(x), pruned.masked(x))


def test_where_calls_would_be_added_it_stays_as_it_was(original: Detector) -> None:
    model = copy.deepcopy(original)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = uo.prune(model, X, amount=0.5)
    with pytest.raises(uo.MaterializeError, match=r"code of Detector cannot stay.*constrained"):
        result.into(model)
    assert vars(model.blocks[1])["c"] == 8
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


class Counting(nn.Module):
    """Divides by its own width: with fewer channels, by another number."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x).relu()
        left: Tensor = self.leave(y / y.shape[1])
        return left


def test_widths_that_are_computed_with_are_found_out() -> None:
    model, x = Counting().eval(), torch.rand(3, 4)
    result = uo.prune(model, x, amount=0.5, method="constrained")
    with pytest.raises(uo.MaterializeError, match="cannot stay as it is: it makes the call"):
        result.into(model)
    assert model.enter.out_features == 8


class Reshaping(nn.Module):
    """Has a width in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        left: Tensor = self.leave(self.enter(x).relu().reshape(-1, 8))
        return left


def test_widths_in_the_code_are_named() -> None:
    model, x = Reshaping().eval(), torch.rand(3, 4)
    result = uo.prune(model, x, amount=0.5, method="constrained")
    with pytest.raises(uo.MaterializeError, match=r"does not run: .* \(in forward: "):
        result.into(model)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda r: (nn.Linear(2, 2), r.masked), "carries no solution"),
        (lambda r: (r.model, r.model), "pruned in place before"),
        (lambda r: ("detector.pt", r.model), "a str; give an nn.Module"),
        (lambda r: (nn.Linear(2, 2), r.model), "another model than the original"),
        (
            lambda r: (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)).eval(), r.model),
            "computed",
        ),
    ],
)
def test_wrong_models_are_refused(pruned: uo.Pruned, given: Any, words: str) -> None:
    from upscale_opt.materializing.own_code import put_into

    with pytest.raises(uo.UpscaleError, match=words):
        put_into(*given(pruned))
