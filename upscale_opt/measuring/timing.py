"""The clock: how long calls take on a device, and how long each kernel of a forward pass takes."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from upscale_opt.measuring.fitting import Timing
from upscale_opt.measuring.kernels import Kernel, Watch, kernels_of

Reading = Callable[[], float]
"""Nanoseconds, to be asked for when all is done."""


_CACHE = 2**22


class Stopwatch:
    """Times calls on a device.

    On a CPU with one thread it is that thread's own time, in which other programs do not count;
    with several, it is the time that passes. On a GPU, it is what passes between two events there.

    Args:
        device: where calls compute.
        threads: that they compute with.
    """

    def __init__(self, device: torch.device, threads: int) -> None:
        self._device = device
        alone = device.type == "cpu" and threads == 1
        self._now = time.thread_time_ns if alone else time.perf_counter_ns
        self._litter = torch.zeros(_CACHE, dtype=torch.uint8, device=device)

    def settle(self) -> None:
        """Wait until all that was called is done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def lap(self, call: Callable[[], Any]) -> tuple[Any, Reading]:
        """Call, and return the result and a reading, which is valid once settled."""
        if self._device.type == "cuda":
            begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            begin.record()
            result = call()
            end.record()
            return result, lambda: 1e6 * float(begin.elapsed_time(end))
        start = self._now()
        result = call()
        passed = float(self._now() - start)
        return result, lambda: passed

    def whole(self, call: Callable[[], Any]) -> float:
        """The nanoseconds that a call takes from end to end, alone on its device."""
        self.settle()
        start = self._now()
        call()
        self.settle()
        return float(self._now() - start)

    def median(self, call: Callable[[], Any], seconds: float, least: int = 3) -> float:
        """The median nanoseconds of repeated calls, after one that does not count.

        Between them, other data passes through the caches, as it does in a network.
        """
        self.whole(call)
        readings: list[Reading] = []
        end = time.perf_counter() + seconds
        while len(readings) < least or time.perf_counter() < end:
            self._litter.add_(1)
            readings.append(self.lap(call)[1])
            self.settle()
        return statistics.median(reading() for reading in readings)


class Passes:
    """Repeated forward passes of a model, timed kernel by kernel and as a whole.

    Args:
        name: of the model.
        model: in evaluation mode.
        call: runs it.
        watch: the clock.

    Attributes:
        name: of the model.
        model: what was given.
        call: what was given.
        kernels: what one pass runs, in the order of execution.
    """

    def __init__(
        self, name: str, model: nn.Module, call: Callable[[], Any], watch: Stopwatch
    ) -> None:
        self.name = name
        self.model, self.call = model, call
        self._watch = watch
        self._times: defaultdict[tuple[Kernel, ...], list[float]] = defaultdict(list)
        self._wholes: list[float] = []
        self._between: list[float] = []
        self._passes = 0
        self.kernels: list[Kernel] = []

    def warm_up(self) -> None:
        """Run once without the clock."""
        self._pass()
        self.call()
        self._watch.settle()

    def run(self) -> None:
        """Time one pass by its kernels and one as a whole."""
        summed = 0.0
        for reading, kernels in self._pass():
            self._times[kernels].append(reading())
            summed += reading()
        self._passes += 1
        self._wholes.append(self._watch.whole(self.call))
        self._between.append(self._wholes[-1] - summed)

    @property
    def measured(self) -> float:
        """The median nanoseconds of the whole."""
        return statistics.median(self._wholes)

    @property
    def overhead(self) -> float:
        """The nanoseconds of a pass that no kernel takes, for each call of one."""
        calls = sum(map(len, self._times.values())) / self._passes
        return statistics.median(self._between) / calls

    @property
    def timings(self) -> Iterator[tuple[tuple[Kernel, ...], Timing]]:
        """For each distinct call, its kernels, and the timing of all of them together."""
        for kernels, times in self._times.items():
            last = kernels[-1]
            count = max(1, round(len(times) / self._passes))
            middle = statistics.median(times)
            yield kernels, Timing(last.bytes, last.macs, middle, count, last.sides)

    def _pass(self) -> list[tuple[Reading, tuple[Kernel, ...]]]:
        timer = _Timer(self.model, self._watch)
        with timer.watching():
            self.call()
        self._watch.settle()
        self.kernels = [kernel for _, kernels in timer.calls for kernel in kernels]
        return timer.calls


class _Timer(Watch):  # type: ignore[no-untyped-call]
    """Times every call that runs a kernel."""

    def __init__(self, model: nn.Module, watch: Stopwatch) -> None:
        super().__init__(model)
        self._stopwatch = watch
        self.calls: list[tuple[Reading, tuple[Kernel, ...]]] = []

    def seen(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], module: str) -> Any:
        result, reading = self._stopwatch.lap(lambda: func(*args, **kwargs))
        if kernels := kernels_of(func, args, kwargs, result):
            self.calls.append((reading, tuple(kernels)))
        return result


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """Have PyTorch compute with that many threads."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)
