"""A process that solves, seen from the one that started it."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    """What came of a problem.

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
        self._process: subprocess.Popen[bytes] | None = None
        self._replies: queue.SimpleQueue[tuple[dict[str, Any], bytes] | None]
        self._count = 0
        self._ready = False

    @property
    def pid(self) -> int | None:
        """The process's number, if there is one."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it, if there is none; it takes a second to get ready."""
        if self._process is not None and self._process.poll() is None:
            return
        self.stop()
        self._replies = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "upscale_opt.service.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent
        )
        self._count = 0
        threading.Thread(target=_listen, args=(self._process, self._replies), daemon=True).start()
        self._ready = False

    def ready(self, seconds: float) -> bool:
        """Whether it can begin at once; wait so many seconds for that."""
        if self._count >= _RECYCLE:
            self.stop()
        self.start()
        if not self._ready and self._reply(seconds) is None:
            log.error("a solver's process ended before it was ready; starting another")
            self.stop()
        return self._process is not None and self._ready

    def solve(self, problem: bytes, limit: float, tick: Tick) -> Answer:
        """Solve a problem.

        Args:
            problem: its JSON, in one line.
            limit: seconds for the solver.
            tick: is called ten times a second.

        Raises:
            StoppedError: if ``tick`` said so; the process was killed.
        """
        if self._count >= _RECYCLE:
            self.stop()
        self.start()
        self._count += 1
        done = False
        try:
            answer = self._solve(problem, limit, tick)
            done = answer.code not in ("crashed", "time_limit", "out_of_memory")
        finally:
            if not done:
                self.stop()
        return answer

    def _solve(self, problem: bytes, limit: float, tick: Tick) -> Answer:
        begin = time.monotonic()
        while not self._ready:
            if self._next(tick, None, None) == ("lost", b""):
                return Answer(code="crashed", message="the solver's process did not start")
            if time.monotonic() - begin > _START and not self._ready:
                return Answer(code="crashed", message="the solver's process did not start")
        start = time.monotonic()
        assert self._process is not None
        header = json.dumps({"seconds": limit, "memory_mb": self._memory})[:-1].encode()
        self._send(header + b',"problem":' + problem + b"}\n")
        soft, hard = deadlines(limit)
        value: int | None = None
        bound: int | None = None
        asked = False
        while True:
            reply = self._next(tick, value, bound)
            seconds = time.monotonic() - start
            if reply == ("lost", b""):
                message = "the solver's process ended before it was done"
                return Answer(None, None, value, bound, "crashed", message, seconds)
            if reply is not None:
                said, body = reply
                assert isinstance(said, dict)
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
                self._process.send_signal(signal.SIGINT)

    def _next(self, tick: Tick, value: int | None, bound: int | None) -> Any:
        """The next reply; None if there is none yet; ``("lost", b"")`` if none will come."""
        reply = self._reply(_TICK)
        if reply is None:
            return ("lost", b"")
        if reply[0].get("state") not in ("done", "failed") and not tick(value, bound):
            raise StoppedError
        return reply if reply[0].get("state") in ("progress", "done", "failed") else None

    def _reply(self, seconds: float) -> tuple[dict[str, Any], bytes] | None:
        """What the process says within the time, perhaps nothing; None if it has ended."""
        try:
            reply = self._replies.get(timeout=seconds)
        except queue.Empty:
            return ({}, b"")
        if reply is not None and reply[0]["state"] == "ready":
            self._ready = True
        return reply

    def _send(self, data: bytes) -> None:
        """Write in a thread of its own: the process may be slow to read, or not read at all."""
        assert self._process is not None
        assert self._process.stdin is not None
        pipe = self._process.stdin

        def write() -> None:
            with contextlib.suppress(OSError, ValueError):
                pipe.write(data)
                pipe.flush()

        threading.Thread(target=write, daemon=True).start()

    def stop(self) -> None:
        """Kill the process, at once; what it has started ends with it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        with contextlib.suppress(OSError, ValueError):
            if process.stdin is not None:
                process.stdin.close()
        process.wait()


def _listen(
    process: subprocess.Popen[bytes],
    replies: queue.SimpleQueue[tuple[dict[str, Any], bytes] | None],
) -> None:
    assert process.stdout is not None
    with contextlib.suppress(OSError, ValueError), process.stdout as out:
        for line in out:
            said = json.loads(line)
            body = out.read(said["bytes"]) if "bytes" in said else b""
            if len(body) < said.get("bytes", 0):
                break
            replies.put((said, body))
    replies.put(None)
