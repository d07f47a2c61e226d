"""Jobs and what may become of them: every transition is one compare-and-set in the storage.

A worker that claims a job gets a token. Whatever it says of the job later counts only while the job
still has this token: a worker that was thought dead can neither overwrite nor repeat an answer.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict

from upscale_opt.service.errors import ServiceError
from upscale_opt.service.problems import Problem
from upscale_opt.service.settings import Settings
from upscale_opt.solver.network.objectives import UNITS

State = Literal["queued", "running", "done", "failed", "cancelled"]

STATES: tuple[State, ...] = ("queued", "running", "done", "failed", "cancelled")

FINAL = ("done", "failed", "cancelled")
"""States that a job does not leave by itself."""

OVERDUE = 5.0
"""Seconds that a job waits before it is made sure that the queue has not lost it."""


class Problematic(BaseModel):
    """The reason why a job failed."""

    code: str
    message: str


class Job(BaseModel):
    """The state of a job.

    Attributes:
        id: the hash of its content.
        state: where it stands.
        due: when the state should have been left, or, if it is final, was entered.
        token: the worker's that has it.
        attempt: how often it was begun.
        created: when it was accepted; all times are seconds since 1970.
        started: when a worker last began it.
        finished: when it came to its final state.
        solver: which solver.
        objective: what is minimised.
        unit: what the objective counts.
        time_limit: seconds for the solver.
        status: the solution's: optimal or feasible.
        value: of the best solution so far.
        bound: no solution is better than this.
        error: why it failed.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    state: State
    due: float
    token: str = ""
    attempt: int = 0
    created: float
    started: float | None = None
    finished: float | None = None
    solver: str
    objective: str
    unit: str
    time_limit: float
    status: str | None = None
    value: int | None = None
    bound: int | None = None
    error: Problematic | None = None

    @property
    def final(self) -> bool:
        """Nothing more will happen to it."""
        return self.state in FINAL

    @property
    def gap(self) -> float | None:
        """The largest distance of the value from the optimum, as a share of it."""
        if self.value is None or self.bound is None:
            return None
        return (self.value - self.bound) / self.value if self.value > self.bound else 0.0


Change = Callable[["Job | None", float], "Job | None"]
"""Makes of an old job, and the time, a new one; None leaves things as they are."""


class Store(Protocol):
    """A store of jobs. All methods raise ``StorageError`` if they cannot do their work."""

    def update(
        self,
        id: str,
        change: Change,
        *,
        blobs: dict[str, bytes | None] | None = None,
        totals: dict[str, float] | None = None,
    ) -> Job | None:
        """Change a job, at once or not at all, durably.

        Args:
            id: the job's.
            change: from what is stored to what shall be.
            blobs: what to store beside it (None: to remove), if it changes.
            totals: what to add to counters, if it changes.

        Returns:
            What is stored now; None if ``change`` returned None.
        """

    def read(self, id: str) -> Job | None:
        """The job, if there is one."""

    def blob(self, id: str, kind: str) -> bytes | None:
        """The bytes stored beside it: ``"request"`` or ``"result"``."""

    def due(self, state: State, before: float, most: int) -> list[str]:
        """The jobs in this state that are due since ``before`` seconds, at most so many."""

    def counts(self) -> dict[State, int]:
        """The number of jobs in each state."""

    def totals(self) -> dict[str, float]:
        """The counters."""

    def remove(self, id: str, state: State) -> None:
        """Forget a job, if it is in this state."""

    def beat(self, worker: str, alive: bool = True) -> None:
        """A worker is alive, or says good-bye."""

    def workers(self, within: float) -> int:
        """The workers that gave a sign of life in the last seconds."""

    def check(self) -> None:
        """Fail if the storage cannot be reached."""

    def close(self) -> None:
        """Let go of it."""


class Jobs:
    """All that happens to jobs, on any storage.

    Args:
        store: the storage.
        settings: with the limits.
    """

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        self.settings = settings
        self._adding = threading.Lock()

    def add(self, problem: Problem) -> tuple[Job, bool]:
        """Accept a problem; whether it has to be solved, or was already known.

        Raises:
            ServiceError: 429, if too many jobs wait.
        """
        known = self.store.read(problem.id)
        if known is not None and known.state in ("queued", "running", "done"):
            return known, False
        options = problem.options

        def accept(job: Job | None, now: float) -> Job | None:
            if job is not None and job.state in ("queued", "running", "done"):
                return None
            return Job(
                id=problem.id,
                state="queued",
                due=now,
                created=now,
                solver=options.solver,
                objective=options.objective,
                unit=UNITS[options.objective],
                time_limit=problem.time_limit,
            )

        blobs = {"request": zlib.compress(problem.request, 1), "result": None}
        with self._adding:
            if self.store.counts()["queued"] >= self.settings.max_queue:
                raise ServiceError(
                    429,
                    "queue_full",
                    f"{self.settings.max_queue:,} jobs wait already; try again later",
                    retry_after=5,
                )
            added = self.store.update(problem.id, accept, blobs=blobs, totals={"accepted": 1})
        if added is None:
            return self.known(problem.id), False
        return added, True

    def known(self, id: str) -> Job:
        """The job.

        Raises:
            ServiceError: 404, if there is none.
        """
        job = self.store.read(id) if len(id) == 64 and id.isalnum() and id.isascii() else None
        if job is None:
            raise ServiceError(
                404,
                "unknown_job",
                "there is no such job; finished jobs are forgotten after a while",
                "id",
            )
        return job

    def request(self, id: str) -> bytes | None:
        """The problem's JSON."""
        data = self.store.blob(id, "request")
        return None if data is None else zlib.decompress(data)

    def result(self, id: str) -> bytes | None:
        """The solution's JSON."""
        data = self.store.blob(id, "result")
        return None if data is None else zlib.decompress(data)

    def claim(self, id: str, token: str) -> Job | None:
        """Take a waiting job; None if it does not wait any more."""

        def take(job: Job | None, now: float) -> Job | None:
            if job is None or job.state != "queued":
                return None
            return job.model_copy(
                update={
                    "state": "running",
                    "token": token,
                    "attempt": job.attempt + 1,
                    "started": now,
                    "due": now + self.settings.lease,
                    "value": None,
                    "bound": None,
                }
            )

        return self.store.update(id, take)

    def renew(self, id: str, token: str, value: int | None, bound: int | None) -> bool:
        """Tell progress, and that the worker lives; false if the job is not this worker's."""

        def prolong(job: Job | None, now: float) -> Job | None:
            if job is None or job.token != token or job.state != "running":
                return None
            due = now + self.settings.lease
            return job.model_copy(update={"due": due, "value": value, "bound": bound})

        return self.store.update(id, prolong) is not None

    def holds(self, id: str, token: str) -> bool:
        """Tell whether the job still is the worker's with this token."""
        job = self.store.read(id)
        return job is not None and job.state == "running" and job.token == token

    def finish(
        self,
        id: str,
        token: str,
        *,
        seconds: float,
        result: bytes | None = None,
        status: str | None = None,
        value: int | None = None,
        bound: int | None = None,
        error: Problematic | None = None,
    ) -> bool:
        """The one and only end of an attempt; false if the job is not this worker's."""
        state: State = "done" if result is not None else "failed"

        def end(job: Job | None, now: float) -> Job | None:
            if job is None or job.token != token or job.state != "running":
                return None
            return job.model_copy(
                update={
                    "state": state,
                    "due": now,
                    "finished": now,
                    "token": "",
                    "status": status,
                    "value": value,
                    "bound": bound,
                    "error": error,
                }
            )

        blobs = {} if result is None else {"result": zlib.compress(result, 1)}
        totals = {state: 1.0, "solve_seconds": seconds}
        return self.store.update(id, end, blobs=dict(blobs), totals=totals) is not None

    def give_back(self, id: str, token: str, why: str, *, counts: bool) -> State | None:
        """Put a running job back; or, if it was begun too often, end it.

        Args:
            id: the job's.
            token: of the worker that had it.
            why: it was not finished.
            counts: whether the attempt counts.

        Returns:
            The state it came to; None if it was not this worker's.
        """
        return self._back(id, lambda job, now: job.token == token, why, counts)

    def expire(self) -> list[str]:
        """Take jobs from workers that were silent for too long; those that wait again."""
        waiting = []
        why = "its worker died"
        for id in self.store.due("running", 0.0, 100):
            if self._back(id, lambda job, now: job.due < now, why, True) == "queued":
                waiting.append(id)
        return waiting

    def _back(
        self, id: str, ours: Callable[[Job, float], bool], why: str, counts: bool
    ) -> State | None:
        """Put a job back that is running and ``ours``, or end it."""
        job = self.store.read(id)
        if job is None:
            return None
        attempts = job.attempt if counts else job.attempt - 1
        over = counts and attempts >= self.settings.max_attempts

        def put(found: Job | None, now: float) -> Job | None:
            if found is None or found.state != "running" or not ours(found, now):
                return None
            if found.attempt != job.attempt:
                return None
            if over:
                message = f"{why}; it was begun {attempts} times"
                error = Problematic(code="worker_lost", message=message)
                end = {"state": "failed", "finished": now, "error": error}
                return found.model_copy(update={"due": now, "token": "", **end})
            again = {"state": "queued", "attempt": max(0, attempts), "started": None}
            return found.model_copy(update={"due": now, "token": "", **again})

        done = self.store.update(id, put, totals={"failed" if over else "returned": 1})
        return None if done is None else done.state

    def cancel(self, id: str) -> Job:
        """End a job that has not ended; its worker notices within a second.

        Raises:
            ServiceError: 404, if there is none.
        """
        self.known(id)

        def stop(job: Job | None, now: float) -> Job | None:
            if job is None or job.final:
                return None
            return job.model_copy(
                update={"state": "cancelled", "due": now, "finished": now, "token": ""}
            )

        return self.store.update(id, stop, totals={"cancelled": 1}) or self.known(id)

    def overdue(self) -> list[str]:
        """Jobs that wait for so long that the queue may have lost them."""
        return self.store.due("queued", OVERDUE, 10_000)

    def touch(self, id: str) -> bool:
        """Let a waiting job wait anew; false if it does not wait, or somebody just did."""

        def again(job: Job | None, now: float) -> Job | None:
            if job is None or job.state != "queued" or job.due > now - OVERDUE:
                return None
            return job.model_copy(update={"due": now})

        return self.store.update(id, again) is not None

    def purge(self) -> int:
        """Forget jobs that ended long ago."""
        count = 0
        for state in STATES:
            if state in FINAL:
                for id in self.store.due(state, self.settings.retention, 1000):
                    self.store.remove(id, state)
                    count += 1
        return count
