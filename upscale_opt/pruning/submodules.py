"""Prune what can be traced of a model that cannot be traced as a whole, such as a detector."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from torch import nn
from typing_extensions import Unpack

from upscale_opt.errors import TraceError
from upscale_opt.importance import Criterion
from upscale_opt.importance.choosing import choose_masks
from upscale_opt.ir.graph import ChannelGraph, Layer
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.masking.segments import Layers, Side
from upscale_opt.masking.zeros import apply_masks, masks_of
from upscale_opt.materializing.materialize import materialize
from upscale_opt.materializing.pruned_module import PrunedModule, refuse_replacing, replace
from upscale_opt.pruning.notes import notes_of
from upscale_opt.pruning.recording import Calls, inputs_of, record_calls
from upscale_opt.pruning.replaying import replay
from upscale_opt.shown import Shown
from upscale_opt.solver.api import solve
from upscale_opt.solver.options import SolveFields, SolveOptions
from upscale_opt.solver.progress import Listener, Progress
from upscale_opt.tracing import trace
from upscale_opt.tracing.copying import copied
from upscale_opt.tracing.examples import Inputs, require_model
from upscale_opt.tracing.wrappings import unwrapped

_Choose = Callable[[nn.Module, ChannelGraph], Masks]
"""Chooses the masks of a submodule."""


@dataclass(frozen=True, repr=False)
class PrunedSubmodule(Shown):
    """One submodule that was pruned.

    Attributes:
        name: its name in the model.
        calls: how often the model called it.
        graph: its channel graph; parameters go by their names in the submodule.
        masks: what its zeros say.
        solution: orders, plans and proof.
        before: its parameters (numbers in them) before.
        after: and after.
        error: how far its outputs are apart from the masked one's, in all its calls, in float64,
            relative to the largest value of an output; ``None`` if not verified.
    """

    name: str
    calls: int
    graph: ChannelGraph
    masks: Masks
    solution: Solution
    before: int
    after: int
    error: float | None


@dataclass(frozen=True, repr=False)
class PrunedSubmodules(Shown):
    """The result of :func:`prune_submodules`.

    Attributes:
        pruned: the submodules that were pruned, in the model's order.
        whole: those that were looked at and stayed as they are, and why.
        error: how far the whole model's outputs are apart; ``None`` if they cannot be compared
            because they differ in shape, as the boxes of a detector may where two of them score
            equally, or if not verified.
        notes: what would else have to be found, as those of :func:`upscale_opt.prune`, of every
            submodule.
    """

    pruned: tuple[PrunedSubmodule, ...]
    whole: dict[str, str]
    error: float | None
    notes: tuple[str, ...] = ()


@dataclass
class _Made:
    """A submodule's export, not yet in its place."""

    calls: int
    graph: ChannelGraph
    masks: Masks
    solution: Solution
    module: PrunedModule


def prune_submodules(
    model: nn.Module,
    inputs: Inputs,
    names: Iterable[str] | None = None,
    *,
    amount: float | None = None,
    side: Side = "input",
    layers: Layers = "all",
    criterion: Criterion | None = None,
    check: bool = True,
    options: SolveOptions | None = None,
    progress: Listener | None = None,
    **fields: Unpack[SolveFields],
) -> PrunedSubmodules:
    """Prune submodules of ``model`` in place, each by itself.

    For models that no tracer captures because their control flow depends on data. The channels of
    a submodule's own inputs and outputs stay, as with any model; all within it is pruned.

        >>> import torch, torchvision
        >>> model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        ...     weights=None, weights_backbone=None, num_classes=3
        ... ).eval()
        >>> images = [torch.rand(3, 320, 320)]
        >>> done = prune_submodules(model, (images,), ["backbone"], amount=0.5)
        >>> done.pruned[0].after < done.pruned[0].before
        True

    It is verified on what the model gives its submodules in one run on ``inputs``: every call of a
    pruned submodule is answered by the masked one and by its export, and both answers are compared.
    The rest of the model is not touched, so nothing else can differ, unless it looks into a
    submodule (at its weights, say): with the same answers, the whole model has to return the same
    with the exports as with the masked submodules. (How far what a detector makes of these answers
    in the end is from before is only reported: it sorts and cuts off, so that the last bit of a
    score can exchange two boxes.)

    Args:
        model: the model; detectors in eval mode. It keeps its class, attributes and hooks.
        inputs: as for :func:`upscale_opt.trace`; a detector takes a list of images as its one
            argument, so ``([image, image],)``. The submodules have to be called.
        names: which submodules, by name (``["backbone"]``); none of them within another. If not
            given, the largest that can be traced are found: those that are not are searched
            within, down to single layers, in which nothing could be removed.
        amount: drop this share of the channels of each. If not given, the zeros that the weights
            have are the masks.
        side: with ``amount``: drop input channels, output channels, or both.
        layers: with ``amount``: prune all layers, or convolutions only.
        criterion: with ``amount``: which channels are important, as for
            :func:`upscale_opt.prune`; the L2 norm by default.
        check: verify.
        options: how to solve; the time limit is that of each submodule. If they name no objective,
            the fewest bytes are copied.
        progress: told of every step as it begins (``"run"``, ``"trace"``, ``"verify"``; and
            ``"solve backbone"`` for every submodule), and of every improvement of the solver.
        **fields: of :class:`~upscale_opt.solver.options.SolveOptions`, in place of those of
            ``options``.

    Returns:
        What was pruned, and what was not, with the reason.

    Raises:
        TraceError: if a named submodule does not exist, is not called, shares parameters with
            the rest of the model, or cannot be traced; or, without names, if there is none that
            can.
        VerificationError: if a submodule deviates, or the whole model looks into one and deviates
            for that; then the model stays as it was.
        UpscaleError: the error of any other step that failed.
    """
    require_model(model, "prune")
    model = unwrapped(model)
    options = SolveOptions.of(options, **fields).for_export()
    tell: Listener = progress or (lambda event: None)
    choose: _Choose | None = None
    if amount is not None:
        choose = partial(choose_masks, amount=amount, criterion=criterion, side=side, layers=layers)
    masked = model if amount is None else copied(model)
    tell(Progress("run"))
    calls = record_calls(masked, inputs)
    whole: dict[str, str] = {}
    tell(Progress("trace"))
    if names is None:
        graphs = _Search(masked, calls, whole).found("")
        if not graphs:
            raise TraceError(_nothing_found(model, whole))
    else:
        graphs = {name: _traced(masked, name, calls) for name in _apart(masked, names)}
    made: dict[str, _Made] = {}
    idle: list[tuple[str, _Made]] = []
    for name, graph in graphs.items():
        telling = partial(_tell_of, name, tell)
        module = masked.get_submodule(name)
        export = _export(module, graph, calls[name].count, choose, options, telling)
        if _size(export.module) < _size(module):
            made[name] = export
            continue
        whole[name] = "nothing in it can be removed"
        idle.append((name, export))
    for name, one in made.items():
        refuse_replacing(model.get_submodule(name), one.module)
    errors: dict[str, float] = {}
    error = None
    if check and made:
        tell(Progress("verify"))
        exports = {name: one.module for name, one in made.items()}
        errors, error = replay(masked, exports, inputs)
    for name, one in idle:  # they are masked as well, but nothing comes of it
        apply_masks(model.get_submodule(name), one.graph, one.masks)
    notes = [
        f"{name}: {note}" if name else note
        for name, one in made.items()
        for note in notes_of(
            masked.get_submodule(name), one.module, one.graph, one.masks, one.solution
        )
    ]
    pruned = []
    for name, one in made.items():
        before, after = _size(model.get_submodule(name)), _size(one.module)
        replace(model.get_submodule(name), one.module)
        pruned.append(
            PrunedSubmodule(
                name, one.calls, one.graph, one.masks, one.solution, before, after, errors.get(name)
            )
        )
    return PrunedSubmodules(tuple(pruned), whole, error, tuple(notes))


@dataclass
class _Search:
    """Looks for the largest submodules that can be traced.

    Attributes:
        model: the model.
        calls: what its submodules are called with.
        whole: filled with the submodules that cannot be traced, and why.
    """

    model: nn.Module
    calls: dict[str, Calls]
    whole: dict[str, str] = field(default_factory=dict)

    def found(self, name: str) -> dict[str, ChannelGraph]:
        """The submodule ``name`` if it can be traced, else what can be within it."""
        module = self.model.get_submodule(name)
        children = list(module.named_children())
        if not children or not any(True for _ in module.parameters()):
            return {}
        if name not in self.calls or not (self.calls[name].count or self.calls[name].obstacle):
            if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
                self.whole[name] = "it is not called"
        else:
            try:
                graph = _traced(self.model, name, self.calls)
            except TraceError as error:
                self.whole[name] = str(error)
            else:
                again = self._runs_again(name, graph)
                if not again:
                    return {name: graph}
                self.whole[name] = f"it calls {again} several times; pruned within"
                return self._within(name) or {name: graph}
        return self._within(name)

    def _within(self, name: str) -> dict[str, ChannelGraph]:
        found: dict[str, ChannelGraph] = {}
        for child, _ in self.model.get_submodule(name).named_children():
            found.update(self.found(f"{name}.{child}" if name else child))
        return found

    def _runs_again(self, name: str, graph: ChannelGraph) -> str:
        """A layer that runs more often than the submodule, and that its graph does not follow.

        By itself, such a layer (or what it lies in) has one graph for all its calls.
        """
        followed = {op.weight for op in graph.operations if isinstance(op, Layer)}
        for path, module in self.model.get_submodule(name).named_modules():
            full = f"{name}.{path}" if name else path
            weight = module._parameters.get("weight")
            if weight is None or weight.dim() < 2 or f"{path}.weight" in followed:
                continue
            if self.calls.get(full, Calls()).count > self.calls[name].count:
                return full
        return ""


def _traced(model: nn.Module, name: str, calls: dict[str, Calls]) -> ChannelGraph:
    """The graph of one submodule.

    Raises:
        TraceError: if it cannot be traced by itself.
    """
    module = model.get_submodule(name)
    known = calls.get(name, Calls())
    if known.obstacle:
        raise TraceError(f"{_called(model, name)} cannot be traced by itself: {known.obstacle}")
    if known.example is None:
        raise TraceError(f"{_called(model, name)} is not called when the model runs on the inputs")
    return trace(module, inputs_of(module, known.example))


def _called(model: nn.Module, name: str) -> str:
    return repr(name) if name else f"this {type(model).__name__}"


def _apart(model: nn.Module, names: Iterable[str]) -> list[str]:
    """The names, if they are of submodules none of which lies within another.

    Raises:
        TraceError: naming what is wrong.
    """
    known = [name for name, _ in model.named_modules()]
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TraceError(f"names are a list of submodules, such as ['backbone'], not {names!r}")
    names = tuple(names)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TraceError(f"{type(model).__name__} has no submodule {name!r}{hint}")
        for other in names:
            if other != name and (not other or name.startswith(f"{other}.")):
                raise TraceError(
                    f"{name!r} lies within {_called(model, other)}; name only one of them"
                )
    return [name for name in known if name in names]


def _nothing_found(model: nn.Module, whole: dict[str, str]) -> str:
    reasons = [f"{_called(model, name)}: {reason}" for name, reason in list(whole.items())[:3]]
    return f"nothing in {type(model).__name__} can be traced; {'; '.join(reasons)}"


def _export(
    module: nn.Module,
    graph: ChannelGraph,
    calls: int,
    choose: _Choose | None,
    options: SolveOptions,
    tell: Listener,
) -> _Made:
    """Mask, solve and materialise one submodule."""
    tell(Progress("solve"))
    if choose is not None:
        apply_masks(module, graph, choose(module, graph))
    masks = masks_of(module, graph)
    solution = solve(graph, masks, options=options, progress=tell)
    return _Made(calls, graph, masks, solution, materialize(module, solution))


def _tell_of(name: str, tell: Listener, event: Progress) -> None:
    """Tell of a step that it is one of the submodule ``name``."""
    tell(Progress(f"{event.step} {name}".strip(), event.value, event.bound))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
