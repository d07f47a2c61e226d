"""The options that say where a command does its work, and what is checked of them."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from upscale_opt.experiments.running import Place


class Backend(str, Enum):
    """The workers: processes of this machine, or a cluster."""

    local = "local"
    dask = "dask"


Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        show_default="1; on a cluster, one per thread of it",
        help="How many at a time, in processes of their own.",
    ),
]
BackendOption = Annotated[Backend, typer.Option(help="Work on this machine, or on a Dask cluster.")]
Scheduler = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Of the cluster, such as tcp://10.0.0.1:8786."),
]


def place_of(jobs: int | None, backend: Backend, scheduler: str | None) -> Place:
    """The place that ``--jobs``, ``--backend`` and ``--scheduler`` name.

    Raises:
        typer.BadParameter: if they do not go together.
    """
    if backend is Backend.local and scheduler is not None:
        raise typer.BadParameter("--scheduler is for --backend dask")
    if backend is Backend.dask and scheduler is None:
        raise typer.BadParameter("--backend dask needs --scheduler, such as tcp://10.0.0.1:8786")
    return Place(jobs, backend.value, scheduler)
