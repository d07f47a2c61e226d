"""Time several calls in turn, in one process."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from upscale_opt.shown import Shown
from upscale_opt.tracing.examples import Inputs, as_call, map_tensors, require_model

Call = Callable[[], object]
Clock = Callable[[], float]
"""Runs something once and returns the seconds it took."""

WARM_UP = 3
"""Rounds that are not counted: memory is allocated, kernels are chosen."""

_FINE = 1e-5
"""The resolution, in seconds, that clocks of models must have."""

FEWEST, MOST = 10, 1000
"""Rounds, where their number follows from the time."""


def clock(call: Call, device: torch.device, now: Callable[[], float] = time.perf_counter) -> Clock:
    """A clock that times one run of ``call``: by events on a GPU, elsewhere by ``now``."""
    return _on_gpu(call) if device.type == "cuda" else _on_cpu(call, now)


def _on_cpu(call: Call, now: Callable[[], float]) -> Clock:
    def measure() -> float:
        start = now()
        call()
        return now() - start

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


@dataclass(frozen=True, repr=False)
class Times(Shown):
    """The times of several models, run in turn.

    Attributes:
        milliseconds: the median of every model's, by name.
        rounds: how often each was run.
        threads: that were computed with.
        device: where; on a CPU outside of PyTorch, the runtime's name, as ``"onnxruntime"``.
    """

    milliseconds: Mapping[str, float]
    rounds: int
    threads: int
    device: str

    def share(self, name: str, base: str = "unpruned") -> float:
        """The time of a model in terms of another's."""
        return self.milliseconds[name] / self.milliseconds[base]

    def __str__(self) -> str:
        (first, base), *rest = self.milliseconds.items()
        parts = [f"{first} {base:.2f} ms"]
        parts += [f"{name} {own:.2f} ms ({100 * own / base:.0f} %)" for name, own in rest]
        return f"{', '.join(parts)} ({self.device}, {self.threads} threads)"


def beside(models: Mapping[str, nn.Module], inputs: Inputs, *, seconds: float = 2.0) -> Times:
    """Time several models on the same inputs, in turn, in one process.

    On one thread of a CPU it is the time that the thread computes for: it is the same where other
    programs run, too.

    Args:
        models: by name; all on the inputs' device and in evaluation mode.
        inputs: as for :func:`upscale_opt.trace`.
        seconds: the time for all of it, about.

    Raises:
        TraceError: if one is no model, or ``inputs`` are none of the accepted forms.
    """
    clocks = {name: model_clock(model, inputs) for name, model in models.items()}
    parameters = (parameter for model in models.values() for parameter in model.parameters())
    device = next((parameter.device.type for parameter in parameters), "cpu")
    return times_of(clocks, device, seconds=seconds)


def model_clock(model: nn.Module, inputs: Inputs) -> Clock:
    """A clock of a model on a copy of its inputs, as it may write into them.

    Raises:
        TraceError: if it is no model, or ``inputs`` are none of the accepted forms.
    """
    require_model(model, "measure")
    args, kwargs = map_tensors(as_call(inputs), torch.clone)
    fine = time.get_clock_info("thread_time").resolution < _FINE
    now = time.thread_time if fine and torch.get_num_threads() == 1 else time.perf_counter
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    return clock(partial(model, *args, **kwargs), device, now)


def times_of(clocks: Mapping[str, Clock], device: str, *, seconds: float) -> Times:
    """The medians of clocks, run in turn for about so many seconds on ``device``."""
    found = interleaved(clocks, rounds=None, seconds=seconds)
    return Times(
        {name: 1e3 * statistics.median(own) for name, own in found.items()},
        len(next(iter(found.values()), [])),
        torch.get_num_threads(),
        device,
    )
