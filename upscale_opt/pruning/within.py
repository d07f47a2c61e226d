"""Masks within a budget: losses, the choice, and refitted weights, for :func:`prune`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from upscale_opt.errors import BudgetError
from upscale_opt.importance.criterion import Criterion
from upscale_opt.ir.budget import Budget
from upscale_opt.ir.choice import Choice
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.losses import Losses
from upscale_opt.masking.zeros import masked_copy
from upscale_opt.reconstruction.data import listed
from upscale_opt.reconstruction.losses import losses_of
from upscale_opt.reconstruction.refitting import RefitReport, refit
from upscale_opt.solver.choosing import choose
from upscale_opt.solver.options import SolveOptions
from upscale_opt.solver.progress import Listener, Progress


@dataclass(frozen=True)
class Chosen:
    """A choice.

    Attributes:
        losses: what every set of channels would have cost.
        choice: the masks chosen, with their bound.
    """

    losses: Losses
    choice: Choice


@dataclass(frozen=True)
class Wish:
    """A user's wish for a budgeted pruning.

    Attributes:
        budget: what may remain; ``None`` if masks say what goes.
        data: calibration batches; ``None`` if there are none.
        losses: known losses, which spare measuring them.
        criterion: scores channels where there are no data.
        refits: set the remaining weights anew.
    """

    budget: Budget | None
    data: list[Any] | None = None
    losses: Losses | None = None
    criterion: Criterion | None = None
    refits: bool = False

    @classmethod
    def of(
        cls,
        budget: Budget | None,
        data: Iterable[Any] | None,
        losses: Losses | None,
        criterion: Criterion | None,
        refits: bool | None,
    ) -> Wish:
        """Check what was asked.

        Raises:
            BudgetError: if that is no budget, or data lack where they are asked for.
            TraceError: if there are data, but no batches.
        """
        if budget is not None and not isinstance(budget, Budget):
            raise BudgetError(
                f"a budget is a Budget, such as Budget(macs=0.5), not {type(budget).__name__}"
            )
        if refits and data is None:
            raise BudgetError("refitting needs data: give batches of inputs, without labels")
        if budget and criterion is not None and (data is not None or losses is not None):
            raise BudgetError(
                "losses come from data (or from losses), not from a criterion: give one of them"
            )
        batches = None if data is None else listed(data)
        return cls(
            budget, batches, losses, criterion, data is not None if refits is None else refits
        )


def chosen_within(
    model: nn.Module,
    graph: ChannelGraph,
    wish: Wish,
    options: SolveOptions,
    *,
    solver: str = "joint",
    tell: Listener,
) -> Chosen:
    """Measure losses, and choose masks.

    Args:
        model: the model. It is not changed.
        graph: its graph.
        wish: what was asked.
        options: the time limit, seed and workers are for the choice, too.
        solver: of the choice.
        tell: told of every step.

    Raises:
        BudgetError: if the budget cannot be met.
        TraceError: if the data do not fit the model.
    """
    assert wish.budget is not None
    losses = wish.losses
    if losses is None:
        tell(Progress("losses"))
        losses = losses_of(model, graph, wish.data, criterion=wish.criterion)
    tell(Progress("choose"))
    choice = choose(
        graph,
        losses,
        wish.budget,
        solver=solver,
        time_limit=options.time_limit,
        seed=options.seed,
        workers=options.workers,
        progress=tell,
    )
    return Chosen(losses, choice)


def masked_by(
    model: nn.Module, graph: ChannelGraph, chosen: Chosen, wish: Wish, *, tell: Listener
) -> tuple[nn.Module, RefitReport | None]:
    """The masked model, with what is left of its weights refitted if that was asked.

    Args:
        model: the model. It is not changed.
        graph: its graph.
        chosen: the choice.
        wish: what was asked.
        tell: told of every step.
    """
    masks = chosen.choice.masks
    if not wish.refits:
        return masked_copy(model, graph, masks), None
    tell(Progress("refit"))
    assert wish.data is not None
    return refit(model, masks, wish.data, graph=graph)
