"""Budgets of time, kept by the clock: choose, time the export, choose again for what it shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from upscale_opt.errors import BudgetError
from upscale_opt.ir.budget import Budget
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.masking.zeros import masked_copy, masks_of
from upscale_opt.materializing.materialize import materialize
from upscale_opt.measuring.in_turn import Times
from upscale_opt.pruning.clocks import Clocks
from upscale_opt.pruning.within import Chosen, Wish, chosen_within
from upscale_opt.solver.api import solve
from upscale_opt.solver.network.coupling import constrain
from upscale_opt.solver.options import SolveOptions
from upscale_opt.solver.progress import Listener, Progress

_AGAIN = 3
"""Choices after the first, to keep a budget of time by the clock."""

_NEAR = 0.95, 1.01
"""Shares of the time allowed between which a choice is good enough."""

_AIM = 0.97
"""The share of the time allowed that later choices aim at: half of them turn out slower."""

_SECONDS = 6.0
"""On the clock, each time."""

_NOISE = 0.05
"""The share by which a time may be above the budget in the end: clocks err by as much."""

_BINDS = 0.98
"""A resource of which this share of the limit is used is what limits the choice."""


@dataclass(frozen=True)
class Draft:
    """A choice, exported as it is: nothing is refitted, which would not change its time.

    Attributes:
        chosen: the choice.
        masks: what the masked model's zeros say.
        solution: orders and plans.
        model: the export.
    """

    chosen: Chosen
    masks: Masks
    solution: Solution
    model: nn.Module


@dataclass(frozen=True)
class Clocked:
    """A draft that was on the clock.

    Attributes:
        draft: the draft.
        times: beside the unpruned model, and others.
        note: what was measured.
    """

    draft: Draft
    times: Times
    note: str


@dataclass(frozen=True)
class ByClock:
    """Choices with their exports on the clock.

    Attributes:
        model: the model, unpruned.
        graph: its graph.
        options: how to choose and to solve.
        clocks: of the model and its exports.
        tell: told of every step.
    """

    model: nn.Module
    graph: ChannelGraph
    options: SolveOptions
    clocks: Clocks
    tell: Listener

    def best(self, wish: Wish, solver: str, *, rival: bool) -> Clocked:
        """The choice that keeps the budget by the clock, as far as that can be had.

        Args:
            wish: what was asked.
            solver: of the choice.
            rival: put the best choice whose layers agree on their channels beside it, if this
                one's do not, or it is late. It is taken if by the clock it alone keeps a budget of
                time, or if it is faster and loses no more.

        Raises:
            BudgetError: if the budget cannot be met by the cost model.
        """
        budget = wish.budget
        assert budget is not None
        rate, own = self._kept(wish, solver)
        drafts = {"pruned": own}
        needless = solver == "constrained" or (rate <= _NEAR[1] and self._agrees(own))
        if rival and not needless:
            known = replace(wish, losses=own.chosen.losses)
            drafts["constrained"] = self._kept(known, "constrained")[1]
        times = self._timed({name: draft.model for name, draft in drafts.items()})
        name = "pruned"
        if len(drafts) > 1 and _is_better(times, drafts, budget):
            name = "constrained"
        note = f"measured: {times}"
        if len(drafts) > 1:
            note += f"; this is the one called {name!r}"
        draft = drafts[name]
        inner = draft.chosen.choice.budget
        if inner != budget:
            note += (
                f"; to keep the budget by the clock, latency={inner.latency:.3f} was asked for "
                "by the cost model"
            )
        return Clocked(draft, times, note)

    def _agrees(self, draft: Draft) -> bool:
        """All layers that read a channel drop it together: constraints would change nothing."""
        masks = draft.chosen.choice.masks
        together = constrain(self.graph, masks).kept
        return all(
            together[name][axis] == kept
            for name, by_axis in masks.kept.items()
            for axis, kept in by_axis.items()
        )

    def _timed(self, models: Mapping[str, nn.Module]) -> Times:
        self.tell(Progress("measure"))
        return self.clocks.beside(models, seconds=_SECONDS)

    def _draft(self, wish: Wish, solver: str) -> Draft:
        chosen = chosen_within(
            self.model, self.graph, wish, self.options, solver=solver, tell=self.tell
        )
        masked = masked_copy(self.model, self.graph, chosen.choice.masks)
        masks = masks_of(masked, self.graph)
        self.tell(Progress("solve"))
        solution = solve(self.graph, masks, options=self.options, progress=self.tell)
        self.tell(Progress("materialize"))
        return Draft(chosen, masks, solution, materialize(masked, solution))

    def _kept(self, wish: Wish, solver: str) -> tuple[float, Draft]:
        """The draft that loses least of those that keep the budget by the clock, and its time.

        The time is a share of what the budget allows; 0 if it allows any.

        What the cost model is asked for is changed by as much as it was wrong, until the time is
        near the budget.
        """
        asked = wish.budget
        assert asked is not None
        inner = self._in_shares(asked)
        tries: list[tuple[float, Draft]] = []
        while len(tries) <= _AGAIN:
            try:
                draft = self._draft(replace(wish, budget=inner), solver)
            except BudgetError:
                if not tries:
                    raise
                break  # it is late, and cannot be less so
            wish = replace(wish, losses=draft.chosen.losses)
            if inner.latency is None:
                return 0.0, draft
            times = self._timed({"pruned": draft.model})
            rate = times.milliseconds["pruned"] / _allowed(times, asked)
            tries.append((rate, draft))
            latency = min(inner.latency * _AIM / rate, 1.0)
            is_near = _NEAR[0] <= rate <= _NEAR[1] or latency == inner.latency
            if is_near or (rate < 1 and not _is_bound(draft.chosen)):
                break
            inner = inner.model_copy(update={"latency": latency})
        for most in (_NEAR[1], 1 + _NOISE):
            kept = [one for one in tries if one[0] <= most]
            if kept:
                return min(kept, key=lambda one: one[1].chosen.choice.loss)
        return min(tries, key=lambda one: one[0])

    def _in_shares(self, budget: Budget) -> Budget:
        """The budget with a share of the time, by the clock, in place of milliseconds."""
        if budget.milliseconds is None:
            return budget
        whole = self._timed({}).milliseconds["unpruned"]
        share = min(budget.milliseconds / whole, budget.latency or 1.0, 1.0)
        return budget.model_copy(update={"latency": share, "milliseconds": None})


def _is_bound(chosen: Chosen) -> bool:
    """Time is what limits the choice."""
    return any(
        use.resource == "latency" and use.used > _BINDS * use.limit
        for use in chosen.choice.resources
    )


def _is_better(times: Times, drafts: Mapping[str, Draft], budget: Budget) -> bool:
    """The constrained draft is to be taken."""
    late = not _in_time(times, "pruned", budget) and _in_time(times, "constrained", budget)
    quicker = times.share("constrained", "pruned") < 1 - _NOISE
    losses = {name: draft.chosen.choice.loss for name, draft in drafts.items()}
    return late or (quicker and losses["constrained"] <= losses["pruned"])


def _allowed(times: Times, budget: Budget) -> float:
    """The milliseconds that a budget allows, by the clock; infinite if it limits no time."""
    limits = [] if budget.milliseconds is None else [budget.milliseconds]
    if budget.latency is not None:
        limits.append(budget.latency * times.milliseconds["unpruned"])
    return min(limits, default=math.inf)


def _in_time(times: Times, name: str, budget: Budget) -> bool:
    """The budget is kept by the clock, as far as that can be told."""
    return times.milliseconds[name] <= _allowed(times, budget) * (1 + _NOISE)
