"""Server-sent events: how a job gets on."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.concurrency import run_in_threadpool

from upscale_opt.service.errors import ServiceError, StorageError, error_body
from upscale_opt.service.jobs import Jobs
from upscale_opt.service.views import job_view

_LOOK = 0.2
"""Seconds between two looks at the job."""


async def events(
    jobs: Jobs, id: str, gone: Callable[[], Awaitable[bool]], ending: Callable[[], bool]
) -> AsyncIterator[bytes]:
    """Events until the job has ended, the client is gone, or the service ends.

    ``state`` when the state changes, ``progress`` when value or bound do, and at last one ``end``;
    the data of each is the job. Comments in between show that the line is open.
    """
    last: tuple[object, ...] = ()
    spoken = time.monotonic()
    number = 0
    yield b"retry: 2000\n\n"
    while not ending() and not await gone():
        try:
            job = await run_in_threadpool(jobs.known, id)
        except StorageError:
            job = None  # it may come back; the line stays open
        except ServiceError as error:
            body = error_body(error.code, str(error), error.where)
            yield _event("error", number + 1, body)
            return
        if job is not None:
            now = (job.state, job.attempt, job.value, job.bound)
            if job.final:
                yield _event("end", number + 1, job_view(job))
                return
            if now != last:
                number += 1
                kind = "state" if now[:2] != last[:2] else "progress"
                last, spoken = now, time.monotonic()
                yield _event(kind, number, job_view(job))
        if time.monotonic() - spoken > jobs.settings.heartbeat:
            spoken = time.monotonic()
            yield b": still here\n\n"
        await asyncio.sleep(_LOOK)


def _event(kind: str, number: int, data: object) -> bytes:
    return f"id: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode()
