"""From graph and masks to the problem: channel sets, segments, arenas, and the instance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from upscale_opt.errors import SolverError
from upscale_opt.ir.cost_model import CostModel
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.profiles import profile
from upscale_opt.ir.solution import Widths
from upscale_opt.solver.network.aligning import aligned, steps_of
from upscale_opt.solver.network.arenas import with_arenas
from upscale_opt.solver.network.blocked_prices import BlockedPricing, pricing_of
from upscale_opt.solver.network.formulate import Formulation, formulate
from upscale_opt.solver.network.objectives import OBJECTIVES
from upscale_opt.solver.network.segments import SELECTIONS, Segments, Selection, find_segments
from upscale_opt.solver.network.sets import ChannelSets, Edge, Ids
from upscale_opt.solver.network.windows import Windows


@dataclass(frozen=True)
class Problem:
    """The problem that graph and masks pose, from channel sets to the instance."""

    sets: ChannelSets
    segments: Segments
    formulation: Formulation
    objective: str
    graph: ChannelGraph
    cost_model: CostModel | None = None
    widths: Widths = "trimmed"


def pose(
    graph: ChannelGraph,
    masks: Masks,
    objective: str = "copied_channels",
    *,
    selection: Selection = "tensor",
    weights: Mapping[str, int] | None = None,
    cost_model: CostModel | None = None,
    extra: Mapping[Edge, Ids] | None = None,
    widths: Widths = "trimmed",
) -> Problem:
    """The optimisation problem that :func:`solve` would solve, and what its parts stand for.

    Args:
        graph: the channel graph.
        masks: which slices of each parameter are kept.
        objective: what to minimise.
        selection: where channels are selected.
        weights: factors for the cost of some reads.
        cost_model: what kernels cost, for the objective ``"latency"``; a CPU's by default.
        extra: channels that layers shall read although nothing needs them.
        widths: of tensors and reads, if the cost model is of another runtime than eager PyTorch.

    Raises:
        SolverError: for an unknown objective or selection, or weights that name no read.
        MaskError: if the masks do not fit the graph.
    """
    if objective not in OBJECTIVES:
        raise SolverError(f"unknown objective {objective!r}; there are {', '.join(OBJECTIVES)}")
    if selection not in SELECTIONS:
        raise SolverError(f"unknown selection {selection!r}; there are {', '.join(SELECTIONS)}")
    Masks.require(masks)
    masks.check(graph)
    if widths != "trimmed" and cost_model is not None:
        sets, segments = aligned(graph, masks, selection, steps_of(widths, cost_model), extra)
    else:
        sets, segments = find_segments(graph, masks, selection, extra)
    if selection == "arena":
        segments = with_arenas(graph, sets, segments)
    if objective != "latency":
        formulation = formulate(graph, sets, segments, objective, weights)
        return Problem(sets, segments, formulation, objective, graph)
    cost_model = profile("cpu") if cost_model is None else cost_model
    pricing = pricing_of(graph, cost_model)
    formulation = formulate(graph, sets, segments, objective, weights, pricing)
    windows = Windows(graph, sets, segments)
    if isinstance(pricing, BlockedPricing):
        formulation = pricing.offer(formulation, segments, windows)
        return Problem(sets, segments, formulation, objective, graph, cost_model, widths)
    instance = windows.offer(formulation, lambda edge, chain: pricing.window(windows, edge, chain))
    formulation = replace(formulation, instance=instance)
    return Problem(sets, segments, formulation, objective, graph, cost_model, widths)
