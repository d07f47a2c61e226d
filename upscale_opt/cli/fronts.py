"""Fronts: how many copies are left at each budget of multiply-adds that windows may add."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from upscale_opt.ir.base import Document, Record
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.solver.api import solve
from upscale_opt.solver.options import SolveOptions

Objective = Literal["copied_channels", "copied_bytes"]
Selection = Literal["tensor", "arena"]


class FrontPoint(Record):
    """The best plan that was found within a budget.

    Attributes:
        budget: how many multiply-adds windows may add, as a share of those without.
        objective_value: what is still copied.
        lower_bound: no plan within the budget copies less.
        extra_macs: the multiply-adds that its windows add.
        views: how many reads are views.
        windows: how many are windows.
        gathers: how many are gathers.
        seconds: that the solver took at this budget.
    """

    budget: float = Field(ge=0)
    objective_value: int = Field(ge=0)
    lower_bound: int = Field(ge=0)
    extra_macs: int = Field(ge=0)
    views: int
    windows: int
    gathers: int
    seconds: float


class Front(Record):
    """The points that budgets buy on one network.

    Attributes:
        name: of the network.
        macs: the multiply-adds of its export without windows.
        points: by budget, the smallest first.
    """

    name: str
    macs: int
    points: tuple[FrontPoint, ...]


class Fronts(Document):
    """Fronts of several networks.

    Attributes:
        amount: the share of every layer's channels that is dropped.
        side: on which side of the layers.
        layers: which layers are pruned.
        objective: what is minimised.
        selection: where channels are selected; ``model`` in JSON.
        seed: of the weights and the solver.
        time_limit: seconds for each budget.
        networks: their fronts.
    """

    what: ClassVar[str] = "front"

    amount: float
    side: Literal["input", "output", "both"]
    layers: Literal["all", "conv"]
    objective: Objective
    selection: Selection = Field(validation_alias="model", serialization_alias="model")
    seed: int
    time_limit: float
    networks: tuple[Front, ...]


def solutions(
    graph: ChannelGraph,
    masks: Masks,
    budgets: Sequence[float],
    options: SolveOptions,
    tell: Callable[[str], None],
) -> Iterator[tuple[float, Solution]]:
    """The best plan within each budget.

    Args:
        graph: the channel graph.
        masks: which slices of each parameter are kept.
        budgets: shares of the multiply-adds that windows may add.
        options: how to solve, apart from the budget.
        tell: told which budget it is.

    Raises:
        MaskError: if the masks do not fit the graph.
    """
    for budget in budgets:
        tell(f"{100 * budget:g} % more multiply-adds")
        yield budget, solve(graph, masks, options=options, max_extra_macs=budget)


def point_of(budget: float, solution: Solution) -> FrontPoint:
    """A solution as a point."""
    return FrontPoint(
        budget=budget,
        objective_value=solution.objective_value,
        lower_bound=solution.lower_bound,
        extra_macs=solution.extra_macs,
        views=solution.views,
        windows=solution.windows,
        gathers=solution.gathers,
        seconds=solution.times.solve,
    )


def tidied(points: Sequence[FrontPoint]) -> tuple[FrontPoint, ...]:
    """The points of a front, by budget, with what they say of each other.

    A plan within a budget is one within every larger budget: where it is no worse than what was
    found there, it takes its place. And what no plan within a budget falls below, none within a
    smaller one does.

    Args:
        points: of one network, in any sequence.
    """
    kept: list[FrontPoint] = []
    for point in sorted(points, key=lambda point: point.budget):
        before = kept[-1] if kept else None
        if before is not None and before.objective_value <= point.objective_value:
            own = {name: getattr(point, name) for name in ("budget", "lower_bound", "seconds")}
            point = before.model_copy(update=own)
        kept.append(point)
    bound = 0
    for number in reversed(range(len(kept))):
        bound = max(bound, kept[number].lower_bound)
        kept[number] = kept[number].model_copy(update={"lower_bound": bound})
    return tuple(kept)
