"""From orders to the network's plan, with the windows that were chosen."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Arena, Read
from upscale_opt.solver.network.layout import lay_out
from upscale_opt.solver.network.posing import Problem, pose
from upscale_opt.solver.network.sets import Edge, Ids
from upscale_opt.solver.network.windows import Windows, extra_wants
from upscale_opt.solver.problem.instance import Orders, satisfied


@dataclass(frozen=True)
class Plan:
    """The parts of a solution that speak of a network.

    Attributes:
        tensors: for each structured tensor that is computed, the entries that it stores.
        reads: how every read is served.
        parameters: what is kept of each parameter.
        macs: the multiply-adds of all layers, those of windows apart.
        extra_macs: those of windows.
    """

    tensors: dict[str, tuple[int, ...]]
    reads: tuple[Read, ...]
    parameters: dict[str, dict[int, tuple[int, ...]]]
    macs: int
    extra_macs: int


def lay_out_windows(
    graph: ChannelGraph,
    masks: Masks,
    problem: Problem,
    orders: Orders,
    chosen: Mapping[Edge, Ids],
) -> Plan:
    """The plan under these orders, in which some reads are windows.

    Args:
        graph: the channel graph.
        masks: which slices of each parameter are kept.
        problem: what they ask for.
        orders: of all spaces of the problem.
        chosen: the edges at which windows are read, with the channels that are not wanted there.
            Where a tensor is read as a whole, more of them if other windows make it store more.
    """
    windows = Windows(graph, problem.sets, problem.segments)
    macs = windows.total()
    asked, wider = problem, dict(chosen)
    while wider:
        chosen = wider
        problem = pose(
            graph,
            masks,
            asked.objective,
            selection=asked.segments.selection,
            cost_model=asked.cost_model,
            extra=extra_wants(windows, chosen),
            widths=asked.widths,
        )
        wider = _wider(graph, asked, problem, chosen)
        if wider == chosen:
            break
    spent = sum(len(ids) * windows.multiply_adds_at(edge) for edge, ids in chosen.items())
    held = satisfied(problem.formulation.instance, orders)
    layout = lay_out(graph, problem.sets, problem.segments, problem.formulation, orders, held)
    reads = tuple(
        read.model_copy(update={"plan": "window"})
        if read.kind == "select" and (read.op, read.operand) in chosen
        else read
        for read in layout.reads
    )
    listed = {(read.op, read.operand) for read in reads}
    reads += tuple(
        Read(tensor=name, op=edge[0], operand=edge[1], plan="window", channels=layout.tensors[name])
        for edge, name in _sources(graph, chosen).items()
        if edge not in listed and name in layout.tensors
    )  # where the whole tensor is read, its segment may go on behind the edge
    return Plan(layout.tensors, reads, layout.parameters, macs, spent)


def _wider(
    graph: ChannelGraph, asked: Problem, planned: Problem, chosen: Mapping[Edge, Ids]
) -> dict[Edge, Ids]:
    """The windows, with all that tensors read as a whole store by now: other windows' channels."""
    stored = planned.segments.stored
    wholes = {e: n for e, n in _sources(graph, chosen).items() if e in asked.formulation.wholes}
    grown = {e: stored[n] - asked.segments.selects[e] for e, n in wholes.items() if n in stored}
    return {edge: ids | grown.get(edge, Ids()) for edge, ids in chosen.items()}


def _sources(graph: ChannelGraph, edges: Collection[Edge]) -> dict[Edge, str]:
    """The tensors that lie before edges."""
    return {
        (op.name, operand): name
        for op in graph.operations
        for operand, name in enumerate(op.inputs)
        if (op.name, operand) in edges
    }


def arenas_of(problem: Problem, orders: Orders) -> tuple[Arena, ...]:
    """The arenas, in the order that their spaces, the last ones, are given."""
    arenas = problem.segments.arenas
    chosen = orders[len(orders) - len(arenas) :]
    return tuple(
        Arena(tensors=arena.cats, channels=order)
        for arena, order in zip(arenas, chosen, strict=True)
    )
