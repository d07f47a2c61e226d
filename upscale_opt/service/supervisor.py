"""Starts the service's own workers, and starts them again if they die."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import threading
import time

from upscale_opt.service.errors import StorageError
from upscale_opt.service.settings import Settings
from upscale_opt.service.worker import Keeper

log = logging.getLogger("upscale_opt.service")

_PATIENCE = 5.0
"""Seconds in which workers must have put their jobs back when the service ends."""


class Supervisor:
    """The workers, and a thread that looks after them and the jobs.

    Args:
        settings: the number of workers, and what they have to know.
        keeper: looks after jobs.
    """

    def __init__(self, settings: Settings, keeper: Keeper) -> None:
        self._settings = settings
        self._keeper = keeper
        self._workers: list[subprocess.Popen[bytes] | None] = [None] * settings.workers
        self._born = [-1e9] * settings.workers
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="supervisor")

    def start(self) -> None:
        """Start the workers."""
        self._thread.start()

    def stop(self) -> None:
        """Stop them; what they solve goes back into the queue."""
        self._stopping.set()
        self._thread.join()
        workers = [worker for worker in self._workers if worker is not None]
        for worker in workers:
            with contextlib.suppress(OSError):
                if worker.stdin is not None:
                    worker.stdin.close()
        deadline = time.monotonic() + _PATIENCE
        for worker in workers:
            try:
                worker.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()

    def _run(self) -> None:
        silent = False
        while not self._stopping.is_set():
            for number, worker in enumerate(self._workers):
                if worker is None or worker.poll() is not None:
                    self._begin(number, worker)
            try:
                self._keeper.sweep()
                silent = False
            except StorageError as error:
                if not silent:
                    log.warning("%s", error)
                silent = True
            self._stopping.wait(0.3)

    def _begin(self, number: int, old: subprocess.Popen[bytes] | None) -> None:
        now = time.monotonic()
        if now - self._born[number] < 2.0:
            return  # it does not even start; not so fast
        if old is not None:
            log.warning("worker %d died (%s); starting another", old.pid, old.returncode)
            if old.stdin is not None:
                with contextlib.suppress(OSError):
                    old.stdin.close()
        self._born[number] = now
        worker = subprocess.Popen(
            [sys.executable, "-m", "upscale_opt.service.worker"],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the service
        )
        self._workers[number] = worker
        assert worker.stdin is not None
        with contextlib.suppress(OSError):
            worker.stdin.write(json.dumps(self._settings.for_workers()).encode() + b"\n")
            worker.stdin.flush()
