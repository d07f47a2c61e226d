"""The style that all pictures share; the same data give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from upscale_opt.errors import needed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "upscale-opt",  # or else the ids in the file are random
    "svg.fonttype": "none",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

_METADATA = {"svg": {"Date": None}, "png": {"Software": None}}
"""Without what changes from day to day, or from version to version."""

BLACK, GREY, LIGHT_GREY = "#000000", "#999999", "#BBBBBB"
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PINK = "#0072B2", "#D55E00", "#CC79A7"
"""The palette of Okabe and Ito, which colour-blind people can tell apart, too; and greys."""


def check_pictures() -> None:
    """Find out now, not after the work, if no pictures can be made here.

    Raises:
        UpscaleError: if matplotlib is not installed.
    """
    needed("matplotlib", "pictures need", "plots")


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of so many inches, for the body to draw on and to call :func:`picture` on.

    Raises:
        UpscaleError: if matplotlib is not installed.
    """
    check_pictures()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        yield Figure((width, height), dpi=120, layout="constrained")


def picture(figure: Figure, kind: str) -> bytes:
    """The figure as the content of a file, ``"svg"`` or ``"png"``."""
    file = io.BytesIO()
    figure.savefig(file, format=kind, metadata=_METADATA[kind])
    return file.getvalue()
