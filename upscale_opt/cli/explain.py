"""``upscale-opt explain``: why a read is a gather."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upscale_opt.cli.tables import output, say
from upscale_opt.ir.solution import Solution


def explain(
    solution: Annotated[Path, typer.Argument(help="A solution, from `solve` or `run`.")],
    read: Annotated[
        str | None,
        typer.Argument(help="One read only: OPERATION, OPERATION[OPERAND] or TENSOR -> OPERATION."),
    ] = None,
) -> None:
    """Say for every gather, or for READ, why it is not a view.

    It names the reads that cannot all be views, and the channels that show it. Needs the solution
    only, and no PyTorch.
    """
    found = Solution.load(solution).explain(read)
    console = output()
    for explanation in found:
        say(console, str(explanation))
    if not found:
        say(console, "every read is a view: nothing is copied")
