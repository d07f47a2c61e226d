"""The whole chain in one call."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from typing_extensions import Unpack

from upscale_opt.errors import MaskError
from upscale_opt.importance import Criterion
from upscale_opt.importance.choosing import choose_masks
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.masking.segments import Layers, Method, Side
from upscale_opt.masking.zeros import apply_masks, masks_of
from upscale_opt.materializing.materialize import materialize
from upscale_opt.pruning.notes import notes_of, warn
from upscale_opt.pruning.wrappings import few, make_permanent, masked_by_torch
from upscale_opt.solver.api import solve
from upscale_opt.solver.network.coupling import constrain
from upscale_opt.solver.options import SolveFields, SolveOptions
from upscale_opt.solver.progress import Listener, Progress
from upscale_opt.tracing import trace
from upscale_opt.tracing.copying import copied
from upscale_opt.tracing.examples import Inputs
from upscale_opt.verifying.verify import VerificationReport, verify


@dataclass(frozen=True)
class Pruned:
    """The result of :func:`prune`.

    Attributes:
        model: the pruned model.
        masked: the masked model that it equals.
        graph: the channel graph.
        masks: what the masked model's zeros say; with constraints, those on which layers agree.
        solution: orders, plans and proof.
        report: how far the two models are apart; ``None`` if not verified.
        notes: what would else have to be found: little or nothing was removed, and why; what is
            fixed now; what limits the comparison. They are in ``str``, too.
    """

    model: nn.Module
    masked: nn.Module
    graph: ChannelGraph
    masks: Masks
    solution: Solution
    report: VerificationReport | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([repr(self), *(f"note: {note}" for note in self.notes)])

    def __repr__(self) -> str:
        before, after = (
            sum(parameter.numel() for parameter in model.parameters())
            for model in (self.masked, self.model)
        )
        far = "not verified" if self.report is None else repr(self.report)
        return (
            f"Pruned({type(self.masked).__name__}, {after:,} of {before:,} parameters; "
            f"{self.solution}; {far})"
        )


def prune(
    model: nn.Module,
    inputs: Inputs,
    *,
    amount: float | None = None,
    side: Side = "input",
    layers: Layers = "all",
    criterion: Criterion | None = None,
    method: Method = "unconstrained",
    is_global: bool = False,
    masks: Masks | None = None,
    check: bool = True,
    options: SolveOptions | None = None,
    progress: Listener | None = None,
    **fields: Unpack[SolveFields],
) -> Pruned:
    """Mask, trace, solve, materialise and verify. ``model`` itself is not changed.

    If little or nothing of what was masked could be removed, it warns
    (:class:`upscale_opt.errors.LittleRemovedWarning`), and the result's ``notes`` say so, too.

    Args:
        model: the model.
        inputs: example inputs, as for :func:`upscale_opt.trace`.
        amount: drop this share of the channels. If neither this nor ``masks`` is given, the zeros
            that the weights have are the masks.
        side: with ``amount``: drop input channels, output channels, or both.
        layers: with ``amount``: prune all layers, or convolutions only.
        criterion: with ``amount``: which channels are important: a name such as ``"l1"``, one of
            :mod:`upscale_opt.importance`, or a function; the L2 norm by default.
        method: ``"unconstrained"``: every layer decides for itself; ``"constrained"``: layers that
            share a channel drop it together (:func:`upscale_opt.constrain`), so that nothing is
            copied.
        is_global: with ``amount``: rank the channels of all layers together.
        masks: explicit masks, instead of ``amount``.
        check: verify the result on ``inputs``.
        options: how to solve.
        progress: told of every step as it begins (``"trace"``, ``"mask"``, ``"solve"``,
            ``"materialize"``, ``"verify"``), and of every improvement of the solver.
        **fields: of :class:`~upscale_opt.solver.options.SolveOptions`, in place of those of
            ``options``.

    Raises:
        UpscaleError: the error of the step that failed; a MaskError if both ``amount`` and
            ``masks`` are given, or a criterion without ``amount``.
    """
    if amount is not None and masks is not None:
        raise MaskError("give amount or masks, not both")
    if amount is None and (criterion is not None or is_global):
        raise MaskError("a criterion chooses channels: give the amount to drop, such as amount=0.5")
    options = SolveOptions.of(options, **fields)
    tell: Listener = progress or (lambda event: None)
    own_zeros = amount is None and masks is None and method == "unconstrained"
    masks_before = masked_by_torch(model)
    masked = model if own_zeros and not masks_before else copied(model)
    make_permanent(masked)
    tell(Progress("trace"))
    graph = trace(masked, inputs)
    tell(Progress("mask"))
    if amount is not None:
        masks = choose_masks(
            masked,
            graph,
            amount,
            criterion=criterion,
            side=side,
            method=method,
            is_global=is_global,
            layers=layers,
        )
    if masks is not None:
        apply_masks(masked, graph, masks)
    found = masks_of(masked, graph)
    if method == "constrained":
        found = constrain(graph, found)
        apply_masks(masked, graph, found)
    tell(Progress("solve"))
    solution = solve(graph, found, options=options, progress=progress)
    tell(Progress("materialize"))
    pruned = materialize(masked, solution)
    report = None
    if check:
        tell(Progress("verify"))
        report = verify(masked, pruned, inputs)
    notes = notes_of(masked, pruned, graph, found, solution)
    warn(notes)
    if masks_before:
        notes += (
            f"the masks that torch.nn.utils.prune holds in {few(masks_before)} were made permanent "
            "in the pruned copy, as torch.nn.utils.prune.remove does",
        )
    notes += () if report is None else report.notes
    return Pruned(pruned, masked, graph, found, solution, report, notes)
