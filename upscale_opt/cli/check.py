"""``upscale-opt check``: a solution and its proof, checked without a solver."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upscale_opt.cli.progress import Steps
from upscale_opt.cli.tables import output, say
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.solver.checking import audit
from upscale_opt.solver.network.objectives import UNITS


def check(
    graph: Annotated[Path, typer.Argument(help="The graph.")],
    masks: Annotated[Path, typer.Argument(help="The masks.")],
    solution: Annotated[Path, typer.Argument(help="The solution that was found for them.")],
) -> None:
    """Check a solution, and the proof that it is optimal, without a solver and without PyTorch.

    The plan must be sound and lose nothing, the orders cost what is said, and every conflict be
    one. Whether the lower bound follows from the conflicts alone is printed; anything false is an
    error.
    """
    steps = Steps()
    with steps.step("read"):
        channel_graph, kept = ChannelGraph.load(graph), Masks.load(masks)
        found = Solution.load(solution)
    with steps.step("check"):
        report = audit.check(found, channel_graph, kept)
    console = output()
    say(console, f"{solution}: the plan is sound, and loses nothing")
    say(console, f"{UNITS[found.objective]}: {report}")
