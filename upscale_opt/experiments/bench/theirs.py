"""Export by apple-upscale, if it is there and can."""

from __future__ import annotations

import copy

import torch
from torch import nn

from upscale_opt.errors import UpscaleError
from upscale_opt.tracing.examples import Inputs, as_call
from upscale_opt.verifying.deviation import deviation

ALLOWED = 1e-3
"""The largest distance of its result from the masked network's, in float32."""


def export_by_upscale(
    masked: nn.Module, inputs: Inputs, *, index: bool = False
) -> tuple[nn.Module, int, float]:
    """The masked network as ``apple-upscale`` exports it.

    Args:
        masked: the masked network. It is not changed.
        inputs: a batch of one.
        index: gather by one index instead of a concatenation of slices; it calls that
            ``is_not_ane``, and says that GPUs want it.

    Returns:
        The export, the channels that its plan gathers, and its deviation, relative to the largest
        output.

    Raises:
        UpscaleError: if it is not installed, fails, or does not compute the same.
    """
    try:
        from upscale import PruningManager
    except ImportError as error:
        raise UpscaleError(
            f"apple-upscale is not installed ({error}); pip install --no-deps apple-upscale"
        ) from None
    args, kwargs = as_call(inputs)
    if kwargs:
        raise UpscaleError("apple-upscale takes no inputs by name")
    model = copy.deepcopy(masked)
    try:
        manager = PruningManager(model).compute(list(args))
        plan = manager.spec.tensor_to_input_activation_indices
        copied = sum(len(taken) for taken in plan.values() if not isinstance(taken, range))
        manager.prune(is_not_ane=index)
        with torch.no_grad():
            apart = deviation(masked(*args), model(*args))
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UpscaleError(f"apple-upscale fails: {why}") from None
    if not apart <= ALLOWED:
        raise UpscaleError(f"what apple-upscale exports deviates by {apart:.1e}")
    return model, copied, apart
