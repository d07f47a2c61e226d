"""A question while it is worked on: time, seeds, and the exact count behind every answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.solver.algorithms.registry import solve_instance
from upscale_opt.solver.network.blocked_prices import pricing_of
from upscale_opt.solver.network.posing import Problem, pose
from upscale_opt.solver.selection.accounts import account
from upscale_opt.solver.selection.moves import Hurry
from upscale_opt.solver.selection.pickers import Picker, dropped_by
from upscale_opt.solver.selection.setting import Dropped, Floats, Setting
from upscale_opt.solver.selection.state import State
from upscale_opt.solver.selection.widths import Widths

Told = Callable[[float, float], None]
"""Told the best loss and the bound, whenever one of them improves."""

_GATHER_SECONDS = 2.0


@dataclass(frozen=True)
class Found:
    """A choice within the budget.

    Attributes:
        dropped: of every reader.
        loss: the sum.
        used: of shape (resources,): gathers included.
    """

    dropped: Dropped
    loss: float
    used: Floats


@dataclass
class Task:
    """A question, with the means to answer it.

    Attributes:
        setting: the question.
        hurry: when to be done.
        seed: for random moves.
        workers: threads.
        told: of progress.
        bound: the best lower bound so far.
        best: the best choice so far.
    """

    setting: Setting
    hurry: Hurry
    seed: int = 0
    workers: int = 1
    told: Told | None = None
    bound: float = 0.0
    best: Found | None = None
    _used: dict[Dropped, Floats] = field(default_factory=dict)

    @property
    def graph(self) -> ChannelGraph:
        """The graph."""
        return self.setting.graph

    @property
    def most(self) -> Floats:
        """Of shape (resources,): the limits."""
        return np.array([limit.most for limit in self.setting.limits], dtype=np.float64)

    def used(self, dropped: Dropped) -> Floats:
        """Of shape (resources,): what a choice takes, copies included."""
        if dropped not in self._used:
            self._used[dropped] = self._count(dropped)
        return self._used[dropped]

    def _count(self, dropped: Dropped) -> Floats:
        setting = self.setting
        names = [limit.resource for limit in setting.limits]
        if setting.cost_model is None:
            counted = setting.account(dropped)
            return np.array([counted.of(name) for name in names], dtype=np.float64)
        masks = setting.masks(dropped)
        problem = pose(self.graph, masks, "latency", cost_model=setting.cost_model)
        counted = account(self.graph, problem.sets, problem.segments, setting.rates)
        copies = self._copies(problem)
        used = [counted.of(name) + (copies if name == "latency" else 0.0) for name in names]
        return np.array(used, dtype=np.float64)

    def _copies(self, problem: Problem) -> float:
        """The nanoseconds of gathers and windows under good orders, and of views made compact."""
        seconds = min(_GATHER_SECONDS, max(self.hurry.left / 16, 0.1))
        outcome = solve_instance(
            problem.formulation.instance, "local-search", time_limit=seconds, seed=self.seed
        )
        assert problem.cost_model is not None
        pricing = pricing_of(self.graph, problem.cost_model)
        return float(outcome.objective) + pricing.of_views(problem.sets, problem.segments)

    def offer(self, dropped: Dropped) -> Found | None:
        """Count a choice; it is kept if it is the best within the budget. ``None`` if it is not."""
        used = self.used(dropped)
        if not bool((used <= self.most).all()):
            return None
        found = Found(dropped, self.setting.loss(dropped), used)
        if self.best is None or found.loss < self.best.loss:
            self.best = found
            self.tell()
        return found

    def tell(self) -> None:
        """Pass on where things stand."""
        if self.told is not None and self.best is not None:
            self.told(self.best.loss, self.bound)


Search = Callable[[Widths, Floats], State | None]
"""Find picks within limits."""


def fit(
    task: Task,
    widths: Widths,
    search: Search,
    rounds: int = 5,
    most: Floats | None = None,
) -> Floats:
    """Search with limits such that the exact count (copies included) meets the budget's.

    Args:
        task: the question.
        widths: what picks take, in general position.
        search: called with limits for the widths in general position.
        rounds: how often at most.
        most: the limits to begin with; by default the budget's.

    Returns:
        The limits that led to the best choice that meets the budget; if none did, the last, or the
        budget's where nothing was left of them.
    """
    inner = task.most if most is None else most
    best: tuple[float, Floats] | None = None
    for _ in range(rounds):
        if task.hurry.over and task.best is not None:
            break
        state = search(widths, inner)
        if state is None:
            break
        dropped = dropped_by(task.setting, widths.pickers, state.picks)
        used = task.used(dropped)
        found = task.offer(dropped)
        if found is not None and (best is None or found.loss < best[0]):
            best = found.loss, inner
        offset = used - state.used
        wanted = task.most - offset
        if found is not None:
            if bool((wanted <= inner * (1 + _NEAR)).all()) or task.hurry.over:
                break
            inner = np.maximum(inner, wanted)
        else:
            inner = np.minimum(inner, wanted) * (1 - _NEAR)
            if (inner <= 0).any():
                return task.most
    return best[1] if best else inner


_NEAR = 1e-3


def thinned(pickers: Sequence[Picker], count: int) -> tuple[list[Picker], list[list[list[int]]]]:
    """Pickers with at most so many levels a family, evenly spread.

    Returns:
        The pickers, and for each of their families the numbers of the levels that are left.
    """
    thin: list[Picker] = []
    left: list[list[list[int]]] = []
    for picker in pickers:
        kept = [_spread(len(family.losses), count) for family in picker.families]
        families = (f.at(levels) for f, levels in zip(picker.families, kept, strict=True))
        thin.append(Picker(picker.name, tuple(families), picker.partial))
        left.append(kept)
    return thin, left


def _spread(size: int, count: int) -> list[int]:
    """At most so many of ``range(size)``, both ends among them."""
    if size <= count:
        return list(range(size))
    return sorted({int(level) for level in np.linspace(0, size - 1, count).round()})
