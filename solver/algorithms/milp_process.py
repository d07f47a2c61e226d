"""A process that solves master programs by PuLP, and the conversation with it.

It runs ``algorithms/milp_worker.py``, which says why, and what the lines of JSON are.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from upscale_opt.errors import SolverError, to_install

_WORKER = Path(__file__).with_name("milp_worker.py")

Messages = Generator[dict[str, Any], None, None]

_GRACE = 0.5
"""Seconds a solver may take, after its time is over, to say what it has found."""


class MilpProcess:
    """The process; one problem at a time, stopped for good at the end of the ``with``.

    It is started at once, since that takes as long as solving many a problem. If it had to be
    stopped in the middle of one, the next problem starts another.

    Args:
        solver: ``"highs"`` or ``"cbc"``.
    """

    def __init__(self, solver: str) -> None:
        self.solver = solver
        self._process: subprocess.Popen[str] | None = None
        self._replies: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._ready = False
        self._folder = tempfile.TemporaryDirectory(prefix="upscale-opt-")
        self._start()

    def __enter__(self) -> MilpProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()
        self._folder.cleanup()

    @property
    def pid(self) -> int | None:
        """The process's number; None when there is none."""
        return None if self._process is None else self._process.pid

    def solve(self, problem: dict[str, Any], time_limit: float) -> Messages:
        """What is found, as it is found; the last message's ``"state"`` is ``"done"``.

        If that has not come when the time is over, the messages just end.

        Args:
            problem: less what this class knows, a :class:`milp_worker.Problem`.
            time_limit: in seconds.

        Raises:
            SolverError: if the solver is not there, or fails.
        """
        deadline = time.monotonic() + time_limit
        if self._process is None:
            self._start()
        done = False
        try:
            self._send({**problem, "solver": self.solver, "seconds": deadline - time.monotonic()})
            for message in self._messages(deadline):
                done = message["state"] == "done"
                yield message
        finally:
            if not done:
                self._stop()

    def _start(self) -> None:
        """Start the process, in a group of its own: Ctrl-C is for this one."""
        flags = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
        try:
            self._process = subprocess.Popen(
                [sys.executable, str(_WORKER), self._folder.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                start_new_session=True,
                creationflags=flags,
            )
        except OSError as error:
            raise SolverError(
                f"cannot start {sys.executable!r}, in which PuLP would solve ({error}); use "
                "solver='cp-sat'"
            ) from error
        self._ready = False
        self._replies = queue.SimpleQueue()
        listener = threading.Thread(
            target=_listen, args=(self._process, self._replies), daemon=True
        )
        listener.start()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._ended() from error

    def _messages(self, deadline: float) -> Iterator[dict[str, Any]]:
        while True:
            limit = deadline + (_GRACE if self._ready else 0.0)
            try:
                line = self._replies.get(timeout=max(0.0, limit - time.monotonic()))
            except queue.Empty:
                return
            if line is None:
                raise self._ended()
            message: dict[str, Any] = json.loads(line)
            if message["state"] == "ready":
                self._ready = True
                continue
            if message["state"] == "missing":
                raise SolverError(MISSING[self.solver])
            if message["state"] == "failed":
                raise SolverError(f"{_NAMES[self.solver]} failed: {message['error']}; {_OTHERS}")
            yield message
            if message["state"] == "done":
                return

    def _ended(self) -> SolverError:
        self._stop()
        return SolverError(
            f"the process that runs {_NAMES[self.solver]} ended before it was done; {_OTHERS}"
        )

    def _stop(self) -> None:
        """End the process and what it has started, at once."""
        process, self._process = self._process, None
        if process is None:
            return
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody left
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        if process.stdin is not None:
            with contextlib.suppress(OSError):  # a line that it did not read any more
                process.stdin.close()
        process.wait()


_NAMES = {"highs": "HiGHS", "cbc": "CBC"}

_OTHERS = "use solver='cp-sat', which needs no other process"

MISSING = {
    "highs": f"solver 'pulp' needs highspy: {to_install('highs')}; or use solver='cp-sat'",
    "cbc": (
        "solver 'pulp-cbc' needs CBC, and PuLP has brought none for this platform: pip install "
        "'pulp[cbc]', or put cbc on the PATH, or use solver='pulp'"
    ),
}


def _listen(process: subprocess.Popen[str], replies: queue.SimpleQueue[str | None]) -> None:
    """Pass on the process's lines, and None behind the last one."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            replies.put(line)
    replies.put(None)
