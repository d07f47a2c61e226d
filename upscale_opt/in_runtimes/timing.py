"""Several models timed in another program, in turn, in one process."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from upscale_opt.deploying import failing
from upscale_opt.errors import DeployError
from upscale_opt.in_runtimes.backends import backend_of
from upscale_opt.in_runtimes.nodes import MOVES, Backend, Node, clock_of, file_of, without_denormals
from upscale_opt.measuring.in_turn import Clock, interleaved
from upscale_opt.shown import Shown
from upscale_opt.tracing.examples import Inputs, require_model

_PROFILED = 8
"""Runs with a profile."""

SLOWER = 1.02
"""Below this, one model is not said to be slower than another: clocks err by as much."""


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """The times of several models in a program.

    Attributes:
        runtime: the program's name.
        seconds: of every model in every round, by name.
        nodes: what a run of every model runs, by name.
    """

    runtime: str
    seconds: Mapping[str, Sequence[float]]
    nodes: Mapping[str, Sequence[Node]] = field(default_factory=dict)

    @property
    def milliseconds(self) -> dict[str, float]:
        """The median of every model."""
        return {name: 1e3 * statistics.median(own) for name, own in self.seconds.items()}

    def ratio(self, name: str, base: str) -> float:
        """The median over rounds of one model's time over another's.

        Raises:
            DeployError: if one of them was not timed.
        """
        for wanted in (name, base):
            if wanted not in self.seconds:
                raise DeployError(f"{wanted!r} was not timed; there are {', '.join(self.seconds)}")
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        return statistics.median(own / other for own, other in pairs)

    def computing(self, name: str) -> float:
        """The share of a model's nodes' time in which they compute, and do not merely move data."""
        total = sum(node.nanoseconds for node in self.nodes[name])
        moving = sum(node.nanoseconds for node in self.nodes[name] if node.kind in MOVES)
        return 1 - moving / total

    def counts(self, name: str) -> dict[str, int]:
        """The number of nodes of a model by kind, of those that move data."""
        found = Counter(node.kind for node in self.nodes[name])
        return {kind: found[kind] for kind in MOVES if found[kind]}

    def fastest(self) -> str:
        """The model whose time over the first one's is least."""
        first = next(iter(self.seconds))
        return min(self.seconds, key=lambda name: self.ratio(name, first))

    def verdict(self, name: str, base: str = "unpruned") -> str:
        """A sentence: is a model slower than another, and if so, which one is not."""
        ratio = self.ratio(name, base)
        if ratio <= SLOWER:
            return f"{name} takes {ratio:.3f} of the time of {base} in {self.runtime}"
        best = self.fastest()
        return (
            f"{name} is slower than {base} in {self.runtime}: {ratio:.3f} of its time; take "
            f"{best}, which takes {self.ratio(best, base):.3f}"
        )


def beside(
    models: Mapping[str, nn.Module],
    inputs: Inputs,
    *,
    runtime: str = "onnxruntime",
    seconds: float = 5.0,
    threads: int = 1,
    seed: int = 0,
) -> Comparison:
    """Time several models on the same inputs in another program, in turn, in one process.

    All are written to ONNX for the batch of the inputs, as :func:`upscale_opt.deploy` does. With
    one thread it is the time that the thread computes for: it is the same where other programs run.

    Args:
        models: by name; in float32, on the CPU.
        inputs: as for :func:`upscale_opt.trace`.
        runtime: ``"onnxruntime"`` or ``"openvino"``.
        seconds: the time for all of it, about.
        threads: to compute with.
        seed: of the order within rounds.

    Raises:
        TraceError: if one is no model, or ``inputs`` are none of the accepted forms.
        DeployError: if the program is missing, or ONNX cannot hold a model.
        SolverError: if there is no such program.
    """
    backend = backend_of(runtime)
    candidates = {}
    for name, model in models.items():
        require_model(model, "measure")
        candidates[name] = Candidate(model, inputs, backend, threads)
    return compare(candidates, seconds=seconds, seed=seed)


class Candidate:
    """A model that is ready to run in another program.

    Args:
        model: in float32, on the CPU.
        inputs: to run it on.
        backend: the program.
        threads: to compute with.

    Raises:
        DeployError: if the program is missing, or ONNX cannot hold the model.
    """

    def __init__(
        self, model: nn.Module, inputs: Inputs, backend: Backend, threads: int = 1
    ) -> None:
        backend.check()
        data = file_of(model, inputs)
        self.runtime = backend.name
        self.clock = _ready(data, inputs, backend, threads)
        with failing(f"{backend.name} cannot run this model"), without_denormals():
            self.profiled = backend.profiled(data, inputs, threads)


def compare(
    candidates: Mapping[str, Candidate],
    *,
    rounds: int | None = None,
    seconds: float = 5.0,
    seed: int = 0,
) -> Comparison:
    """Time models that are ready, in turn; their profiles are ended by it.

    Args:
        candidates: by name.
        rounds: how often each runs; ``None``: as often as ``seconds`` allow, but ten times.
        seconds: the time for all of it, about.
        seed: of the order within rounds.
    """
    clocks = {name: one.clock for name, one in candidates.items()}
    found = interleaved(clocks, rounds=rounds, seconds=seconds, seed=seed)
    with without_denormals():
        for _ in range(_PROFILED):
            for one in candidates.values():
                one.profiled.run()
    runtime = " and ".join(dict.fromkeys(one.runtime for one in candidates.values()))
    with failing(f"{runtime} does not say what it ran"):
        nodes = {name: one.profiled.nodes(1) for name, one in candidates.items()}
    return Comparison(runtime, found, nodes)


def model_clock(
    model: nn.Module, inputs: Inputs, runtime: str = "onnxruntime", threads: int = 1
) -> Clock:
    """A clock of a model on its inputs, as :func:`beside` has it; it runs once at once.

    Raises:
        TraceError: if it is no model, or ``inputs`` are none of the accepted forms.
        DeployError: if the program is missing, or ONNX cannot hold the model.
        SolverError: if there is no such program.
    """
    require_model(model, "measure")
    backend = backend_of(runtime)
    backend.check()
    return _ready(file_of(model, inputs), inputs, backend, threads)


def _ready(data: bytes, inputs: Inputs, backend: Backend, threads: int) -> Clock:
    """The clock of a file, which ran once; of one thread, the time it computes for."""
    now = clock_of(threads)
    with failing(f"{backend.name} cannot run this model"), without_denormals():
        call = backend.call_of(data, inputs, threads)
        call()

    def measure() -> float:
        with without_denormals():
            start = now()
            call()
            return 1e-9 * (now() - start)

    return measure
