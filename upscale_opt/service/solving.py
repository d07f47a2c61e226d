"""A process that solves, seen from the one that started it."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from upscale_opt.child_process import ChildProcess, EndedError, Reply
from upscale_opt.service.errors import shortened

log = logging.getLogger("upscale_opt.service")

_RECYCLE = 200
"""Problems that a process solves before a new one takes its place."""

_TICK = 0.1
"""Seconds between two looks at whether to go on."""

_START = 60.0
"""Seconds that a process may take to start."""


@dataclass(frozen=True)
class Answer:
    """The outcome of a problem.

    Attributes:
        solution: the solution's JSON; None if there is none.
        status: optimal or feasible.
        value: of the solution, or the best one that the solver spoke of.
        bound: the best bound.
        code: why there is no solution, in a word.
        message: and in words.
        seconds: how long it took.
    """

    solution: bytes | None = None
    status: str | None = None
    value: int | None = None
    bound: int | None = None
    code: str = ""
    message: str = ""
    seconds: float = 0.0


class StoppedError(Exception):
    """The problem is not wanted any more; the process was stopped."""


Tick = Callable[[int | None, int | None], bool]
"""Called every now and then with value and bound; false stops."""


def deadlines(limit: float) -> tuple[float, float]:
    """After how many seconds a search is asked, and made, to stop: within 10 % and a second."""
    return 1.05 * limit + 0.5, 1.1 * limit + 0.9


class SolverProcess:
    """The process: started when needed, used for many problems, killed without harm.

    Args:
        memory_mb: megabytes of address space that it may take; 0 for no limit.
    """

    def __init__(self, memory_mb: int) -> None:
        self._memory = memory_mb
        self._child: ChildProcess | None = None
        self._count = 0

    @property
    def pid(self) -> int | None:
        """The process's number, if there is one."""
        return None if self._child is None else self._child.pid

    def start(self) -> None:
        """Start it, if there is none; it takes a second to get ready."""
        self._started()

    def ready(self, seconds: float) -> bool:
        """It can begin at once; wait so many seconds for that."""
        child = self._fresh()
        if not child.ready:
            try:
                child.reply(seconds)
            except EndedError:
                log.error("a solver's process ended before it was ready; starting another")
                self.stop()
        return child.ready

    def solve(self, problem: bytes, limit: float, tick: Tick) -> Answer:
        """Solve a problem.

        Args:
            problem: its JSON, in one line.
            limit: seconds for the solver.
            tick: is called ten times a second.

        Raises:
            StoppedError: if ``tick`` said so; the process was killed.
        """
        child = self._fresh()
        self._count += 1
        done = False
        try:
            answer = self._solve(child, problem, limit, tick)
            done = answer.code not in ("crashed", "time_limit", "out_of_memory")
        finally:
            if not done:
                self.stop()
        return answer

    def stop(self) -> None:
        """Kill the process, at once; what it has started ends with it."""
        child, self._child = self._child, None
        if child is not None:
            child.stop()

    def _fresh(self) -> ChildProcess:
        """A process that has not solved too many problems."""
        if self._count >= _RECYCLE:
            self.stop()
        return self._started()

    def _started(self) -> ChildProcess:
        if self._child is None or not self._child.alive:
            self.stop()
            self._child = ChildProcess([sys.executable, "-m", "upscale_opt.service.child"])
            self._count = 0
        return self._child

    def _solve(self, child: ChildProcess, problem: bytes, limit: float, tick: Tick) -> Answer:
        start = time.monotonic()
        try:
            while not child.ready:
                _next(child, tick, None, None)
                if time.monotonic() - start > _START and not child.ready:
                    raise EndedError
        except EndedError:
            return Answer(code="crashed", message="the solver's process did not start")
        start = time.monotonic()
        header = json.dumps({"seconds": limit, "memory_mb": self._memory})[:-1].encode()
        child.send(header + b',"problem":' + problem + b"}")
        soft, hard = deadlines(limit)
        value: int | None = None
        bound: int | None = None
        asked = False
        while True:
            try:
                reply = _next(child, tick, value, bound)
            except EndedError:
                seconds = time.monotonic() - start
                message = "the solver's process ended before it was done"
                return Answer(None, None, value, bound, "crashed", message, seconds)
            seconds = time.monotonic() - start
            if reply is not None:
                said, body = reply
                if said["state"] == "progress":
                    value, bound = said["value"], said["bound"]
                elif said["state"] == "done":
                    return Answer(
                        body, said["status"], said["value"], said["bound"], seconds=seconds
                    )
                elif said["state"] == "failed":
                    message = shortened(said["message"])
                    return Answer(None, None, value, bound, said["code"], message, seconds)
            elif seconds > hard:
                message = (
                    f"no solution within {limit:g} s, which include reading the problem; "
                    "a larger time_limit may help"
                )
                return Answer(None, None, value, bound, "time_limit", message, seconds)
            elif seconds > soft and not asked:
                asked = True
                child.interrupt()


def _next(child: ChildProcess, tick: Tick, value: int | None, bound: int | None) -> Reply | None:
    """The next reply, if there is one soon.

    Raises:
        EndedError: if none will come.
        StoppedError: if ``tick`` says so, and the problem is not done.
    """
    reply = child.reply(_TICK)
    done = reply is not None and reply.said["state"] in ("done", "failed")
    if not done and not tick(value, bound):
        raise StoppedError
    return reply
