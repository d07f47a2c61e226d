"""The benchmark of many networks, a process for each."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from upscale_opt.experiments.bench.benching import Task, bench
from upscale_opt.experiments.bench.records import BenchRecord, record_file

Tell = Callable[[str], None]


def sweep(
    tasks: Sequence[Task], folder: Path, jobs: int = 1, tell: Tell = lambda text: None
) -> Iterator[tuple[Task, BenchRecord]]:
    """Yield every task with its record, as soon as that lies in ``folder``.

    Every network has a process of its own, in which all of its variants are timed: if it is killed,
    for want of memory say, the others go on.

    Args:
        tasks: the networks.
        folder: where the records go.
        jobs: the number of processes at a time; more than one disturb each other's times.
        tell: called with what is being done.
    """
    waiting = deque(tasks)
    running: dict[int, tuple[BaseProcess, Task]] = {}
    pipes: dict[Connection, Task] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.popleft()
                process, messages = _start(task, folder)
                running[process.sentinel] = process, task
                pipes[messages] = task
            for ready in wait([*running, *pipes]):
                if isinstance(ready, Connection):
                    _pass_on(ready, pipes, tell)
                    continue
                assert isinstance(ready, int)
                process, task = running.pop(ready)
                process.join()
                yield task, record_of(process.exitcode, task, folder)
    finally:
        for process, _ in running.values():
            process.kill()
            process.join()
        for messages in pipes:
            messages.close()


def _pass_on(messages: Connection, pipes: dict[Connection, Task], tell: Tell) -> None:
    """Tell what a process says; forget its pipe if it has ended."""
    try:
        tell(f"{pipes[messages].name}: {messages.recv()}")
    except (EOFError, OSError):
        del pipes[messages]
        messages.close()


def _start(task: Task, folder: Path) -> tuple[BaseProcess, Connection]:
    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(
        target=_work, args=(task, folder, send), daemon=True
    )
    process.start()
    send.close()
    return process, receive


def _work(task: Task, folder: Path, messages: Connection) -> None:
    """What a process does: write the record of one network."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    # Tracers and compilers print a lot; what matters of it is in the record.
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    bench(task, messages.send).save(record_file(folder, task.name))


def record_of(exitcode: int | None, task: Task, folder: Path) -> BenchRecord:
    """The record that a process wrote; if it did not, one that says so.

    Args:
        exitcode: the exit status of a process that has ended.
        task: what it was given.
        folder: where the records go.
    """
    if exitcode == 0:
        return BenchRecord.load(record_file(folder, task.name))
    code = exitcode or 0
    how = (
        f"was killed by signal {-code}; it may have taken too much memory"
        if code < 0
        else f"failed (exit status {code})"
    )
    record = BenchRecord(name=task.name, settings=task.settings, problem=f"its process {how}")
    record.save(record_file(folder, task.name))
    return record
