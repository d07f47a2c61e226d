"""The sweep over many networks, a process for each, here or on a cluster."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

import torch

from upscale_opt.errors import SchemaError
from upscale_opt.experiments.cluster import Place, run_all
from upscale_opt.experiments.coverage.covering import Task, cover
from upscale_opt.experiments.coverage.records import NetworkRecord
from upscale_opt.models import catalogue

_GLANCE = 1.0
"""Seconds between two looks at the clock."""

_SKIPPED = 3
"""The exit status of a process whose network is larger than asked for."""


def record_file(folder: Path, name: str) -> Path:
    """Where the record of a network lies."""
    return folder / f"{name.replace('/', '--')}.json"


def done_before(folder: Path, task: Task) -> NetworkRecord | None:
    """The record of an earlier sweep, if it is of the same masks and the network was lossless."""
    try:
        record = NetworkRecord.load(record_file(folder, task.name))
    except SchemaError:  # none there, or of another version
        return None
    same = (record.name, record.amount, record.seed) == (task.name, task.amount, task.seed)
    return record if same and record.lossless else None


def sweep(
    tasks: Sequence[Task], folder: Path, jobs: int
) -> Iterator[tuple[Task, NetworkRecord | None]]:
    """Yield every task with its record, as soon as that lies in ``folder``.

    Every network has a process of its own: so its peak of memory is known, and if it is killed the
    others go on.

    Args:
        tasks: the networks.
        folder: where the records go.
        jobs: the number of processes at a time.

    Returns:
        Pairs; without a record for what is larger than asked for.
    """
    waiting = deque(tasks)
    running: dict[int, tuple[BaseProcess, Task, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                process = _start(waiting[0], folder)
                running[process.sentinel] = process, waiting.popleft(), time.monotonic()
            for sentinel in wait(list(running), timeout=_GLANCE):
                assert isinstance(sentinel, int)
                process, task, _ = running.pop(sentinel)
                process.join()
                yield task, record_of(process, task, folder)
            for process, task, start in running.values():
                if time.monotonic() - start > task.patience:
                    process.kill()
    finally:
        for process, _, _ in running.values():
            process.kill()
            process.join()


def sweep_on(
    tasks: Sequence[Task], folder: Path, place: Place
) -> Iterator[tuple[Task, NetworkRecord | None]]:
    """As :func:`sweep`, on a cluster: its workers start the processes, and return the records.

    Args:
        tasks: the networks.
        folder: where the records go, on this machine.
        place: the cluster.

    Raises:
        UpscaleError: if the cluster cannot be reached or is lost.
    """
    for number, text in run_all(_apart, tasks, place):
        record = None if text is None else NetworkRecord.from_json(text)
        if record is not None:
            record.save(record_file(folder, record.name))
        yield tasks[number], record


_APART = """
import pickle, sys
from upscale_opt.coverage.sweeping import _work
_work(*pickle.load(sys.stdin.buffer))
"""


def _apart(task: Task) -> str | None:
    """The record of one network, as JSON, from a process of its own.

    Workers of a cluster may not use :mod:`multiprocessing`, as they are daemons.
    """
    with tempfile.TemporaryDirectory(prefix="upscale-opt-") as name:
        process = subprocess.Popen([sys.executable, "-c", _APART], stdin=subprocess.PIPE)
        try:
            process.communicate(pickle.dumps((task, Path(name))), task.patience)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()
            process.wait()
        record = record_of(_Ended(process.returncode), task, Path(name))
    return None if record is None else record.to_json()


@dataclass(frozen=True)
class _Ended:
    exitcode: int | None


def _start(task: Task, folder: Path) -> BaseProcess:
    process = multiprocessing.get_context("spawn").Process(
        target=_work, args=(task, folder), daemon=True
    )
    process.start()
    return process


def _work(task: Task, folder: Path) -> None:
    """What a process does: write the record of one network."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    # torch.export prints whole programs where it fails; what matters of it is in the record.
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    torch.set_num_threads(1)
    record = cover(task)
    if record is None:
        os._exit(_SKIPPED)
    record.save(record_file(folder, task.name))


class Ended(Protocol):
    """A process that has ended."""

    @property
    def exitcode(self) -> int | None:
        """Its exit status; negative if a signal killed it."""


def record_of(process: Ended, task: Task, folder: Path) -> NetworkRecord | None:
    """The record that a process wrote; if it was killed, one that says so.

    Args:
        process: a process that has ended.
        task: what it was given.
        folder: where the records go.

    Returns:
        The record; ``None`` if the network is larger than asked for.
    """
    if process.exitcode == _SKIPPED:
        return None
    if process.exitcode == 0:
        return NetworkRecord.load(record_file(folder, task.name))
    code = process.exitcode or 0
    how = "failed"
    if code < 0:
        how = (
            f"was killed by signal {-code}: it took longer than {task.patience:g} s, or too much "
            "memory"
        )
    record = NetworkRecord(
        name=task.name,
        group=catalogue.group_of(task.name),
        amount=task.amount,
        seed=task.seed,
        problem=f"its process {how}" + ("" if code < 0 else f" (exit status {code})"),
    )
    record.save(record_file(folder, task.name))
    return record
