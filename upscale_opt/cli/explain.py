"""``upscale-opt explain``: why a read is a gather, or a window."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upscale_opt.cli.tables import extra_work, output, say
from upscale_opt.ir.solution import Solution
from upscale_opt.solver.checking import explaining


def explain(
    solution: Annotated[Path, typer.Argument(help="A solution, from `solve` or `run`.")],
    read: Annotated[
        str | None,
        typer.Argument(help="One read only: OPERATION, OPERATION[OPERAND] or TENSOR -> OPERATION."),
    ] = None,
) -> None:
    """Say for every gather, or for READ, why it is not a view; and what windows read in vain.

    It names the reads that cannot all be views, and the channels that show it. Needs the solution
    only, and no PyTorch.
    """
    plan = Solution.load(solution)
    found = explaining.explain(plan, read)
    console = output()
    for explanation in found:
        say(console, str(explanation))
    windows = sum(explanation.reason == "window" for explanation in found)
    if windows:
        number = "the window adds" if plan.windows == 1 else f"all {plan.windows:,} windows add"
        say(console, f"{number} {extra_work(plan)}")
    if not found:
        say(console, "every read is a view: nothing is copied")
