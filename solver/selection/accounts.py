"""Resources that masks leave a network with, exactly as the layout will use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from upscale_opt.ir.budget import Resource
from upscale_opt.ir.graph import ChannelGraph, Layer, Operation
from upscale_opt.solver.network.segments import Segments
from upscale_opt.solver.network.sets import ChannelSets
from upscale_opt.solver.network.windows import Windows
from upscale_opt.solver.selection.rates import WRITTEN, Rates, Side, entries


@dataclass(frozen=True)
class Account:
    """The resources that masks leave, all copies free.

    Attributes:
        macs: as :func:`upscale_opt.solve` counts them for the same masks.
        parameters: numbers in the parameters that the graph names.
        latency: nanoseconds by the cost model; 0 without one.
        read: for each layer, the entries that it reads.
        written: for each structured tensor, the entries that it stores.
    """

    macs: int
    parameters: int
    latency: float
    read: dict[str, int]
    written: dict[str, int]

    def of(self, resource: Resource) -> float:
        """The amount of one resource."""
        amounts: Mapping[Resource, float] = {
            "macs": self.macs,
            "parameters": self.parameters,
            "latency": self.latency,
        }
        return amounts[resource]


def account(graph: ChannelGraph, sets: ChannelSets, segments: Segments, rates: Rates) -> Account:
    """Count the resources that masks leave.

    Args:
        graph: the channel graph.
        sets: what the masks let be needed.
        segments: where channels are selected, then.
        rates: of the graph.
    """
    macs = Windows(graph, sets, segments).total()
    written = {
        name: entries(graph.tensors[name], stored) for name, stored in segments.stored.items()
    }
    read: dict[str, int] = {}
    parameters, latency = 0, 0.0

    def width(op: Operation, side: Side) -> int:
        if side is None:
            return 1
        name = op.outputs[0] if side == WRITTEN else op.inputs[side]
        if side != WRITTEN and (op.name, side) in segments.selects:
            return entries(graph.tensors[name], segments.selects[op.name, side])
        return written.get(name, 1)

    for op in graph.operations:
        if op.name not in sets.live or (op.outputs and written.get(op.outputs[0], 1) == 0):
            continue
        for rate in rates.of[op.name]:
            first, second = (width(op, side) for side in rate.sides)
            parameters += rate.parameters * first * second // rate.groups
            latency += rate.time(first, second)
        if isinstance(op, Layer) and op.inputs:
            read[op.name] = width(op, 0)
    return Account(macs, parameters, latency, read, written)
