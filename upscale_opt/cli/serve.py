"""``upscale-opt serve``: solve for others, by HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upscale_opt.errors import UpscaleError, to_install

Data = Annotated[
    Path | None,
    typer.Option(help="The folder of the jobs.", show_default="in the user's data directory"),
]
QueueUrl = Annotated[
    str | None,
    typer.Option(
        "--queue",
        metavar="URL",
        help="Keep jobs in Redis instead, such as redis://127.0.0.1:6379/0, so that other "
        "machines can share the work.",
        show_default="SQLite in --data",
    ),
]


def serve(
    host: Annotated[
        str | None, typer.Option(help="The address to listen at.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="The port; 0 for any free one.", show_default="8000")
    ] = None,
    data: Data = None,
    queue: QueueUrl = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Worker processes to start; 0 for none.", show_default="1"),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="A file with the bearer token that clients must send.", show_default="none needed"
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other setting, such as max_queue=50; may be repeated. All settings are "
            "environment variables, too: UPSCALE_OPT_MAX_QUEUE.",
        ),
    ] = None,
) -> None:
    """Solve for others, by HTTP: graph and masks in, solution out.

    Needs no PyTorch, but the extra `service`: `pip install ".[service]"` in the clone.
    """
    require()
    from upscale_opt.service.server import serve as run
    from upscale_opt.service.settings import Settings

    given = {
        **settings_of(set_),
        "host": host,
        "port": port,
        "data": data,
        "queue": queue,
        "workers": workers,
        "token": None if token_file is None else _token(token_file),
    }
    run(Settings.read(given))


def require() -> None:
    """Check that what the service needs is installed.

    Raises:
        UpscaleError: naming what is missing.
    """
    import importlib.util

    needed = ("fastapi", "uvicorn", "huey", "redis", "prometheus_client")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UpscaleError(f"the service needs {', '.join(missing)}: {to_install('service')}")


def settings_of(options: list[str] | None) -> dict[str, str]:
    """The settings that ``--set`` gives.

    Raises:
        typer.BadParameter: if one is not NAME=VALUE.
    """
    values = {}
    for option in options or ():
        name, found, value = option.partition("=")
        if not found or not name:
            raise typer.BadParameter(f"--set is NAME=VALUE, such as max_queue=50, not {option!r}")
        values[name.strip()] = value
    return values


def _token(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UpscaleError(f"cannot read the token in {path}: {error}") from None
    if not token:
        raise UpscaleError(f"there is no token in {path}")
    return token
