"""Pictures of printed pages, on which words are to be found: words in many fonts and sizes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from upscale_opt.experiments.study.data import need
from upscale_opt.experiments.study.detector import Box
from upscale_opt.experiments.study.fonts import font
from upscale_opt.experiments.study.words import FONTS, cased, shuffled_words

SIDE = 320
"""Height and width, in pixels."""

_TESTED = 24
_HELD_OUT = 12
"""Pages to find words on, and to calibrate with."""

_ALIKE = 0.5
"""The share of the union that two boxes of one word have in common (PASCAL VOC's)."""

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Sheets:
    """Pictures of pages, and where their words are.

    Attributes:
        pixels: of shape (pages, 3, 320, 320), float32, normalised as for ImageNet.
        boxes: of every page's words.
    """

    pixels: Tensor
    boxes: tuple[tuple[Box, ...], ...]

    def __len__(self) -> int:
        """The number of pages."""
        return len(self.boxes)


def sheets_to_read() -> Sheets:
    """Two dozen pages; the same at every call."""
    return _drawn(_TESTED, 0)


def sheets_to_calibrate(seed: int = 0) -> Sheets:
    """A dozen others.

    Args:
        seed: which words, fonts, places and faults.
    """
    return _drawn(_HELD_OUT, seed + 1)


def f1(found: Sequence[Sequence[Box]], wanted: Sequence[Sequence[Box]]) -> float:
    """The harmonic mean of the shares of boxes found that are right, and of words that are found.

    On every page boxes are paired greedily, those that have most in common first; a pair counts
    where the boxes share half of their union.

    Args:
        found: boxes, by page.
        wanted: likewise.
    """
    right = 0
    for own, theirs in zip(found, wanted, strict=True):
        shared = sorted(
            ((_common(a, b), i, j) for i, a in enumerate(own) for j, b in enumerate(theirs)),
            reverse=True,
        )
        left, other = set(range(len(own))), set(range(len(theirs)))
        for common, i, j in shared:
            if common >= _ALIKE and i in left and j in other:
                left.remove(i)
                other.remove(j)
                right += 1
    total = sum(map(len, found)) + sum(map(len, wanted))
    return 2 * right / total if total else 1.0


def _common(a: Box, b: Box) -> float:
    """The share of two boxes' union that both cover."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    both = wide * high
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


@lru_cache(maxsize=4)
def _drawn(count: int, seed: int) -> Sheets:
    chance = random.Random(1000 + seed)
    pages = [_page(chance) for _ in range(count)]
    return Sheets(torch.stack([page for page, _ in pages]), tuple(own for _, own in pages))


def _page(chance: random.Random) -> tuple[Tensor, tuple[Box, ...]]:
    """Lines of words, in one font each, from the top down; somewhat faint, blurred and noisy."""
    need("matplotlib")
    from PIL import Image, ImageDraw, ImageFilter

    ink = Image.new("L", (SIDE, SIDE), 0)
    pen = ImageDraw.Draw(ink)
    words = shuffled_words(chance)
    found: list[Box] = []
    down = chance.randrange(4, 24)
    while True:
        own = font(chance.choice(FONTS), chance.randrange(14, 34))
        high = sum(own.getmetrics())
        if down + high > SIDE - 2:
            break
        right = chance.randrange(4, 40)
        while True:
            word = cased(next(words), chance)
            left, top, end, bottom = pen.textbbox((right, down), word, font=own)
            if end > SIDE - 4:
                break
            pen.text((right, down), word, fill=255, font=own)
            found.append((float(left), float(top), float(end), float(bottom)))
            right = int(end) + own.size // 2 + chance.randrange(2, 24)
        down += high + chance.randrange(2, 24)
    blurred = ink.filter(ImageFilter.GaussianBlur(chance.uniform(0, 0.8)))
    share = np.asarray(blurred, dtype=np.float64)[..., None] / 255
    paper = np.array([chance.uniform(170, 255) for _ in range(3)])
    letters = np.array([chance.uniform(0, 90) for _ in range(3)])
    noise = np.random.default_rng(chance.randrange(2**32)).normal(size=(SIDE, SIDE, 3))
    values = paper + (letters - paper) * share + chance.uniform(2, 14) * noise
    scaled = (values.clip(0, 255) / 255 - np.array(_MEAN)) / np.array(_DEVIATION)
    return torch.tensor(scaled, dtype=torch.float32).permute(2, 0, 1).contiguous(), tuple(found)
