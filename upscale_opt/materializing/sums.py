"""Sums in a pruned program of which some summands have only some of the channels."""

from __future__ import annotations

from torch import fx

from upscale_opt.ir import graph as ir
from upscale_opt.materializing.state import Reading
from upscale_opt.runtime.modules import PlacedSum, Placement


class Sums:
    """Writes sums.

    Args:
        reading: the program that they belong to.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def concerns(self, op: ir.Elementwise) -> bool:
        """Whether an operation is a sum of which summands lack channels, or are gone."""
        return op.additive and any(
            name not in self._reading.solution.tensors
            or (op.name, operand) in self._reading.places
            or self._skipped(op, operand)
            for operand, name in enumerate(op.inputs)
        )

    def _skipped(self, op: ir.Elementwise, operand: int) -> bool:
        read = self._reading.selects.get((op.name, operand))
        return read is not None and not read.channels

    def emit(self, node: fx.Node, op: ir.Elementwise) -> fx.Node:
        """A sum in which operands are placed into some of the channels, or left out."""
        reading = self._reading
        result = reading.graph.tensors[op.outputs[0]]
        layout = reading.solution.tensors[op.outputs[0]]
        place_of = {entry: i for i, entry in enumerate(layout)}
        values: list[fx.Node] = []
        placements: list[Placement] = []
        for operand, name in enumerate(op.inputs):
            if name not in reading.solution.tensors or self._skipped(op, operand):
                continue
            value = reading.node_of(node, name)
            select = reading.selects.get((op.name, operand))
            values.append(value if select is None else reading.select(value, select))
            place = reading.places.get((op.name, operand))
            if place is None or place.channels == layout:
                placements.append(None)
                continue
            at = [place_of[entry] for entry in place.channels]
            f = result.features
            if place.plan == "view":
                placements.append((at[0] * f, len(at) * f))
            else:
                placements.append([i * f + k for i in at for k in range(f)])
        if len(values) == 1 and placements[0] is None:
            return values[0]
        assert result.axis is not None
        size, rank = len(layout) * result.features, len(result.shape)
        module = PlacedSum(placements, size, result.axis, rank, reading.device)
        target = reading.unused(f"sum_{node.name}")
        reading.root.add_module(target, module)
        return reading.new.create_node("call_module", target, tuple(values), name=node.name)
