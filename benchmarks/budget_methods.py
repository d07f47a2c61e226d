"""Ways to choose masks within a budget of multiply-adds, by name: ours, others, and a peer's."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch
from budget_networks import Subject
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.importance.choosing import merge
from upscale_opt.ir.cost_model import CostModel
from upscale_opt.ir.losses import Losses
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.profiles import profile
from upscale_opt.masking.segments import Method, find_segments
from upscale_opt.reconstruction.losses import Weighting, losses_of, measure
from upscale_opt.solver import choose
from upscale_opt.solver.algorithms.registry import solve_instance
from upscale_opt.solver.network.blocked_prices import pricing_of
from upscale_opt.solver.network.posing import pose
from upscale_opt.solver.network.segments import find_segments as segments_of
from upscale_opt.solver.selection.accounts import account
from upscale_opt.solver.selection.rates import Rates

SECONDS = 30.0
"""For each solver."""

_COPIES = 5.0
"""Seconds to find orders in which little is copied."""

Runtime = Literal["eager", "onnxruntime"]

Ask = tuple[Subject, float, Weighting]
"""A network, the share of the multiply-adds that may be left, and the losses to look at."""


def _solver(name: str) -> Callable[[Ask], Masks]:
    def masks(ask: Ask) -> Masks:
        subject, share, weighting = ask
        budget = uo.Budget(macs=share)
        losses = _losses(subject, weighting)
        return choose(subject.graph, losses, budget, solver=name, time_limit=SECONDS).masks

    return masks


def _by_time(solver: str, cost_model: str) -> Callable[[Ask], Masks]:
    """The same for time: for as much as its masks for the share of the multiply-adds would take.

    All by the cost model, for as many inputs in a call as on the clock.
    """

    def masks(ask: Ask) -> Masks:
        subject, _, weighting = ask
        graph = uo.trace(subject.model, torch.cat(subject.batches)[: subject.batch])
        took, whole = (
            _nanoseconds(graph, own, profile(cost_model))
            for own in (_solver(solver)(ask), Masks(kept={}))
        )
        budget = uo.Budget(latency=took / whole, cost_model=cost_model)
        losses = _losses(subject, weighting)
        return choose(graph, losses, budget, solver=solver, time_limit=SECONDS).masks

    return masks


def _nanoseconds(graph: uo.ChannelGraph, masks: Masks, prices: CostModel) -> float:
    """The time that masks leave as budgets count it: copies under good orders are part of it."""
    problem = pose(graph, masks, "latency", cost_model=prices)
    counted = account(graph, problem.sets, problem.segments, Rates(graph, prices))
    orders = solve_instance(problem.formulation.instance, "local-search", time_limit=_COPIES)
    views = pricing_of(graph, prices).of_views(problem.sets, problem.segments)
    return counted.latency + orders.objective + views


@lru_cache(maxsize=1)
def _losses(subject: Subject, weighting: Weighting) -> Losses:
    return losses_of(subject.model, subject.graph, subject.batches, weighting=weighting)


def _uniform(method: Method) -> Callable[[Ask], Masks]:
    """The least share of all layers' (or spaces') channels, by norm, that meets the budget."""

    def masks(ask: Ask) -> Masks:
        subject, share, _ = ask
        low, high = 0.0, 0.999
        for _ in range(10):
            amount = (low + high) / 2
            found = uo.choose_masks(subject.model, subject.graph, amount, method=method)
            if macs_left(subject.graph, found) > share:
                low = amount
            else:
                high = amount
        return uo.choose_masks(subject.model, subject.graph, high, method=method)

    return masks


def _priced(ask: Ask) -> Masks:
    """Channels of spaces at one price per multiply-add, by the variance that goes with them.

    Every channel is scored by itself: by the shares of its readers' output variances that it
    makes, as if nothing were refitted.
    """
    subject, share, _ = ask
    scores = _lone_scores(subject)
    segments = find_segments(subject.model, subject.graph, "input", "constrained")
    rates: list[tuple[float, int, int]] = []
    for number, segment in enumerate(segments):
        saved = 1 - macs_left(subject.graph, segment.masks([0]))
        worth = torch.zeros(len(segment.channels), dtype=torch.float64)
        for part in segment.shares:
            own = scores.get(part.weight)
            if own is not None:
                worth += own[part.slices].sum(1)
        best = int(worth.argmax())  # it stays, so that no layer is left without any
        rates += [(float(w) / saved, number, row) for row, w in enumerate(worth) if row != best]
    rates.sort()
    low, high = 0, len(rates)

    def dropped(count: int) -> Masks:
        rows: list[list[int]] = [[] for _ in segments]
        for _, number, row in rates[:count]:
            rows[number].append(row)
        return merge(one.masks(own) for one, own in zip(segments, rows, strict=True) if own)

    while low < high:
        middle = (low + high) // 2
        if middle and macs_left(subject.graph, dropped(middle)) <= share:
            high = middle
        else:
            low = middle + 1
    return dropped(high)


def _torch_pruning(is_global: bool) -> Callable[[Ask], Masks]:
    """What Torch-Pruning drops: dependent channels together, by the L2 norm of their group.

    Its channels are taken over as masks, so that they are refitted and exported like all others.
    """

    def masks(ask: Ask) -> Masks:
        subject, share, _ = ask
        low, high = 0.0, 0.97
        for _ in range(8):
            ratio = (low + high) / 2
            if macs_left(subject.graph, _grouped(subject, ratio, is_global)) > share:
                low = ratio
            else:
                high = ratio
        return _grouped(subject, high, is_global)

    return masks


def _grouped(subject: Subject, ratio: float, is_global: bool) -> Masks:
    import torch_pruning

    names = {module: name for name, module in subject.model.named_modules()}
    pruner = torch_pruning.pruner.BasePruner(
        subject.model,
        subject.example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=is_global,
        pruning_ratio=ratio,
        max_pruning_ratio=0.97,
        ignored_layers=[subject.model.get_submodule(name) for name in subject.whole],
        root_module_types=[torch_pruning.ops.TORCH_CONV],
    )
    dropped: dict[str, set[int]] = {}
    for group in pruner.step(interactive=True):  # which prunes nothing by itself
        for dependency, channels in group:
            reader = dependency.target.module
            reads = dependency.handler.__name__ == "prune_in_channels"
            if reads and isinstance(reader, (nn.Conv2d, nn.Linear)):
                dropped.setdefault(names[reader], set()).update(channels)
    kept = {}
    for name, channels in dropped.items():
        size = subject.model.get_parameter(f"{name}.weight").shape[1]
        left = tuple(channel for channel in range(size) if channel not in channels)
        kept[f"{name}.weight"] = {1: left}
    return Masks(kept=kept)


@lru_cache(maxsize=1)
def _lone_scores(subject: Subject) -> dict[str, Tensor]:
    """For each weight, the share of its output's variance that each slice makes alone."""
    oracle = measure(subject.model, subject.graph, subject.batches, weighting="variance")
    found: dict[str, Tensor] = {}
    for one in oracle.measured:
        gram, weights, columns = one.quadratic.gram, one.quadratic.weights, one.quadratic.columns
        lone = [
            (gram[:, own, own] @ weights[:, own] * weights[:, own]).sum((1, 2))
            for at in range(0, gram.shape[1], columns)
            if (own := slice(at, at + columns))
        ]
        by_unit = torch.stack(lone, 1).flatten() / max(one.total, 1e-300)
        size = len(one.site.channels)
        scores = torch.full((size * one.site.features,), math.inf, dtype=torch.float64)
        for unit, entry in enumerate(one.site.free_entries):
            scores[list(one.site.slices(entry))] = by_unit[unit] / one.site.features
        found[one.site.weight] = scores
    return found


METHODS: dict[str, Callable[[Ask], Masks]] = {
    "joint": _solver("joint"),
    "constrained": _solver("constrained"),
    "greedy": _solver("greedy"),
    "even": _solver("uniform-constrained"),
    "uniform": _uniform("unconstrained"),
    "uniform constrained": _uniform("constrained"),
    "priced": _priced,
    "torch-pruning": _torch_pruning(is_global=True),
    "torch-pruning per layer": _torch_pruning(is_global=False),
}
"""What chooses masks, by name."""

BY_TIME: dict[Runtime, dict[str, str]] = {
    "eager": {name: f"{name}, asked for time" for name in ("joint", "constrained")},
    "onnxruntime": {name: f"{name}, asked for time there" for name in ("joint", "constrained")},
}
"""The same methods for time in a runtime: their names by those of the methods."""

_PRICES: dict[Runtime, str] = {"eager": "cpu", "onnxruntime": "onnxruntime"}
"""The built-in cost models."""

WAYS = METHODS | {
    own: _by_time(name, _PRICES[runtime])
    for runtime, names in BY_TIME.items()
    for name, own in names.items()
}
"""All of them."""

JOINTS = ("joint", *(names["joint"] for names in BY_TIME.values()))
"""Ours, for multiply-adds and for time."""

PEERS = tuple(name for name in METHODS if name.startswith("torch-pruning"))
"""Methods of another package, to be installed: ``pip install --no-deps torch-pruning``."""

WITH_LOSSES = (
    *("joint", "constrained", "greedy", "even"),
    *(own for names in BY_TIME.values() for own in names.values()),
)
"""Methods that look at refitted losses."""


def macs_of(graph: uo.ChannelGraph, masks: Masks) -> int:
    """The multiply-adds that masks leave."""
    return account(graph, *segments_of(graph, masks), Rates(graph, None)).macs


def macs_left(graph: uo.ChannelGraph, masks: Masks) -> float:
    """The share of the multiply-adds that masks leave."""
    counted = [macs_of(graph, own) for own in (masks, Masks(kept={}))]
    return counted[0] / counted[1]
