"""The solution: every channel order, every read's plan, every index list, and the proof."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from upscale_opt.ir.base import Document, Record
from upscale_opt.ir.cost_model import CostModel
from upscale_opt.ir.graph import Example
from upscale_opt.ir.ids import Ids

Widths = Literal["trimmed", "exact", "steps", "blocks"]
"""The widths of tensors and reads; see :class:`Solution`."""


class Read(Record):
    """One edge from a tensor to an operation, and how it is served.

    Attributes:
        tensor: the tensor read.
        op: the reading operation.
        operand: which of the operation's inputs.
        kind: ``"select"`` takes some of the tensor's channels; ``"place"`` writes the tensor's
            channels into some of a sum's.
        plan: ``"view"`` if the channels lie next to each other, else ``"gather"``; ``"window"`` is
            a view of more channels than the operation needs, between those it does: its parameters
            keep zeros for them.
        channels: for a select, the entries of the tensor's channel sequence delivered, in order;
            for a place, the entries of the sum's sequence written, in order.
        optional: the edge merely drops channels that nothing needs, because it is free to do so.
    """

    tensor: str
    op: str
    operand: int
    kind: Literal["select", "place"] = "select"
    plan: Literal["view", "gather", "window"]
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


class Arena(Record):
    """A buffer that concatenations share, into which every tensor joined is written once.

    Attributes:
        tensors: the concatenations' results, in the order of execution. Each of them is that part
            of the buffer which its operands fill.
        channels: the ids of the buffer's channels, in the order of its memory.
    """

    tensors: tuple[str, ...]
    channels: Ids


class Demand(Record):
    """Channels that some reads need consecutive, to be views.

    Attributes:
        space: the index of their space in the graph; behind those, of an arena.
        kind: ``"interval"``, or at the space's beginning (``"prefix"``) or end (``"suffix"``).
        channels: the channel ids.
        reads: the reads that ask for it.
    """

    space: int
    kind: Literal["interval", "prefix", "suffix"]
    channels: Ids
    reads: tuple[str, ...]


class Conflict(Record):
    """At most ``limit`` of these demands can hold: no order meets any ``limit + 1`` of them.

    Attributes:
        demands: indices into ``Solution.demands``, all on one space.
        limit: one less than their number, if the conflict is of all of them.
    """

    demands: Ids
    limit: int = Field(ge=0)


class Case(Record):
    """A step of the proof of the lower bound: orders that meet some demands and not others.

    Attributes:
        holds: demands that hold in this case.
        fails: demands that do not.
        prices: per conflict (its index), what each of its demands is charged.
        shares: ``[read, demand, price]``, where several reads of the problem make one demand: how
            much of its price falls to each.
        unit: prices are multiples of 1 / ``unit``.
    """

    holds: Ids = ()
    fails: Ids = ()
    prices: dict[NonNegativeInt, NonNegativeInt] = Field(default_factory=dict)
    shares: tuple[tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt], ...] = ()
    unit: PositiveInt = 1


class Times(Record):
    """Seconds spent, by step.

    Attributes:
        analysis: to find what each tensor must hold, and pose the problem.
        solve: to find the orders.
        layout: to make the plan of them.
    """

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
        selection: where channels are selected: ``"tensor"``, ``"segment"`` or ``"arena"``;
            ``model`` in JSON.
        widths: of tensors and reads, where the runtime stores channels in blocks: ``"blocks"`` and
            ``"steps"`` are filled up, by channels that nothing needs, to whole blocks (steps: but
            for tensors that are concatenated); ``"exact"`` are what is needed; ``"trimmed"``, and
            in eager mode, what nothing reads is cut off where that is free.
        weights: factors for the cost of reads, by operation or ``"operation[operand]"``.
        max_extra_macs: the share of multiply-adds that windows might add.
        cost_model: what kernels cost, for latency.
        seed: the solver's random seed.
        status: ``"optimal"`` if proven, else ``"feasible"``.
        objective_value: what the orders cost, by the objective and with the weights.
        lower_bound: no choice of orders costs less, where a view's channels must be consecutive
            among all channels that their segment stores, with this choice of selection points.
        times: seconds by step.
        orders: for each space of the graph, its stored channels in the order chosen; then for
            each arena, whose spaces have none of their own.
        arenas: the buffers that concatenations share.
        tensors: for each channel-structured tensor that is computed at all, the entries of its
            channel sequence that are stored, in order.
        reads: every read's plan.
        parameters: for each parameter and axis that changes, the indices kept, in order.
        macs: the multiply-adds of the layers that are left, in the example's sizes; before what
            windows add, and before the ends of tensors that nothing reads are cut off.
        extra_macs: what windows add.
        demands: what the reads ask for, to be views.
        conflicts: which demands exclude each other.
        cases: how the conflicts prove the lower bound; see :func:`upscale_opt.check`.
        hindrances: for reads (``"operation[operand]"``) that no order makes views, the reason.
    """

    what: ClassVar[str] = "solution"

    graph_fingerprint: str
    capture: Literal["fx", "export"]
    example: Example
    solver: str
    objective: str
    selection: Literal["tensor", "segment", "arena"] = Field(
        default="tensor", validation_alias="model", serialization_alias="model"
    )
    widths: Widths = "trimmed"
    weights: dict[str, NonNegativeInt] = Field(default_factory=dict)
    max_extra_macs: float = Field(default=0.0, ge=0)
    cost_model: CostModel | None = None
    seed: int
    status: Literal["optimal", "feasible"]
    objective_value: int
    lower_bound: int
    times: Times
    orders: tuple[Ids, ...]
    tensors: dict[str, Ids]
    reads: tuple[Read, ...]
    parameters: dict[str, dict[int, Ids]]
    arenas: tuple[Arena, ...] = ()
    macs: int = Field(default=0, ge=0)
    extra_macs: int = Field(default=0, ge=0)
    demands: tuple[Demand, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    cases: tuple[Case, ...] = ()
    hindrances: dict[str, str] = Field(default_factory=dict)

    def __repr__(self) -> str:
        found = f"{self.status}: {self.objective_value:,}, at least {self.lower_bound:,}"
        plans = f"{self.views} views, {self.windows} windows, {self.gathers} gathers"
        if self.objective != "copied_channels" and self.gathers:
            plans += f" of {self.copied:,} channels"
        return f"Solution({self.objective}, {found}; {plans})"

    @property
    def views(self) -> int:
        """The number of reads that are views, apart from the optional ones."""
        return sum(read.plan == "view" and not read.optional for read in self.reads)

    @property
    def windows(self) -> int:
        """The number of reads that are windows."""
        return sum(read.plan == "window" for read in self.reads)

    @property
    def gathers(self) -> int:
        """The number of reads that are gathers."""
        return sum(read.plan == "gather" for read in self.reads)

    @property
    def copied(self) -> int:
        """The channels that all gathers together copy, whatever was minimised."""
        return sum(read.copied for read in self.reads)
