"""A worker: takes one job after the other from the queue, and has it solved.

Run as a module it is a child of the service: its settings are the first line of its standard
input, and it ends when that does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from types import FrameType

from upscale_opt.service.errors import CorruptError, StorageError
from upscale_opt.service.jobs import Job, Jobs, Problematic
from upscale_opt.service.settings import Settings
from upscale_opt.service.solving import Answer, SolverProcess, StoppedError
from upscale_opt.service.tasks import Queue, open_storage

log = logging.getLogger("upscale_opt.service")

BEAT = 2.0
"""Seconds between two signs of life of a worker."""

ALIVE = 10.0
"""Seconds after the last one for which it counts as alive."""

_SWEEP = 2.0
"""Seconds between two looks for jobs whose workers died."""

_LOOK = 0.3
"""Seconds between two looks at whether the job was cancelled."""

_TELL = 0.25
"""Seconds between two reports of progress."""


class Keeper:
    """Looks after jobs that nobody else looks after: lost by workers or the queue, or old.

    Args:
        jobs: the jobs.
        queue: their queue.
    """

    def __init__(self, jobs: Jobs, queue: Queue) -> None:
        self._jobs = jobs
        self._queue = queue
        self._next = 0.0
        self._failed = -1e9

    def sweep(self) -> None:
        """Do it, if it is time.

        After an outage, workers first get the time of a lease to say that they live.

        Raises:
            StorageError: if the storage cannot be reached.
        """
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _SWEEP
        try:
            if now - self._failed > self._jobs.settings.lease:
                for id in self._jobs.expire():
                    log.warning("job %s: its worker is silent; it waits again", id[:12])
                    self._queue.put(id)
            self._queue.refill(self._jobs)
            self._jobs.purge()
        except StorageError:
            self._failed = time.monotonic()
            raise


class Worker:
    """A worker.

    Args:
        settings: with the storage and the limits.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        store, self._queue = open_storage(settings)
        self._jobs = Jobs(store, settings)
        self._keeper = Keeper(self._jobs, self._queue)
        self._solver = SolverProcess(settings.memory_mb)
        self._stopping = threading.Event()
        self._name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:6]}"
        self._beaten = -1e9
        self._trouble = 0

    def stop(self) -> None:
        """Let go of the job, if there is one, and end."""
        self._stopping.set()

    def run(self) -> None:
        """Work until :meth:`stop`."""
        log.info("worker %d is ready", os.getpid())
        try:
            self._solver.start()
            while not self._stopping.is_set():
                try:
                    self._beat()
                    self._keeper.sweep()
                    if not self._solver.ready(0.5):
                        continue  # a job is not kept waiting here while others could take it
                    id = self._queue.get()
                    self._trouble = 0
                    if id is not None:
                        self._work(id)
                    elif self._settings.queue is None:
                        self._stopping.wait(0.1)
                except CorruptError:
                    raise
                except StorageError as error:
                    self._complain(error)
        finally:
            self._solver.stop()
            with contextlib.suppress(StorageError):
                self._jobs.store.beat(self._name, alive=False)

    def _complain(self, error: StorageError) -> None:
        """Wait, longer every time, for the storage to come back."""
        if self._trouble == 0:
            log.warning("%s; trying again", error)
        self._trouble += 1
        self._stopping.wait(min(5.0, 0.2 * 2 ** min(self._trouble, 5)))

    def _beat(self) -> None:
        if time.monotonic() - self._beaten > BEAT:
            self._beaten = time.monotonic()
            self._jobs.store.beat(self._name)

    def _work(self, id: str) -> None:
        token = uuid.uuid4().hex
        job = self._jobs.claim(id, token)
        if job is None:
            return  # cancelled, or delivered twice
        problem = self._jobs.request(id)
        if problem is None:
            error = Problematic(code="lost", message="its problem is gone from the storage")
            self._jobs.finish(id, token, seconds=0.0, error=error)
            return
        attempt = _Attempt(self, job, token)
        try:
            answer = self._solver.solve(problem, job.time_limit, attempt.tick)
        except StoppedError:
            if self._stopping.is_set():
                self._return(id, token, "the worker was stopped", counts=False)
            self._solver.start()
            return
        if answer.code == "crashed":
            self._return(id, token, answer.message, counts=True)
        else:
            self._finish(id, token, answer)
        self._solver.start()

    def _return(self, id: str, token: str, why: str, *, counts: bool) -> None:
        try:
            if self._jobs.give_back(id, token, why, counts=counts) == "queued":
                self._queue.put(id)
        except StorageError as error:
            log.warning("%s; job %s waits until its lease has run out", error, id[:12])

    def _finish(self, id: str, token: str, answer: Answer) -> None:
        """Store the answer, however long the storage is away: the lease says who may."""
        error = None
        if answer.solution is None:
            error = Problematic(code=answer.code, message=answer.message)
        while True:
            try:
                self._jobs.finish(
                    id,
                    token,
                    seconds=answer.seconds,
                    result=answer.solution,
                    status=answer.status,
                    value=answer.value,
                    bound=answer.bound,
                    error=error,
                )
                return
            except CorruptError:
                raise
            except StorageError as trouble:
                if self._stopping.is_set():
                    log.warning("%s; job %s will be solved anew", trouble, id[:12])
                    return
                self._complain(trouble)


class _Attempt:
    """An attempt to solve a job: its progress, its lease, and whether it is still wanted."""

    def __init__(self, worker: Worker, job: Job, token: str) -> None:
        self._worker = worker
        self._id = job.id
        self._token = token
        self._looked = self._told = time.monotonic()
        self._said: tuple[int | None, int | None] = (None, None)

    def tick(self, value: int | None, bound: int | None) -> bool:
        worker = self._worker
        if worker._stopping.is_set():
            return False
        now = time.monotonic()
        news = (value, bound) != self._said
        lease = worker._settings.lease
        try:
            if now - self._told > (_TELL if news else lease / 4):
                self._told = self._looked = now
                if not worker._jobs.renew(self._id, self._token, value, bound):
                    return False
                self._said = (value, bound)
            elif now - self._looked > _LOOK:
                self._looked = now
                if not worker._jobs.holds(self._id, self._token):
                    return False
            worker._beat()
        except StorageError:  # solve on: it may be back in time
            self._looked = now + 1.0
        return True


def run_worker(settings: Settings, worker: Worker | None = None) -> None:
    """Work in the main thread until SIGTERM or SIGINT."""
    worker = Worker(settings) if worker is None else worker

    def stop(number: int, frame: FrameType | None) -> None:
        worker.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    worker.run()


def set_up_logging() -> None:
    """One line per event, on stderr."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("huey").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _main() -> int:
    set_up_logging()
    settings = Settings.model_validate_json(sys.stdin.readline())
    try:
        worker = Worker(settings)
    except StorageError as error:
        print("error:", error, file=sys.stderr)
        return 1

    def watch() -> None:
        sys.stdin.read()
        worker.stop()

    threading.Thread(target=watch, daemon=True).start()
    run_worker(settings, worker)
    return 0


if __name__ == "__main__":
    code = _main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread still reads the standard input
