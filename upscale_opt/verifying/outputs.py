"""Run a model on copies of its inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from upscale_opt.tracing.examples import Inputs, as_call, map_tensors
from upscale_opt.tracing.unchanged import same_random_state


def outputs_of(model: nn.Module, inputs: Inputs, dtype: torch.dtype | None = None) -> Any:
    """Return what ``model`` returns, without gradients; inputs and random state stay as before.

    Args:
        model: in whatever mode it is.
        inputs: as for :func:`upscale_opt.trace`.
        dtype: what floating-point inputs are cast to, if anything.
    """
    args, kwargs = as_call(inputs)

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        if dtype is not None and tensor.is_floating_point():
            return tensor.to(dtype, copy=True)
        return tensor.clone()

    with torch.no_grad(), same_random_state(model, args, kwargs):
        return model(*map_tensors(args, copied), **map_tensors(kwargs, copied))
