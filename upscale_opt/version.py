"""The installed package's version."""

from __future__ import annotations

from importlib import metadata


def _installed() -> str:
    try:
        return metadata.version("upscale-opt")
    except metadata.PackageNotFoundError:  # sources that nobody installed
        return "0+unknown"


VERSION = _installed()
