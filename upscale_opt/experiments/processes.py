"""Child processes that do pieces of work, one after the other, and can be killed at any time."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

Tell = Callable[[str], None]
"""Says how work is getting on."""

Work = Callable[[Item, Tell], Result]
"""A function that other processes can import; it is given an item, and says how it gets on."""

_GLANCE = 1.0
"""Seconds after which waiting is begun anew, as some systems notice Ctrl-C only then."""

_CHILD = """
import pickle, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
sys.path[:] = pickle.load(sys.stdin.buffer)
from upscale_opt.experiments.processes import serve
serve()
"""


@dataclass(frozen=True)
class Ended:
    """Stands for the result of a process that ended before it had one.

    Attributes:
        exitcode: its exit status; negative if a signal killed it.
        patience: the seconds that it was given, if it was killed as they were over.
    """

    exitcode: int
    patience: float | None = None

    @property
    def how(self) -> str:
        """The end in words that follow on "the process"."""
        if self.patience is not None:
            return f"was killed, as it took longer than {self.patience:g} s"
        if self.exitcode < 0:
            return f"was killed by signal {-self.exitcode}; it may have taken too much memory"
        return f"failed (exit status {self.exitcode})"


class Process:
    """A child process; where it is killed, nobody else is harmed.

    Ctrl-C does not reach it: whoever started it has to kill it then.

    Args:
        quiet: keep what it prints to itself; otherwise all of it goes to stderr.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._send(sys.path, quiet)

    def do(
        self, work: Work[Item, Result], item: Item, tell: Tell, patience: float | None = None
    ) -> Result | Ended:
        """The result of ``work`` on ``item``, computed there.

        Args:
            work: the function.
            item: what it is given.
            tell: called with what it says.
            patience: seconds after which the process is killed.

        Raises:
            Exception: what ``work`` raises.
        """
        late = threading.Event()
        timer = threading.Timer(patience or 0.0, self._give_up, [late])
        if patience is not None:
            timer.start()
        try:
            self._send((work, item))
            while (answer := self._receive())[0] == "said":
                tell(answer[1])
        finally:
            timer.cancel()
        kind, value = answer
        if kind == "raised":
            error, where = value
            raise error from _ElsewhereError(where)
        if kind == "done":
            result: Result = value
            return result
        return Ended(self._process.wait(), patience if late.is_set() else None)

    @property
    def lives(self) -> bool:
        """Tell whether it can be given more work."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process, whatever it is at. Another thread may be waiting for it."""
        self._process.kill()

    def close(self) -> None:
        """End the process, and free what belongs to it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError, ValueError):
                assert pipe is not None
                pipe.close()

    def _give_up(self, late: threading.Event) -> None:
        late.set()
        self._process.kill()

    def _send(self, *values: object) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        data = b"".join(map(pickle.dumps, values))
        with suppress(OSError):  # it is dead, as its answer will say
            stdin.write(data)
            stdin.flush()

    def _receive(self) -> tuple[str, Any]:
        assert self._process.stdout is not None
        try:
            kind, data = pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):  # nothing, or half of a message
            return "ended", None
        return kind, pickle.loads(data)


class _ElsewhereError(Exception):
    """The traceback of an error, as text, from the process that it happened in."""


def serve() -> None:
    """Do the work that comes by stdin, until that is closed; what children are started for."""
    quiet = pickle.load(sys.stdin.buffer)
    with os.fdopen(os.dup(1), "wb") as answers, open(os.devnull, "w") as nowhere:
        for stream in (1, 2) if quiet else (1,):
            os.dup2(nowhere.fileno() if quiet else 2, stream)
        while True:
            try:
                work, item = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            except Exception as error:  # a function that is not there
                _answer(answers, "raised", _portable(error))
                return
            try:
                result = work(item, lambda text: _answer(answers, "said", text))
                _answer(answers, "done", result)
            except Exception as error:
                _answer(answers, "raised", _portable(error))


def _answer(answers: BinaryIO, kind: str, value: object) -> None:
    # Wrapped twice, so that what cannot be read does not spoil what comes behind it.
    answers.write(pickle.dumps((kind, pickle.dumps(value))))
    answers.flush()


def _portable(error: Exception) -> tuple[Exception, str]:
    """The error, or one with its words if it cannot travel; and where it came from."""
    where = traceback.format_exc()
    try:
        return pickle.loads(pickle.dumps(error)), where
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}"), where


def run_in_processes(
    work: Work[Item, Result],
    items: Sequence[Item],
    jobs: int,
    *,
    tell: Tell,
    apart: bool = False,
    patience: float | None = None,
) -> Iterator[tuple[int, Result | Ended]]:
    """Yield the number of an item and what became of it, as soon as it is finished.

    Where the iterator is closed, as by Ctrl-C, all processes are killed.

    Args:
        work: what is done to each.
        items: what it is given.
        jobs: how many processes at a time.
        tell: called with what they say, by several threads.
        apart: give every item a process of its own, which is quiet.
        patience: seconds for an item; then its process is killed.

    Raises:
        Exception: what ``work`` raises.
    """
    crew = _Crew(apart)

    def done(item: Item) -> Result | Ended:
        with crew.process() as process:
            return process.do(work, item, tell, patience)

    with ThreadPoolExecutor(max(1, min(jobs, len(items)))) as threads:
        numbers = {threads.submit(done, item): number for number, item in enumerate(items)}
        left = set(numbers)
        try:
            while left:
                finished, left = wait(left, _GLANCE, FIRST_COMPLETED)
                for future in finished:
                    yield numbers[future], future.result()
        finally:
            for future in left:
                future.cancel()
            crew.close()


class _Crew:
    """Processes for threads to borrow.

    Args:
        apart: give every borrower a new, quiet one.
    """

    def __init__(self, apart: bool) -> None:
        self._apart = apart
        self._lock = threading.Lock()
        self._all: set[Process] = set()
        self._idle: list[Process] = []
        self._closed = False

    @contextmanager
    def process(self) -> Iterator[Process]:
        """A process that is not in use elsewhere."""
        with self._lock:
            if self._closed:
                raise CancelledError
            process = self._idle.pop() if self._idle else Process(quiet=self._apart)
            self._all.add(process)
        try:
            yield process
        finally:
            with self._lock:
                if process.lives and not self._apart:
                    self._idle.append(process)
                else:
                    self._all.discard(process)
                    process.close()

    def close(self) -> None:
        """End all of them, whatever they are at, and lend no more."""
        with self._lock:
            self._closed = True
            for process in self._all:
                process.kill()
            for process in self._idle:
                process.close()
