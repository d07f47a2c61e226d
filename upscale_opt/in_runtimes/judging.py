"""Is a file worth deploying: an export beside the network it was made of, where it will run."""

from __future__ import annotations

from torch import nn

from upscale_opt.errors import UpscaleError
from upscale_opt.in_runtimes.backends import BACKENDS
from upscale_opt.in_runtimes.timing import SLOWER, beside
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.materializing.materialize import materialize
from upscale_opt.solver.api import solve
from upscale_opt.tracing.examples import Inputs


def runtime_for(solution: Solution) -> str:
    """The program that an export's file is judged in: its plan's, or else onnxruntime."""
    model = solution.cost_model
    return "onnxruntime" if model is None or model.runtime not in BACKENDS else model.runtime


def judge(
    masked: nn.Module,
    pruned: nn.Module,
    graph: ChannelGraph,
    masks: Masks,
    solution: Solution,
    inputs: Inputs,
    *,
    seconds: float = 2.0,
) -> str:
    """Time an export as a file, on one thread, beside the network with all of its channels.

    It is where :func:`runtime_for` says. If the export is slower, and its plan was not made for
    that program, the plan that is gets timed, too.

    Args:
        masked: the network that the export computes the same as.
        pruned: the export.
        graph: the network's channel graph.
        masks: its masks.
        solution: the export's plan.
        inputs: example inputs.
        seconds: the time for each comparison, about.

    Returns:
        a sentence with the ratio, and if the export is slower, what is not; or why it was not
        timed.
    """
    models = {"the unpruned network": masked, "the export": pruned}
    runtime = runtime_for(solution)
    own = solution.cost_model is not None and solution.cost_model.runtime == runtime
    try:
        found = beside(models, inputs, runtime=runtime, seconds=seconds)
        if found.ratio("the export", "the unpruned network") > SLOWER and not own:
            other = solve(graph, masks, objective="latency", cost_model=runtime, time_limit=20)
            name = f"the plan of objective latency and cost model {runtime}"
            both = {**models, name: materialize(masked, other)}
            found = beside(both, inputs, runtime=runtime, seconds=seconds)
    except UpscaleError as error:
        return f"not timed in {runtime}: {error}"
    return f"on one thread, {found.verdict('the export', 'the unpruned network')}"
