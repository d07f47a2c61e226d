"""Work on many items at once: in processes of this machine, or on a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from upscale_opt.errors import UpscaleError
from upscale_opt.experiments import cluster
from upscale_opt.experiments.processes import Ended, Process, Tell, Work, run_in_processes

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Place:
    """A place where work is done.

    Attributes:
        jobs: how many items at a time; ``None`` for one here, and for as many as a cluster has
            threads there.
        backend: ``"local"`` or ``"dask"``.
        scheduler: the address of the cluster.
    """

    jobs: int | None = None
    backend: Literal["local", "dask"] = "local"
    scheduler: str | None = None

    @property
    def is_here(self) -> bool:
        """Tell whether it is this process."""
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
        place: where; in this process items finish in their order.

    Raises:
        UpscaleError: if the cluster or a worker cannot be reached, or is lost for good.
    """
    if place.is_here:
        yield from ((number, work(item)) for number, item in enumerate(items))
    elif place.backend == "dask":
        yield from cluster.run(work, items, place.scheduler, place.jobs)
    else:
        silent = partial(_silent, work)
        for number, result in run_in_processes(silent, items, place.jobs or 1, tell=_nobody):
            if isinstance(result, Ended):
                raise UpscaleError(f"a worker process {result.how}; use fewer --jobs")
            yield number, result


def run_apart(
    work: Work[Item, Result],
    items: Sequence[Item],
    place: Place,
    *,
    tell: Tell,
    patience: float | None = None,
) -> Iterator[tuple[int, Result | Ended]]:
    """As :func:`run_all`, with a process for every item, there too: if it is killed others go on.

    So its peak of memory is known, and nothing that it prints is seen.

    Args:
        work: a function that other processes can import.
        items: what it is called with.
        place: where.
        tell: called with what ``work`` says; on a cluster, nobody hears that.
        patience: seconds for an item, after which its process is killed.
    """
    if place.backend == "dask":
        return run_all(partial(_apart, work, patience), items, place)
    return run_in_processes(work, items, place.jobs or 1, tell=tell, apart=True, patience=patience)


def _apart(work: Work[Item, Result], patience: float | None, item: Item) -> Result | Ended:
    process = Process(quiet=True)
    try:
        return process.do(work, item, _nobody, patience)
    finally:
        process.close()


def _silent(work: Callable[[Item], Result], item: Item, tell: Tell) -> Result:
    return work(item)


def _nobody(text: str) -> None:
    """Told how work is getting on."""
