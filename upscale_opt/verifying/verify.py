"""Verify that a pruned model computes what the masked model computes."""

from __future__ import annotations

import copy
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from upscale_opt.errors import VerificationError
from upscale_opt.materializing.used import kind_of
from upscale_opt.tracing.examples import Inputs, as_call, dtype_name, map_tensors
from upscale_opt.verifying.deviation import allowed, deviation
from upscale_opt.verifying.outputs import outputs_of


@dataclass(frozen=True)
class VerificationReport:
    """The distance of the two models: largest deviation over largest magnitude of an output.

    Attributes:
        float64_error: with both models and the inputs in float64; NaN if they do not run in
            float64 (because they make tensors of a fixed dtype).
        own_error: at the model's own precision.
        dtype: that precision.
    """

    float64_error: float
    own_error: float
    dtype: str


def verify(model: nn.Module, pruned: nn.Module, inputs: Inputs) -> VerificationReport:
    """Compare the models' outputs on ``inputs``, in evaluation mode, on copies.

    Args:
        model: the masked model.
        pruned: its export.
        inputs: as for :func:`upscale_opt.trace`; real data or noise, of any batch size.

    Raises:
        VerificationError: if an output deviates by more than 1e-10 in float64 (or by more than
            rounding explains at the model's own precision), has another shape, or is not finite;
            or if a model does not run on ``inputs``.
    """
    for module in (model, pruned):
        if not isinstance(module, nn.Module):
            given = f"an object of class {type(module).__name__}"
            raise VerificationError(f"expected a model, but got {given}")
    own = kind_of(model)[0]
    try:
        rough = _deviation(model, pruned, inputs, own)
    except _DoesNotRunError as failure:
        raise VerificationError(str(failure)) from failure.__cause__
    errors = {own: rough}
    if own != torch.float64:
        with suppress(_DoesNotRunError):
            errors = {torch.float64: _deviation(model, pruned, inputs, torch.float64), own: rough}
    for dtype, error in errors.items():
        if not error <= allowed(dtype):
            raise VerificationError(
                f"the pruned model deviates by {error:.2e} in {dtype_name(dtype)}, where "
                f"{allowed(dtype):.0e} is allowed; please report the model and its masks"
            )
    solution = getattr(pruned, "solution", None)
    if solution is not None and solution.capture == "export":
        _check_other_batch(model, pruned, inputs, own)
    return VerificationReport(errors.get(torch.float64, math.nan), rough, dtype_name(own))


def _check_other_batch(
    model: nn.Module, pruned: nn.Module, inputs: Inputs, dtype: torch.dtype
) -> None:
    """Check twice the batch: torch.export may have captured its size as a number unnoticed.

    Raises:
        VerificationError: if the models differ on twice as large a batch.
    """
    args, kwargs = as_call(inputs)
    sizes = [len(t) for t in pytree.tree_leaves((args, kwargs)) if _has_axes(t)]

    def twice(tensor: torch.Tensor) -> torch.Tensor:
        same = _has_axes(tensor) and len(tensor) == sizes[0]
        return torch.cat([tensor, tensor]) if same else tensor

    larger = (*map_tensors(args, twice),) if not kwargs else map_tensors(kwargs, twice)
    try:
        error = _deviation(model, pruned, larger, dtype)
    except _DoesNotRunError:  # one of them, if not both, takes no such batch
        return
    except VerificationError:
        error = math.inf
    if not error <= allowed(dtype):
        raise VerificationError(
            "the pruned model is right for batches of this size alone: torch.export captured the "
            "batch size as a number; use x.shape[0] instead of len(x) and the like"
        )


def _has_axes(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.ndim > 0


def _deviation(model: nn.Module, pruned: nn.Module, inputs: Inputs, dtype: torch.dtype) -> float:
    want = _outputs("masked", model, inputs, dtype)
    return deviation(want, _outputs("pruned", pruned, inputs, dtype))


class _DoesNotRunError(Exception):
    """A model fails on the inputs."""


def _outputs(which: str, model: nn.Module, inputs: Inputs, dtype: torch.dtype) -> Any:
    as_call(inputs)  # what is none of the accepted forms is refused as that
    runner = copy.deepcopy(model).to(dtype).eval()
    try:
        return outputs_of(runner, inputs, dtype)
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise
        reason = " ".join(str(error).split())
        raise _DoesNotRunError(
            f"the {which} model does not run on these inputs in {dtype_name(dtype)}: "
            f"{type(error).__name__}: {reason}"
        ) from error
