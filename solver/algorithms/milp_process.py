"""A process that solves master programs by PuLP, and the conversation with it.

It runs ``algorithms/milp_worker.py``, which says why, and what the lines of JSON are.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from upscale_opt.child_process import ChildProcess, EndedError
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
        self._folder = tempfile.TemporaryDirectory(prefix="upscale-opt-")
        self._child: ChildProcess | None = self._started()

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
        return None if self._child is None else self._child.pid

    def solve(self, problem: dict[str, Any], time_limit: float) -> Messages:
        """Yield what is found, as it is found; the last message's ``"state"`` is ``"done"``.

        If that has not come when the time is over, the messages just end.

        Args:
            problem: less what this class knows, a :class:`milp_worker.Problem`.
            time_limit: in seconds.

        Raises:
            SolverError: if the solver is not there, or fails.
        """
        deadline = time.monotonic() + time_limit
        if self._child is None:
            self._child = self._started()
        done = False
        try:
            seconds = deadline - time.monotonic()
            asked = {**problem, "solver": self.solver, "seconds": seconds}
            self._child.send(json.dumps(asked).encode())
            for message in self._messages(self._child, deadline):
                done = message["state"] == "done"
                yield message
        finally:
            if not done:
                self._stop()

    def _started(self) -> ChildProcess:
        try:
            return ChildProcess([sys.executable, str(_WORKER), self._folder.name])
        except OSError as error:
            raise SolverError(
                f"cannot start {sys.executable!r}, in which PuLP would solve ({error}); use "
                "solver='cp-sat'"
            ) from error

    def _messages(self, child: ChildProcess, deadline: float) -> Iterator[dict[str, Any]]:
        while True:
            limit = deadline + (_GRACE if child.ready else 0.0)
            try:
                reply = child.reply(limit - time.monotonic())
            except EndedError:
                raise SolverError(
                    f"the process that runs {_NAMES[self.solver]} ended before it was done; "
                    f"{_OTHERS}"
                ) from None
            if reply is None:
                return
            message = reply.said
            if message["state"] == "ready":
                continue
            if message["state"] == "missing":
                raise SolverError(MISSING[self.solver])
            if message["state"] == "failed":
                raise SolverError(f"{_NAMES[self.solver]} failed: {message['error']}; {_OTHERS}")
            yield message
            if message["state"] == "done":
                return

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.stop()


_NAMES = {"highs": "HiGHS", "cbc": "CBC"}

_OTHERS = "use solver='cp-sat', which needs no other process"

MISSING = {
    "highs": f"solver 'pulp' needs highspy: {to_install('highs')}; or use solver='cp-sat'",
    "cbc": (
        "solver 'pulp-cbc' needs CBC, and PuLP has brought none for this platform: pip install "
        "'pulp[cbc]', or put cbc on the PATH, or use solver='pulp'"
    ),
}
