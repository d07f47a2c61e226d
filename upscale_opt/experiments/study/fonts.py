"""Fonts that come with Matplotlib."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from upscale_opt.experiments.study.data import need


@lru_cache(maxsize=512)
def font(name: str, size: int) -> Any:
    """A font of Pillow's.

    Args:
        name: of its file, without the ending.
        size: in pixels.

    Raises:
        UpscaleError: if Matplotlib is missing.
    """
    folder = Path(need("matplotlib").get_data_path()) / "fonts" / "ttf"
    from PIL import ImageFont

    return ImageFont.truetype(folder / f"{name}.ttf", size)
