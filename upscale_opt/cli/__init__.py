"""The command line, ``upscale-opt``.

Only the commands that need PyTorch load it, when they run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from upscale_opt.cli.bench import bench
from upscale_opt.cli.calibrate import calibrate
from upscale_opt.cli.check import check
from upscale_opt.cli.compare import compare
from upscale_opt.cli.coverage import coverage
from upscale_opt.cli.examples import EXAMPLES
from upscale_opt.cli.explain import explain
from upscale_opt.cli.inspect import inspect
from upscale_opt.cli.models import models
from upscale_opt.cli.options import spread
from upscale_opt.cli.pareto import pareto
from upscale_opt.cli.prune import prune
from upscale_opt.cli.removed import removed
from upscale_opt.cli.report import report
from upscale_opt.cli.run import run
from upscale_opt.cli.serve import serve
from upscale_opt.cli.solve import solve
from upscale_opt.cli.trace import trace
from upscale_opt.cli.worker import worker
from upscale_opt.errors import UpscaleError
from upscale_opt.version import VERSION

_INTERRUPTED = 130
"""The exit code after Ctrl-C, which newer versions of Typer turn into a normal exit."""

app = typer.Typer(
    help="Smaller and faster PyTorch networks, by whole channels and without loss.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    inspect,
    prune,
    report,
    bench,
    calibrate,
    run,
    trace,
    solve,
    check,
    explain,
    removed,
    compare,
    pareto,
    coverage,
    models,
    serve,
    worker,
):
    _name = _command.__name__
    app.command(epilog=f"For example: `{EXAMPLES[_name]}`")(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    An error is one line on stderr and exit code 1, or 2 if the command itself was not understood.

    Args:
        arguments: what follows ``upscale-opt``; ``sys.argv`` by default.

    Raises:
        SystemExit: always.
    """
    given = spread_for(list(sys.argv[1:] if arguments is None else arguments))
    sys.exit(_exit_code(given or ["--help"]))


def spread_for(given: list[str]) -> list[str]:
    """The arguments of a command, with flags repeated for those that take several values."""
    several = given[:1] in (["bench"], ["calibrate"], ["compare"], ["coverage"], ["pareto"])
    return spread(given) if several else given


def _exit_code(arguments: list[str]) -> int:
    try:
        code = app(args=arguments, prog_name="upscale-opt", standalone_mode=False)
    except UpscaleError as error:
        return _complain(str(error), 1)
    except OSError as error:
        path = error.filename2 or error.filename
        where = f"{path}: " if path else ""
        return _complain(f"{where}{error.strerror or error}", 1)
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except Exception as error:
        # Usage errors: click's in older versions of Typer, its own in newer ones.
        if not hasattr(error, "format_message"):
            raise
        command = f" {arguments[0]}" if arguments[0] in _commands() else ""
        hint = f"; see upscale-opt{command} --help"
        return _complain(error.format_message().rstrip(".") + hint, 2)
    if code == _INTERRUPTED:
        return _complain("interrupted; nothing is left half written", _INTERRUPTED)
    return code if isinstance(code, int) else 0


def _commands() -> set[str]:
    return {info.callback.__name__ for info in app.registered_commands if info.callback}


def _complain(message: str, code: int) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return code


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"upscale-opt {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass
