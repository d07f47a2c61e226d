"""Work on many items at once, on a Dask cluster."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from upscale_opt.errors import UpscaleError, needed

Item = TypeVar("Item")
Result = TypeVar("Result")

PATIENCE = 10.0
"""Seconds to wait for a scheduler, for it to come back, or for its first worker."""


def run(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    scheduler: str | None,
    jobs: int | None = None,
) -> Iterator[tuple[int, Result]]:
    """Yield the number of an item and what became of it, as soon as it is finished.

    Items of a worker that is lost are done again by another one. Where the iterator is closed, as
    by Ctrl-C, what has not begun is taken back.

    Args:
        work: a function that the workers can import.
        items: what it is called with.
        scheduler: the address of the cluster.
        jobs: how many items are out at a time; ``None``: as many as there are threads.

    Raises:
        UpscaleError: if the cluster cannot be reached, or it or an item is lost for good.
    """
    # Bytes travel with their task. Other arguments Dask may keep on one worker, and lose with it.
    calls = iter([pickle.dumps((work, number, item)) for number, item in enumerate(items)])
    with _connected(scheduler) as client:
        from distributed import as_completed

        threads = _threads(client, scheduler)

        def begun(count: int) -> list[Any]:
            return [client.submit(_call, call, pure=False) for call in islice(calls, count)]

        completed: Any = as_completed  # untyped
        out = completed(begun(jobs or threads), loop=client.loop)
        for future in out:
            number, outcome = _result(future, scheduler)
            out.update(begun(1))
            if isinstance(outcome, _Raised):
                raise outcome.error
            yield number, outcome


def _call(call: bytes) -> tuple[int, Any]:
    work, number, item = pickle.loads(call)
    try:
        return number, work(item)
    except Exception as error:
        return number, _Raised(error)


@dataclass(frozen=True)
class _Raised:
    """An error that work raised, apart from what goes wrong with the cluster."""

    error: Exception


def _result(future: Any, scheduler: str | None) -> Any:
    from distributed import CancelledError, KilledWorker

    try:
        return future.result()
    except KilledWorker:
        why = "every worker that tried it was killed, probably as its memory is full"
    except (CancelledError, OSError):  # Dask does so where it loses the scheduler
        why = _gone(scheduler)
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    raise UpscaleError(f"the Dask cluster lost a task: {why}")


@contextmanager
def _connected(scheduler: str | None) -> Iterator[Any]:
    connect: Any = needed("distributed", "--backend dask needs", "dask").Client
    from distributed.comm.core import CommClosedError

    if scheduler is None:
        raise UpscaleError("--backend dask needs --scheduler, such as tcp://10.0.0.1:8786")
    with _quiet("distributed", "distributed.client", "tornado.application"):
        try:
            client = connect(scheduler, timeout=PATIENCE, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise _unreachable(scheduler, error) from None
        try:
            yield client
        except CommClosedError:
            raise _cluster_lost(scheduler) from None
        finally:
            client.close(timeout=2)


def _threads(client: Any, scheduler: str | None) -> int:
    """The threads of its workers. Those that are just starting, or starting again, are awaited."""
    try:
        if not client.ncores():
            with suppress(TimeoutError, asyncio.TimeoutError):  # two errors before Python 3.11
                client.wait_for_workers(1, timeout=PATIENCE)
        count: int = sum(client.ncores().values())
    except OSError:
        raise _cluster_lost(scheduler) from None
    if not count:
        raise UpscaleError(f"the Dask cluster at {scheduler} has no workers; start some")
    return count


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keep loggers from printing errors that end up as one of ours."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _cluster_lost(scheduler: str | None) -> UpscaleError:
    return UpscaleError(f"the Dask cluster is lost: {_gone(scheduler)}")


def _gone(scheduler: str | None) -> str:
    return f"the scheduler at {scheduler} is gone; what was finished is kept"


def _unreachable(scheduler: str, error: Exception) -> UpscaleError:
    text = " ".join(str(error).split())[:200]
    return UpscaleError(
        f"no Dask cluster answers at {scheduler} ({text}); give the scheduler's address as "
        "--scheduler"
    )
