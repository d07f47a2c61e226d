"""The masks' zeros: which leave the network, and which operation keeps the rest.

A mask can only remove a slice of a weight where nothing depends on the slice being there. Where it
stays, the report names the operation that is the reason.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from upscale_opt.errors import VerificationError
from upscale_opt.ir.base import Document, Record
from upscale_opt.ir.graph import (
    ChannelGraph,
    ChannelWise,
    Concat,
    Constant,
    Layer,
    Operation,
    Symmetric,
    maskable_axes,
    slices_of,
)
from upscale_opt.ir.ids import Ids
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.solver.checking.check import damage
from upscale_opt.solver.checking.staying import SENTENCES, Cause, Why, Whys, why_stored
from upscale_opt.solver.network.aligning import steps_of
from upscale_opt.solver.network.sets import ChannelSets


class Stays(Record):
    """Slices that are zero and stay, for one reason.

    Attributes:
        cause: what kind of reason it is, a key of ``SENTENCES``.
        op: the operation responsible.
        detail: more about it, such as why the operation is opaque.
        slices: their indices along the axis.
        weights: the numbers in them that stay. A number that lies in slices of two axes counts for
            the first of them alone.
    """

    cause: Cause
    op: str
    detail: str = ""
    slices: Ids
    weights: int

    @property
    def why(self) -> str:
        """The reason without the operation's name, so that like reasons can be added up."""
        return self._sentence("an operation")

    def __str__(self) -> str:
        return self._sentence(self.op)

    def _sentence(self, op: str) -> str:
        return SENTENCES[self.cause].format(op=op) + (f" ({self.detail})" if self.detail else "")


class AxisRemoval(Record):
    """One axis of a parameter.

    Attributes:
        axis: its number.
        size: how many slices masks count along it.
        masked: the slices that are zero.
        removed: the slices that are gone, masked or not.
        left: the slices that are zero and stay.
    """

    axis: int
    size: int
    masked: Ids
    removed: Ids
    left: tuple[Stays, ...]


class ParameterRemoval(Record):
    """One parameter.

    Attributes:
        name: its name in the ``state_dict``.
        weights: the numbers in it.
        masked: the numbers in slices that are zero.
        gone: how many of these are removed.
        removed: the numbers that are removed altogether; where nothing reads a channel any more,
            also such as no mask dropped.
        axes: its channel axes.
    """

    name: str
    weights: int
    masked: int
    gone: int
    removed: int
    axes: tuple[AxisRemoval, ...]


class Removal(Document):
    """The report.

    Attributes:
        graph_fingerprint: of the graph.
        parameters: every parameter and buffer that the graph names. Of others, which only opaque
            operations use, the graph knows nothing.
    """

    what: ClassVar[str] = "removal report"

    graph_fingerprint: str
    parameters: tuple[ParameterRemoval, ...]

    @property
    def masked(self) -> int:
        """The numbers in slices that are zero."""
        return sum(parameter.masked for parameter in self.parameters)

    @property
    def gone(self) -> int:
        """The number of these that are removed."""
        return sum(parameter.gone for parameter in self.parameters)

    @property
    def left(self) -> int:
        """The number of these that stay."""
        return self.masked - self.gone

    @property
    def removed(self) -> int:
        """The numbers that are removed altogether."""
        return sum(parameter.removed for parameter in self.parameters)

    def __repr__(self) -> str:
        return f"Removal({self})"

    def __str__(self) -> str:
        share = f" ({self.gone / self.masked:.1%})" if self.masked else ""
        return (
            f"{self.gone:,} of {self.masked:,} masked weights are removed{share}, and "
            f"{self.removed - self.gone:,} that were not masked; {self.left:,} stay"
        )


def removal(graph: ChannelGraph, masks: Masks, solution: Solution) -> Removal:
    """Find out which of the masks' zeros are removed, and why the rest stays.

    Args:
        graph: the channel graph.
        masks: the masks that were solved; what a model's zeros say (:func:`upscale_opt.masks_of`).
        solution: the solution for them.

    Raises:
        VerificationError: if the solution is for another graph, or damaged.
        MaskError: if the masks do not fit the graph.
    """
    Masks.require(masks)
    Solution.require(solution)
    masks.check(graph)
    if solution.graph_fingerprint != graph.fingerprint:
        raise VerificationError("the solution was made for another graph; solve this one")
    broken = damage(graph, solution)
    if broken is not None:
        raise VerificationError(f"the solution is damaged: {broken}; solve again")
    return Removal(
        graph_fingerprint=graph.fingerprint,
        parameters=tuple(_Reporter(graph, masks, solution).report()),
    )


@dataclass(frozen=True)
class _Use:
    """An operation in which a parameter's slices along one axis belong to a tensor's channels.

    To none, in the role ``"whole"``: a layer that reads what has no channels.
    """

    op: Operation
    tensor: str
    role: Literal["columns", "rows", "bias", "channelwise", "constant", "whole"]


@dataclass(frozen=True)
class _Axis:
    """The slices along one axis, as sets."""

    axis: int
    size: int
    kept: frozenset[int]
    stored: frozenset[int]
    groups: dict[Why, list[int]]

    def in_block(self, slices: frozenset[int] | list[int], block: int, blocks: int) -> int:
        """The number of the slices that lie in one of as many equal runs."""
        return sum(index * blocks // self.size == block for index in slices)


class _Reporter:
    def __init__(self, graph: ChannelGraph, masks: Masks, solution: Solution) -> None:
        self.graph = graph
        self.masks = masks
        self.solution = solution
        self.sets: ChannelSets
        self.whys: Whys
        self.sets, self.whys = why_stored(graph, masks, solution)
        prices = solution.cost_model
        self.steps = None
        if prices is not None and solution.widths != "trimmed":
            self.steps = steps_of(solution.widths, prices)
        self.producers = {name: op for op in graph.operations for name in op.outputs}
        self.windows = {
            (read.op, read.operand): frozenset(
                graph.tensors[read.tensor].channels[entry] for entry in read.channels
            )
            for read in solution.reads
            if read.plan == "window"
        }
        self.uses: dict[tuple[str, int], list[_Use]] = defaultdict(list)
        for op in graph.operations:
            for name, axis, use in _uses(op):
                self.uses[name, axis].append(use)

    def report(self) -> Iterator[ParameterRemoval]:
        for name, numbers in maskable_axes(self.graph).items():
            axes = [self._axis(name, axis) for axis in numbers]
            yield self._parameter(name, axes)

    # Which slices.

    def _axis(self, name: str, axis: int) -> _Axis:
        size = slices_of(self.graph, name, axis)
        kept = self.masks.kept_on(name, axis, size)
        alive = [use for use in self.uses[name, axis] if self._alive(use.op)]
        stored = self.solution.parameters.get(name, {}).get(axis, range(size)) if alive else ()
        groups: dict[Why, list[int]] = {}
        for index in sorted(frozenset(stored) - kept):
            groups.setdefault(self._why(alive[0], name, axis, index, kept), []).append(index)
        return _Axis(axis, size, kept, frozenset(stored), groups)

    def _alive(self, op: Operation) -> bool:
        """The operation, and so its parameters, are still there."""
        return op.name in self.sets.live and any(
            name in self.solution.tensors or self.graph.tensors[name].axis is None
            for name in op.outputs
        )

    def _why(self, use: _Use, name: str, axis: int, index: int, kept: frozenset[int]) -> Why:
        """Find out why a slice that is zero stays."""
        if use.role == "whole":
            return Why("whole", use.op.name)
        tensor = self.graph.tensors[use.tensor]
        entry = index // tensor.features
        channel = tensor.channels[entry]
        features = range(entry * tensor.features, (entry + 1) * tensor.features)
        again = use.role == "rows" and tensor.channels.count(channel) > 1
        if not kept.isdisjoint(features) or (
            again and any(tensor.channels[i // tensor.features] == channel for i in kept)
        ):
            return Why("features", use.op.name)
        if use.role == "columns":
            return self._why_column(use, channel, kept)
        why = self.whys[use.tensor].get(channel) or Why("stored", use.op.name)
        if why.cause == "stored" and use.role == "rows" and self.steps is not None:
            steps = self.steps
            even = steps.block > 0 and len(tensor.channels) % steps.block == 0
            filled = steps.block if even else steps.align
            why = self._filled(use.op, filled) or why
        if channel not in self.sets.defined[use.tensor] or why.cause in _COME_WHAT_MAY:
            return why
        return Why("bias" if use.role == "rows" else "alive", why.op, why.detail)

    def _why_column(self, use: _Use, channel: int, kept: frozenset[int]) -> Why:
        tensor = self.graph.tensors[use.tensor]
        if any(tensor.channels[index // tensor.features] == channel for index in kept):
            return Why("twice", use.op.name)
        assert isinstance(use.op, Layer)
        if use.op.groups > 1:
            return Why("groups", use.op.name)
        if channel not in self.sets.wants.get((use.op.name, 0), ()):
            if self._in_window(use.op, channel):
                return Why("window", use.op.name)
            filled = None if self.steps is None else self._filled(use.op, self.steps.align)
            if filled is not None:
                return filled
        return Why("one", use.op.name)

    def _in_window(self, op: Operation, channel: int) -> bool:
        """A layer's channel comes out of a window, maybe through per-channel operations."""
        while True:
            window = self.windows.get((op.name, 0))
            if window is not None:
                return channel in window
            before = self.producers.get(op.inputs[0]) if op.inputs else None
            if isinstance(before, Concat):
                edges = [(before.name, operand) for operand in range(len(before.inputs))]
                return any(
                    written == channel and read in self.windows.get(edge, ())
                    for edge in edges
                    for read, written in self.graph.renamed.get(edge, {}).items()
                )
            if not isinstance(before, ChannelWise):
                return False
            op = before

    def _filled(self, op: Operation, step: int) -> Why | None:
        """The reason of what fills up a width; ``None`` if widths are as they come."""
        return Why("widths", op.name, f"multiples of {step}") if step > 1 else None

    # How many numbers.

    def _parameter(self, name: str, axes: list[_Axis]) -> ParameterRemoval:
        """Count in blocks: in a grouped convolution each group's rows have columns of their own."""
        weights = math.prod(self.graph.parameters[name])
        layers = [use.op for one in axes for use in self.uses[name, one.axis]]
        blocks = max((op.groups for op in layers if isinstance(op, Layer)), default=1)
        cells = math.prod(one.size for one in axes) // blocks ** (len(axes) - 1)
        each = weights // cells if cells else 0
        kept = stored = both = 0
        left: dict[tuple[int, Why], int] = defaultdict(int)
        for block in range(blocks):
            counts = [
                (
                    one.in_block(one.kept, block, blocks),
                    one.in_block(one.stored, block, blocks),
                    one.in_block(one.kept & one.stored, block, blocks),
                )
                for one in axes
            ]
            kept += math.prod(count[0] for count in counts)
            stored += math.prod(count[1] for count in counts)
            both += math.prod(count[2] for count in counts)
            for place, one in enumerate(axes):
                # Of the axes before, what is not zero; of those behind, all that is stored.
                width = math.prod(
                    count[2] if other < place else count[1]
                    for other, count in enumerate(counts)
                    if other != place
                )
                for why, slices in one.groups.items():
                    left[place, why] += one.in_block(slices, block, blocks) * width * each
        return ParameterRemoval(
            name=name,
            weights=weights,
            masked=weights - kept * each,
            gone=(weights - kept * each) - (stored - both) * each,
            removed=weights - stored * each,
            axes=tuple(
                AxisRemoval(
                    axis=one.axis,
                    size=one.size,
                    masked=tuple(sorted(frozenset(range(one.size)) - one.kept)),
                    removed=tuple(sorted(frozenset(range(one.size)) - one.stored)),
                    left=tuple(
                        Stays(
                            cause=why.cause,
                            op=why.op,
                            detail=why.detail,
                            slices=tuple(slices),
                            weights=left[place, why],
                        )
                        for why, slices in one.groups.items()
                    ),
                )
                for place, one in enumerate(axes)
            ),
        )


_COME_WHAT_MAY = frozenset({"opaque", "output", "symmetric"})
"""Causes for which it does not matter whether the channel is zero."""


def _uses(op: Operation) -> Iterator[tuple[str, int, _Use]]:
    """Parameter, axis and use, for all parameters of an operation."""
    if isinstance(op, Layer):
        yield op.weight, op.out_axis, _Use(op, op.outputs[0], "rows")
        source = _Use(op, op.inputs[0], "columns") if op.inputs else _Use(op, "", "whole")
        yield op.weight, op.in_axis, source
        if op.bias is not None:
            yield op.bias, 0, _Use(op, op.outputs[0], "bias")
    elif isinstance(op, (ChannelWise, Symmetric)):
        for parameter in op.parameters:
            yield parameter.name, parameter.axis, _Use(op, op.outputs[0], "channelwise")
    elif isinstance(op, Constant) and op.axis is not None:
        yield op.parameter, op.axis, _Use(op, op.outputs[0], "constant")
