"""Work on many items at once: in processes of this machine, or on a Dask or Ray cluster."""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from upscale_opt.errors import UpscaleError

Item = TypeVar("Item")
Result = TypeVar("Result")

BACKENDS = ("local", "dask", "ray")

PATIENCE = 10.0
"""Seconds to wait for a scheduler, for it to come back, or for its first worker."""


_FEWEST = 2
"""With a single job, joblib would do the work in this process instead of on the cluster."""


@dataclass(frozen=True)
class Place:
    """Where work is done.

    Attributes:
        jobs: how many items at a time; ``None`` for one here, and for as many as a cluster has
            threads there.
        backend: ``"local"``, ``"dask"`` or ``"ray"``.
        scheduler: the address of the cluster; Ray finds the one of this machine without.
    """

    jobs: int | None = None
    backend: Literal["local", "dask", "ray"] = "local"
    scheduler: str | None = None

    @property
    def is_here(self) -> bool:
        """Whether it is this process."""
        return self.backend == "local" and self.jobs in (None, 1)


def run_all(
    work: Callable[[Item], Result], items: Sequence[Item], place: Place
) -> Iterator[tuple[int, Result]]:
    """Yield the number of an item and what became of it, as soon as it is finished.

    On a cluster, items of a worker that is lost are done again by another one. Where the iterator
    is closed, as by Ctrl-C, no more items are begun.

    Args:
        work: a function that other processes can import.
        items: what it is called with.
        place: where.

    Raises:
        UpscaleError: if the cluster or a worker cannot be reached, or is lost for good.
    """
    if place.is_here:
        yield from ((number, work(item)) for number, item in enumerate(items))
        return
    from joblib import Parallel, delayed

    # Bytes travel with their task. Other arguments Dask would keep on one worker, and lose with it.
    calls = [pickle.dumps((work, number, item)) for number, item in enumerate(items)]
    with _backend(place) as (backend, jobs):
        # Ray's backend gives all results at the end.
        how = "list" if place.backend == "ray" else "generator_unordered"
        ahead = jobs if place.jobs is None else place.jobs
        parallel = Parallel(
            n_jobs=jobs, backend=backend, batch_size=1, return_as=how, pre_dispatch=ahead
        )
        try:
            yield from parallel(delayed(_call)(call) for call in calls)
        except BrokenExecutor:
            raise UpscaleError(
                "a worker process was killed, probably as the memory is full; use fewer --jobs"
            ) from None


def _call(call: bytes) -> tuple[int, Any]:
    work, number, item = pickle.loads(call)
    return number, work(item)


@contextmanager
def _backend(place: Place) -> Iterator[tuple[Any, int]]:
    """What joblib calls its backend, and how many jobs it may run."""
    if place.backend == "local":
        yield None, place.jobs or 1
    elif place.backend == "dask":
        with _dask(place) as found:
            yield found
    else:
        with _ray(place) as found:
            yield found


@contextmanager
def _dask(place: Place) -> Iterator[tuple[Any, int]]:
    try:
        from distributed import Client
        from distributed.comm.core import CommClosedError
    except ImportError:
        raise _missing("dask") from None
    if place.scheduler is None:
        raise UpscaleError("--backend dask needs --scheduler, such as tcp://10.0.0.1:8786")
    connect: Any = Client  # untyped
    with _quiet("distributed", "distributed.client", "tornado.application"):
        try:
            client = connect(place.scheduler, timeout=PATIENCE, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise _unreachable(place, error) from None
        try:
            yield _dask_backend(client, place), _threads(client, place)
        except CommClosedError:
            raise _cluster_lost(place) from None
        finally:
            client.close(timeout=2)


def _threads(client: Any, place: Place) -> int:
    """The threads of its workers. Those that are just starting, or starting again, are awaited."""
    try:
        if not client.ncores():
            with suppress(TimeoutError, asyncio.TimeoutError):  # two errors before Python 3.11
                client.wait_for_workers(1, timeout=PATIENCE)
        count: int = sum(client.ncores().values())
    except OSError:
        raise _cluster_lost(place) from None
    if not count:
        raise UpscaleError(f"the Dask cluster at {place.scheduler} has no workers; start some")
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


def _dask_backend(client: Any, place: Place) -> Any:
    """Joblib's backend, but where a task or the scheduler is lost, an error says so.

    Joblib's own waits forever then.
    """
    from joblib._dask import DaskDistributedBackend

    class Backend(DaskDistributedBackend):  # type: ignore[misc]
        def effective_n_jobs(self, n_jobs: int) -> int:
            return max(_FEWEST, int(super().effective_n_jobs(n_jobs)))

        def start_call(self) -> None:
            super().start_call()
            self.client.loop.add_callback(self._watch)

        async def _collect(self) -> None:
            while self._continue:
                async for future, result in self.waiting_futures:
                    self._results.pop(future)
                    done = self._callbacks.pop(future)
                    lost = future.status != "finished"
                    done(_Lost(_reason(result, place)) if lost else result)
                await asyncio.sleep(0.01)

        async def _watch(self) -> None:
            seen = time.monotonic()
            while self._continue:
                if self.client.status == "running":
                    seen = time.monotonic()
                elif self.client.status == "closed" or time.monotonic() - seen > PATIENCE:
                    for done in list(self._callbacks.values()):
                        done(_Lost(_gone(place)))
                    return
                await asyncio.sleep(0.2)

        def retrieve_result_callback(self, out: Any) -> Any:
            if isinstance(out, _Lost):
                raise UpscaleError(f"the Dask cluster lost a task: {out.why}")
            return super().retrieve_result_callback(out)

    return Backend(client=client)


@dataclass(frozen=True)
class _Lost:
    """Stands for the result of a task that has none."""

    why: str


def _reason(result: Any, place: Place) -> str:
    error = result[1] if isinstance(result, tuple) and len(result) == 3 else result
    name = type(error).__name__
    if name == "FutureCancelledError":
        return _gone(place)
    if name == "KilledWorker":
        return "every worker that tried it was killed, probably as its memory is full"
    return f"{name}: {' '.join(str(error).split())[:300]}"


@contextmanager
def _ray(place: Place) -> Iterator[tuple[Any, int]]:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError:
        raise _missing("ray") from None
    try:
        ray.init(address=place.scheduler or "auto", logging_level="error", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _unreachable(place, error) from None
    try:
        register_ray()
        workers = place.jobs or int(ray.cluster_resources().get("CPU", 1))
        try:
            yield "ray", max(_FEWEST, workers)
        except ray.exceptions.RayError as error:
            raise UpscaleError(f"the Ray cluster lost a task: {_reason(error, place)}") from None
    finally:
        ray.shutdown()


def _cluster_lost(place: Place) -> UpscaleError:
    return UpscaleError(f"the Dask cluster is lost: {_gone(place)}")


def _gone(place: Place) -> str:
    return f"the scheduler at {place.scheduler} is gone; what was finished is kept"


def _missing(name: str) -> UpscaleError:
    return UpscaleError(f'--backend {name} needs {name}: pip install "upscale-opt[{name}]"')


def _unreachable(place: Place, error: Exception) -> UpscaleError:
    text = " ".join(str(error).split())[:200]
    return UpscaleError(
        f"no {place.backend} cluster answers at {place.scheduler or 'this machine'} ({text}); "
        "give the scheduler's address as --scheduler"
    )
