"""Time single kernels: those that move channels, where they would run, and small ones."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch.nn import functional

from upscale_opt.measuring.fitting import Timing
from upscale_opt.measuring.kernels import Watch
from upscale_opt.measuring.timing import Reading, Stopwatch
from upscale_opt.runtime.gather import compact, gather

_AT_ONCE = 2
_SMALL = (1, 16, 36, 36)
"""As small as an image can be that is still convolved as larger ones are."""

_SMALL_SECONDS = 0.02

_READERS = {"convolution": 0, "addmm": 1, "mm": 0}
"""The argument that holds the activation, whose channels are its second axis."""


@dataclass(frozen=True)
class Probe:
    """A kernel to be timed.

    Attributes:
        kind: of the kernel.
        bytes: that it reads and writes.
        macs: its multiply-adds.
        call: runs it.
    """

    kind: str
    bytes: int
    macs: int
    call: Callable[[], Any]


def time_moves(
    model: nn.Module, call: Callable[[], Any], watch: Stopwatch, seconds: float
) -> dict[str, list[Timing]]:
    """The timings of gathers, copies, copied views and strided products, by kind.

    In forward passes of ``model``, half of the channels of the activations that its layers read are
    moved, there and then: how long that takes depends on what was computed before, and on where
    memory is free.

    Args:
        model: in evaluation mode.
        call: runs it.
        watch: the clock.
        seconds: how long it may take, roughly; every kernel is timed once at least.
    """
    times: defaultdict[tuple[str, int, int], list[float]] = defaultdict(list)
    end = time.perf_counter() + seconds
    turn = 0
    while turn < len(_MOVES) or time.perf_counter() < end:
        prober = _Prober(model, watch, turn)
        with prober.watching():
            call()
        watch.settle()
        for probe, reading in prober.readings:
            times[probe.kind, probe.bytes, probe.macs].append(reading())
        turn += _AT_ONCE
    timings: dict[str, list[Timing]] = {}
    for (kind, moved, macs), own in times.items():
        timings.setdefault(kind, []).append(Timing(moved, macs, statistics.median(own)))
    return timings


def time_launches(
    device: torch.device, dtype: torch.dtype, form: torch.memory_format, watch: Stopwatch
) -> dict[str, list[Timing]]:
    """The timings of small kernels, by kind: they tell what a launch costs.

    Args:
        device: where to run them.
        dtype: of what they compute.
        form: the memory format of images.
        watch: the clock.
    """
    image = torch.randn(_SMALL, device=device, dtype=dtype).to(memory_format=form)
    timings: dict[str, list[Timing]] = {}
    for probe in _launches(image, form):
        timing = Timing(probe.bytes, probe.macs, watch.median(probe.call, _SMALL_SECONDS))
        timings.setdefault(probe.kind, []).append(timing)
    return timings


class _Prober(Watch):  # type: ignore[no-untyped-call]
    """Moves channels of every activation that a layer is about to read.

    Args:
        model: that runs.
        watch: the clock.
        turn: which of the moves come first.
    """

    def __init__(self, model: nn.Module, watch: Stopwatch, turn: int) -> None:
        super().__init__(model)
        self._stopwatch = watch
        self._turn = turn
        self.readings: list[tuple[Probe, Reading]] = []

    def seen(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], module: str) -> Any:
        reader = _READERS.get(func.overloadpacket.__name__)
        if reader is not None and args[reader].shape[1] > 1:
            for number in range(self._turn, self._turn + _AT_ONCE):
                probe = _MOVES[number % len(_MOVES)](args[reader])
                self.readings.append((probe, self._stopwatch.lap(probe.call)[1]))
        return func(*args, **kwargs)


def _half(whole: Tensor) -> Tensor:
    """A view of about half of the channels."""
    channels = whole.shape[1]
    half = (channels + 1) // 2
    return whole.narrow(1, (channels - half) // 2, half)


def _copied(tensor: Tensor) -> int:
    return 2 * tensor.numel() * tensor.element_size()


def _gather(whole: Tensor, share: int) -> Probe:
    channels = whole.shape[1]
    count = (channels + share - 1) // share
    chosen = torch.randperm(channels, device=whole.device)[:count].sort().values
    moved = _copied(whole) * count // channels
    return Probe("gather", moved, 0, lambda: gather(whole, 1, chosen))


def _write(whole: Tensor) -> Probe:
    """Into a slice of a larger tensor, as concatenations are written."""
    part = _half(whole).clone(memory_format=suggest_memory_format(whole))
    slot = _half(torch.empty_like(whole))
    return Probe("copy", _copied(part), 0, lambda: slot.copy_(part))


def _concatenate(whole: Tensor) -> Probe:
    first, second = _half(whole), whole.narrow(1, 0, 1)
    moved = _copied(first) + _copied(second)
    return Probe("copy", moved, 0, lambda: torch.cat([first, second], 1))


def _compact(whole: Tensor) -> Probe:
    """A view of channels without its gaps, as exports hand it to convolutions and norms.

    Of one image in rows, a view has none; then it is copied as a concatenation copies it.
    """
    view = _half(whole)
    if view.is_contiguous():
        return _concatenate(whole)
    return Probe("copy", _copied(view), 0, lambda: compact(view))


def _view_copy(whole: Tensor) -> Probe:
    """The copy that kernels make by themselves if they cannot read a view of channels."""
    view, form = _half(whole), suggest_memory_format(whole)
    return Probe("view_copy", _copied(view), 0, lambda: view.clone(memory_format=form))


def _product(whole: Tensor, share: int) -> Probe:
    """A 1x1 convolution of a view of channels, as a product of matrices that takes its strides."""
    view = _half(whole)
    channels = view.shape[1]
    outputs = (whole.shape[1] + share - 1) // share
    weight = view.new_ones(outputs, channels)
    macs = outputs * view.numel()
    moved = (view.numel() + weight.numel() + macs // channels) * view.element_size()
    if view.dim() > 2 and view.stride(1) != 1:
        columns = view.flatten(2)
        weights = weight.expand(len(view), outputs, channels)
        return Probe("strided1x1", moved, macs, lambda: torch.bmm(weights, columns))
    rows = view.movedim(1, -1).flatten(0, -2)
    return Probe("strided1x1", moved, macs, lambda: rows.mm(weight.t()))


_MOVES: tuple[Callable[[Tensor], Probe], ...] = (
    lambda whole: _gather(whole, 2),
    _write,
    _compact,
    _view_copy,
    lambda whole: _product(whole, 2),
    lambda whole: _gather(whole, 4),
    lambda whole: _product(whole, 1),
    _concatenate,
    lambda whole: _gather(whole, 1),
)


def _launches(image: Tensor, form: torch.memory_format) -> Iterator[Probe]:
    channels = image.shape[1]
    size = image.numel() * image.element_size()
    ones = image.new_ones(channels)
    yield _convolution(image, 1, form)
    yield _convolution(image, 3, form)
    vector, weight = image.new_ones(1, channels), image.new_ones(channels, channels)
    products = (vector.numel() * 2 + weight.numel()) * image.element_size()
    yield Probe("linear", products, weight.numel(), lambda: vector.mm(weight))
    yield Probe("norm", 2 * size, 0, lambda: functional.batch_norm(image, ones, ones))
    yield Probe("elementwise", 2 * size, 0, lambda: functional.relu(image))
    yield Probe("pool", size + size // 4, 0, lambda: functional.avg_pool2d(image, 2))
    yield Probe("reduce", size, 0, lambda: image.mean((2, 3)))
    narrow = image.narrow(1, 0, channels // 2)
    chosen = torch.arange(0, channels, 2, device=image.device)
    yield Probe("gather", size, 0, lambda: gather(image, 1, chosen))
    yield Probe("view_copy", size, 0, lambda: narrow.clone(memory_format=form))


def _convolution(image: Tensor, size: int, form: torch.memory_format) -> Probe:
    channels, pixels = image.shape[1], image.shape[0] * image.shape[2:].numel()
    weight = image.new_ones(channels, channels, size, size).to(memory_format=form)
    moved = (2 * image.numel() + weight.numel()) * image.element_size()
    return Probe(
        "conv1x1" if size == 1 else "conv",
        moved,
        weight.numel() * pixels,
        lambda: functional.conv2d(image, weight, padding=size // 2),
    )
