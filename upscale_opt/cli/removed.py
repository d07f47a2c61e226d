"""``upscale-opt removed``: what of the masks' zeros leaves the network, and why the rest stays."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from upscale_opt.cli.progress import Steps
from upscale_opt.cli.tables import output, say
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.solver.checking.removal import (
    ParameterRemoval,
    Removal,
    Stays,
    removal,
)

_ROWS = 20


def removed(
    graph: Annotated[Path, typer.Argument(help="The graph.")],
    masks: Annotated[Path, typer.Argument(help="The masks.")],
    solution: Annotated[Path, typer.Argument(help="The solution that was found for them.")],
    parameter: Annotated[
        str | None, typer.Argument(help="One parameter only, by its name in the state dict.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write the whole report to this JSON file.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help=f"List all that stays, not the {_ROWS} largest parts.")
    ] = False,
) -> None:
    """Say what of the masks' zeros is removed, and which operation keeps the rest.

    A slice of a weight can be zero and yet have to stay: where a bias makes it a constant, where an
    operation takes all channels, where another summand is not zero. Needs no PyTorch.
    """
    steps = Steps()
    with steps.step("read"):
        channel_graph, kept = ChannelGraph.load(graph), Masks.load(masks)
        found = Solution.load(solution)
    with steps.step("follow channels"):
        report = removal(channel_graph, kept, found)
    if json is not None:
        report.save(json)
    parts = _parts(report, parameter)
    console = output()
    say(console, str(report))
    shown = parts if everything else parts[:_ROWS]
    if shown:
        console.print(_table(shown))
    if len(shown) < len(parts):
        say(console, f"and {len(parts) - len(shown):,} smaller parts; --all lists them")


_Part = tuple[ParameterRemoval, int, Stays]
"""A part of a parameter along an axis that stays for one reason."""


def _parts(report: Removal, parameter: str | None) -> list[_Part]:
    """The largest first."""
    names = [one.name for one in report.parameters]
    if parameter is not None and parameter not in names:
        raise typer.BadParameter(f"the graph names no parameter {parameter!r}")
    parts = [
        (one, axis.axis, stays)
        for one in report.parameters
        if parameter in (None, one.name)
        for axis in one.axes
        for stays in axis.left
    ]
    return sorted(parts, key=lambda part: -part[2].weights)


def _table(parts: list[_Part]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("zero, but stays")
    table.add_column("axis", justify="right")
    table.add_column("slices", justify="right")
    table.add_column("weights", justify="right")
    table.add_column("because", overflow="fold")
    for parameter, axis, stays in parts:
        table.add_row(
            parameter.name, str(axis), f"{len(stays.slices):,}", f"{stays.weights:,}", str(stays)
        )
    return table
