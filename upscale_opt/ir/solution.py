"""The solution: every channel order, every read's plan, every index list, and the proof."""

from __future__ import annotations

from typing import ClassVar, Literal

from upscale_opt.ir.base import Document, Record
from upscale_opt.ir.graph import Example
from upscale_opt.ir.ids import Ids


class Read(Record):
    """How one edge from a tensor to an operation is served.

    Attributes:
        tensor: the tensor read.
        op: the reading operation.
        operand: which of the operation's inputs.
        kind: ``"select"`` takes some of the tensor's channels; ``"place"`` writes the tensor's
            channels into some of a sum's.
        plan: ``"view"`` if the channels lie next to each other, else ``"gather"``.
        channels: for a select, the entries of the tensor's channel sequence delivered, in order;
            for a place, the entries of the sum's sequence written, in order.
        optional: the edge merely drops channels nobody needs, because it is free to do so.
    """

    tensor: str
    op: str
    operand: int
    kind: Literal["select", "place"] = "select"
    plan: Literal["view", "gather"]
    channels: Ids
    optional: bool = False

    @property
    def name(self) -> str:
        """The read as text, such as ``"relu -> conv2"``."""
        return f"{self.tensor} -> {self.op}"

    @property
    def copied(self) -> int:
        """The channels this read copies."""
        return len(self.channels) if self.plan == "gather" else 0


class Demand(Record):
    """Channels that some reads need consecutive, to be views.

    Attributes:
        space: the index of their space in the graph.
        kind: ``"interval"``, or at the space's beginning (``"prefix"``) or end (``"suffix"``).
        channels: the channel ids.
        reads: the reads that ask for it.
    """

    space: int
    kind: Literal["interval", "prefix", "suffix"]
    channels: Ids
    reads: tuple[str, ...]


class Times(Record):
    """Seconds spent, by step."""

    analysis: float
    solve: float
    layout: float


class Solution(Document):
    """Everything needed to materialise, and to see why it is optimal.

    Attributes:
        graph_fingerprint: of the graph it was made for.
        capture: how to capture the model again.
        example: the inputs to trace it with again.
        solver: the solver's name.
        objective: what was minimised.
        seed: the solver's random seed.
        status: ``"optimal"`` if proven, else ``"feasible"``.
        objective_value: the copied channels.
        lower_bound: no choice of orders copies fewer, where a view's channels must be consecutive
            among all channels that their segment stores, with this choice of selection points.
        times: seconds by step.
        orders: for each space of the graph, its stored channels in the order chosen.
        tensors: for each channel-structured tensor that is computed at all, the entries of its
            channel sequence that are stored, in order.
        reads: every read's plan.
        parameters: for each parameter and axis that changes, the indices kept, in order.
        demands: what the conflicts speak of.
        conflicts: minimal sets of demands (indices) that no order meets together; they prove the
            lower bound.
    """

    what: ClassVar[str] = "solution"

    graph_fingerprint: str
    capture: Literal["fx", "export"]
    example: Example
    solver: str
    objective: str
    seed: int
    status: Literal["optimal", "feasible"]
    objective_value: int
    lower_bound: int
    times: Times
    orders: tuple[Ids, ...]
    tensors: dict[str, Ids]
    reads: tuple[Read, ...]
    parameters: dict[str, dict[int, Ids]]
    demands: tuple[Demand, ...] = ()
    conflicts: tuple[tuple[int, ...], ...] = ()

    @property
    def views(self) -> int:
        """How many reads are views, apart from the optional ones."""
        return sum(read.plan == "view" and not read.optional for read in self.reads)

    @property
    def gathers(self) -> int:
        """How many reads are gathers."""
        return sum(read.plan == "gather" for read in self.reads)
