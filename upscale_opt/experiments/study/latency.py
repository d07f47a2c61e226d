"""Latency of exports and of the unpruned network: in turn, in one process, on one thread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from upscale_opt.experiments.processes import Tell
from upscale_opt.experiments.study.records import Row
from upscale_opt.experiments.study.subjects import load_subject
from upscale_opt.experiments.study.sweep import Task, export, run_task, scored_segments

_ROUNDS = 9
_WARM_UP = 1
_BATCH = 64
_LARGE_BATCH = 1


def measure_task(task: Task, cache: Path, tell: Tell = lambda text: None) -> list[Row]:
    """Measure the latency of a task's exports that have none yet, and store it; all of its rows.

    All methods' exports of one amount are run in turn with the unpruned network, so that whatever
    slows the machine down meets all of them.
    """
    run_task(task, cache, tell)
    finished = task.finished(cache)
    missing = [
        amount
        for amount in task.amounts
        if any(finished.rows[method, amount].latency is None for method in task.methods)
    ]
    if missing:
        subject = load_subject(task.recipe, cache)
        segments = {method: scored_segments(task, method, subject) for method in task.methods}
        large = subject.example.shape[-1] > 64
        batch = subject.test.pixels[: _LARGE_BATCH if large else _BATCH]
        for amount in missing:
            exports = [export(subject, segments[m], amount, task).model for m in task.methods]
            unpruned, *pruned = interleaved([subject.model, *exports], batch)
            for method, seconds in zip(task.methods, pruned, strict=True):
                row = finished.rows[method, amount]
                finished.put(row.model_copy(update={"latency": seconds / unpruned}))
            tell(f"{task.name}, {amount:.0%}")
    return [finished.rows[cell] for cell in task.cells]


def interleaved(models: Sequence[nn.Module], inputs: Tensor, rounds: int = _ROUNDS) -> list[float]:
    """The median seconds of every model on ``inputs``, one round after the other."""
    seconds: list[list[float]] = [[] for _ in models]
    with torch.no_grad():
        for number in range(_WARM_UP + rounds):
            for model, own in zip(models, seconds, strict=True):
                start = time.perf_counter()
                model(inputs)
                if number >= _WARM_UP:
                    own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in seconds]
