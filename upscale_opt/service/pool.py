"""The processes behind ``/v1/solve``: a few of them, and a bounded number of requests that wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from upscale_opt.service.errors import ServiceError
from upscale_opt.service.problems import Problem
from upscale_opt.service.settings import Settings
from upscale_opt.service.solving import Answer, SolverProcess, StoppedError

_LOOK = 0.25
"""Seconds between two looks at whether the client is still there."""


class Pool:
    """The processes.

    Args:
        settings: how many, and how many requests may wait.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._free = [SolverProcess(settings.memory_mb) for _ in range(settings.solve_processes)]
        self._threads = ThreadPoolExecutor(settings.solve_processes, "solve")
        self._slots = asyncio.Semaphore(settings.solve_processes)
        self._waiting = 0
        self._closing = threading.Event()

    def start(self) -> None:
        """Start the processes, so that the first request need not wait for that."""
        for process in self._free:
            process.start()

    def close(self) -> None:
        """Stop the processes, in the middle of a problem if need be."""
        self._closing.set()
        self._threads.shutdown(wait=True)
        for process in self._free:
            process.stop()

    def end(self) -> None:
        """Let what is being solved be given up."""
        self._closing.set()

    async def solve(self, problem: Problem, gone: Callable[[], Awaitable[bool]]) -> Answer:
        """Solve a problem as soon as a process is free; give it up when the client is gone.

        Raises:
            ServiceError: 429 if too many wait; 503 if the service ends.
        """
        busy = ServiceError(
            429,
            "busy",
            "too many problems wait to be solved; try again, or POST it to /v1/jobs",
            retry_after=2,
        )
        if self._slots.locked() and self._waiting >= self._settings.solve_waiting:
            raise busy
        self._waiting += 1
        try:
            await asyncio.wait_for(self._slots.acquire(), self._settings.solve_patience)
        except asyncio.TimeoutError:
            raise busy from None
        finally:
            self._waiting -= 1
        try:
            return await self._solve(problem, gone)
        finally:
            self._slots.release()

    async def _solve(self, problem: Problem, gone: Callable[[], Awaitable[bool]]) -> Answer:
        left = threading.Event()

        def work() -> Answer:
            process = self._free.pop()
            try:
                return process.solve(
                    problem.request,
                    problem.time_limit,
                    lambda value, bound: not (left.is_set() or self._closing.is_set()),
                )
            finally:
                if not self._closing.is_set():
                    process.start()  # if it was stopped, the next request need not wait for that
                self._free.append(process)

        if self._closing.is_set():
            raise _ending()
        task = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            while not (await asyncio.wait([task], timeout=_LOOK))[0]:
                if await gone():
                    left.set()
            return task.result()
        except StoppedError:
            if self._closing.is_set():
                raise _ending() from None
            raise ServiceError(400, "gone", "the client has left") from None
        except BaseException:
            left.set()
            raise


def _ending() -> ServiceError:
    return ServiceError(503, "stopping", "the service ends; try again", retry_after=2)
