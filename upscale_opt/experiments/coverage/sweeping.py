"""The sweep over many networks, a process for each, here or on a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from upscale_opt.experiments.coverage.covering import Task, cover
from upscale_opt.experiments.coverage.records import NetworkRecord
from upscale_opt.experiments.processes import Ended, Tell
from upscale_opt.experiments.records import Store
from upscale_opt.experiments.running import Place, run_apart
from upscale_opt.models import catalogue


def done_before(store: Store[NetworkRecord], task: Task) -> NetworkRecord | None:
    """The record of an earlier sweep, if it is of the same masks and the network was lossless."""
    record = store.find(task.name)
    if record is None or not record.lossless:
        return None
    same = (record.name, record.amount, record.seed) == (task.name, task.amount, task.seed)
    return record if same else None


def sweep(
    tasks: Sequence[Task], store: Store[NetworkRecord], place: Place, patience: float
) -> Iterator[tuple[Task, NetworkRecord | None]]:
    """Yield every task with its record, as soon as that is in ``store``.

    Every network has a process of its own: so its peak of memory is known, and if it is killed the
    others go on.

    Args:
        tasks: the networks.
        store: where the records go, on this machine.
        place: where; on a cluster, its workers start the processes.
        patience: seconds for a network; then its process is killed.

    Returns:
        Pairs; without a record for what is larger than asked for.

    Raises:
        UpscaleError: if the cluster cannot be reached or is lost.
    """
    for number, found in run_apart(_cover, tasks, place, tell=lambda _: None, patience=patience):
        record = record_of(found, tasks[number])
        if record is not None:
            store.put(record.name, record)
        yield tasks[number], record


def _cover(task: Task, tell: Tell) -> NetworkRecord | None:
    torch.set_num_threads(1)
    return cover(task)


def record_of(found: NetworkRecord | Ended | None, task: Task) -> NetworkRecord | None:
    """The record that a process made; if it was killed, one that says so.

    Args:
        found: what became of the process; ``None`` if the network is larger than asked for.
        task: what it was given.
    """
    if not isinstance(found, Ended):
        return found
    return NetworkRecord(
        name=task.name,
        group=catalogue.group_of(task.name),
        amount=task.amount,
        seed=task.seed,
        problem=f"its process {found.how}",
    )
