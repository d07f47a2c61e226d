"""The sizes of a network's layers, before and after: widths, numbers, time, loss, copies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from upscale_opt.errors import VerificationError
from upscale_opt.ir.choice import Choice
from upscale_opt.ir.cost_model import CostModel
from upscale_opt.ir.graph import (
    Attention,
    ChannelGraph,
    ChannelWise,
    Layer,
    Opaque,
    Operation,
    parameters_of,
)
from upscale_opt.ir.profiles import profile
from upscale_opt.ir.solution import Solution
from upscale_opt.solver.layer_table import LayerRow, LayerTable, Size, total_of
from upscale_opt.solver.network.blocked_prices import pricing_of
from upscale_opt.solver.selection.rates import WRITTEN, Rates

_BUFFERS = (".running_mean", ".running_var")
"""The endings of the names of buffers that graphs list among the parameters."""

REST = "everything else"
"""The name of the row of norms, activations, pooling, sums, and whatever is no layer."""


def layers_of(
    graph: ChannelGraph,
    solution: Solution | None = None,
    choice: Choice | None = None,
    *,
    cost_model: CostModel | None = None,
) -> LayerTable:
    """A table of a network's layers; as a solution leaves them, if one is given. Needs no PyTorch.

    Layers are convolutions, linear layers, attention, and what is opaque; all else is in the last
    row.

    Args:
        graph: the channel graph.
        solution: what it was pruned by.
        choice: what chose the masks, if a budget did.
        cost_model: prices, for the times.

    Raises:
        SchemaError: if ``graph`` is no graph.
        VerificationError: if the solution is another graph's.
        SolverError: if the cost model lacks a kind of kernel.
    """
    ChannelGraph.require(graph)
    if solution is not None and solution.graph_fingerprint != graph.fingerprint:
        raise VerificationError("the solution was made for another graph; give its own")
    old = _Sizes(graph, None, cost_model)
    new = None if solution is None else _Sizes(graph, solution, cost_model)
    losses: dict[str, float] = {}
    for layer in () if choice is None else choice.layers:
        losses[layer.operation] = losses.get(layer.operation, 0.0) + layer.loss
    rows: list[LayerRow] = []
    rest: list[LayerRow] = []
    for op in graph.operations:
        if op.kind in ("input", "output"):
            continue
        kind = _kind(graph, op)
        row = LayerRow(
            _name(graph, op),
            op.name,
            kind,
            old.of[op.name],
            None if new is None else new.of[op.name],
            0 if new is None else new.copied.get(op.name, 0),
            losses.get(op.name),
        )
        (rows if kind else rest).append(row)
    if rest:
        after = [row.after for row in rest if row.after is not None]
        other = LayerRow(
            REST,
            "",
            "",
            total_of(row.before for row in rest),
            total_of(after) if after else None,
            sum(row.copied for row in rest),
        )
        rows.append(other)
    return LayerTable(tuple(rows), "" if cost_model is None else cost_model.device_name)


def prices_of(solution: Solution | None = None, choice: Choice | None = None) -> CostModel:
    """The cost model that a choice or a solution was made by; else the built-in one of a CPU."""
    found = None if choice is None else choice.budget.prices
    if found is None and solution is not None:
        found = solution.cost_model
    return profile("cpu") if found is None else found


class _Sizes:
    """The sizes of all operations, as a solution leaves them.

    Attributes:
        of: by operation; zeros where nothing is left.
        copied: channels gathered, by the operation that they are for.
    """

    def __init__(
        self, graph: ChannelGraph, solution: Solution | None, cost_model: CostModel | None
    ) -> None:
        self._graph = graph
        self._solution = solution
        self._operations = {op.name: op for op in graph.operations}
        self._readers: dict[str, list[Operation]] = {}
        for op in graph.operations:
            for name in op.inputs:
                self._readers.setdefault(name, []).append(op)
        self._taken: dict[tuple[str, int], int] = {}
        self.copied: dict[str, int] = {}
        kept: Mapping[str, Mapping[int, Sequence[int]]] = {}
        if solution is not None:
            kept = solution.parameters
            for read in solution.reads:
                if read.kind == "select":
                    self._taken[read.op, read.operand] = len(read.channels)
                if read.copied:
                    reader = self._for(read.op)
                    self.copied[reader] = self.copied.get(reader, 0) + read.copied
        self._shapes = {
            name: _left(shape, kept.get(name, {}), graph.grouped.get(name, 1))
            for name, shape in graph.parameters.items()
        }
        rates = None if cost_model is None else Rates(graph, cost_model)
        copying = self._copying(cost_model)
        self.of: dict[str, Size] = {}
        seen: set[str] = set()
        for op in graph.operations:
            if not self._runs(op):
                self.of[op.name] = Size(0, 0)
                continue
            names = [n for n in parameters_of(op) if n not in seen and not n.endswith(_BUFFERS)]
            seen.update(names)
            self.of[op.name] = Size(
                sum(math.prod(self._shapes[name]) for name in dict.fromkeys(names)),
                self._multiply_adds(op),
                copying.get(op.name, 0.0) + (0.0 if rates is None else self._time(op, rates)),
                self._width(op, 0) if op.inputs else 0,
                self._width(op, WRITTEN) if op.outputs else 0,
            )

    def _copying(self, cost_model: CostModel | None) -> dict[str, float]:
        """The nanoseconds of gathers, by the operation that they are for."""
        found: dict[str, float] = {}
        if self._solution is None or cost_model is None:
            return found
        pricing = pricing_of(self._graph, cost_model)
        for read in self._solution.reads:
            if read.copied:
                cost = pricing.gather((read.op, read.operand), read.tensor, read.copied)
                reader = self._for(read.op)
                found[reader] = found.get(reader, 0.0) + cost
        return found

    def _for(self, name: str) -> str:
        """The layer that a gather in front of an operation is made for, or the operation.

        Norms and activations behind it hand its channels on.
        """
        op = self._operations[name]
        while isinstance(op, ChannelWise) and not _kind(self._graph, op):
            following = self._readers.get(op.outputs[0], ())
            if len(following) != 1:
                return name
            op = following[0]
        return op.name if _kind(self._graph, op) else name

    def _time(self, op: Operation, rates: Rates) -> float:
        total = 0.0
        for rate in rates.of[op.name]:
            first, second = (1 if s is None else self._width(op, s) for s in rate.sides)
            total += rate.time(first, second)
        return total

    def _width(self, op: Operation, side: int) -> int:
        """The channels that an operation reads from an input, or writes; 1 if it has none."""
        name = op.outputs[0] if side == WRITTEN else op.inputs[side]
        if side != WRITTEN and (op.name, side) in self._taken:
            return self._taken[op.name, side]
        channels = self._graph.tensors[name].channels
        if not channels:
            return 1
        return len(channels if self._solution is None else self._solution.tensors.get(name, ()))

    def _runs(self, op: Operation) -> bool:
        """Tell whether anything of the operation is left."""
        structured = [name for name in op.outputs if self._graph.tensors[name].channels]
        left = self._solution
        return left is None or not structured or any(name in left.tensors for name in structured)

    def _multiply_adds(self, op: Operation) -> int:
        """Every number of a layer's weight, or of a filter per channel, is used once per place."""
        if isinstance(op, Layer) and op.inputs:
            weight = self._graph.parameters[op.weight]
            transposed = op.in_axis == 0 and len(weight) > 2
            places = self._places(op.inputs[0] if transposed else op.outputs[0])
            return math.prod(self._shapes[op.weight]) * places
        if isinstance(op, ChannelWise):
            filters = _filters(self._graph, op)
            places = self._places(op.outputs[0]) if filters else 0
            return sum(math.prod(self._shapes[name]) * places for name in filters)
        return 0

    def _places(self, name: str) -> int:
        """The number of elements of the tensor that belong to one channel (or feature of it)."""
        tensor = self._graph.tensors[name]
        return math.prod(tensor.shape) // (len(tensor.channels) * tensor.features)


def _left(shape: Sequence[int], kept: Mapping[int, Sequence[int]], groups: int) -> tuple[int, ...]:
    """The shape of what is left of a parameter."""
    left = list(shape)
    for axis, indices in kept.items():
        left[axis] = len(indices)
        if groups > 1 and axis == 1:  # channels of all groups that are left
            left[axis] //= max(len({index // shape[1] for index in indices}), 1)
    return tuple(left)


def _filters(graph: ChannelGraph, op: ChannelWise) -> list[str]:
    """Parameters with many numbers per channel: a depthwise convolution's weight."""
    return [
        use.name
        for use in op.parameters
        if math.prod(graph.parameters[use.name]) > graph.parameters[use.name][use.axis]
    ]


def _kind(graph: ChannelGraph, op: Operation) -> str:
    """The computation of a layer in two words; nothing for what is none."""
    if isinstance(op, Opaque):
        return "opaque"
    if isinstance(op, Attention):
        return "attention"
    if isinstance(op, Layer) and op.inputs:
        shape = graph.parameters[op.weight]
        if len(shape) == 2:
            return "linear"
        what = "transposed conv" if op.in_axis == 0 else "conv"
        return " ".join(["grouped"] * (op.groups > 1) + [what, "x".join(map(str, shape[2:]))])
    if isinstance(op, ChannelWise):
        for name in _filters(graph, op):
            return f"depthwise {'x'.join(map(str, graph.parameters[name][2:]))}"
    return ""


def _name(graph: ChannelGraph, op: Operation) -> str:
    """The module's name, by that of its weight."""
    names = parameters_of(op) if isinstance(op, (Layer, ChannelWise)) else ()
    return names[0].rpartition(".")[0] or op.name if names else op.name
