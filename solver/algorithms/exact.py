"""Proven optimal orders: a CP-SAT master with lazily separated conflicts.

A combinatorial Benders decomposition (Codato & Fischetti 2006): the master chooses demands at least
cost, PQ-trees say which of them cannot hold together, and what they say is added to the master,
until it chooses demands that can. Every master is a relaxation, so its bound is always true; every
choice is repaired into orders, so there is always an answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from upscale_opt.solver.algorithms.exact_master import Master
from upscale_opt.solver.algorithms.exact_pricing import prove
from upscale_opt.solver.algorithms.exact_search import (
    MasterFactory,
    Search,
    families_of,
)
from upscale_opt.solver.algorithms.exact_settling import settle
from upscale_opt.solver.algorithms.greedy import greedy_orders
from upscale_opt.solver.algorithms.local_search import improve
from upscale_opt.solver.problem.arranging import arranged
from upscale_opt.solver.problem.instance import (
    Case,
    Group,
    Improvement,
    Instance,
    Orders,
    Outcome,
    Proof,
    cost,
    identity_orders,
    satisfied,
)
from upscale_opt.solver.problem.pqtree import PQTree
from upscale_opt.solver.problem.proof import case_bound
from upscale_opt.solver.problem.reduction import Core, reduce_instance

_SHARE = 0.2
"""The share of the time that the greedy heuristic may take."""

_FALLBACK = 0.1
"""The share of the time that is kept for local search, in case that the rest is too short."""


def solve_exact(
    instance: Instance,
    *,
    time_limit: float,
    seed: int = 0,
    workers: int = 1,
    progress: Improvement | None = None,
    master: MasterFactory = Master,
) -> Outcome:
    """The best orders, and the proof that they are.

    If time runs out (or Ctrl-C is pressed), the best orders so far, improved by local search, come
    with a true bound. A run with one worker that is not cut off by the time is the same for the
    same seed.

    Args:
        instance: the problem.
        time_limit: in seconds; a first answer may take a little longer if it is very small.
        seed: for CP-SAT, and for the search for conflicts.
        workers: threads of CP-SAT.
        progress: told the incumbent and the bound.
        master: what solves the master programs; CP-SAT by default.
    """
    deadline = time.monotonic() + time_limit
    core: Core | None = None
    searches: list[Search] = []
    interrupted = False
    try:
        core = reduce_instance(instance)
        searches = _searches(instance, core, deadline, seed, workers, master)
        _run(searches, core.constant, deadline - _FALLBACK * time_limit, progress)
    except KeyboardInterrupt:
        deadline, interrupted = 0.0, True
    if core is None or len(searches) < len(core.components):
        orders = identity_orders(instance.spaces)
        bound = core.constant if core else 0
        return Outcome(orders, cost(instance, orders), bound, interrupted=interrupted)
    if any(search.interrupted for search in searches):
        deadline, interrupted = 0.0, True
    try:
        trees = settle(instance, core, searches, seed=seed, workers=workers, deadline=deadline)
    except KeyboardInterrupt:
        deadline, interrupted = 0.0, True
        trees = {space: tree for search in searches for space, tree in search.trees.items()}
    best = _orders(instance, core, searches, trees)
    if any(search.bound < search.cost for search in searches) and time.monotonic() < deadline:
        better = [best]
        try:
            improve(instance, best, deadline=deadline, seed=seed, found=better.append)
        except KeyboardInterrupt:
            deadline, interrupted = 0.0, True
        best = better[-1]
    try:
        proof = _proof(core, searches, deadline)
    except KeyboardInterrupt:
        interrupted = True
        proof = _proof(core, searches, 0.0)
    return Outcome(
        orders=best,
        objective=cost(instance, best),
        lower_bound=core.constant + sum(search.bound for search in searches),
        proof=proof,
        interrupted=interrupted,
    )


def _proof(core: Core, searches: Iterable[Search], deadline: float) -> Proof:
    """The proof of the bounds; all conflicts, where what they show falls short of it.

    Bounds of masters that had to round are raised to what is shown.
    """
    groups: dict[Group, int] = {}
    cases: list[Case] = []
    for search in searches:
        aim = search.cost if search.exhausted else search.bound
        if aim == 0:
            continue
        own = [Group(cut.demands, cut.limit) for cut in search.cuts]
        steps = prove(search.component, own, aim, deadline)
        shown = min(case_bound(search.component, own, step) for step in steps)
        complete = shown >= search.bound
        search.bound = max(search.bound, shown)
        priced = {index for step in steps for index in step.prices}
        place = {
            index: groups.setdefault(core.original_group(group), len(groups))
            for index, group in enumerate(own)
            if index in priced or not complete
        }
        if steps != (Case(),):  # what goes without saying
            cases.extend(core.original_case(step, place) for step in steps)
    return Proof(tuple(groups), tuple(cases))


def _searches(
    instance: Instance,
    core: Core,
    deadline: float,
    seed: int,
    workers: int,
    master: MasterFactory,
) -> list[Search]:
    """One search per component, each starting from the better of identity and greedy."""
    starts = [core.restrict(satisfied(instance, identity_orders(instance.spaces)))]
    if core.components and (now := time.monotonic()) < deadline:
        soon = now + _SHARE * (deadline - now)
        orders = greedy_orders(instance, whole=False, deadline=soon)
        starts.append(core.restrict(satisfied(instance, orders)))
    searches = []
    for component in core.components:
        families = families_of(instance, core, component)
        search = Search(component, families, seed, workers, master)
        for start in starts:
            search.improve(start)
        searches.append(search)
    return searches


def _run(
    searches: list[Search], constant: int, deadline: float, progress: Improvement | None
) -> None:
    """Give each open search a fair share of the time, small components first."""

    def report() -> None:
        if progress is not None:
            cost = sum(search.cost for search in searches)
            bound = sum(search.bound for search in searches)
            progress(constant + cost, constant + bound)

    report()
    waiting = [search for search in searches if not search.done]
    while waiting:
        for place, search in enumerate(waiting):
            now = time.monotonic()
            if now >= deadline:
                return
            search.run(now + (deadline - now) / (len(waiting) - place), report)
            if search.interrupted:
                return
        waiting = [search for search in waiting if not search.done]


def _orders(
    instance: Instance, core: Core, searches: list[Search], trees: Mapping[int, PQTree]
) -> Orders:
    """Of the orders that the trees allow, some with few blocks."""
    orders = list(identity_orders(instance.spaces))
    wanted: dict[int, list[int]] = {space: [] for space in trees}
    for search in searches:
        for demand in search.component.demands:
            wanted[core.demands[demand].space].append(core.demands[demand].mask)
    for space, tree in trees.items():
        orders[space] = tuple(arranged(tree, wanted[space]))
    return tuple(orders)
