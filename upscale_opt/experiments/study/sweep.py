"""Prune one network by one criterion: with and without constraints, by all amounts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from upscale_opt.experiments.processes import Tell
from upscale_opt.experiments.study.records import Finished, Method, Row, Side
from upscale_opt.experiments.study.subjects import (
    Subject,
    batch_size,
    load_subject,
    logits_of,
    share_right,
)
from upscale_opt.experiments.study.training import Recipe
from upscale_opt.importance import CRITERIA, HRank, Importance, Random, Taylor, score_segments
from upscale_opt.importance.choosing import choose, merge
from upscale_opt.ir.graph import slices_of
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.masking.segments import Segment, find_segments
from upscale_opt.masking.zeros import apply_masks, masks_of
from upscale_opt.materializing.materialize import materialize
from upscale_opt.measuring.costs import count_costs
from upscale_opt.solver.api import solve
from upscale_opt.verifying.verify import verify

_RANKED = 100
"""Images that HRank looks at; it decomposes every feature map of each."""

_VERIFIED = 8
"""Images on which the export is compared with the masked network."""

_SECONDS = 60.0
"""For the solver; it takes a small part of one."""


@dataclass(frozen=True)
class Task:
    """One network and one criterion.

    Attributes:
        recipe: the network.
        criterion: one of :data:`upscale_opt.experiments.study.names.CRITERIA`.
        methods: with and without constraints.
        side: which channels of layers to drop.
        is_global: rank all layers' channels together.
        amounts: the shares of channels to drop.
    """

    recipe: Recipe
    criterion: str
    methods: tuple[Method, ...]
    side: Side
    is_global: bool
    amounts: tuple[float, ...]

    @property
    def name(self) -> str:
        """The task in a line about it."""
        return f"{self.recipe.net} of seed {self.recipe.seed} by {self.criterion}"

    @property
    def cells(self) -> list[tuple[Method, float]]:
        """The methods and ratios that the rows of the task are about."""
        return [(method, amount) for method in self.methods for amount in self.amounts]

    def finished(self, cache: Path) -> Finished:
        """Its rows that are kept."""
        ranked = "global" if self.is_global else "local"
        name = f"{self.recipe.name}-{self.criterion}-{self.side}-{ranked}"
        return Finished(cache / "rows", name)


@dataclass(frozen=True)
class Export:
    """A pruned network.

    Attributes:
        masked: the network with zeros.
        model: the export that computes the same.
        solution: its plan.
        dropped: the share of all layers' channels on the side pruned that are zero.
    """

    masked: nn.Module
    model: nn.Module
    solution: Solution
    dropped: float


def run_task(task: Task, cache: Path, tell: Tell = lambda text: None) -> list[Row]:
    """Measure what is not yet stored of a task; all of its rows.

    Args:
        task: what to prune.
        cache: where trained networks and finished rows are kept.
        tell: told about every row.
    """
    finished = task.finished(cache)
    for method in task.methods:
        missing = [amount for amount in task.amounts if (method, amount) not in finished.rows]
        if not missing:
            continue
        subject = load_subject(task.recipe, cache)
        segments = scored_segments(task, method, subject)
        for amount in missing:
            row = _row(task, method, amount, subject, export(subject, segments, amount, task))
            finished.put(row)
            tell(f"{task.name}, {method}, {amount:.0%}")
    return [finished.rows[cell] for cell in task.cells]


def scored_segments(task: Task, method: Method, subject: Subject) -> list[Segment]:
    """The segments of a network, scored by the task's criterion."""
    segments = find_segments(subject.model, subject.graph, task.side, method)
    score_segments(segments, _criterion(task, subject))
    return segments


def _criterion(task: Task, subject: Subject) -> Importance:
    images = subject.held_out
    size = batch_size(images.pixels)
    if task.criterion == "random":
        return Random(task.recipe.seed)
    if task.criterion == "hrank":
        return HRank(torch.split(images.pixels[:_RANKED], size))
    if task.criterion == "taylor":
        return Taylor(_loss, images.batches(size))
    return CRITERIA[task.criterion]()


def _loss(model: nn.Module, batch: Any) -> Tensor:
    pixels, labels = batch
    return functional.cross_entropy(model(pixels), labels)


def export(subject: Subject, segments: Sequence[Segment], amount: float, task: Task) -> Export:
    """Mask a copy of the network, find its orders, and export it."""
    chosen = choose(segments, amount, task.is_global)
    masks = merge(segment.masks(rows) for segment, rows in zip(segments, chosen, strict=True))
    masked = copy.deepcopy(subject.model)
    apply_masks(masked, subject.graph, masks)
    found = masks_of(masked, subject.graph)
    solution = solve(subject.graph, found, time_limit=_SECONDS)
    return Export(
        masked, materialize(masked, solution), solution, _dropped(subject, task.side, found)
    )


def _dropped(subject: Subject, side: Side, masks: Masks) -> float:
    """The share of channels that are zero, of those that layers read or write on that side.

    All layers are counted that have something to prune: with either method these are the same.
    """
    zero = total = 0
    for segment in find_segments(subject.model, subject.graph, side):
        for share in segment.shares:
            size = slices_of(subject.graph, share.weight, share.axis)
            zero += size - len(masks.kept_on(share.weight, share.axis, size))
            total += size
    return zero / total


def _row(task: Task, method: Method, amount: float, subject: Subject, found: Export) -> Row:
    report = verify(found.masked, found.model, subject.test.pixels[:_VERIFIED])
    costs = count_costs(found.model, subject.example)
    logits = logits_of(found.model, subject.test.pixels)
    distances = (logits - subject.logits).norm(dim=1) / subject.logits.norm(dim=1)
    return Row(
        data=task.recipe.data,
        net=task.recipe.net,
        seed=task.recipe.seed,
        criterion=task.criterion,
        method=method,
        side=task.side,
        is_global=task.is_global,
        amount=amount,
        dropped=found.dropped,
        accuracy=share_right(logits, subject.test.labels) if subject.labelled else None,
        agreement=share_right(logits, subject.logits.argmax(1)),
        logit_error=float(distances.mean()),
        parameters=costs.parameters,
        multiply_adds=costs.multiply_adds,
        copied_channels=found.solution.objective_value,
        status=found.solution.status,
        deviation=report.float64_error,
    )
