"""A program that runs ONNX files, by what it is asked for: calls of a file, and their nodes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from upscale_opt.deploying import capture, check_format, failing, onnx_of
from upscale_opt.ir.cost_model import CostModel, Runtime, whole_blocks
from upscale_opt.tracing.copying import copied
from upscale_opt.tracing.examples import Inputs

MOVES = ("gather", "slice", "copy", "reorder_in", "reorder_out")
"""The kinds of nodes that compute nothing."""


@dataclass(frozen=True)
class Node:
    """A node that a program ran.

    Attributes:
        name: in its optimised graph.
        kind: of the kernel; see :mod:`upscale_opt.ir.cost_model`.
        bytes: that it reads and writes.
        macs: its multiply-adds, widths in whole blocks where it computes in them.
        nanoseconds: the median over all runs.
    """

    name: str
    kind: str
    bytes: int
    macs: int
    nanoseconds: float


class Profiled(Protocol):
    """A file that is ready to run, whose nodes are timed."""

    def run(self) -> None:
        """Run once."""

    def nodes(self, block: int) -> list[Node]:
        """Nodes that were run, in the order of execution; it cannot run again.

        Args:
            block: the channels that the program stores together on this CPU.
        """


@dataclass(frozen=True)
class Backend:
    """A program that runs ONNX files on a CPU.

    Attributes:
        name: of the runtime.
        prices: the built-in ones.
        check: raises a ``DeployError`` if it is not installed.
        call_of: a call that runs a file on inputs, with so many threads.
        profiled: the same, with a profile.
        block_here: the channels that it stores together on this CPU; 1 if it has no such layout.
    """

    name: Runtime
    prices: CostModel
    check: Callable[[], None]
    call_of: Callable[[bytes, Inputs, int], Callable[[], object]]
    profiled: Callable[[bytes, Inputs, int], Profiled]
    block_here: Callable[[], int]


def file_of(model: nn.Module, inputs: Inputs) -> bytes:
    """The model's ONNX file, for a fixed batch.

    Raises:
        DeployError: if a library is missing, or ONNX cannot hold it.
    """
    check_format("onnx")
    with failing("ONNX cannot hold this model"):
        return onnx_of(capture(copied(model).eval(), inputs, dynamic_batch=False))


def clock_of(threads: int) -> Callable[[], int]:
    """A clock in nanoseconds: of one thread alone, the time it computes for."""
    return time.thread_time_ns if threads == 1 else time.perf_counter_ns


@contextmanager
def without_denormals() -> Iterator[None]:
    """This thread takes numbers next to zero, which are slow, for zero; afterwards as before.

    Programs that are told to do so leave the thread in that state.
    """
    before = float(torch.tensor(_DENORMAL, dtype=torch.float64) * 1.0) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


_DENORMAL = 1e-310


def convolution(
    given: Sequence[int], weight: Sequence[int], result: Sequence[int], groups: int, block: int
) -> tuple[str, int]:
    """The kind of a convolution in or out of a blocked layout, and its multiply-adds.

    Args:
        given: the shape that it reads, (N, C, …).
        weight: (C out, C in of a group, …).
        result: the shape that it writes.
        groups: of its channels.
        block: the channels stored together where it runs; 1: outside of such a layout.
    """
    written, depth, *kernel = weight
    taps = math.prod(kernel)
    positions = result[0] * math.prod(result[2:])
    if depth == 1 and written == groups > 1:
        if taps == 1:
            return "norm", 0
        kind = "depthwise" if block > 1 else "plain_depthwise"
        return kind, positions * taps * whole_blocks(written, block)
    if groups > 1:
        return "grouped", positions * taps * written * depth
    width = whole_blocks(depth, block) if depth >= block else depth
    inside, outside = ("conv1x1", "plain1x1") if taps == 1 else ("conv", "plain")
    macs = positions * taps * whole_blocks(written, block) * width
    return inside if block > 1 else outside, macs
