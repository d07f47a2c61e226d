"""A network layer by layer, before and after: widths, sizes, estimated time, loss, copies."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

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
from upscale_opt.solver.network.prices import Pricing
from upscale_opt.solver.selection.rates import WRITTEN, Rates

_BUFFERS = (".running_mean", ".running_var")
"""The endings of the names of buffers that graphs list among the parameters."""

REST = "everything else"
"""The name of the row of norms, activations, pooling, sums, and whatever is no layer."""


@dataclass(frozen=True)
class Size:
    """The size of a layer, or of a network.

    Attributes:
        parameters: the numbers in the parameters that the graph knows; buffers do not count, and
            shared ones count where they are used first.
        multiply_adds: of the convolutions and linear layers, with the example's sizes; not those
            of attention, and of what the graph calls opaque.
        nanoseconds: by a cost model, gathers included; 0 without one.
        reads: the channels read; 0 of a network.
        writes: the channels written.
    """

    parameters: int
    multiply_adds: int
    nanoseconds: float = 0.0
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True)
class LayerRow:
    """One layer.

    Attributes:
        name: its module's, or the operation's if it has none.
        operation: its name in the graph; ``""`` for the row of everything else.
        kind: what it computes, such as ``"conv 3x3"``.
        before: its size in the unpruned network.
        after: what is left of it; zeros if it is gone, ``None`` without a solution.
        copied: the channels that are gathered for it.
        loss: what the choice gave up there; ``None`` if it did not choose this layer's channels.
    """

    name: str
    operation: str
    kind: str
    before: Size
    after: Size | None = None
    copied: int = 0
    loss: float | None = None


@dataclass(frozen=True)
class LayerTable:
    """A network layer by layer; ``print`` shows it, and so do notebooks.

    Attributes:
        rows: its layers, in the order of execution, then a row of everything else.
        device: whose cost model the times are by; ``""`` if there are none.
    """

    rows: tuple[LayerRow, ...]
    device: str = ""

    @cached_property
    def before(self) -> Size:
        """The size of the unpruned network."""
        return _sum(row.before for row in self.rows)

    @cached_property
    def after(self) -> Size | None:
        """The size of the pruned network; ``None`` without a solution."""
        after = [row.after for row in self.rows if row.after is not None]
        return _sum(after) if after else None

    @property
    def loss(self) -> float | None:
        """The sum of the layers' losses; ``None`` if nothing was chosen."""
        known = [row.loss for row in self.rows if row.loss is not None]
        return sum(known) if known else None

    @property
    def copied(self) -> int:
        """The channels that are gathered, all together."""
        return sum(row.copied for row in self.rows)

    @property
    def columns(self) -> tuple[str, ...]:
        """The titles: a layer's name and kind, then what there is to say of each."""
        found = ["layer", "kind", "reads", "writes", "parameters", "multiply-adds"]
        if self.device:
            found.append("ms")
        if self.loss is not None:
            found.append("loss")
        if self.after is not None:
            found.append("copied")
        return tuple(found)

    def cells(self) -> Iterator[tuple[str, ...]]:
        """The texts of every row, as :attr:`columns` calls them; the last row is the sum."""
        for row in self.rows:
            yield self._texts(row)
        yield self._texts(
            LayerRow("all", "", "", self.before, self.after, self.copied, self.loss), widths=False
        )

    def _texts(self, row: LayerRow, widths: bool = True) -> tuple[str, ...]:
        pair = (row.before, row.after or row.before)
        (old, new), gone = pair, row.after is not None and not row.after.writes and row.operation
        widths = widths and bool(row.operation)
        texts = [
            row.name,
            "gone" if gone else row.kind,
            _change(old.reads, new.reads) if widths and old.reads else "",
            _change(old.writes, new.writes) if widths and old.writes else "",
            _change(old.parameters, new.parameters),
            _change(old.multiply_adds, new.multiply_adds, _amount),
        ]
        if self.device:
            texts.append(_change(old.nanoseconds, new.nanoseconds, _milliseconds))
        if self.loss is not None:
            texts.append("" if row.loss is None else f"{row.loss:.3g}")
        if self.after is not None:
            texts.append(f"{row.copied:,}" if row.copied else "")
        return tuple(texts)

    @property
    def note(self) -> str:
        """The origin of the times; ``""`` if there are none."""
        return f"ms: estimated by the cost model of {self.device}" if self.device else ""

    def __str__(self) -> str:
        lines = [self.columns, *self.cells()]
        wide = [max(map(len, column)) for column in zip(*lines, strict=True)]

        def line(texts: Sequence[str]) -> str:
            pairs = list(zip(texts, wide, strict=True))
            left = [text.ljust(width) for text, width in pairs[:2]]
            return "  ".join([*left, *(text.rjust(width) for text, width in pairs[2:])]).rstrip()

        rule = "─" * (sum(wide) + 2 * len(wide) - 2)
        head, *body, total = map(line, lines)
        return "\n".join([head, rule, *body, rule, total, *filter(None, [self.note])])

    def __repr__(self) -> str:
        left = "" if self.after is None else f" of {self.before.parameters:,}"
        size = self.after or self.before
        return f"LayerTable({len(self.rows) - 1} layers, {size.parameters:,}{left} parameters)"

    def _repr_html_(self) -> str:
        """The table in a notebook: wider than its cell, it scrolls."""
        left, right = (
            f' style="text-align:{side};white-space:nowrap;padding:2px 8px"'
            for side in ("left", "right")
        )
        places = [left, left] + [right] * (len(self.columns) - 2)

        def row(tag: str, texts: Sequence[str]) -> str:
            cells = zip(places, texts, strict=True)
            return "".join(f"<{tag}{place}>{html.escape(text)}</{tag}>" for place, text in cells)

        body = "".join(f"<tr>{row('td', texts)}</tr>" for texts in self.cells())
        note = f"<p><small>{html.escape(self.note)}</small></p>" if self.note else ""
        return (
            '<div style="overflow-x:auto"><table><thead><tr>'
            f"{row('th', self.columns)}</tr></thead><tbody>{body}</tbody></table></div>{note}"
        )


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
            _sum(row.before for row in rest),
            _sum(after) if after else None,
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
        pricing = Pricing(self._graph, cost_model)
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
            total += rate.nanoseconds * first * second / rate.groups
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


def _sum(sizes: Iterable[Size]) -> Size:
    found = list(sizes)
    return Size(
        sum(size.parameters for size in found),
        sum(size.multiply_adds for size in found),
        sum(size.nanoseconds for size in found),
    )


def _whole(value: float) -> str:
    return f"{round(value):,}"


def _amount(value: float) -> str:
    """Three digits, and thousands or millions behind them.

    >>> _amount(0), _amount(950), _amount(999700), _amount(118013952), _amount(4089184256)
    ('0', '950', '1M', '118M', '4.09G')
    """
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * unit:
            number = f"{value / unit:.3g}" if value < 999.5 * unit else f"{value / unit:,.0f}"
            return f"{number}{letter}"
    return f"{value:.0f}"


def _milliseconds(value: float) -> str:
    return f"{value / 1e6:.3g}"


def _change(old: float, new: float, text: Callable[[float], str] = _whole) -> str:
    """Before and after, or one number if nothing changed."""
    before, after = text(old), text(new)
    return before if before == after else f"{before} → {after}"
