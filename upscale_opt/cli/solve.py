"""``upscale-opt solve``: from JSON to JSON, without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upscale_opt.cli.options import (
    CostModelOption,
    MaxExtraMacs,
    ModelOption,
    Objective,
    Seed,
    SolverName,
    TimeLimit,
    Weights,
    Workers,
    check_file,
    cost_model_of,
    weights_of,
)
from upscale_opt.cli.progress import Steps, solver_progress
from upscale_opt.cli.tables import layout_lines, output, say, summary
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.solver.api import solve as find_orders


def solve(
    graph: Annotated[Path, typer.Argument(help="A graph, from `trace`.")],
    masks: Annotated[Path, typer.Argument(help="Masks for it, from `trace --masks`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the solution goes.")] = Path(
        "solution.json"
    ),
    solver: SolverName = "cp-sat",
    objective: Objective = "copied_channels",
    model: ModelOption = None,
    max_extra_macs: MaxExtraMacs = 0.0,
    cost_model: CostModelOption = None,
    weight: Weights = None,
    time_limit: TimeLimit = 60.0,
    seed: Seed = 0,
    workers: Workers = 1,
) -> None:
    """Find the channel orders that copy least, or cost least time. Ctrl-C stops with the best.

    Reads and writes JSON, and does not need PyTorch.
    """
    weights = weights_of(weight)
    prices = cost_model_of(cost_model, objective, max_extra_macs)
    check_file(out)
    steps = Steps()
    with steps.step("read"):
        channel_graph, kept = ChannelGraph.load(graph), Masks.load(masks)
    with steps.step("solve") as tell:
        solution = find_orders(
            channel_graph,
            kept,
            solver,
            objective,
            time_limit,
            model=None if model is None else model.value,
            weights=weights,
            max_extra_macs=max_extra_macs,
            cost_model=prices,
            seed=seed,
            workers=workers,
            progress=solver_progress(tell, objective),
        )
    solution.save(out)
    console = output()
    for line in (summary(solution), *layout_lines(solution)):
        say(console, line)
    if solver == "cp-sat" and solution.status != "optimal":
        say(console, _why_open(solution, steps.seconds["solve"]))
    say(console, f"{out}: {solution.status}, {steps.seconds['solve']:.2f} s")


def _why_open(solution: Solution, seconds: float) -> str:
    """Why it is not proven to be optimal, and what may help."""
    if solution.max_extra_macs or solution.objective == "latency":
        return (
            "the lower bound is a relaxation's: with windows, the optimum is proven for small "
            "problems only"
        )
    return (
        f"stopped after {seconds:.1f} s before the proof was complete; "
        "a larger --time-limit or more --workers may close the gap"
    )
