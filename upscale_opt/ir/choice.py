"""The choice: masks within a budget, what they cost and lose, and how good they can be."""

from __future__ import annotations

import itertools
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from upscale_opt.ir.base import Document, Record
from upscale_opt.ir.budget import Budget, Resource
from upscale_opt.ir.masks import Masks


class ResourceUse(Record):
    """A resource that the budget limits.

    Attributes:
        resource: which one.
        used: what is left of it: multiply-adds, numbers, or nanoseconds (gathers included).
        limit: the most that may be.
        before: the unpruned network's.
    """

    resource: Resource
    used: float
    limit: float
    before: float

    @property
    def share(self) -> float:
        """The share of the unpruned network's that is left."""
        return self.used / self.before if self.before else 0.0

    def __str__(self) -> str:
        return f"{self.resource} {self.share:.1%}"


class LayerChoice(Record):
    """One reader, before and after.

    Attributes:
        operation: the layer (or attention) in the graph.
        parameter: the weight whose slices go.
        kept: the channels that it reads.
        before: those that it read.
        written: the channels that the layer writes; 0 for attention.
        written_before: those that it wrote.
        loss: of what it keeps.
        chain: where the set comes from; ``""`` if it is in no chain, and the loss an estimate.
        dropped: the steps of the chain.
    """

    operation: str
    parameter: str
    kept: int = Field(ge=0)
    before: int = Field(ge=0)
    written: int = Field(default=0, ge=0)
    written_before: int = Field(default=0, ge=0)
    loss: float
    chain: str = ""
    dropped: int = Field(default=0, ge=0)


class TradeOff(Record):
    """A smaller or larger budget, and the loss that it would come with, about.

    Attributes:
        shares: of the unpruned network's resources that are left, in the order of the choice's
            ``resources``; copies not counted.
        loss: the sum over all layers.
    """

    shares: tuple[float, ...]
    loss: float = Field(ge=0)


class ChoiceTimes(Record):
    """Seconds spent, by step.

    Attributes:
        search: to find the masks.
        bound: to find what no masks can be better than.
    """

    search: float
    bound: float


class Choice(Document):
    """Masks within a budget.

    Attributes:
        graph_fingerprint: of the parameters and axes of the graph (as of
            :class:`~upscale_opt.ir.masks.Masks`).
        budget: what was asked for.
        solver: the solver's name.
        seed: its random seed.
        status: ``"optimal"`` if no choice of the given columns loses less, else ``"feasible"``.
        loss: the sum over all layers.
        lower_bound: no masks within the budget lose less, by the losses' floors.
        column_bound: none that the given columns make do.
        resources: what the budget limits.
        layers: every layer that could choose.
        masks: the choice itself.
        times: seconds by step.
        trade_off: what other budgets would lose, from the whole network down; a quick look, so that
            the choice may be better than its neighbours there.
    """

    what: ClassVar[str] = "choice"

    graph_fingerprint: str
    budget: Budget
    solver: str
    seed: int
    status: Literal["optimal", "feasible"]
    loss: float
    lower_bound: float = Field(ge=0)
    column_bound: float = Field(ge=0)
    resources: tuple[ResourceUse, ...]
    layers: tuple[LayerChoice, ...]
    masks: Masks
    times: ChoiceTimes
    trade_off: tuple[TradeOff, ...] = ()

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        count = len(self.resources)
        if any(len(point.shares) != count for point in self.trade_off):
            raise ValueError(f"trade_off: every point has {count} shares, one for each resource")
        return self

    @property
    def gap(self) -> float:
        """By how much of its loss the choice may be off, among the given columns."""
        return (self.loss - min(self.column_bound, self.loss)) / self.loss if self.loss else 0.0

    def loss_at(self, share: float) -> float | None:
        """Loss if a share of the first resource were left, about: between two points' losses.

        ``None`` if so little cannot be had, or no other budgets were looked at.
        """
        for before, after in itertools.pairwise(self.trade_off):
            high, low = before.shares[0], after.shares[0]
            if low <= share <= high:
                part = (high - share) / (high - low) if high > low else 0.0
                return before.loss + part * (after.loss - before.loss)
        return None

    def __repr__(self) -> str:
        left = ", ".join(map(str, self.resources))
        return (
            f"Choice({self.status}: loss {self.loss:.4g}, at least {self.column_bound:.4g} by "
            f"these columns and {self.lower_bound:.4g} by any masks; {left})"
        )
