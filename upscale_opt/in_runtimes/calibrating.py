"""Make a cost model of another program by the clock."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from upscale_opt.deploying import failing
from upscale_opt.errors import SolverError
from upscale_opt.in_runtimes.backends import backend_of
from upscale_opt.in_runtimes.nodes import Backend, Node, clock_of, file_of, without_denormals
from upscale_opt.ir.cost_model import Check, CostModel, KernelCost
from upscale_opt.measuring.calibrating import Subject, device_name, halved
from upscale_opt.measuring.fitting import Timing
from upscale_opt.measuring.in_turn import WARM_UP
from upscale_opt.measuring.pricing import fitted
from upscale_opt.solver.progress import Listener, Progress
from upscale_opt.tracing.examples import Inputs, remake
from upscale_opt.tracing.unchanged import same_random_state

_LEAST = 5
"""Runs, at least."""


def calibrate(
    subjects: Sequence[Subject],
    *,
    runtime: str = "onnxruntime",
    threads: int = 1,
    seconds: float = 5.0,
    progress: Listener | None = None,
) -> CostModel:
    """Time nodes of models in another program, whole and pruned by half, and fit prices to them.

    All are written to ONNX as :func:`upscale_opt.deploy` does, for the batch of their inputs, and
    run in turn; the times of nodes are those of the program's profile. What else a run takes is
    shared out among its nodes. Kinds that no model has get the built-in numbers, scaled by what
    the others say of this machine.

    Args:
        subjects: at least one, in float32.
        runtime: ``"onnxruntime"`` or ``"openvino"``.
        threads: to compute with.
        seconds: how long to time each, roughly.
        progress: told of every step as it begins.

    Returns:
        the cost model; its ``checks`` hold every model, and the pruned one, against the clock.

    Raises:
        SolverError: if there is no model, or an option makes no sense.
        DeployError: if the program is missing, or ONNX cannot hold a model.
    """
    if not subjects:
        raise SolverError("there is no model to calibrate with; give at least one")
    backend = backend_of(runtime)
    backend.check()
    if threads < 1 or not seconds > 0:
        raise SolverError(f"{threads} threads and {seconds:g} seconds: both must be more than 0")

    def tell(step: str) -> None:
        if progress is not None:
            progress(Progress(step))

    passes: list[_Pass] = []
    with torch.no_grad(), same_random_state(torch.device("cpu")):
        with without_denormals():
            block = backend.block_here()
        for subject in subjects:
            tell(f"{subject.title}: pruning a copy by half")
            inputs = _inputs(subject)
            models = {
                subject.title: subject.model,
                f"{subject.title}, half of its channels": halved(subject),
            }
            files = {name: file_of(model, inputs) for name, model in models.items()}
            tell(f"{subject.title}: timing")
            with failing(f"{backend.name} cannot run {subject.title}"), without_denormals():
                passes += _timed(files, inputs, backend, block, threads, seconds)
    timings: defaultdict[str, list[Timing]] = defaultdict(list)
    for one in passes:
        for node in one.nodes:
            timings[node.kind].append(Timing(node.bytes, node.macs, max(node.nanoseconds, 1.0)))
    overhead = max(0.0, statistics.median(one.overhead for one in passes))
    kernels, error = fitted(timings, backend.prices, overhead)
    kernels = {
        kind: _in_blocks(price, backend.prices.kernels[kind], block)
        for kind, price in kernels.items()
    }
    return CostModel(
        device="cpu",
        device_name=device_name(torch.device("cpu")),
        threads=threads,
        runtime=backend.name,
        block=block,
        align=min(block, backend.prices.align),
        torch_version=str(torch.__version__),
        kernels=kernels,
        error=error,
        checks=tuple(one.check(kernels) for one in passes),
    )


def _in_blocks(price: KernelCost, known: KernelCost, block: int) -> KernelCost:
    """A price with the program's way to count channels: nodes were timed with whole blocks."""
    way = {"block": min(known.block, block), "uneven": known.uneven, "both": known.both}
    return price.model_copy(update=way)


@dataclass(frozen=True)
class _Pass:
    """A model, timed as a whole and node by node.

    Attributes:
        name: of the model.
        nodes: what one run runs.
        measured: nanoseconds of a run without a profile.
    """

    name: str
    nodes: Sequence[Node]
    measured: float

    @property
    def overhead(self) -> float:
        """The nanoseconds of a run that no node takes, for each node."""
        return (self.measured - sum(node.nanoseconds for node in self.nodes)) / len(self.nodes)

    def check(self, kernels: dict[str, KernelCost]) -> Check:
        """Compare what the prices predict with what was measured."""
        found = sum(kernels[node.kind].nanoseconds(node.bytes, node.macs) for node in self.nodes)
        return Check(network=self.name, predicted=found, measured=self.measured)


def _timed(
    files: dict[str, bytes],
    inputs: Inputs,
    backend: Backend,
    block: int,
    threads: int,
    seconds: float,
) -> list[_Pass]:
    """Time files in turn, each with a profile and without."""
    now = clock_of(threads)
    plain = {name: backend.call_of(data, inputs, threads) for name, data in files.items()}
    profiled = {name: backend.profiled(data, inputs, threads) for name, data in files.items()}
    wholes: dict[str, list[float]] = {name: [] for name in files}

    def lap(call: Callable[[], object]) -> float:
        start = now()
        call()
        return float(now() - start)

    for _ in range(WARM_UP):
        for call in plain.values():
            call()
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < _LEAST or time.perf_counter() < end:
        for name in files:
            wholes[name].append(lap(plain[name]))
            profiled[name].run()
        rounds += 1
    return [
        _pass(name, profiled[name].nodes(block), statistics.median(wholes[name])) for name in files
    ]


def _pass(name: str, nodes: Sequence[Node], measured: float) -> _Pass:
    """A model's times; where its nodes took longer than all of it, others ran in between."""
    factor = min(1.0, measured / sum(node.nanoseconds for node in nodes))
    own = [replace(node, nanoseconds=factor * node.nanoseconds) for node in nodes]
    return _Pass(name, own, measured)


def _inputs(subject: Subject) -> Inputs:
    if subject.inputs is not None:
        return subject.inputs
    args, kwargs = remake(subject.graph.example, torch.float32, torch.device("cpu"))
    return kwargs or args
