"""``upscale-opt solve``: from JSON to JSON, without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upscale_opt.cli.options import check_file, solving
from upscale_opt.cli.progress import Steps, solver_progress
from upscale_opt.cli.tables import layout_lines, output, say, summary
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.solver.api import solve as find_orders
from upscale_opt.solver.options import SolveOptions


@solving()
def solve(
    graph: Annotated[Path, typer.Argument(help="A graph, from `trace`.")],
    masks: Annotated[Path, typer.Argument(help="Masks for it, from `trace --masks`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the solution goes.")] = Path(
        "solution.json"
    ),
    *,
    options: SolveOptions,
) -> None:
    """Find the channel orders that copy least, or cost least time. Ctrl-C stops with the best.

    Reads and writes JSON, and does not need PyTorch.
    """
    check_file(out)
    steps = Steps()
    with steps.step("read"):
        channel_graph, kept = ChannelGraph.load(graph), Masks.load(masks)
    with steps.step("solve") as tell:
        told = solver_progress(tell, options.objective)
        solution = find_orders(channel_graph, kept, options=options, progress=told)
    solution.save(out)
    console = output()
    for line in (summary(solution), *layout_lines(solution)):
        say(console, line)
    if options.solver == "cp-sat" and solution.status != "optimal":
        say(console, _why_open(solution, steps.seconds["solve"]))
    say(console, f"{out}: {solution.status}, {steps.seconds['solve']:.2f} s")


def _why_open(solution: Solution, seconds: float) -> str:
    """Say why it is not proven to be optimal, and what may help."""
    if solution.max_extra_macs or solution.objective == "latency":
        return (
            "the lower bound is a relaxation's: with windows, the optimum is proven for small "
            "problems only"
        )
    return (
        f"stopped after {seconds:.1f} s before the proof was complete; "
        "a larger --time-limit or more --workers may close the gap"
    )
