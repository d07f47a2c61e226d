"""The exports of a network's cells on the clock, in eager PyTorch and in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import pages
import torch
from budget_cells import Cell, code_key, export_of, store_of
from budget_methods import SECONDS, Runtime
from budget_networks import Subject, Task, subject
from moved_bytes import upscaled
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt import in_runtimes
from upscale_opt.ir.base import Document, Record
from upscale_opt.masking.zeros import masked_copy

BY_UPSCALE = "uniform, exported by UPSCALE"
"""The export of another package, of the masks of ``uniform``."""

_CLOCKED = 1.0
"""Seconds on the clock for each export."""


class Timed(Record):
    """An export on the clock.

    Attributes:
        method: what chose its masks.
        share: of the multiply-adds, that might be left.
        milliseconds: of a call, the median.
    """

    method: str
    share: float
    milliseconds: float


class Clock(Document):
    """The exports of one network and seed, run in turn in one process on one thread.

    Attributes:
        net: the network.
        seed: as of the cells.
        runtime: where they ran.
        batch: inputs in a call.
        unpruned: milliseconds of the unpruned network.
        exports: the others.
    """

    what: ClassVar[str] = "clock"

    net: str
    seed: int
    runtime: Runtime
    batch: int
    unpruned: float
    exports: tuple[Timed, ...]

    def took(self) -> dict[tuple[str, float], float]:
        """The share of the unpruned network's time, by method and share."""
        return {(one.method, one.share): one.milliseconds / self.unpruned for one in self.exports}


def clock(
    task: Task, found: Sequence[Cell], runtime: Runtime, *, kept: bool = False
) -> Clock | None:
    """Put the exports of a task's cells on the clock; from the cache if all of them are there.

    ``None`` if they would have to be measured.
    """
    own = [cell for cell in found if (cell.net, cell.seed) == (task.net, task.seed)]
    store = store_of(task, Clock)
    name = f"{task.net}-{task.seed}-clock-{runtime}-{code_key()}"
    times = store.find(name)
    if times is None or not {(one.method, one.share) for one in own} <= set(times.took()):
        if kept:
            return None
        pages.say(f"{task.net} {task.seed}: {len(own)} exports on the clock in {runtime}")
        times = _clocked(task, own, runtime)
        store.put(name, times)
    return times


def _clocked(task: Task, own: Sequence[Cell], runtime: Runtime) -> Clock:
    one = subject(task)
    inputs = torch.cat(one.batches)[: one.batch]
    exports: dict[tuple[str, float], nn.Module] = {}
    for cell in own:
        key = (cell.method, cell.share)
        if runtime == "onnxruntime":
            exports[key] = _for_onnxruntime(one, cell)
            continue
        exports[key] = export_of(one, cell.masks)
        if cell.method == "uniform":
            theirs = upscaled(masked_copy(one.model, one.graph, cell.masks), inputs)
            if theirs is not None:
                exports[BY_UPSCALE, cell.share] = theirs
    named = {"unpruned": one.model, **{f"{m} {share}": e for (m, share), e in exports.items()}}
    took = _milliseconds(named, inputs, runtime)
    return Clock(
        net=task.net,
        seed=task.seed,
        runtime=runtime,
        batch=len(inputs),
        unpruned=took["unpruned"],
        exports=tuple(
            Timed(method=method, share=share, milliseconds=took[f"{method} {share}"])
            for method, share in exports
        ),
    )


def _for_onnxruntime(one: Subject, cell: Cell) -> nn.Module:
    solution = uo.solve(
        one.graph,
        cell.masks,
        objective="latency",
        cost_model="onnxruntime",
        time_limit=SECONDS,
    )
    return uo.materialize(masked_copy(one.model, one.graph, cell.masks), solution)


def _milliseconds(
    models: Mapping[str, nn.Module], inputs: Tensor, runtime: Runtime
) -> Mapping[str, float]:
    seconds = _CLOCKED * len(models)
    if runtime == "eager":
        return uo.measuring.beside(models, inputs, seconds=seconds).milliseconds
    return in_runtimes.timing.beside(models, inputs, seconds=seconds).milliseconds
