"""Verify that a pruned model computes what the masked model computes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import nn

from upscale_opt.errors import VerificationError
from upscale_opt.materializing.used import kind_of
from upscale_opt.tracing.examples import Inputs, as_call, dtype_name
from upscale_opt.tracing.wrappings import unwrapped
from upscale_opt.verifying.both import Both, DoesNotRunError, Outcome
from upscale_opt.verifying.elsewhere import elsewhere as elsewhere_of
from upscale_opt.verifying.other_inputs import at_random, shapes


@dataclass(frozen=True)
class VerificationReport:
    """The distance of the two models: largest deviation over largest magnitude of an output.

    Attributes:
        float64_error: with both models and the inputs in float64; without casts to lower
            precision, if they do not run in it otherwise; NaN if even so they do not.
        own_error: at the model's own precision.
        dtype: that precision.
        also: on what else they were compared, and found equal: other batches, other sizes.
        notes: what limits the comparison, such as lower precision inside of the model.
    """

    float64_error: float
    own_error: float
    dtype: str
    also: tuple[str, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        lines = [repr(self), *(f"also on {what}" for what in self.also), *self.notes]
        return "\n".join(lines)


def verify(
    model: nn.Module, pruned: nn.Module, inputs: Inputs, *, elsewhere: bool = True
) -> VerificationReport:
    """Compare the models' outputs on ``inputs``, in evaluation mode, on copies.

    Everything that they return is compared (:func:`upscale_opt.verifying.walking.pairs_of`), and
    the buffers that the call changes. Where nothing could show on ``inputs``, such as zeros, random
    ones are tried besides.

    Args:
        model: the masked model.
        pruned: its export.
        inputs: as for :func:`upscale_opt.trace`; real data or noise, of any batch size.
        elsewhere: compare on another batch and on inputs of another size, too, if the masked model
            takes such. Where the export refuses them by name, the report's notes say so.

    Raises:
        VerificationError: if an output deviates by more than 1e-10 in float64 (or by more than
            rounding explains: at the model's own precision, or at that in which it computes
            inside), has another shape, or is not finite; if there is nothing to compare; or if a
            model does not run on ``inputs``.
    """
    for module in (model, pruned):
        if not isinstance(module, nn.Module):
            given = f"an object of class {type(module).__name__}"
            raise VerificationError(f"expected a model, but got {given}")
    model, pruned = unwrapped(model), unwrapped(pruned)
    as_call(inputs)  # what is none of the accepted forms is refused as that
    own = kind_of(model)[0]
    both = Both(model, pruned)
    notes = _Notes()
    exact, dtype = (None, own) if own == torch.float64 else _exact(both, inputs, own, notes)
    try:
        rough = both.compare(inputs, own)
    except DoesNotRunError as failure:
        raise VerificationError(str(failure)) from failure.__cause__
    best = rough if exact is None else exact
    if best.lower is not None:
        notes.add(f"the model {best.lower}: equal up to rounding there, {best.error:.0e}")
    _at_random(both, inputs, dtype, best, notes)
    if elsewhere:
        _elsewhere(both, inputs, dtype, notes)
    exactly = rough.error if own == torch.float64 else math.nan if exact is None else exact.error
    return VerificationReport(
        exactly, rough.error, dtype_name(own), tuple(notes.also), tuple(notes.notes)
    )


def _exact(
    both: Both, inputs: Inputs, own: torch.dtype, notes: _Notes
) -> tuple[Outcome | None, torch.dtype]:
    """Compare in float64, as far as the models run in it.

    Returns:
        The outcome, and the precision in which to compare them on other inputs.

    Raises:
        VerificationError: if the models differ.
    """
    try:
        return both.compare(inputs, torch.float64), torch.float64
    except DoesNotRunError:
        note = (
            "the model does not run in float64: it was compared there with casts to lower "
            f"precision left out, and as it is in {dtype_name(own)}"
        )
    except VerificationError:
        if not both.switches_autocast(inputs, own):
            raise
        note = (
            f"the model switches autocast, whose casts are fixed as they are in {dtype_name(own)}: "
            "the pruned model is right in that precision alone; in float64, both were compared "
            "without any casts"
        )
    try:
        found = both.compare(inputs, torch.float64, exact=True)
    except DoesNotRunError:
        return None, own
    notes.add(note)
    return found, own


@dataclass
class _Notes:
    also: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, note: str) -> None:
        self.notes.append(note)


def _at_random(
    both: Both, inputs: Inputs, dtype: torch.dtype, found: Outcome, notes: _Notes
) -> None:
    """Compare on random inputs, if on those given nothing could show.

    Raises:
        VerificationError: if there is nothing to compare, or the models differ.
    """
    if not found.numbers:
        raise VerificationError(
            "there is nothing to compare: the masked model returns no tensors with elements in "
            "them, nor floating-point numbers, on these inputs; give a batch that is not empty, or "
            "a model that returns what it computes"
        )
    if not found.zero and not shapes(inputs).constant:
        return
    for given in at_random(inputs):
        try:
            other = both.compare(given, dtype)
        except DoesNotRunError:
            continue
        except VerificationError as error:
            if "not finite" in str(error):
                continue
            raise VerificationError(f"on random inputs, {error}") from None
        notes.also.append("random inputs, as on those given little could show")
        if other.zero:
            notes.add("the masked model returns nothing but zeros, on random inputs, too")
        return
    if found.zero:
        raise VerificationError(
            "there is nothing to compare: the masked model returns nothing but zeros on these "
            "inputs, and does not run on random ones; give other inputs"
        )
    notes.add("the inputs are constant, on which little can show, and random ones are not taken")


def _elsewhere(both: Both, inputs: Inputs, dtype: torch.dtype, notes: _Notes) -> None:
    """Compare on another batch, and on other sizes.

    Raises:
        VerificationError: if the models differ there.
    """
    for found in elsewhere_of(both, inputs, dtype):
        where = f"{found.what}, {found.shapes}"
        if found.status == "differs":
            raise VerificationError(
                f"the pruned model is right for the given inputs, and wrong on {where}: what "
                "depends on sizes was captured as a number (use x.shape[0] instead of len(x) and "
                f"the like); {found.reason}"
            )
        if found.status in ("equal", "partly"):
            notes.also.append(where)
        if found.status == "partly":
            notes.add(f"the pruned model refuses {found.what}, {found.reason}")
        elif found.status == "not taken":
            notes.add(f"not compared on {found.what}: the masked model takes none that were tried")
        elif found.status != "equal":
            how = "refuses" if found.status == "refused" else "fails on"
            notes.add(f"the pruned model {how} {where}: {found.reason}")
