"""Verify that a pruned model computes what the masked model computes."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from upscale_opt.errors import VerificationError
from upscale_opt.tracing.examples import Inputs, as_call, dtype_name, map_tensors

EXACT = 1e-10
"""The relative error allowed in float64: rounding, and nothing else."""

ALLOWED = {"float64": EXACT, "float32": 1e-3, "float16": 5e-2, "bfloat16": 3e-1}


@dataclass(frozen=True)
class VerificationReport:
    """How far the two models are apart: largest deviation over largest magnitude of an output.

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
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    try:
        rough = _deviation(model, pruned, inputs, own)
    except _DoesNotRunError as failure:
        raise VerificationError(str(failure)) from failure.__cause__
    exact = rough
    runs = True
    if own != torch.float64:
        try:
            exact = _deviation(model, pruned, inputs, torch.float64)
        except _DoesNotRunError:
            exact, runs = math.nan, False
    report = VerificationReport(exact, rough, dtype_name(own))
    for name, error in (("float64", exact), (report.dtype, rough))[0 if runs else 1 :]:
        if not error <= ALLOWED.get(name, EXACT):
            raise VerificationError(
                f"the pruned model deviates by {error:.2e} in {name}, where "
                f"{ALLOWED.get(name, EXACT):.0e} is allowed; please report the model and its masks"
            )
    solution = getattr(pruned, "solution", None)
    if solution is not None and solution.capture == "export":
        _check_other_batch(model, pruned, inputs, own)
    return report


def _check_other_batch(
    model: nn.Module, pruned: nn.Module, inputs: Inputs, dtype: torch.dtype
) -> None:
    """What torch.export captured may hold the batch size as a number, and nothing tells.

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
    if not error <= ALLOWED.get(dtype_name(dtype), EXACT):
        raise VerificationError(
            "the pruned model is right for batches of this size alone: torch.export captured the "
            "batch size as a number; use x.shape[0] instead of len(x) and the like"
        )


def _has_axes(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.ndim > 0


def _deviation(model: nn.Module, pruned: nn.Module, inputs: Inputs, dtype: torch.dtype) -> float:
    expected, structure = _outputs("masked", model, inputs, dtype)
    actual, own_structure = _outputs("pruned", pruned, inputs, dtype)
    if structure != own_structure:
        raise VerificationError(
            f"the pruned model returns {own_structure} where the masked one returns {structure}"
        )
    worst = 0.0
    for index, (want, got) in enumerate(zip(expected, actual, strict=True)):
        if want.dtype != got.dtype:
            raise VerificationError(
                f"output {index} is {dtype_name(got.dtype)} instead of {dtype_name(want.dtype)}"
            )
        if want.shape != got.shape:
            raise VerificationError(
                f"output {index} has the shape {tuple(got.shape)} instead of {tuple(want.shape)}"
            )
        want, got = want.double(), got.double()
        if not torch.isfinite(want).all():
            raise VerificationError(
                f"output {index} of the masked model is not finite in {dtype_name(dtype)}, so "
                "there is nothing to compare with; give other inputs"
            )
        if want.numel():
            scale = float(want.abs().max())
            difference = float((want - got).abs().max())
            worst = max(worst, difference / scale if scale > 0 else difference)
            if difference != difference:
                return float("nan")
    return worst


class _DoesNotRunError(Exception):
    """A model fails on the inputs."""


def _outputs(
    which: str, model: nn.Module, inputs: Inputs, dtype: torch.dtype
) -> tuple[list[torch.Tensor], pytree.TreeSpec]:
    args, kwargs = as_call(inputs)

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype, copy=True) if tensor.is_floating_point() else tensor.clone()

    runner: Any = copy.deepcopy(model).to(dtype).eval()
    with torch.no_grad(), torch.random.fork_rng([]):
        try:
            result = runner(*map_tensors(args, cast), **map_tensors(kwargs, cast))
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise
            reason = " ".join(str(error).split())
            raise _DoesNotRunError(
                f"the {which} model does not run on these inputs in {dtype_name(dtype)}: "
                f"{type(error).__name__}: {reason}"
            ) from error
    leaves, structure = pytree.tree_flatten(result)
    return [leaf.detach() for leaf in leaves if isinstance(leaf, torch.Tensor)], structure
