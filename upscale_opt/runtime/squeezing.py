"""The removal of axes of size one where a model has fewer channels, perhaps a single one."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from upscale_opt.errors import ArgumentError


def squeeze_others(x: Any, axis: int, rank: int, behind: int | None = None) -> Any:
    """``x`` without its axes of size one, but for the channels'.

    Args:
        x: a tensor.
        axis: the channel axis, which stays; may count from behind.
        rank: how many axes are left.
        behind: how many of these come after the channels, if those before them do not matter.

    Raises:
        ArgumentError: if other axes are of size one than in the example.
    """
    if isinstance(x, fx.Proxy):  # traced again: then it shall be part of the program
        return x.tracer.create_proxy("call_function", squeeze_others, (x, axis, rank, behind), {})
    assert isinstance(x, torch.Tensor)
    axis %= x.ndim
    single = [a for a, size in enumerate(x.shape) if size == 1 and a != axis]
    if behind is not None:
        rank += sum(a < axis for a in range(x.ndim) if a not in single) - (rank - 1 - behind)
    if x.ndim - len(single) != rank:
        raise ArgumentError(
            f"squeeze() leaves {x.ndim - len(single)} axes of a tensor of shape {tuple(x.shape)}, "
            f"but this model was captured where it left {rank}; trace the model with inputs of "
            "these sizes, or name the axes in the model's code"
        )
    return x.squeeze(single)
