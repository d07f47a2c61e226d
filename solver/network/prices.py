"""Prices of reads on the clock, by a cost model: the objective ``"latency"``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from upscale_opt.errors import SolverError
from upscale_opt.ir.cost_model import CostModel, KernelCost
from upscale_opt.ir.graph import ChannelGraph, ChannelWise, Concat, Layer, Operation, Tensor
from upscale_opt.ir.solution import Arena, Solution
from upscale_opt.solver.network.objectives import bytes_per_channel, bytes_per_number
from upscale_opt.solver.network.segments import Segments
from upscale_opt.solver.network.sets import ChannelSets, Edge
from upscale_opt.solver.network.windows import Chain, Windows

_LONGEST = 1e12
"""Nanoseconds that no read takes; solvers count in whole numbers that are not endless."""


class Pricing:
    """Nanoseconds of gathers and windows beyond what a view costs.

    Args:
        graph: the channel graph, in the sizes that matter (its batch above all).
        cost_model: of the device.

    Its methods raise :class:`SolverError` if the cost model lacks a kind of kernel that the
    network has, or a price beyond all measure.
    """

    def __init__(self, graph: ChannelGraph, cost_model: CostModel) -> None:
        self._graph = graph
        self._model = cost_model
        self._operations = {op.name: op for op in graph.operations}

    def gather(self, edge: Edge, tensor: str, count: int) -> int:
        """The cost of gathering ``count`` channels of ``tensor`` beyond that of viewing them."""
        structure = self._graph.tensors[tensor]
        moved = 2 * count * bytes_per_channel(structure)
        gathered = self._model.nanoseconds("gather", bytes=moved)
        op = self._operations[edge[0]]
        viewed = 0.0
        if self._compacts(op, structure):
            viewed = self._model.nanoseconds("copy", bytes=moved)
        return max(round(self._sane(gathered) - self._sane(viewed)), 0)

    def window(self, windows: Windows, edge: Edge, chain: Chain) -> int:
        """The cost of each channel that a window reads in vain."""
        op = self._operations[edge[0]]
        source = self._graph.tensors[op.inputs[edge[1]]]
        cost = 0.0
        if self._compacts(op, source):
            cost += 2 * bytes_per_channel(source) * self._kernel("copy").ns_per_byte
        for step in chain.between:
            written = self._graph.tensors[step.outputs[0]]
            kind = kind_between(step)
            cost += 2 * bytes_per_channel(written) * self._kernel(kind).ns_per_byte
        for layer in chain.layers:
            kernel = self._kernel(self._kind(layer))
            read = self._graph.tensors[layer.inputs[0]]
            cost += windows.of_layer(layer) * kernel.ns_per_mac
            written = self._graph.tensors[layer.outputs[0]]
            weights = windows.weights(layer) * bytes_per_number(written)
            cost += (bytes_per_channel(read) + weights) * kernel.ns_per_byte
        return math.ceil(self._sane(cost))

    def of_views(self, sets: ChannelSets, segments: Segments) -> float:
        """The cost of copying, in front of operations that cannot read them so, views of a part.

        It is what :meth:`gather` leaves out, and the same for all orders.
        """
        cost = 0.0
        for (name, operand), ids in segments.selects.items():
            op = self._operations[name]
            tensor = op.inputs[operand]
            structure, stored = self._graph.tensors[tensor], segments.stored.get(tensor)
            if stored is not None and ids != stored and self._compacts(op, structure):
                cost += self._copy(tensor, sum(map(ids.__contains__, structure.channels)))
        return self._sane(cost)

    def of_plan(self, solution: Solution) -> int:
        """The cost of all moving of data in a solution for latency, windows included.

        The objective tells orders of one selection apart; it leaves out what is the same for all of
        them: joining tensors, and copying views that an operation cannot read as they are. With
        these, solutions with arenas can be compared with solutions without.
        """
        tensors = solution.tensors
        shared = {name for arena in solution.arenas for name in arena.tensors}
        cost = float(solution.objective_value)
        for arena in solution.arenas:
            cost += self._written(arena, tensors)
        for op in self._graph.operations:
            if (
                isinstance(op, Concat)
                and op.outputs[0] not in shared
                and tensors.get(op.outputs[0])
            ):
                cost += self._copy(op.outputs[0], len(tensors[op.outputs[0]]))
        for read in solution.reads:
            op, structure = self._operations[read.op], self._graph.tensors[read.tensor]
            partial = read.tensor in shared or read.channels != tensors[read.tensor]
            if read.kind == "select" and partial and self._compacts(op, structure):
                cost += self._copy(read.tensor, len(read.channels))
        return round(self._sane(cost))

    def _written(self, arena: Arena, tensors: Mapping[str, Sequence[int]]) -> float:
        """The cost of writing all tensors into their arena, a copy for each run of channels."""
        place = {channel: number for number, channel in enumerate(arena.channels)}
        cost, written = 0.0, set(arena.tensors)
        for op in self._graph.operations:
            if not isinstance(op, Concat) or op.outputs[0] not in arena.tensors:
                continue
            for name in op.inputs:
                if name in written or not tensors.get(name):
                    continue
                written.add(name)
                channels = self._graph.tensors[name].channels
                places = sorted(place[channels[entry]] for entry in tensors[name])
                runs = 1 + sum(b != a + 1 for a, b in pairwise(places))
                cost += self._copy(name, len(places)) + (runs - 1) * self._kernel("copy").launch
        return cost

    def _copy(self, tensor: str, count: int) -> float:
        moved = 2 * count * bytes_per_channel(self._graph.tensors[tensor])
        return self._model.nanoseconds("copy", bytes=moved)

    def _kernel(self, kind: str) -> KernelCost:
        self._model.nanoseconds(kind)  # which complains of kinds that it does not know
        return self._model.kernels[kind]

    def _sane(self, nanoseconds: float) -> float:
        if not nanoseconds < _LONGEST:
            raise SolverError(
                f"by the cost model of {self._model.device_name}, one read takes {nanoseconds:g} "
                f"nanoseconds, more than {_LONGEST:g}; its prices cannot be right"
            )
        return nanoseconds

    def _compacts(self, op: Operation, tensor: Tensor) -> bool:
        """A view of the tensor is copied in front of the operation."""
        strict = isinstance(op, Layer) or (isinstance(op, ChannelWise) and bool(op.parameters))
        if not strict or tensor.axis != 1 or len(tensor.shape) not in (4, 5):
            return False
        return self._model.memory_format == "channels_last" or tensor.shape[0] > 1

    def _kind(self, layer: Layer) -> str:
        shape = self._graph.parameters[layer.weight]
        if len(shape) == 2:
            return "linear"
        if layer.in_axis == 0:
            return "transposed"
        return "conv1x1" if math.prod(shape[2:]) == 1 else "conv"


def kind_between(step: ChannelWise | Concat) -> str:
    """The kind of kernel of what lies between a selection and the layers that want it."""
    if isinstance(step, Concat):
        return "copy"
    return "norm" if step.parameters else "elementwise"
