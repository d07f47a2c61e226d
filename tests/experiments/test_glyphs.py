"""Characters that are drawn to learn from, and to test with."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn import functional

from upscale_opt.errors import UpscaleError
from upscale_opt.experiments.study import glyphs
from upscale_opt.experiments.study.data import load_dataset


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw one picture where it would be several."""
    for name in ("_LEARNED", "_HELD_OUT", "_TESTED"):
        monkeypatch.setattr(glyphs, name, 1)
    glyphs.glyphs.cache_clear()


@pytest.mark.usefixtures("few")
def test_fonts_to_test_with_are_not_learned_from() -> None:
    data = load_dataset("glyphs")
    assert not set(glyphs.LEARNED_FONTS) & set(glyphs.TESTED_FONTS)
    assert (data.classes, data.image) == (94, 28)
    for part, fonts in ((data.train, 12), (data.held_out, 12), (data.test, 4)):
        assert part.pixels.shape == (94 * fonts, 1, 28, 28)
        assert part.pixels.dtype == torch.float32
        assert torch.bincount(part.labels).tolist() == [fonts] * 94
    assert abs(float(data.train.pixels.mean())) < 1e-4
    assert abs(float(data.train.pixels.std()) - 1) < 1e-4
    rows = torch.cat([part.pixels.flatten(1) for part in (data.train, data.held_out, data.test)])
    assert len(torch.unique(rows, dim=0)) == len(rows)  # so the parts are disjoint
    glyphs.glyphs.cache_clear()
    assert torch.equal(load_dataset("glyphs").test.pixels, data.test.pixels)


@pytest.mark.usefixtures("few")
def test_every_character_leaves_ink_and_stays_in_the_picture() -> None:
    (pixels, _), *_ = glyphs.glyphs()
    smooth = functional.avg_pool2d(torch.tensor(pixels)[:, None], 3, 1)
    assert float(smooth.flatten(1).amax(1).min()) > 40  # beyond the noise
    ink = torch.tensor(pixels).gt(120)
    rim = torch.ones(28, 28, dtype=torch.bool)
    rim[1:-1, 1:-1] = False
    assert float(ink[:, rim].double().mean()) < 0.01


@pytest.mark.usefixtures("few")
def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UpscaleError, match=r'matplotlib.*pip install "\.\[study\]"'):
        load_dataset("glyphs")
