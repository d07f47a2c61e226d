"""Words that are drawn, and the network that reads them."""

from __future__ import annotations

import sys

import pytest
import torch

from upscale_opt.errors import UpscaleError
from upscale_opt.experiments.study.recogniser import SYMBOLS, read, recogniser
from upscale_opt.experiments.study.words import words_to_calibrate, words_to_read


def test_repeats_and_blanks_are_left_out() -> None:
    blank, a, b = 0, SYMBOLS.index("a") + 1, SYMBOLS.index("b") + 1
    lines = torch.tensor([[a, a, blank, a, b, b], [blank] * 6, [b, blank, blank, b, b, a]])
    assert read(torch.nn.functional.one_hot(lines, len(SYMBOLS) + 1)) == ["aab", "", "bba"]


def test_words_are_the_same_at_every_call_and_calibration_words_are_others() -> None:
    tested, held_out = words_to_read(), [words_to_calibrate(seed) for seed in range(3)]
    assert tested.pixels.shape == (400, 1, 64, 192)
    assert len(tested) == 400
    assert all(words.pixels.shape == (96, 1, 64, 192) for words in held_out)
    assert float(tested.pixels.abs().max()) <= 1
    spellings = [
        {text.lower() for text in words.texts if text.isalpha()} for words in (tested, *held_out)
    ]
    assert sum(map(len, spellings)) == len(set.union(*spellings))  # no word is in two
    again = tested.pixels.clone()
    words_to_read.__globals__["_drawn"].cache_clear()
    assert torch.equal(words_to_read().pixels, again)


def test_english_g2_reads_them() -> None:
    words = words_to_read()
    with torch.no_grad():
        found = read(recogniser()(words.pixels[:50]))
    assert sum(map(str.__eq__, found, words.texts)) >= 47


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "easyocr_en_models", None)
    with pytest.raises(UpscaleError, match=r"the study needs easyocr_en_models: pip install"):
        recogniser()
