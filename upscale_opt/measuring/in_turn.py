"""Time several calls in turn, in one process."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

Call = Callable[[], object]
Clock = Callable[[], float]
"""Runs something once and returns the seconds it took."""

WARM_UP = 3
"""Rounds that are not counted: memory is allocated, kernels are chosen."""

FEWEST, MOST = 10, 1000
"""Rounds, where their number follows from the time."""


def clock(call: Call, device: torch.device) -> Clock:
    """A clock that times one run of ``call``: by events on a GPU, elsewhere by the CPU's clock."""
    return _on_gpu(call) if device.type == "cuda" else _on_cpu(call)


def _on_cpu(call: Call) -> Clock:
    def measure() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return measure


def _on_gpu(call: Call) -> Clock:
    def measure() -> float:
        start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return measure


def captured(call: Call) -> Call:
    """A call that replays ``call`` as a CUDA graph, on the tensors that it uses now.

    Raises:
        RuntimeError: if it does what a graph cannot hold, such as waiting for the GPU.
    """
    side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    def replay() -> object:
        graph.replay()
        return kept  # the graph writes into it

    return replay


def interleaved(
    clocks: Mapping[str, Clock], *, rounds: int | None, seconds: float, seed: int = 0
) -> dict[str, list[float]]:
    """The seconds of every clock in every round.

    In a round each of them runs once, in an order drawn anew: so what slows the machine down for a
    while meets all of them.

    Args:
        clocks: what to measure, by name.
        rounds: how many; ``None``: as many as ``seconds`` allow, but ten at least.
        seconds: the time for all rounds together.
        seed: of the order within rounds.
    """
    if not clocks:
        return {}
    names = list(clocks)
    draw = random.Random(seed)
    found: dict[str, list[float]] = {name: [] for name in names}
    with _undisturbed():
        for _ in range(WARM_UP):
            one_round = sum(clocks[name]() for name in names)
        count = rounds_within(seconds, one_round) if rounds is None else rounds
        for _ in range(count):
            draw.shuffle(names)
            for name in names:
                found[name].append(clocks[name]())
    return found


def rounds_within(seconds: float, one_round: float) -> int:
    """The number of rounds to run in a time, if one takes ``one_round`` seconds.

    >>> rounds_within(20.0, 0.5), rounds_within(1.0, 0.5), rounds_within(20.0, 0.0)
    (40, 10, 1000)
    """
    return min(max(int(seconds / max(one_round, 1e-6)), FEWEST), MOST)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without gradients and garbage collection; and numbers next to zero, which are slow, are zero.

    Random networks may have such numbers where trained ones have none.
    """
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    torch.set_flush_denormal(True)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_flush_denormal(False)
        if enabled:
            gc.enable()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Have PyTorch compute with so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
