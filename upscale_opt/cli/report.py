"""``upscale-opt report``: a solution as a page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upscale_opt.cli.options import check_file
from upscale_opt.cli.progress import Steps
from upscale_opt.cli.tables import output, say
from upscale_opt.errors import SchemaError
from upscale_opt.ir.base import write_atomically
from upscale_opt.ir.choice import Choice
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution


def report(
    solution: Annotated[Path, typer.Argument(help="A solution, from `solve` or `run`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path(
        "report.html"
    ),
    graph: Annotated[
        Path | None,
        typer.Option(
            show_default="graph.json beside the solution, if it is the solution's",
            help="The graph that was solved.",
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            show_default="masks.json beside that graph.json",
            help="The masks that it was solved with.",
        ),
    ] = None,
    choice: Annotated[
        Path | None,
        typer.Option(
            show_default="choice.json beside that graph.json",
            help="The choice that a budget made: shows what each layer gave up.",
        ),
    ] = None,
    title: Annotated[
        str | None,
        typer.Option(
            show_default="the file's name, or its folder's",
            help="The page's heading; the network's name, say.",
        ),
    ] = None,
) -> None:
    """Write one HTML page that shows a solution: layers, reads, and why they copy.

    The page needs no network and no server. With the graph, all reads are drawn; with the masks,
    too, the solution is checked, and compared with the original order. Needs no PyTorch.
    """
    check_file(out)
    steps = Steps()
    with steps.step("read"):
        plan = Solution.load(solution)
        channel_graph = _graph(graph, solution.parent / "graph.json", plan)
        beside = solution.parent / "masks.json"
        if masks is None and graph is None and channel_graph is not None and beside.is_file():
            masks = beside
        if choice is None and graph is None and channel_graph is not None:
            choice = _choice(solution.parent / "choice.json", channel_graph)
        chosen = None if choice is None else Choice.load(choice)
        kept = None if masks is None else Masks.load(masks)
        if kept is not None and channel_graph is None:
            raise typer.BadParameter("--masks are of no use without the graph; give --graph, too")
    with steps.step("draw"):
        from upscale_opt.report import page

        text = page(plan, channel_graph, kept, chosen, title=title or _title(solution))
        write_atomically(out, text.encode())
    console = output()
    say(console, f"{out}: {len(text) / 1e6:.2f} MB; open it in a browser")
    if channel_graph is None:
        say(console, "made without the graph, so not all reads are drawn; give --graph and --masks")
    elif kept is None:
        say(console, "made without the masks, so the solution is not checked; give --masks")


def _graph(given: Path | None, beside: Path, plan: Solution) -> ChannelGraph | None:
    """The graph that was named, or else the one beside the solution if it is the solution's."""
    if given is not None:
        return ChannelGraph.load(given)
    if not beside.is_file():
        return None
    try:
        found = ChannelGraph.load(beside)
    except SchemaError:
        return None  # some other file
    return found if found.fingerprint == plan.graph_fingerprint else None


def _choice(beside: Path, graph: ChannelGraph) -> Path | None:
    """The choice beside the solution, if it is the graph's."""
    if not beside.is_file():
        return None
    try:
        found = Choice.load(beside)
    except SchemaError:
        return None  # some other file
    return beside if found.graph_fingerprint == graph.masks_fingerprint else None


def _title(solution: Path) -> str:
    """The user's name for the solution: ``solution.json`` says nothing, its folder may."""
    if solution.name == "solution.json":
        return solution.resolve().parent.name or solution.stem
    return solution.name.split(".")[0] or solution.stem
