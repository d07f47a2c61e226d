"""Pictures of single printed characters, 28 x 28: 94 classes, in fonts that come with Matplotlib.

They are turned, sheared, stretched, moved, blurred, bent and noisy, and those to test with are of
fonts that are not learned from. Harder to tell apart than digits: some characters look alike in
some fonts, and differ by their place on the line or their size.
"""

from __future__ import annotations

import random
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from upscale_opt.experiments.study.data import need
from upscale_opt.experiments.study.fonts import font

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

CHARACTERS = "".join(chr(code) for code in range(33, 127))
"""The printable characters of ASCII."""

TESTED_FONTS = ("DejaVuSans-BoldOblique", "DejaVuSansMono", "DejaVuSerif-Italic", "STIXGeneralBol")

LEARNED_FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique")),
    *(f"DejaVuSansMono-{style}" for style in ("Bold", "Oblique", "BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Italic", "BolIta")),
)

SIDE = 28
"""Height and width, in pixels."""

_LARGE = 4
"""Times as large it is drawn."""

_LEARNED, _HELD_OUT, _TESTED = 12, 2, 6
"""Pictures of every character in every font."""


@lru_cache(maxsize=1)
def glyphs() -> tuple[tuple[Floats, Ints], tuple[Floats, Ints], tuple[Floats, Ints]]:
    """Pictures to learn from, held out (of the same fonts), and to test with; always the same.

    Each as pixels of shape (images, 28, 28), from 0 (paper) to 255 (ink), and classes of shape
    (images,), places in :data:`CHARACTERS`.

    Raises:
        UpscaleError: if Matplotlib is missing.
    """
    return (
        _drawn(LEARNED_FONTS, _LEARNED, 0),
        _drawn(LEARNED_FONTS, _HELD_OUT, 1),
        _drawn(TESTED_FONTS, _TESTED, 2),
    )


def _drawn(fonts: tuple[str, ...], count: int, seed: int) -> tuple[Floats, Ints]:
    chance = random.Random(seed)
    noise = np.random.default_rng(seed)
    pictures, classes = [], []
    for name in fonts:
        for label, character in enumerate(CHARACTERS):
            for _ in range(count):
                pictures.append(_picture(character, name, chance, noise))
                classes.append(label)
    return np.stack(pictures), np.array(classes, dtype=np.int64)


def _picture(
    character: str, name: str, chance: random.Random, noise: np.random.Generator
) -> Floats:
    """One picture: on a line of its own, which is where the next one's would be."""
    need("matplotlib")
    from PIL import Image, ImageDraw, ImageFilter

    side = SIDE * _LARGE
    own = font(name, int(0.72 * side))
    ink = Image.new("L", (side, side), 0)
    place = (side / 2, 0.68 * side)  # the middle of the character's foot
    ImageDraw.Draw(ink).text(place, character, fill=255, font=own, anchor="ms")
    turn, shear = chance.uniform(-0.2, 0.2), chance.uniform(-0.2, 0.2)
    wide, high = chance.uniform(0.8, 1.25), chance.uniform(0.8, 1.25)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = matrix @ np.array([[wide, shear], [0, high]])
    middle = np.array([side / 2, side / 2])
    moved = np.array([chance.uniform(-2, 2), chance.uniform(-1, 1)]) * _LARGE
    offset = middle - matrix @ (middle + moved)
    numbers = (*matrix[0], offset[0], *matrix[1], offset[1])
    turned = ink.transform(ink.size, Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR)
    bent = turned.transform(ink.size, Image.Transform.MESH, _bends(side, chance))
    blurred = bent.filter(ImageFilter.GaussianBlur(_LARGE * chance.uniform(0.2, 0.9)))
    small = np.asarray(blurred.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)
    spoilt = chance.uniform(0.5, 1) * small + noise.normal(0, chance.uniform(5, 40), small.shape)
    return spoilt.clip(0, 255).astype(np.float32)


def _bends(
    side: int, chance: random.Random
) -> list[tuple[tuple[int, int, int, int], tuple[float, ...]]]:
    """Quarters of a picture, and where their corners come from: all but the rim is moved."""
    steps = (0, side // 2, side)
    reach = 0.06 * side

    def corner(row: int, column: int) -> tuple[float, float]:
        return steps[column] + chance.uniform(-reach, reach), steps[row] + chance.uniform(
            -reach, reach
        )

    corners = [[corner(row, column) for column in range(3)] for row in range(3)]
    found = []
    for row in range(2):
        for column in range(2):
            box = (steps[column], steps[row], steps[column + 1], steps[row + 1])
            own = (
                corners[row][column],
                corners[row + 1][column],
                corners[row + 1][column + 1],
                corners[row][column + 1],
            )
            found.append((box, tuple(number for point in own for number in point)))
    return found
