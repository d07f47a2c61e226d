"""The study's work, one piece after the other or in several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from upscale_opt.errors import UpscaleError
from upscale_opt.study.records import Unpruned
from upscale_opt.study.subjects import load_subject
from upscale_opt.study.training import Recipe, Tell

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[Item, Path, Tell], Result]
"""What is done to one item: it is given the cache, too, and told how it is getting on."""


def run_each(
    work: Work[Item, Result], items: Sequence[Item], cache: Path, jobs: int, tell: Tell
) -> Iterator[tuple[int, Result]]:
    """Yield the number of an item and what became of it, as soon as it is finished.

    PyTorch runs on one thread meanwhile, in this process or in each of several.

    Args:
        work: a function that processes can find by its name.
        items: what it is called with.
        cache: the folder for what is kept.
        jobs: the number of processes; with 1 it is this one, and items finish in their order.
        tell: told how the work is getting on, if this process does it.

    Raises:
        UpscaleError: if a process was killed.
    """
    if jobs == 1:
        with _one_thread():
            for number, item in enumerate(items):
                yield number, work(item, cache, tell)
        return
    from joblib import Parallel, delayed

    parallel = Parallel(n_jobs=jobs, batch_size=1, return_as="generator_unordered")
    try:
        yield from parallel(
            delayed(_numbered)(number, work, item, cache) for number, item in enumerate(items)
        )
    except BrokenExecutor:
        raise UpscaleError(
            "a worker process was killed, probably as the memory is full; use fewer --jobs"
        ) from None


def _numbered(number: int, work: Work[Item, Result], item: Item, cache: Path) -> tuple[int, Result]:
    with _one_thread():
        return number, work(item, cache, lambda text: None)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def prepare(recipe: Recipe, cache: Path, tell: Tell) -> Unpruned:
    """Train a network, if it is not there already, and measure it."""
    return load_subject(recipe, cache, tell).unpruned(recipe)
