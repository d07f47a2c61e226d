"""The study's work, one piece after the other, in several processes, or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from upscale_opt.experiments.processes import Tell
from upscale_opt.experiments.running import Place, run_all
from upscale_opt.experiments.study.records import Unpruned
from upscale_opt.experiments.study.subjects import load_subject
from upscale_opt.experiments.study.training import Recipe

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[Item, Path, Tell], Result]
"""Work on one item: it is given the cache, too, and a function to tell how it is getting on."""


def run_each(
    work: Work[Item, Result], items: Sequence[Item], cache: Path, place: Place, tell: Tell
) -> Iterator[tuple[int, Result]]:
    """Yield the number of an item and what became of it, as soon as it is finished.

    PyTorch runs on one thread meanwhile, in this process or in each of several.

    Args:
        work: a function that processes can find by its name.
        items: what it is called with.
        cache: the folder for what is kept; on a cluster, of that name on each of its machines.
        place: where; in this process items finish in their order.
        tell: told how the work is getting on, if this process does it.

    Raises:
        UpscaleError: if a process was killed, or the cluster is lost.
    """
    if place.is_here:
        with _one_thread():
            for number, item in enumerate(items):
                yield number, work(item, cache, tell)
        return
    yield from run_all(_done, [(work, item, cache.absolute()) for item in items], place)


def _done(call: tuple[Work[Item, Result], Item, Path]) -> Result:
    work, item, cache = call
    with _one_thread():
        return work(item, cache, lambda text: None)


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
