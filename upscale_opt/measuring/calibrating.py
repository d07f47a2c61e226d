"""Make a cost model by the clock: time a model's kernels, at full width and pruned, and fit."""

from __future__ import annotations

import copy
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from upscale_opt.errors import SolverError
from upscale_opt.importance.choosing import choose_masks
from upscale_opt.ir.cost_model import CostModel
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.profiles import PROFILES
from upscale_opt.masking.zeros import apply_masks, masks_of
from upscale_opt.materializing.materialize import materialize
from upscale_opt.measuring.fitting import Timing
from upscale_opt.measuring.pricing import check, prices
from upscale_opt.measuring.probing import time_launches, time_moves
from upscale_opt.measuring.timing import Passes, Stopwatch, computing_with
from upscale_opt.solver.api import solve
from upscale_opt.solver.progress import Listener, Progress
from upscale_opt.tracing.examples import Inputs, as_call, dtype_name, map_tensors, remake
from upscale_opt.tracing.unchanged import composed_attention, same_random_state

MemoryFormat = Literal["contiguous", "channels_last"]


@dataclass(frozen=True)
class Subject:
    """A model to time.

    Attributes:
        model: any model.
        graph: from :func:`upscale_opt.trace`.
        inputs: of the size that counts; by default of that which was traced.
        name: for the cost model's checks; by default the model's class.
    """

    model: nn.Module
    graph: ChannelGraph
    inputs: Inputs | None = None
    name: str = ""

    @property
    def title(self) -> str:
        """The name given, or the class of the model."""
        return self.name or type(self.model).__name__


_AMOUNT = 0.53
"""Half of the channels, but so that most counts are odd."""

_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_PASSES_SHARE = 0.7
_LEAST_PASSES = 3


def calibrate(
    model: nn.Module,
    graph: ChannelGraph,
    *,
    device: str | torch.device = "cpu",
    inputs: Inputs | None = None,
    dtype: torch.dtype | None = None,
    memory_format: MemoryFormat = "contiguous",
    threads: int | None = None,
    seconds: float = 5.0,
    progress: Listener | None = None,
) -> CostModel:
    """Time the kernels of ``model`` and fit prices to them.

    They are timed where they run: in forward passes of the model at full width, and of a copy that
    is pruned to about half of it, as exports will be; gathers, copies and products of strided views
    are timed on their own, at the shapes of the model's activations. What else a pass takes is
    shared out among its kernels. Kinds that the model lacks get the numbers of a built-in profile,
    scaled by what the others say of this device.

    Args:
        model: any model; it is not changed.
        graph: from :func:`upscale_opt.trace`.
        device: where to time it.
        inputs: of the size that counts; by default of that which was traced.
        dtype: to time it in; the model's own by default.
        memory_format: to time it in.
        threads: to compute with on a CPU; those that PyTorch computes with by default.
        seconds: how long to time, roughly; building the pruned copy comes on top, and every kernel
            is timed three times at least.
        progress: told of every step as it begins.

    Returns:
        the cost model; its ``checks`` hold the whole model, and the pruned one, against the clock.

    Raises:
        SolverError: if an option makes no sense, or the device is not there.
        MaskError: if the graph is not one of the model.
        TraceError: if ``inputs`` is none of the accepted forms.
    """
    return calibrate_all(
        [Subject(model, graph, inputs)],
        device=device,
        dtype=dtype,
        memory_format=memory_format,
        threads=threads,
        seconds=seconds,
        progress=progress,
    )


def calibrate_all(
    subjects: Sequence[Subject],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    memory_format: MemoryFormat = "contiguous",
    threads: int | None = None,
    seconds: float = 5.0,
    progress: Listener | None = None,
) -> CostModel:
    """One cost model for several models; otherwise as :func:`calibrate`.

    Args:
        subjects: at least one.
        device: where to time them.
        dtype: to time them in; the first model's own by default.
        memory_format: to time them in.
        threads: to compute with on a CPU; those that PyTorch computes with by default.
        seconds: how long to time each, roughly.
        progress: told of every step as it begins.

    Raises:
        SolverError: if an option makes no sense, or the device is not there.
        MaskError: if a graph is not one of its model.
        TraceError: if a subject's inputs are none of the accepted forms.
    """
    if not subjects:
        raise SolverError("there is no model to calibrate with; give at least one")
    threads = torch.get_num_threads() if threads is None else threads
    place = _checked(device, memory_format, threads, seconds)

    def tell(step: str) -> None:
        if progress is not None:
            progress(Progress(step))

    form, dtype = _FORMATS[memory_format], dtype or _dtype(subjects[0].model)
    with computing_with(threads), torch.no_grad(), composed_attention(), same_random_state(place):
        watch = Stopwatch(place, threads)
        passes: list[Passes] = []
        probes: list[dict[str, list[Timing]]] = []
        for subject in subjects:
            tell(f"{subject.title}: pruning a copy by half")
            own = list(_passes(subject, place, dtype, form, watch))
            tell(f"{subject.title}: timing forward passes")
            _time(own, seconds * _PASSES_SHARE)
            passes += own
            tell(f"{subject.title}: timing copies")
            left = seconds * (1 - _PASSES_SHARE)
            probes.append(time_moves(own[0].model, own[0].call, watch, left))
        probes.append(time_launches(place, dtype, form, watch))
    if place.type == "cuda":
        profile = PROFILES["gpu" if dtype.itemsize == 2 else "gpu-float32"]
    else:
        profile = PROFILES["cpu" if memory_format == "contiguous" else "cpu-channels-last"]
    kernels, error = prices(passes, probes, profile)
    return CostModel(
        device=place.type,
        device_name=device_name(place),
        dtype=dtype_name(dtype),
        threads=threads,
        memory_format=memory_format,
        torch_version=str(torch.__version__),
        kernels=kernels,
        error=error,
        checks=tuple(check(one, kernels) for one in passes),
    )


def _checked(
    device: str | torch.device, memory_format: str, threads: int, seconds: float
) -> torch.device:
    if memory_format not in get_args(MemoryFormat):
        known = ", ".join(get_args(MemoryFormat))
        raise SolverError(f"no memory format {memory_format!r}; there are {known}")
    if threads < 1:
        raise SolverError(f"threads must be at least 1, not {threads}")
    if not seconds > 0:
        raise SolverError(f"seconds must be more than 0, not {seconds:g}")
    try:
        place = torch.device(device)
        torch.empty(1, device=place).zero_()
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        why = (str(error) or type(error).__name__).split("\n")[0].rstrip(".")
        raise SolverError(f"device {str(device)!r} cannot be used ({why}); 'cpu' can") from None
    if place.type not in ("cpu", "cuda"):
        raise SolverError(f"device {str(device)!r} has no clock here; 'cpu' and 'cuda' have")
    return place


def _dtype(model: nn.Module) -> torch.dtype:
    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floating, torch.float32)


def device_name(device: torch.device) -> str:
    """The device's name, as the system calls it."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _call(
    graph: ChannelGraph,
    inputs: Inputs | None,
    device: torch.device,
    dtype: torch.dtype,
    form: torch.memory_format,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    call = remake(graph.example, dtype, device) if inputs is None else as_call(inputs)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        return tensor.contiguous(memory_format=form) if tensor.dim() == 4 else tensor

    args, kwargs = map_tensors(call, moved)
    return args, kwargs


def _passes(
    subject: Subject,
    device: torch.device,
    dtype: torch.dtype,
    form: torch.memory_format,
    watch: Stopwatch,
) -> Iterator[Passes]:
    """Of copies of the model: as it is, and pruned by half."""
    args, kwargs = _call(subject.graph, subject.inputs, device, dtype, form)
    whole = copy.deepcopy(subject.model)
    for name, model in (
        (subject.title, whole),
        (f"{subject.title}, half of its channels", halved(subject)),
    ):
        model = model.to(device, dtype).to(memory_format=form).eval()
        yield Passes(name, model, partial(model, *args, **kwargs), watch)


def halved(subject: Subject) -> nn.Module:
    """The subject's model, about half of its channels pruned."""
    masked = copy.deepcopy(subject.model)
    apply_masks(masked, subject.graph, choose_masks(masked, subject.graph, _AMOUNT))
    solution = solve(subject.graph, masks_of(masked, subject.graph), solver="greedy")
    return materialize(masked, solution)


def _time(passes: Sequence[Passes], seconds: float) -> None:
    """Time all in turn, so that whatever slows the machine down meets all of them."""
    for one in passes:
        one.warm_up()
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < _LEAST_PASSES or time.perf_counter() < end:
        for one in passes:
            one.run()
        rounds += 1
