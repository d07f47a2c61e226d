"""The benchmark of many networks, a process for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from upscale_opt.experiments.bench.benching import Task, bench
from upscale_opt.experiments.bench.records import BenchRecord
from upscale_opt.experiments.processes import Ended, Tell
from upscale_opt.experiments.records import Store
from upscale_opt.experiments.running import Place, run_apart


def sweep(
    tasks: Sequence[Task], store: Store[BenchRecord], place: Place, tell: Tell = lambda text: None
) -> Iterator[tuple[Task, BenchRecord]]:
    """Yield every task with its record, as soon as that is in ``store``.

    Every network has a process of its own, in which all of its variants are timed: if it is killed,
    for want of memory say, the others go on.

    Args:
        tasks: the networks.
        store: where the records go.
        place: where; processes on one machine disturb each other's times.
        tell: called with what is being done.
    """
    for number, found in run_apart(_bench, tasks, place, tell=tell):
        record = record_of(found, tasks[number])
        store.put(record.name, record)
        yield tasks[number], record


def _bench(task: Task, tell: Tell) -> BenchRecord:
    return bench(task, lambda text: tell(f"{task.name}: {text}"))


def record_of(found: BenchRecord | Ended, task: Task) -> BenchRecord:
    """The record that a process made; if it made none, one that says so."""
    if isinstance(found, BenchRecord):
        return found
    return BenchRecord(name=task.name, settings=task.settings, problem=f"its process {found.how}")
