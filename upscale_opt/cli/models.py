"""``upscale-opt models``: the networks that have names."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Annotated

import typer

from upscale_opt.cli.progress import Steps
from upscale_opt.cli.tables import output, say
from upscale_opt.errors import UpscaleError


def models(
    pattern: Annotated[
        str, typer.Argument(help="Only names that contain this, or match it (resnet*).")
    ] = "*",
) -> None:
    """List the networks that `run` and `trace` know."""
    with Steps().step("load PyTorch"):
        from upscale_opt.models.catalogue import names

        known = names()
    glob = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    found = [name for name in known if fnmatch(name, glob)]
    if not found:
        raise UpscaleError(f"no network matches {pattern!r}; `upscale-opt models` lists them all")
    console = output()
    for name in found:
        say(console, name)
