"""``upscale-opt explain``: why a read is a gather or a window, or a layer keeps what it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from upscale_opt.cli.choices import explain_choice
from upscale_opt.cli.tables import extra_work, output, say
from upscale_opt.ir.choice import Choice
from upscale_opt.ir.solution import Solution
from upscale_opt.solver.checking import explaining


def explain(
    solution: Annotated[
        Path,
        typer.Argument(help="A solution, from `solve` or `run`; or a choice, from `prune`."),
    ],
    read: Annotated[
        str | None,
        typer.Argument(
            help="One read only: OPERATION, OPERATION[OPERAND] or TENSOR -> OPERATION. "
            "Of a choice: a layer."
        ),
    ] = None,
    graph: Annotated[
        Path | None, typer.Option(help="Of a choice: its graph, if not beside it.")
    ] = None,
    losses: Annotated[
        Path | None, typer.Option(help="Of a choice: its losses, if not beside it.")
    ] = None,
) -> None:
    """Say for every gather, or for READ, why it is not a view; and what windows read in vain.

    It names the reads that cannot all be views, and the channels that show it. Needs the solution
    only, and no PyTorch. Of a choice (choice.json) it says why a layer keeps as many channels as it
    does.
    """
    if _is_choice(solution):
        explain_choice(Choice.load(solution), solution, read, graph, losses)
        return
    if graph is not None or losses is not None:
        raise typer.BadParameter("--graph and --losses are for a choice")
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


def _is_choice(path: Path) -> bool:
    """The file looks like a choice; whatever else is wrong with it, reading it will say."""
    try:
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(fields, dict) and "budget" in fields
