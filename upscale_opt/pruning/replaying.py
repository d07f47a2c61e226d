"""Compare submodules with their exports, on what the model gives them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from upscale_opt.errors import VerificationError
from upscale_opt.materializing.pruned_module import PrunedModule, replace
from upscale_opt.materializing.used import kind_of
from upscale_opt.tracing.examples import Inputs, dtype_name, map_tensors
from upscale_opt.verifying.deviation import allowed, deviation
from upscale_opt.verifying.outputs import outputs_of


def replay(
    model: nn.Module, exports: Mapping[str, PrunedModule], inputs: Inputs
) -> tuple[dict[str, float], float | None]:
    """Run ``model`` on copies in float64, and compare at every call of a submodule.

    Args:
        model: the masked model. It is not changed.
        exports: by name, what some of its submodules shall become.
        inputs: what the model is called with.

    Returns:
        By name, the largest deviation of a submodule's outputs, given the same arguments; and that
        of the whole model's outputs, or ``None`` if they differ in shape. If the model does not
        run in float64, both are as at its own precision.

    Raises:
        VerificationError: if a submodule deviates by more than rounding, or its export fails.
    """
    own = kind_of(model)[0]
    try:
        return _replay(model, exports, inputs, torch.float64)
    except (RuntimeError, TypeError):
        if own == torch.float64:
            raise
        return _replay(model, exports, inputs, own)


def _replay(
    model: nn.Module, exports: Mapping[str, PrunedModule], inputs: Inputs, dtype: torch.dtype
) -> tuple[dict[str, float], float | None]:
    masked: Any = copy.deepcopy(model).to(dtype).eval()
    twins = {name: copy.deepcopy(export).to(dtype).eval() for name, export in exports.items()}
    worst: dict[str, float] = {}
    with _compared(masked, twins, worst):
        want = outputs_of(masked, inputs, dtype)
    for name, error in worst.items():
        if not error <= allowed(dtype):
            raise VerificationError(
                f"the pruned {name or type(model).__name__} deviates by {error:.2e} in "
                f"{dtype_name(dtype)}, where {allowed(dtype):.0e} is allowed; please report the "
                "model and its masks"
            )
    for name, twin in twins.items():
        replace(masked.get_submodule(name), twin)
    try:
        return worst, deviation(want, outputs_of(masked, inputs, dtype))
    except VerificationError:
        return worst, None


@contextmanager
def _compared(
    model: nn.Module, twins: Mapping[str, nn.Module], worst: dict[str, float]
) -> Iterator[None]:
    """While this is open, calls of submodules are also answered by their twins, and compared."""
    answers: dict[str, Any] = {}
    handles = []
    for name, twin in twins.items():

        def before(
            module: nn.Module,
            args: Any,
            kwargs: dict[str, Any],
            name: str = name,
            twin: nn.Module = twin,
        ) -> None:
            # Clones, because a submodule may change its arguments.
            own_args, own_kwargs = map_tensors((args, kwargs), torch.clone)
            try:
                answers[name] = twin(*own_args, **own_kwargs)
            except Exception as error:
                raise VerificationError(
                    f"the pruned {name} fails on what the model gives it: {error}"
                ) from error

        def after(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            try:
                error = deviation(output, answers.pop(name))
            except VerificationError as problem:
                raise VerificationError(f"{name}: {problem}") from None
            worst[name] = max(worst.get(name, 0.0), error) if error == error else error

        module = model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
