"""The whole chain in one call."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn
from typing_extensions import Unpack

from upscale_opt.errors import BudgetError, MaskError
from upscale_opt.importance import Criterion
from upscale_opt.importance.choosing import choose_masks
from upscale_opt.ir.budget import Budget
from upscale_opt.ir.choice import Choice
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.losses import Losses
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.masking.segments import Layers, Method, Side
from upscale_opt.masking.tensors import NamedTensors
from upscale_opt.masking.zeros import apply_masks, masks_of
from upscale_opt.materializing.materialize import materialize
from upscale_opt.measuring.in_turn import Times, beside
from upscale_opt.pruning.notes import notes_of, warn
from upscale_opt.pruning.within import Wish, Within, masked_within
from upscale_opt.reconstruction.refitting import RefitReport
from upscale_opt.reconstruction.refitting import refit as refitted
from upscale_opt.solver.api import solve
from upscale_opt.solver.layers import LayerTable, layers_of, prices_of
from upscale_opt.solver.network.coupling import constrain
from upscale_opt.solver.options import SolveFields, SolveOptions
from upscale_opt.solver.progress import Listener, Progress
from upscale_opt.tracing import trace
from upscale_opt.tracing.copying import copied
from upscale_opt.tracing.examples import Inputs
from upscale_opt.tracing.wrappings import (
    computed_by_torch,
    few,
    make_permanent,
    masked_by_torch,
    unwrapped,
)
from upscale_opt.verifying.verify import VerificationReport, verify


@dataclass(frozen=True)
class Pruned:
    """The result of :func:`prune`; ``print`` says what is left, and ``table`` of which layer.

    Attributes:
        model: the pruned model.
        masked: the masked model that it equals.
        graph: the channel graph.
        masks: what the masked model's zeros say; with constraints, those on which layers agree.
        solution: orders, plans and proof.
        report: how far the two models are apart; ``None`` if not verified.
        notes: what would else have to be found: little or nothing was removed, and why; what is
            fixed now; what limits the comparison. They are in ``str``, too.
        choice: with a budget: the masks chosen, what they cost by layer, and how far they may be
            from the best.
        losses: with a budget: what they were chosen by.
        refitting: what refitting did; ``None`` if nothing was refitted.
        times: with ``measure``: how long the model and its exports take.
    """

    model: nn.Module
    masked: nn.Module
    graph: ChannelGraph
    masks: Masks
    solution: Solution
    report: VerificationReport | None
    notes: tuple[str, ...] = ()
    choice: Choice | None = None
    losses: Losses | None = None
    refitting: RefitReport | None = None
    times: Times | None = None

    @cached_property
    def table(self) -> LayerTable:
        """Every layer before and after: widths, sizes, estimated time, loss, and copies.

        The times are by the cost model that the budget or the solution had, or else by the
        built-in one of a CPU.
        """
        prices = prices_of(self.solution, self.choice)
        return layers_of(self.graph, self.solution, self.choice, cost_model=prices)

    @property
    def _left(self) -> str:
        """What is left, and how long it takes, in a line."""
        before, after = self.table.before, self.table.after
        assert after is not None
        parts = [
            f"{100 * new / old:.1f} % of the {name}"
            for name, new, old in (
                ("parameters", after.parameters, before.parameters),
                ("multiply-adds", after.multiply_adds, before.multiply_adds),
                ("estimated time", after.nanoseconds, before.nanoseconds),
            )
            if old
        ]
        timed = "" if self.times is None else f"; measured: {self.times}"
        return f"left: {', '.join(parts)}{timed}"

    def __str__(self) -> str:
        notes = (f"note: {note}" for note in self.notes)
        return "\n".join([repr(self), self._left, *notes])

    def _repr_html_(self) -> str:
        """The same in a notebook, and every layer."""
        lines = "<br>".join(html.escape(line) for line in str(self).splitlines())
        return f"<p>{lines}</p>{self.table._repr_html_()}"

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
    budget: Budget | None = None,
    data: Iterable[Any] | None = None,
    refit: bool | None = None,
    measure: bool = False,
    side: Side = "input",
    layers: Layers = "all",
    criterion: Criterion | None = None,
    method: Method = "unconstrained",
    is_global: bool = False,
    round_to: int = 1,
    masks: Masks | NamedTensors | None = None,
    losses: Losses | None = None,
    check: bool = True,
    options: SolveOptions | None = None,
    progress: Listener | None = None,
    **fields: Unpack[SolveFields],
) -> Pruned:
    """Mask, trace, solve, materialise and verify. ``model`` itself is not changed.

    Masks come from ``amount``, from ``budget``, from ``masks``, or are the zeros that the weights
    have. With a budget they are chosen by what the remaining weights cannot make good
    (:mod:`upscale_opt.reconstruction`), and the remaining weights are refitted to ``data``.

    If little or nothing of what was masked could be removed, it warns
    (:class:`upscale_opt.errors.LittleRemovedWarning`), and the result's ``notes`` say so, too.

    Args:
        model: the model.
        inputs: example inputs, as for :func:`upscale_opt.trace`.
        amount: drop this share of the channels.
        budget: what may remain: ``Budget(macs=0.5)``, ``Budget(latency=0.6, round_to=8)``.
        data: batches of inputs, without labels; a few dozen to a few hundred inputs. With a budget
            or masks.
        refit: set the remaining weights anew, by least squares on ``data``; by default if there
            are data.
        measure: put the export on the clock, beside the unpruned model and, with a budget, beside
            the best export whose layers agree on their channels. That one is returned, and named
            in the notes, if by the clock it alone keeps a budget of time, or if it is faster and
            loses no more. A budget of time that is not kept is tried again with less.
        side: with ``amount``: drop input channels, output channels, or both.
        layers: with ``amount``: prune all layers, or convolutions only.
        criterion: with ``amount``, or a budget without data: which channels are important: a name
            such as ``"l1"``, one of :mod:`upscale_opt.importance`, or a function; the L2 norm by
            default.
        method: ``"unconstrained"``: every layer decides for itself; ``"constrained"``: layers that
            share a channel drop it together (:func:`upscale_opt.constrain`), so that nothing is
            copied.
        is_global: with ``amount``: rank the channels of all layers together.
        round_to: with ``amount``: every layer keeps a multiple of so many channels. A budget has
            its own.
        masks: explicit masks; or tensors by the names of parameters or modules, zero where
            something shall go (:func:`upscale_opt.masks_of`).
        losses: with a budget: losses that are known already (``result.losses`` of another budget).
        check: verify the result on ``inputs``.
        options: how to solve.
        progress: told of every step as it begins (``"trace"``, ``"losses"``, ``"choose"``,
            ``"refit"``, ``"mask"``, ``"solve"``, ``"materialize"``, ``"verify"``, ``"measure"``),
            and of every improvement of the solvers.
        **fields: of :class:`~upscale_opt.solver.options.SolveOptions`, in place of those of
            ``options``.

    Raises:
        UpscaleError: the error of the step that failed; a MaskError if two of ``amount``,
            ``budget`` and ``masks`` are given, or a criterion without what it is for; a BudgetError
            if the budget cannot be met, or there are no data where they are asked for.
    """
    if sum(one is not None for one in (amount, budget, masks)) > 1:
        raise MaskError("give one of amount, budget and masks: each says what to drop")
    if amount is None and ((budget is None and criterion is not None) or is_global):
        raise MaskError("a criterion chooses channels: give the amount to drop, such as amount=0.5")
    if amount is None and round_to != 1:
        raise MaskError(
            "round_to goes with amount; a budget has its own, such as Budget(macs=0.5, round_to=8)"
        )
    if budget is None and losses is not None:
        raise BudgetError("losses are for a budget: give one, such as budget=Budget(macs=0.5)")
    if amount is not None and (data is not None or refit):
        chosen = "choose_masks(model, graph, amount)"
        raise BudgetError(f"data refit what a budget or masks leave: give masks={chosen}")
    asked = Wish.of(budget, data, losses, criterion, refit)
    options = SolveOptions.of(options, **fields)
    model = unwrapped(model)
    tell: Listener = progress or (lambda event: None)
    own_zeros = amount is None and masks is None and method == "unconstrained"
    wrapped = _Wrapped(tuple(masked_by_torch(model)), tuple(computed_by_torch(model)))
    masked = model if own_zeros and not wrapped else copied(model)
    if wrapped:
        make_permanent(masked)
    tell(Progress("trace"))
    graph = trace(masked, inputs)
    base = masked if wrapped else model
    chain = _Chain(base, inputs, graph, options, tell, check, wrapped.notes)
    if budget is not None:
        solver = "joint" if method == "unconstrained" else "constrained"
        result = chain.within(masked_within(base, graph, asked, options, solver=solver, tell=tell))
        return chain.faster(result, asked) if measure else result
    refitting = None
    tell(Progress("mask"))
    if isinstance(masks, Mapping):
        masks = masks_of(masks, graph)
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
            round_to=round_to,
        )
    if masks is not None:
        apply_masks(masked, graph, masks)
    found = masks_of(masked, graph)
    if method == "constrained":
        found = constrain(graph, found)
        apply_masks(masked, graph, found)
    if asked.refits:
        tell(Progress("refit"))
        masked, refitting = refitted(base, found, asked.data or (), graph=graph)
        found = masks_of(masked, graph)
    result = replace(chain.export(masked, found), refitting=refitting)
    return chain.timed(result) if measure else result


@dataclass(frozen=True)
class _Wrapped:
    """The tensors that hooks and parametrizations make before every call, by name."""

    masked: tuple[str, ...]
    computed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.masked or self.computed)

    @property
    def notes(self) -> tuple[str, ...]:
        """Say what became of them."""
        found = []
        if self.masked:
            found.append(
                f"the masks that torch.nn.utils.prune holds in {few(self.masked)} were made "
                "permanent in the pruned copy, as torch.nn.utils.prune.remove does"
            )
        if self.computed:
            found.append(
                f"{few(self.computed)}, computed before every call (by a weight norm or another "
                "parametrization), became parameters of the pruned copy"
            )
        return tuple(found)


@dataclass(frozen=True)
class _Chain:
    """The steps behind the masks.

    Attributes:
        model: the model, unpruned.
        inputs: the example inputs.
        graph: its graph.
        options: how to solve.
        tell: told of every step.
        check: verify.
        notes: on what was done to the copy first.
    """

    model: nn.Module
    inputs: Inputs
    graph: ChannelGraph
    options: SolveOptions
    tell: Listener
    check: bool
    notes: tuple[str, ...] = ()

    def export(self, masked: nn.Module, masks: Masks) -> Pruned:
        """Solve, materialise and verify."""
        self.tell(Progress("solve"))
        solution = solve(self.graph, masks, options=self.options, progress=self.tell)
        self.tell(Progress("materialize"))
        pruned = materialize(masked, solution)
        report = None
        if self.check:
            self.tell(Progress("verify"))
            report = verify(masked, pruned, self.inputs)
        notes = notes_of(masked, pruned, self.graph, masks, solution)
        warn(notes)
        notes += self.notes
        notes += () if report is None else report.notes
        return Pruned(pruned, masked, self.graph, masks, solution, report, notes)

    def within(self, found: Within) -> Pruned:
        """Export a choice."""
        result = self.export(found.masked, masks_of(found.masked, self.graph))
        return replace(result, choice=found.choice, losses=found.losses, refitting=found.refitting)

    def timed(self, result: Pruned) -> Pruned:
        """With times beside the unpruned model's."""
        self.tell(Progress("measure"))
        models = {"unpruned": self.model, "pruned": result.model}
        return replace(result, times=beside(models, self.inputs))

    def faster(self, result: Pruned, asked: Wish) -> Pruned:
        """The export on the clock, within the budget there; or the constrained one, if better.

        Where the clock says that a latency budget is not kept, the choice is made again for less,
        by as much as the cost model was wrong.
        """
        assert result.choice is not None
        assert asked.budget is not None
        known = replace(asked, losses=result.losses)
        result = self._on_the_clock(result, known, result.choice.solver)
        assert result.choice is not None
        if result.choice.solver == "constrained":
            return result
        other = self._on_the_clock(self._chosen(known, "constrained"), known, "constrained")
        self.tell(Progress("measure"))
        models = {"unpruned": self.model, "pruned": result.model, "constrained": other.model}
        times = beside(models, self.inputs)
        assert other.choice is not None
        quicker = times.share("constrained", "pruned") < 1 - _NOISE
        late = not _kept(times, "pruned", asked.budget) and _kept(
            times, "constrained", asked.budget
        )
        better = quicker and other.choice.loss <= result.choice.loss
        taken, name = (other, "constrained") if late or better else (result, "pruned")
        note = f"of the exports that were measured, this is the one called {name!r}"
        return replace(taken, times=times, notes=(*taken.notes, note))

    def _chosen(self, wish: Wish, solver: str) -> Pruned:
        return self.within(
            masked_within(self.model, self.graph, wish, self.options, solver=solver, tell=self.tell)
        )

    def _on_the_clock(self, result: Pruned, wish: Wish, solver: str) -> Pruned:
        """The result, timed; for a latency budget, one that keeps it when timed."""
        budget = inner = wish.budget
        assert budget is not None
        assert inner is not None
        result = self.timed(result)
        for _ in range(_AGAIN):
            assert result.times is not None
            if _kept(result.times, "pruned", budget):
                break
            wrong = _allowed(result.times, budget) / result.times.milliseconds["pruned"]
            scaled = {
                name: getattr(inner, name) * wrong
                for name in ("latency", "milliseconds")
                if getattr(inner, name) is not None
            }
            inner = inner.model_copy(update=scaled)
            wish = replace(wish, budget=inner)
            try:
                chosen = self._chosen(wish, solver)
            except BudgetError:  # it is late, and cannot be less so
                break
            result = self.timed(chosen)
        return result


def _allowed(times: Times, budget: Budget) -> float:
    """The milliseconds that a budget allows, by the clock; infinite if it limits no time."""
    limits = [] if budget.milliseconds is None else [budget.milliseconds]
    if budget.latency is not None:
        limits.append(budget.latency * times.milliseconds["unpruned"])
    return min(limits, default=math.inf)


def _kept(times: Times, name: str, budget: Budget) -> bool:
    """The budget is kept by the clock, as far as that can be told."""
    return times.milliseconds[name] <= _allowed(times, budget) * (1 + _NOISE)


_AGAIN = 3
"""Tries to keep a latency budget by the clock."""

_NOISE = 0.05
"""The share by which a measured time may be above the budget: clocks err by as much."""
