"""One network through the benchmark: make its variants, and time them in turn."""

from __future__ import annotations

import copy
import gc
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from upscale_opt import in_runtimes
from upscale_opt.errors import UpscaleError
from upscale_opt.experiments.bench.floor import floor
from upscale_opt.experiments.bench.names import BASES
from upscale_opt.experiments.bench.ratios import ratio_of
from upscale_opt.experiments.bench.records import (
    BenchRecord,
    Cell,
    Export,
    Machine,
    Settings,
    Time,
)
from upscale_opt.experiments.bench.variants import Built, OwnNetwork, Subject, problem_of
from upscale_opt.experiments.processes import Tell
from upscale_opt.in_runtimes.backends import BACKENDS
from upscale_opt.ir.cost_model import CostModel
from upscale_opt.measuring.bytes_moved import moved_bytes
from upscale_opt.measuring.costs import count_costs
from upscale_opt.measuring.in_turn import (
    Call,
    captured,
    clock,
    interleaved,
    threads,
)
from upscale_opt.tracing.examples import Inputs, as_call, map_tensors

_FORMS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


@dataclass(frozen=True)
class Task:
    """A network to benchmark.

    Attributes:
        name: its name in the catalogue.
        settings: how.
        cost_models: for the variant ``latency``.
        own: makes the network, if it is none of the catalogue.
    """

    name: str
    settings: Settings
    cost_models: tuple[CostModel, ...] = ()
    own: OwnNetwork | None = None


def bench(task: Task, tell: Tell = lambda text: None) -> BenchRecord:
    """Make the variants of a network, and time them in every cell.

    Whatever goes wrong on the way is part of the record.

    Args:
        task: the network and how.
        tell: called with what is being done.
    """
    start = time.perf_counter()
    settings = task.settings
    record = BenchRecord(name=task.name, settings=settings)
    exports: dict[tuple[str, int | None, str | None], Export] = {}
    cells: list[Cell] = []
    problem = ""
    try:
        with threads(settings.threads):
            record = record.model_copy(update={"machine": machine(settings.device)})
            tell("trace and mask")
            subject = Subject(task.name, settings, task.cost_models, task.own)
            for form, batch in product(settings.formats, settings.batches):
                cells += _cells(subject, batch, form, exports, tell)
                gc.collect()
    except Exception as error:
        problem = problem_of(error)
    found = {
        "exports": tuple(exports.values()),
        "cells": tuple(cells),
        "problem": problem,
        "seconds": time.perf_counter() - start,
    }
    return record.model_copy(update=found)


def machine(device: str) -> Machine:
    """The machine that runs the benchmark."""
    own = torch.device(device)
    cpu = _cpu_name()
    return Machine(
        device=torch.cuda.get_device_name(own) if own.type == "cuda" else cpu,
        cpu=cpu,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
    )


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@dataclass(frozen=True)
class _Ready:
    """A variant on the device, in its dtype and memory format."""

    variant: str
    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def call(self) -> object:
        return self.model(*self.args, **self.kwargs)


def _cells(
    subject: Subject,
    batch: int,
    form: str,
    exports: dict[tuple[str, int | None, str | None], Export],
    tell: Tell,
) -> Iterator[Cell]:
    """The cells of a batch size and memory format, one for every mode; ``exports`` are added."""
    settings = subject.settings
    ready: list[_Ready] = []
    problems: dict[str, str] = {}
    where = f"batch {batch}, {form}"
    for variant in settings.variants:
        tell(f"{where}: make {variant}")
        built = subject.built(variant, batch, form)
        key = variant, built.export.batch, built.export.format
        exports.setdefault(key, built.export)
        if built.model is None:
            problems[variant] = built.export.problem
            continue
        try:
            one = _prepared(subject, built, batch, form)
            exports[key] = _described(subject, exports[key], one, form)
            ready.append(one)
        except Exception as error:
            problems[variant] = problem_of(error)
    modes: list[str] = [settings.runtime]
    modes += ["compiled"] * (settings.compile and settings.runtime != "compiled")
    modes += ["cuda-graph"] * settings.cuda_graphs
    for mode in modes:
        tell(f"{where}, {mode}: time")
        if mode in BACKENDS:
            yield _in_runtime(settings, batch, form, mode, ready, dict(problems))
        else:
            yield _timed(settings, batch, form, mode, ready, dict(problems))


def _prepared(subject: Subject, built: Built, batch: int, form: str) -> _Ready:
    """The variant as it will be timed, having run once."""
    assert built.model is not None
    model = _placed(built.model, subject.settings, form)
    if built.export.variant == "floor" and subject.settings.runtime == "eager":
        # It holds tensors of one device, dtype and memory format.
        assert built.graph is not None
        model = floor(model, built.graph)
    args, kwargs = as_call(_moved(subject.inputs(batch), subject.settings, form))
    one = _Ready(built.export.variant, model, args, kwargs)
    with torch.no_grad():
        one.call()
    return one


def _placed(model: Any, settings: Settings, form: str) -> Any:
    """A copy on the device, in the dtype and memory format."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    dtype = getattr(torch, settings.dtype)
    return copied.to(device=settings.device, dtype=dtype).to(memory_format=_FORMS[form])


def _moved(inputs: Inputs, settings: Settings, form: str) -> Any:
    def moved(tensor: torch.Tensor) -> torch.Tensor:
        dtype = getattr(torch, settings.dtype) if tensor.is_floating_point() else tensor.dtype
        there = tensor.to(device=settings.device, dtype=dtype)
        return there.contiguous(memory_format=_FORMS[form]) if tensor.ndim == 4 else there

    return map_tensors(inputs, moved)


def _described(subject: Subject, export: Export, one: _Ready, form: str) -> Export:
    """With the sizes of the variant, and what it moves at batch 1 in this memory format."""
    if form in export.moved:
        return export
    single = _moved(subject.inputs(1), subject.settings, form)
    costs = count_costs(one.model, single)
    args, kwargs = as_call(single)
    with torch.no_grad():
        one.model(*args, **kwargs)  # the floor moves data at its first run
    moved = {**export.moved, form: moved_bytes(one.model, single).total}
    found = {
        "parameters": costs.parameters,
        "multiply_adds": costs.multiply_adds,
        "moved": moved,
    }
    return export.model_copy(update=found)


def _timed(
    settings: Settings,
    batch: int,
    form: str,
    mode: str,
    ready: list[_Ready],
    problems: dict[str, str],
) -> Cell:
    device = torch.device(settings.device)
    clocks = {}
    breaks: dict[str, int] = {}
    if mode == "compiled":
        torch.compiler.reset()
    for one in ready:
        try:
            with torch.no_grad():
                call = _call(one, mode, breaks)
                call()
            clocks[one.variant] = clock(call, device)
        except Exception as error:
            problems[one.variant] = problem_of(error)
    found = interleaved(
        clocks, rounds=settings.rounds, seconds=settings.seconds, seed=settings.seed
    )
    bases = BASES if settings.runtime == "eager" else tuple(found)
    times = [
        _time(variant, found, problems.get(variant, ""), breaks.get(variant), settings.seed, bases)
        for variant in settings.variants
    ]
    count = len(next(iter(found.values()))) if found else 0
    return Cell(batch=batch, format=form, mode=mode, rounds=count, times=tuple(times))


def _in_runtime(
    settings: Settings,
    batch: int,
    form: str,
    mode: str,
    ready: list[_Ready],
    problems: dict[str, str],
) -> Cell:
    """A cell in a program that runs files.

    Its floor is the time of our export without that of its nodes that only move data, by the
    program's profile: there are no free copies to put on the clock.
    """
    timings: dict[str, in_runtimes.Candidate] = {}
    backend = in_runtimes.backend_of(mode)
    twice = any(one.variant == "latency" for one in ready)
    for one in ready:
        if one.variant == "floor" and twice:
            continue  # the same file again
        try:
            inputs = one.kwargs or one.args
            timings[one.variant] = in_runtimes.Candidate(
                one.model, inputs, backend, settings.threads
            )
        except Exception as error:
            problems[one.variant] = problem_of(error)
    found = in_runtimes.compare(
        timings, rounds=settings.rounds, seconds=settings.seconds, seed=settings.seed
    )
    seconds = {name: list(own) for name, own in found.seconds.items()}
    computing = {name: found.computing(name) for name in seconds}
    own_floor = "latency" if twice else "floor"
    if "floor" in settings.variants and own_floor in seconds:
        seconds["floor"] = [computing[own_floor] * own for own in seconds[own_floor]]
        computing["floor"] = 1.0
    times = [
        _time(
            variant, seconds, problems.get(variant, ""), None, settings.seed, list(seconds)
        ).model_copy(update={"computing": computing.get(variant)})
        for variant in settings.variants
    ]
    count = len(next(iter(seconds.values()))) if seconds else 0
    return Cell(batch=batch, format=form, mode=mode, rounds=count, times=tuple(times))


def _call(one: _Ready, mode: str, breaks: dict[str, int]) -> Call:
    """A call that runs a variant in this mode.

    Raises:
        UpscaleError: if it cannot be run so.
    """
    if mode == "eager":
        return one.call
    if mode == "cuda-graph":
        return captured(one.call)
    if one.variant == "floor":
        raise UpscaleError(
            "a compiler would remove the layers in front of copies that are free: their results "
            "are not needed"
        )
    explained: Any = torch._dynamo.explain(one.model)(*one.args, **one.kwargs)
    breaks[one.variant] = explained.graph_break_count
    compiled: Any = torch.compile(one.model)
    return lambda: compiled(*one.args, **one.kwargs)


def _time(
    variant: str,
    seconds: dict[str, list[float]],
    problem: str,
    breaks: int | None,
    seed: int,
    bases: Sequence[str] = BASES,
) -> Time:
    own = seconds.get(variant)
    if own is None:
        return Time(variant=variant, problem=problem, graph_breaks=breaks)
    return Time(
        variant=variant,
        milliseconds=1e3 * statistics.median(own),
        ratios={
            base: ratio_of(own, seconds[base], seed)
            for base in bases
            if base in seconds and base != variant
        },
        graph_breaks=breaks,
    )
