"""Losses: the price in accuracy of every set of channels that a layer may be left with."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field, model_validator
from typing_extensions import Self

from upscale_opt.errors import SchemaError
from upscale_opt.ir.base import Document, Record
from upscale_opt.ir.graph import ChannelGraph, maskable_axes, slices_of
from upscale_opt.ir.ids import Ids


class Chain(Record):
    """Nested sets of one reader's channels, each with its loss: a column for every size.

    Attributes:
        origin: where the sets come from: ``"own"`` (the reader's own elimination), ``"space"`` (one
            for all readers of the space, as constrained pruning keeps), ``"norm"`` (by the weights'
            L2 norm), or whatever else made them.
        steps: the slices that each step drops, as masks count them; all steps of a reader drop
            equally many (the elements of a flattened channel, or one channel of every group).
        losses: of the sets after 0, 1, 2, … steps; one more than steps, never falling.
    """

    origin: str
    steps: tuple[Ids, ...]
    losses: tuple[float, ...]

    def kept(self, dropped: int, choosable: Ids) -> Ids:
        """The slices that are left of ``choosable`` after so many steps, ascending."""
        gone = {slice for step in self.steps[:dropped] for slice in step}
        return tuple(slice for slice in choosable if slice not in gone)


class Reader(Record):
    """A place where channels are chosen: the input side of a layer, or a pair of queries and keys.

    Attributes:
        operation: the layer (or the attention) in the graph.
        parameter: the weight whose slices go.
        axis: along which of its axes.
        slices: those that may go, ascending; all other slices of the axis stay.
        unit: how many of them one step drops.
        biases: parameters whose entries go with the slices of the same number.
        chains: the sets to choose from.
        floors: for 0, 1, 2, … steps a loss that no set of that size is below, whichever channels
            it has. Empty if nothing is known (then 0).
    """

    operation: str
    parameter: str
    axis: int = Field(ge=0)
    slices: Ids
    unit: int = Field(default=1, ge=1)
    biases: tuple[str, ...] = ()
    chains: tuple[Chain, ...] = Field(min_length=1)
    floors: tuple[float, ...] = ()

    @property
    def sizes(self) -> int:
        """The number of units that may go."""
        return len(self.slices) // self.unit

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        name = f"the reader {self.operation!r}"
        known = set(self.slices)
        if list(self.slices) != sorted(known) or len(self.slices) % self.unit:
            raise SchemaError(f"{name} must list its slices ascending, in whole units")
        for chain in self.chains:
            gone = [slice for step in chain.steps for slice in step]
            if len(set(gone)) != len(gone) or not known.issuperset(gone):
                raise SchemaError(f"{name}: the chain {chain.origin!r} drops what it cannot")
            if any(len(step) != self.unit for step in chain.steps):
                raise SchemaError(f"{name}: each step must drop {self.unit}: {chain.origin!r}")
            _check_losses(f"{name}: the chain {chain.origin!r}", chain.losses, len(chain.steps))
        if self.floors:
            _check_losses(f"{name}: its floors", self.floors, self.sizes)
        return self


def _check_losses(name: str, losses: tuple[float, ...], steps: int) -> None:
    if len(losses) != steps + 1:
        raise SchemaError(f"{name}: {steps} steps need {steps + 1} losses, not {len(losses)}")
    before = 0.0
    for loss in losses:
        if not (math.isfinite(loss) and loss >= before):
            raise SchemaError(f"{name}: losses must be numbers that never fall, not {loss!r}")
        before = loss


class Losses(Document):
    """Everything about a model's accuracy that a choice of masks needs, without the model.

    Attributes:
        graph_fingerprint: of the parameters and axes of the graph (as of
            :class:`~upscale_opt.ir.masks.Masks`); they fit no other.
        weighting: how losses of different readers were made comparable.
        samples: the number of calibration inputs behind them; 0 if they come from weights alone.
        readers: every place where channels may be chosen; readers not listed keep everything.
    """

    what: ClassVar[str] = "losses document"

    graph_fingerprint: str
    weighting: str
    samples: int = Field(default=0, ge=0)
    readers: tuple[Reader, ...]

    def __repr__(self) -> str:
        columns = sum(len(chain.losses) for reader in self.readers for chain in reader.chains)
        return (
            f"Losses({len(self.readers):,} readers, {columns:,} columns, by {self.weighting}, "
            f"{self.samples:,} samples)"
        )

    def check(self, graph: ChannelGraph) -> None:
        """Check that the losses fit ``graph``.

        Raises:
            SchemaError: naming the reader that does not.
        """
        ChannelGraph.require(graph)
        if self.graph_fingerprint != graph.masks_fingerprint:
            raise SchemaError(
                "these losses are of another graph; compute losses for this one, or trace the "
                "model that they were computed for"
            )
        axes = maskable_axes(graph)
        for reader in self.readers:
            if reader.axis not in axes.get(reader.parameter, ()):
                raise SchemaError(
                    f"the reader {reader.operation!r} names axis {reader.axis} of "
                    f"{reader.parameter!r}, along which the graph has no channels"
                )
            size = slices_of(graph, reader.parameter, reader.axis)
            if reader.slices and reader.slices[-1] >= size:
                raise SchemaError(
                    f"the reader {reader.operation!r} names slice {reader.slices[-1]} of "
                    f"{reader.parameter!r}, which has {size}"
                )
