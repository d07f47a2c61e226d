"""``upscale-opt worker``: share the work of a service."""

from __future__ import annotations

from typing import Annotated

import typer

from upscale_opt.cli.serve import Data, QueueUrl, require, settings_of


def worker(
    queue: QueueUrl = None,
    data: Data = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting; may be repeated."),
    ] = None,
) -> None:
    """Solve the jobs of a service, one at a time, until stopped.

    On another machine: with the same --queue as the service. Start as many as you like.
    """
    require()
    from upscale_opt.service.settings import Settings
    from upscale_opt.service.worker import run_worker, set_up_logging

    set_up_logging()
    run_worker(Settings.read({**settings_of(set_), "queue": queue, "data": data}))
