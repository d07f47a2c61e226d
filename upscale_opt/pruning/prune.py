"""The whole chain in one call."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn
from typing_extensions import Unpack

from upscale_opt.errors import BudgetError, MaskError
from upscale_opt.importance import Criterion
from upscale_opt.importance.choosing import choose_masks, round_masks
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
from upscale_opt.materializing.own_code import put_into
from upscale_opt.measuring.in_turn import Times
from upscale_opt.pruning.by_clock import ByClock
from upscale_opt.pruning.clocks import Clocks
from upscale_opt.pruning.notes import notes_of, warn
from upscale_opt.pruning.within import Wish, chosen_within, masked_by
from upscale_opt.reconstruction.refitting import RefitReport
from upscale_opt.reconstruction.refitting import refit as refitted
from upscale_opt.solver.api import solve
from upscale_opt.solver.layer_table import LayerTable
from upscale_opt.solver.layers import layers_of, prices_of
from upscale_opt.solver.network.coupling import constrain
from upscale_opt.solver.options import SolveFields, SolveOptions
from upscale_opt.solver.progress import Listener, Progress
from upscale_opt.tracing import trace
from upscale_opt.tracing.copying import copied
from upscale_opt.tracing.examples import Inputs
from upscale_opt.tracing.wrappings import (
    computed_by_torch,
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

    def into(self, model: nn.Module) -> dict[str, int]:
        """Give ``model`` the smaller layers; it stays the object that it is, with its own code.

        That is possible where pruning changed nothing but sizes (``method="constrained"``); see
        :func:`upscale_opt.materializing.own_code.put_into`.

        Args:
            model: the original, or another of its class, made with the same arguments.

        Returns:
            The attributes that had to be set, as they are widths: ``{"model.2.c": 8}``.

        Raises:
            MaterializeError: naming the first call that the class's code does not make.
        """
        return put_into(unwrapped(model), self.model)

    @property
    def _left(self) -> str:
        """Say in a line what is left, and how long it takes."""
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
    measure: bool | None = None,
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
            the best export whose layers agree on their channels, if those of this one do not, or
            it is late. That one is returned, and named in the notes, if by the clock it alone keeps
            a budget of time, or if it is faster and loses no more. A budget of time is then kept by
            the clock: the choice is made again, up to three times, for as much more or less as the
            cost model was wrong. The clock is PyTorch's, or that of the cost model's
            runtime, on a CPU. That is also done (but nothing put beside it) if this is
            not given, and the budget limits time without a cost model of its own; with ``False``,
            time is what the cost model says.
        side: with ``amount``: drop input channels, output channels, or both.
        layers: with ``amount``: prune all layers, or convolutions only.
        criterion: with ``amount``, with ``masks`` to be rounded, or a budget without data: which
            channels are important: a name such as ``"l1"``, one of
            :mod:`upscale_opt.importance`, or a function; the L2 norm by default.
        method: ``"unconstrained"``: every layer decides for itself; ``"constrained"``: layers that
            share a channel drop it together (:func:`upscale_opt.constrain`), so that nothing is
            copied.
        is_global: with ``amount``: rank the channels of all layers together.
        round_to: with ``amount`` or ``masks``: every layer (of which masks drop something) keeps a
            multiple of so many channels. Masks get back the best of what they drop; the weights
            must be there. A budget has its own.
        masks: explicit masks; or tensors by the names of parameters or modules, zero where
            something shall go (:func:`upscale_opt.masks_of`).
        losses: with a budget: losses that are known already (``result.losses`` of another budget).
        check: verify the result on ``inputs``.
        options: how to solve; if they name no objective, the fewest bytes are copied, or with a
            budget of time alone, the least time.
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
    rounds = masks is not None and round_to != 1
    if amount is None and ((budget is None and criterion is not None and not rounds) or is_global):
        raise MaskError("a criterion chooses channels: give the amount to drop, such as amount=0.5")
    if amount is None and masks is None and round_to != 1:
        raise MaskError(
            "round_to goes with amount or masks; a budget has its own, such as "
            "Budget(macs=0.5, round_to=8)"
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
    options = _with_objective(options, budget)
    clocks = Clocks(base, inputs, options.prices if budget is None else budget.prices)
    if measure:
        clocks.prepare()
    chain = _Chain(base, inputs, graph, options, clocks, tell, check, wrapped.notes)
    if budget is not None:
        solver = "joint" if method == "unconstrained" else "constrained"
        return chain.within(asked, solver, measure)
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
        if rounds:
            agreed = masks if method == "unconstrained" else constrain(graph, masks)
            masks = round_masks(masked, graph, agreed, round_to, criterion=criterion, method=method)
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


def _with_objective(options: SolveOptions, budget: Budget | None) -> SolveOptions:
    """The options with what an export should minimise, if they name nothing."""
    if {"objective", "max_extra_macs"} & options.model_fields_set or budget is None:
        return options.for_export()
    if budget.limits_time and budget.macs is budget.parameters is None:
        # What the choice counts on; windows would take more of other resources.
        return SolveOptions.of(options, objective="latency", cost_model=budget.cost_model)
    return options.for_export()


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
                f"the masks that torch.nn.utils.prune holds in {_few(self.masked)} were made "
                "permanent in the pruned copy, as torch.nn.utils.prune.remove does"
            )
        if self.computed:
            found.append(
                f"{_few(self.computed)}, computed before every call (by a weight norm or another "
                "parametrization), became parameters of the pruned copy"
            )
        return tuple(found)


def _few(names: tuple[str, ...]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


@dataclass(frozen=True)
class _Chain:
    """The steps behind the masks.

    Attributes:
        model: the model, unpruned.
        inputs: the example inputs.
        graph: its graph.
        options: how to solve.
        clocks: of the model and its exports.
        tell: told of every step.
        check: verify.
        notes: on what was done to the copy first.
    """

    model: nn.Module
    inputs: Inputs
    graph: ChannelGraph
    options: SolveOptions
    clocks: Clocks
    tell: Listener
    check: bool
    notes: tuple[str, ...] = ()

    def export(self, masked: nn.Module, masks: Masks, solution: Solution | None = None) -> Pruned:
        """Solve, if there is no solution, materialise and verify."""
        if solution is None:
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

    def within(self, wish: Wish, solver: str, measure: bool | None) -> Pruned:
        """Choose, by the clock if that is asked, refit and export."""
        budget = wish.budget
        assert budget is not None
        clocked = None
        if measure or (measure is None and budget.limits_time and budget.cost_model is None):
            work = ByClock(self.model, self.graph, self.options, self.clocks, self.tell)
            clocked = work.best(wish, solver, rival=bool(measure))
            chosen = clocked.draft.chosen
        else:
            chosen = chosen_within(
                self.model, self.graph, wish, self.options, solver=solver, tell=self.tell
            )
        masked, refitting = masked_by(self.model, self.graph, chosen, wish, tell=self.tell)
        masks, solution = masks_of(masked, self.graph), None
        if clocked is not None and clocked.draft.masks == masks:
            solution = clocked.draft.solution
        result = replace(
            self.export(masked, masks, solution),
            choice=chosen.choice,
            losses=chosen.losses,
            refitting=refitting,
        )
        if clocked is None:
            return result
        return replace(result, times=clocked.times, notes=(*result.notes, clocked.note))

    def timed(self, result: Pruned) -> Pruned:
        """With times beside the unpruned model's."""
        self.tell(Progress("measure"))
        return replace(result, times=self.clocks.beside({"pruned": result.model}))
