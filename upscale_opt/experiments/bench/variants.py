"""Make the variants of a network: its exports, and what they are measured against."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from upscale_opt.errors import UpscaleError
from upscale_opt.experiments.bench.names import PER_CELL
from upscale_opt.experiments.bench.records import Export, Settings
from upscale_opt.experiments.bench.theirs import export_by_upscale
from upscale_opt.importance.choosing import choose_masks
from upscale_opt.ir.cost_model import CostModel
from upscale_opt.ir.graph import ChannelGraph, Opaque
from upscale_opt.ir.profiles import PROFILES, profile
from upscale_opt.ir.solution import Solution
from upscale_opt.masking.zeros import apply_masks, masks_of
from upscale_opt.materializing.gathered import gathered
from upscale_opt.materializing.materialize import materialize
from upscale_opt.models import catalogue
from upscale_opt.solver.api import solve
from upscale_opt.solver.network.coupling import constrain
from upscale_opt.tracing import trace
from upscale_opt.tracing.examples import Inputs
from upscale_opt.verifying.verify import verify

BATCH = 2
"""Images to trace with: with one, some reshapes of the batch cannot be told from channels'."""


class OwnNetwork(Protocol):
    """A network that is none of the catalogue; it can be sent to another process."""

    def build(self, seed: int, batch: int) -> tuple[nn.Module, Inputs]:
        """The network in eval mode on the CPU, and inputs for it."""

    def inputs(self, seed: int, batch: int) -> Inputs:
        """The inputs alone."""


@dataclass(frozen=True)
class Built:
    """A variant.

    Attributes:
        export: what is known of it.
        model: in float32 on the CPU, in evaluation mode; ``None`` if there is none. For the floor,
            the export that it is to be made of (:func:`upscale_opt.experiments.bench.floor.floor`).
        graph: the channel graph of its original, for exports of ours.
    """

    export: Export
    model: nn.Module | None = None
    graph: ChannelGraph | None = None


class Subject:
    """A masked network, and its variants as they are asked for.

    Args:
        name: its name in the catalogue.
        settings: how to mask and export it.
        cost_models: for the variant ``latency``; none: those that the package has.
        own: makes it, if it is none of the catalogue.

    Raises:
        UpscaleError: if there is no such network, or it cannot be traced.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        cost_models: Sequence[CostModel] = (),
        own: OwnNetwork | None = None,
    ) -> None:
        self.name = name
        self.settings = settings
        self.cost_models = tuple(cost_models)
        self._own = own
        if own is None:
            self.unpruned = catalogue.build(name, seed=settings.seed)
            drawn = catalogue.example_inputs(name, BATCH)
            catalogue.randomize(self.unpruned, settings.seed, drawn)
            inputs: Inputs = drawn
        else:
            self.unpruned, inputs = own.build(settings.seed, BATCH)
        graph = trace(self.unpruned, inputs)
        chosen = choose_masks(
            self.unpruned, graph, settings.amount, side=settings.side, layers=settings.layers
        )
        self.masked = copy.deepcopy(self.unpruned)
        apply_masks(self.masked, graph, chosen)
        self._graphs = {BATCH: trace(self.masked, inputs)}
        self._built: dict[tuple[str, int | None, str | None], Built] = {}

    def inputs(self, batch: int) -> Inputs:
        """Random inputs in float32 on the CPU."""
        if self._own is not None:
            return self._own.inputs(self.settings.seed, batch)
        return catalogue.example_inputs(self.name, batch)

    def graph(self, batch: int = BATCH) -> ChannelGraph:
        """The masked network's channel graph, with the sizes of this batch where possible."""
        if batch not in self._graphs:
            found = trace(self.masked, self.inputs(batch))
            usual = self._graphs[BATCH]
            same = _opaque(found) <= _opaque(usual) and found.capture == usual.capture
            self._graphs[batch] = found if same else usual
        return self._graphs[batch]

    def built(self, variant: str, batch: int, form: str) -> Built:
        """The variant for a batch size and memory format; made if it was not before.

        What goes wrong is part of the result.
        """
        own = variant in PER_CELL
        key = variant, batch if own else None, form if own else None
        if key not in self._built:
            start = time.perf_counter()
            try:
                built = _MAKERS[variant](self, batch, form)
            except Exception as error:  # the record says so, and the others go on
                built = Built(Export(variant=variant, problem=problem_of(error)))
            found = {"batch": key[1], "format": key[2], "seconds": time.perf_counter() - start}
            self._built[key] = Built(
                built.export.model_copy(update=found), built.model, built.graph
            )
        return self._built[key]

    def cost_model(self, form: str) -> CostModel:
        """The cost model that fits the device, dtype and memory format best."""
        device, runtime = self.settings.device.partition(":")[0], self.settings.runtime
        known = [model for model in self.cost_models if model.runtime == runtime]
        if not known and device == "cpu" and runtime in PROFILES:
            return profile(runtime)
        if not known:
            return profile("cpu" if device == "cpu" else "gpu")
        wanted = device, self.settings.dtype, form.replace("-", "_")

        def fits(model: CostModel) -> int:
            own = model.device, model.dtype, model.memory_format
            return sum(a == b for a, b in zip(own, wanted, strict=True))

        return max(known, key=fits)


def problem_of(error: BaseException) -> str:
    """An error in one line; those that are not ours by their class, too."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, UpscaleError) else f"{type(error).__name__}: {text}"


def plan_of(solution: Solution) -> str:
    """The ways in which an export's reads are served, counted.

    A read that takes all that its tensor stores is no read of a part.
    """
    stored = {name: len(layout) for name, layout in solution.tensors.items()}
    parts = [r for r in solution.reads if len(r.channels) < stored[r.tensor] or r.kind == "place"]
    wholes = [r for r in solution.reads if r.plan == "window" and r not in parts]
    counts = {
        "views": sum(read.plan == "view" for read in parts),
        "windows": sum(read.plan == "window" for read in parts),
        "gathers": sum(read.plan == "gather" for read in parts),
        "whole": len(wholes),
        "arenas": len(solution.arenas),
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "no copies"


def _opaque(graph: ChannelGraph) -> int:
    return sum(isinstance(op, Opaque) for op in graph.operations)


# How each variant is made.


def _unpruned(subject: Subject, batch: int, form: str) -> Built:
    return Built(Export(variant="unpruned", copied_channels=0), subject.unpruned)


def _by_upscale(variant: str) -> Maker:
    def make(subject: Subject, batch: int, form: str) -> Built:
        # For more than one image, its tracer takes what is flattened for channels.
        model, copied, deviation = export_by_upscale(
            subject.masked, subject.inputs(1), index=variant == "upscale-index"
        )
        export = Export(variant=variant, copied_channels=copied, deviation=deviation)
        return Built(export, model)

    return make


def _ours(
    variant: str,
    masked: nn.Module,
    graph: ChannelGraph,
    inputs: Inputs,
    solution: Solution,
) -> Built:
    """An export of ours, verified."""
    pruned = materialize(masked, solution)
    error = verify(masked, pruned, inputs).float64_error
    export = Export(
        variant=variant,
        status=solution.status,
        copied_channels=solution.copied,
        plan=plan_of(solution),
        deviation=None if math.isnan(error) else error,
    )
    return Built(export, pruned, graph)


def _solved(subject: Subject, graph: ChannelGraph, **options: Any) -> Solution:
    masks = masks_of(subject.masked, graph)
    settings = subject.settings
    return solve(graph, masks, time_limit=settings.time_limit, seed=settings.seed, **options)


def _gather(subject: Subject, batch: int, form: str) -> Built:
    graph = subject.graph()
    solution = gathered(_solved(subject, graph, solver="identity"))
    return _ours("gather", subject.masked, graph, subject.inputs(BATCH), solution)


def _unordered(subject: Subject, batch: int, form: str) -> Built:
    graph = subject.graph()
    solution = _solved(subject, graph, solver="identity")
    return _ours("unordered", subject.masked, graph, subject.inputs(BATCH), solution)


def _copies(subject: Subject, batch: int, form: str) -> Built:
    graph = subject.graph()
    solution = _solved(subject, graph)
    return _ours("copies", subject.masked, graph, subject.inputs(BATCH), solution)


def _constrained(subject: Subject, batch: int, form: str) -> Built:
    graph = subject.graph()
    masked = copy.deepcopy(subject.masked)
    apply_masks(masked, graph, constrain(graph, masks_of(masked, graph)))
    inputs = subject.inputs(BATCH)
    graph = trace(masked, inputs)
    settings = subject.settings
    solution = solve(
        graph,
        masks_of(masked, graph),
        time_limit=settings.time_limit,
        seed=settings.seed,
    )
    return _ours("constrained", masked, graph, inputs, solution)


def _latency(subject: Subject, batch: int, form: str) -> Built:
    return _priced("latency", subject, batch, subject.cost_model(form))


def _eager(subject: Subject, batch: int, form: str) -> Built:
    return _priced("eager", subject, batch, profile("cpu"))


def _priced(variant: str, subject: Subject, batch: int, cost_model: CostModel) -> Built:
    """Our export that shall be the fastest at these prices."""
    graph = subject.graph(batch)
    solution = _solved(subject, graph, objective="latency", cost_model=cost_model)
    size = BATCH if graph is subject.graph() else batch
    return _ours(variant, subject.masked, graph, subject.inputs(size), solution)


def _floor(subject: Subject, batch: int, form: str) -> Built:
    tried = [subject.built(name, batch, form) for name in ("latency", "copies")]
    whole = next((one for one in tried if one.model is not None), None)
    if whole is None:
        raise UpscaleError(f"there is no export to make it of: {tried[-1].export.problem}")
    export = Export(variant="floor", made_of=whole.export.variant, copied_channels=0)
    return Built(export, whole.model, whole.graph)


Maker = Callable[[Subject, int, str], Built]

_MAKERS: dict[str, Maker] = {
    "unpruned": _unpruned,
    "gather": _gather,
    "unordered": _unordered,
    "eager": _eager,
    "upscale": _by_upscale("upscale"),
    "upscale-index": _by_upscale("upscale-index"),
    "constrained": _constrained,
    "copies": _copies,
    "latency": _latency,
    "floor": _floor,
}
"""The maker of each variant, for a batch size and memory format."""
