"""Networks pruned to budgets, refitted and tested; what was measured is kept."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import ClassVar, TypeVar

import pages
import torch
from budget_methods import SECONDS, WAYS, WITH_LOSSES, macs_left, macs_of
from budget_networks import SHARES, Subject, Task, subject
from torch import nn

import upscale_opt as uo
from upscale_opt.experiments.records import Store
from upscale_opt.experiments.study.training import train
from upscale_opt.ir.base import Document
from upscale_opt.ir.masks import Masks
from upscale_opt.masking.zeros import masked_copy
from upscale_opt.reconstruction.losses import Weighting

RATE = 0.002
"""The highest learning rate of the one epoch after pruning; a fifth of what is learned with."""


class Cell(Document):
    """One network, pruned to one budget and refitted.

    Attributes:
        net: the network.
        seed: of its training; of networks with weights, of what they are calibrated with.
        method: what chose the masks.
        share: of the multiply-adds, that may be left.
        weighting: of the losses that it looked at; empty if it looked at none.
        accuracy: the share of the test inputs that the export gets right; of words on pages, F1.
        macs: the share of the multiply-adds that is left.
        copied: channels that the export gathers.
        choosing: seconds to choose the masks.
        refitting: seconds to refit.
        masks: what it keeps.
    """

    what: ClassVar[str] = "cell"

    net: str
    seed: int
    method: str
    share: float
    weighting: str
    accuracy: float
    macs: float
    copied: int
    choosing: float
    refitting: float
    masks: Masks


class Whole(Document):
    """A network that is not pruned.

    Attributes:
        net: the network.
        seed: as in :class:`Cell`.
        accuracy: likewise.
        macs: its multiply-adds.
    """

    what: ClassVar[str] = "whole network"

    net: str
    seed: int
    accuracy: float
    macs: int


class Beyond(Document):
    """A cell's network without refitting, or with one epoch of training after it.

    Attributes:
        accuracy: as in :class:`Cell`.
    """

    what: ClassVar[str] = "accuracy"

    accuracy: float


Kept = TypeVar("Kept", bound=Document)


def name_of(task: Task, method: str, share: float, weighting: str) -> str:
    """The name of a cell's record."""
    own = weighting if method in WITH_LOSSES else "none"
    return f"{task.net}-{task.seed}-{method}-{share}-{own}-{code_key()}"


@cache
def code_key() -> str:
    """Eight digits that differ where the code differs that results depend on."""
    found = hashlib.sha256()
    for package in ("upscale_opt", "upscale_opt.solver", "upscale_opt.models"):
        (folder, *_) = import_module(package).__path__
        for path in sorted(Path(folder).rglob("*.py")):
            place = path.relative_to(folder)
            if place.parts[0] not in _WITHOUT_EFFECT:
                found.update(place.as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:8]


_WITHOUT_EFFECT = ("cli", "report")


def store_of(task: Task, kind: type[Kept]) -> Store[Kept]:
    """Where records of a task are kept."""
    return Store(task.cache / "cells", kind)


def measured(task: Task, method: str, share: float, weighting: Weighting) -> Cell:
    """Choose, refit, export and test."""
    one = subject(task)
    start = time.perf_counter()
    masks = WAYS[method]((one, share, weighting))
    chosen = time.perf_counter()
    refitted, _ = uo.refit(one.model, masks, one.batches, graph=one.graph)
    done = time.perf_counter()
    solution = uo.solve(one.graph, masks, time_limit=SECONDS)
    return Cell(
        net=task.net,
        seed=task.seed,
        method=method,
        share=share,
        weighting=weighting if method in WITH_LOSSES else "",
        accuracy=one.test(uo.materialize(refitted, solution)),
        macs=macs_left(one.graph, masks),
        copied=solution.copied,
        choosing=chosen - start,
        refitting=done - chosen,
        masks=masks,
    )


def cells(
    tasks: Sequence[Task],
    methods: Sequence[str],
    shares: Sequence[float],
    weighting: Weighting,
    *,
    kept: bool = False,
) -> Iterator[Cell]:
    """All cells that are asked for; those that are kept are not made again, or alone are shown."""
    for task in tasks:
        store = store_of(task, Cell)
        for share, method in itertools.product(shares or SHARES[task.net], methods):
            name = name_of(task, method, share, weighting)
            found = store.find(name)
            if found is None and kept:
                continue
            if found is None:
                found = measured(task, method, share, weighting)
                store.put(name, found)
                pages.say(
                    f"{task.net} {task.seed}, {method}, {share:.0%}: {100 * found.accuracy:.1f} % "
                    f"right, {found.macs:.2%} left, {found.copied} copied, "
                    f"{found.choosing:.0f} + {found.refitting:.0f} s"
                )
            yield found


def wholes(tasks: Sequence[Task]) -> list[Whole]:
    """The unpruned networks; from the cache if they are there."""
    return [whole(task) for task in tasks]


def whole(task: Task) -> Whole:
    """One of them."""
    store = store_of(task, Whole)
    name = f"{task.net}-{task.seed}-whole-{code_key()}"
    found = store.find(name)
    if found is None:
        one = subject(task)
        macs = macs_of(one.graph, Masks(kept={}))
        found = Whole(net=task.net, seed=task.seed, accuracy=one.test(one.model), macs=macs)
        store.put(name, found)
    return found


def export_of(one: Subject, masks: Masks) -> nn.Module:
    """The network with masks, not refitted, exported for eager PyTorch."""
    solution = uo.solve(one.graph, masks, time_limit=SECONDS)
    return uo.materialize(masked_copy(one.model, one.graph, masks), solution)


def as_it_is(task: Task, cell: Cell, *, kept: bool = False) -> float | None:
    """A cell's accuracy without refitting; ``None`` if it would have to be measured."""

    def test() -> float:
        one = subject(task)
        return one.test(export_of(one, cell.masks))

    return _beyond(task, cell, "plain", None if kept else test)


def tuned(task: Task, cell: Cell, *, kept: bool = False) -> float | None:
    """A cell's accuracy after refitting, export, and one epoch of training with labels.

    ``None`` if it would have to be measured.

    Raises:
        ValueError: if the network was not trained here.
    """

    def test() -> float:
        one = subject(task)
        if one.training is None:
            raise ValueError(f"there is nothing to train {task.net} with")
        recipe, images = one.training
        refitted, _ = uo.refit(one.model, cell.masks, one.batches, graph=one.graph)
        export = uo.materialize(refitted, uo.solve(one.graph, cell.masks, time_limit=SECONDS))
        once = recipe.model_copy(update={"epochs": 1, "learning_rate": RATE})
        with torch.enable_grad():
            train(export, once, images)
        return one.test(export)

    return _beyond(task, cell, "tuned", None if kept else test)


def _beyond(task: Task, cell: Cell, kind: str, test: Callable[[], float] | None) -> float | None:
    store = store_of(task, Beyond)
    name = f"{name_of(task, cell.method, cell.share, cell.weighting)}-{kind}"
    found = store.find(name)
    if found is None:
        if test is None:
            return None
        found = Beyond(accuracy=test())
        store.put(name, found)
        pages.say(f"{name}: {100 * found.accuracy:.1f} %")
    return found.accuracy
