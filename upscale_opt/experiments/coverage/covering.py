"""One network through the whole chain, with masks on every side."""

from __future__ import annotations

import copy
import gc
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn

from upscale_opt.errors import TraceError, UpscaleError, VerificationError
from upscale_opt.experiments.coverage.masking import Survey, mask, run, survey, zeros
from upscale_opt.experiments.coverage.reasons import reasons
from upscale_opt.experiments.coverage.records import (
    EXACT,
    GIANT,
    ROUGH,
    SIDES,
    NetworkRecord,
    OtherInputs,
    SideRecord,
)
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.solution import Solution
from upscale_opt.masking.zeros import masks_of
from upscale_opt.materializing.materialize import materialize
from upscale_opt.models import catalogue
from upscale_opt.pruning.submodules import prune_submodules
from upscale_opt.solver.api import solve
from upscale_opt.tracing import trace
from upscale_opt.tracing.examples import map_tensors
from upscale_opt.tracing.unchanged import unchanged
from upscale_opt.verifying.both import Both
from upscale_opt.verifying.deviation import deviation
from upscale_opt.verifying.elsewhere import elsewhere

BATCH = 2
"""Images per input: with one, some reshapes of the batch cannot be told from those of channels."""

_PACKAGES = (
    *("torch", "torchvision", "timm", "ultralytics", "segmentation-models-pytorch"),
    *("transformers", "diffusers", "monai"),
)
_LINES = 3


@dataclass(frozen=True)
class Task:
    """A network, and what to find out about it.

    Attributes:
        name: its name in the catalogue.
        amount: the share of slices to mask.
        seed: of its weights and of the solver.
        dtype: ``"float64"``, ``"float32"``; or ``"auto"``: float64 for all but giants.
        time_limit: seconds for the solver, per side.
        skip_larger_than: numbers of parameters beyond which a network is left out.
    """

    name: str
    amount: float = 0.5
    seed: int = 0
    dtype: Literal["auto", "float64", "float32"] = "auto"
    time_limit: float = 60.0
    skip_larger_than: int | None = None


def cover(task: Task) -> NetworkRecord | None:
    """Build a network, and for each side: mask, trace, solve, materialise, and compare.

    Whatever goes wrong on the way is part of the record.

    Returns:
        The record; or ``None`` if the network is larger than asked for.
    """
    start = time.perf_counter()
    record = NetworkRecord(
        name=task.name,
        group=catalogue.group_of(task.name),
        amount=task.amount,
        seed=task.seed,
        versions=dict(_versions()),
    )
    try:
        model = catalogue.build(task.name, seed=task.seed)
        size = sum(parameter.numel() for parameter in model.parameters())
        if task.skip_larger_than is not None and size > task.skip_larger_than:
            return None
        inputs = catalogue.example_inputs(task.name, BATCH)
        with unchanged(model):  # what its run leaves, as anchors, would be of another precision
            catalogue.randomize(model, task.seed, inputs)
        model, inputs, dtype, seen = _at_precision(model, inputs, task.dtype, size)
    except Exception as error:  # the record says so, and the sweep goes on
        return record.model_copy(update={"problem": _problem("build", error)})
    sides = []
    for side in SIDES:
        sides.append(_cover_side(model, inputs, dtype, seen, task, side))
        gc.collect()
    found = {
        "parameters": sum(p.numel() for name, p in model.named_parameters() if name in seen.used),
        "sides": tuple(sides),
        "peak_bytes": _peak_bytes(),
        "seconds": time.perf_counter() - start,
    }
    return record.model_copy(update=found)


def _versions() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def _at_precision(
    model: nn.Module, inputs: Any, asked: str, size: int
) -> tuple[nn.Module, Any, str, Survey]:
    """The model, its inputs, their dtype's name, and what a run shows."""
    if asked == "float64" or (asked == "auto" and size <= GIANT):
        exact: Any = copy.deepcopy(model).double()
        exact_inputs = map_tensors(inputs, _doubled)
        try:
            return exact, exact_inputs, "float64", survey(exact, exact_inputs)
        except RuntimeError:  # it makes tensors of a fixed dtype, as RAFT does
            if asked == "float64":
                raise
    return model, inputs, "float32", survey(model, inputs)


def _doubled(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


@dataclass
class _Export:
    """The outcome of masking, tracing, solving and materialising.

    ``masked`` is the model before that: another one, where parts were pruned in place.
    """

    capture: str
    masked: nn.Module
    module: nn.Module
    graphs: Sequence[ChannelGraph]
    solutions: Sequence[Solution]
    seconds: tuple[float, float, float]
    deviation: float | None = None


def _cover_side(
    original: nn.Module,
    inputs: Any,
    dtype: str,
    seen: Survey,
    task: Task,
    side: Literal["input", "output", "both"],
) -> SideRecord:
    allowed = EXACT if dtype == "float64" else ROUGH
    record = SideRecord(side=side, dtype=dtype, allowed=allowed)
    step = ["mask"]
    try:
        model = copy.deepcopy(original)
        mask(model, side, task.amount, seen)
        want, used = run(model, inputs)
        masked = zeros(used)
        export = _export(model, inputs, task, step)
        step[0] = "run"
        got, kept = run(export.module, inputs)
        step[0] = "compare"
        error = deviation(want, got) if export.deviation is None else export.deviation
        noise = "" if error <= allowed else _noise(export, inputs, dtype)
        step[0] = "compare elsewhere"
        others = _elsewhere(export, inputs, dtype)
    except Exception as problem:  # the record says so, and the sweep goes on
        return record.model_copy(update={"problem": _problem(step[0], problem)})
    status = "lossless" if error <= allowed else "own noise" if noise else "lossy"
    found = {
        "status": status,
        "noise": noise,
        "deviation": error if error == error else None,
        "capture": export.capture,
        "masked": masked,
        "left": min(masked, zeros(kept)),
        "parameters": sum(map(torch.numel, kept)),
        "copied": sum(solution.copied for solution in export.solutions),
        "opaque": reasons(export.graphs),
        "elsewhere": others,
        "trace": export.seconds[0],
        "solve": export.seconds[1],
        "materialize": export.seconds[2],
    }
    return record.model_copy(update=found)


def _noise(export: _Export, inputs: Any, dtype: str) -> str:
    """The place where the masked model rounds, if that explains a deviation; else nothing."""
    try:
        found = Both(export.masked, export.module).compare(inputs, getattr(torch, dtype))
    except VerificationError:
        return ""
    return "" if found.lower is None else f"the model {found.lower}"


def _elsewhere(export: _Export, inputs: Any, dtype: str) -> tuple[OtherInputs, ...]:
    """Compare on other inputs."""
    found = elsewhere(Both(export.masked, export.module), inputs, getattr(torch, dtype))
    return tuple(OtherInputs(what=o.what, status=o.status, reason=o.reason[:500]) for o in found)


def _export(model: nn.Module, inputs: Any, task: Task, step: list[str]) -> _Export:
    """Export the masked model; or, if it cannot be traced, its submodules in place."""
    times = [time.perf_counter()]
    with _naming(step, "trace"):
        try:
            graph = trace(model, inputs)
        except TraceError:
            return _export_parts(model, inputs, task, step)
    times.append(time.perf_counter())
    with _naming(step, "solve"):
        masks = masks_of(model, graph)
        solution = solve(graph, masks, time_limit=task.time_limit, seed=task.seed)
    times.append(time.perf_counter())
    with _naming(step, "materialize"):
        pruned = materialize(model, solution)
    times.append(time.perf_counter())
    first, second, third = (b - a for a, b in pairwise(times))
    return _Export(solution.capture, model, pruned, [graph], [solution], (first, second, third))


def _export_parts(model: nn.Module, inputs: Any, task: Task, step: list[str]) -> _Export:
    masked = copy.deepcopy(model)
    start = time.perf_counter()
    with _naming(step, "submodules"):
        done = prune_submodules(model, inputs, time_limit=task.time_limit, seed=task.seed)
    seconds = time.perf_counter() - start
    solutions = [part.solution for part in done.pruned]
    solving = sum(s.times.analysis + s.times.solve + s.times.layout for s in solutions)
    return _Export(
        "parts",
        masked,
        model,
        [part.graph for part in done.pruned],
        solutions,
        (seconds - solving, solving, 0.0),
        max((part.error for part in done.pruned if part.error is not None), default=0.0),
    )


@contextmanager
def _naming(step: list[str], name: str) -> Iterator[None]:
    step[0] = name
    yield


def _problem(step: str, error: Exception) -> str:
    """The step, the error, and where it came from, unless it is one of ours."""
    text = f"{step}: {type(error).__name__}: {' '.join(str(error).split())[:500]}"
    if isinstance(error, UpscaleError):
        return text
    frames = traceback.extract_tb(error.__traceback__)[-_LINES:]
    where = [f"{frame.filename}:{frame.lineno} {frame.line}" for frame in frames]
    return "\n".join([text, *where])


def _peak_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
