"""Is a file worth deploying: an export in onnxruntime beside the network that it was made of."""

from __future__ import annotations

from torch import nn

from upscale_opt.errors import UpscaleError
from upscale_opt.in_onnxruntime.timing import SLOWER, beside
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.materializing.materialize import materialize
from upscale_opt.solver.api import solve
from upscale_opt.tracing.examples import Inputs

RUNTIME = "onnxruntime"
"""The name of the built-in prices, too."""


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
    """Time an export in onnxruntime, on one thread, beside the network with all of its channels.

    If it is slower, and its plan was not made for onnxruntime, the plan that is gets timed, too.

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
    own = solution.cost_model is not None and solution.cost_model.runtime == RUNTIME
    try:
        found = beside(models, inputs, seconds=seconds)
        if found.ratio("the export", "the unpruned network") > SLOWER and not own:
            other = solve(graph, masks, objective="latency", cost_model=RUNTIME, time_limit=20)
            name = f"the plan of objective latency and cost model {RUNTIME}"
            found = beside({**models, name: materialize(masked, other)}, inputs, seconds=seconds)
    except UpscaleError as error:
        return f"not timed in onnxruntime: {error}"
    return f"on one thread, {found.verdict('the export', 'the unpruned network')}"
