"""The deviations that rounding explains, measured on the masked model itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from upscale_opt.tracing.copying import copied
from upscale_opt.verifying.deviation import Apart, allowed, largest
from upscale_opt.verifying.rounding import MORE, Lower, rounding
from upscale_opt.verifying.walking import pairs_of

Run = Callable[[nn.Module], Any]
"""Calls a model that may be used up, and returns its outputs."""


def noise_of(
    model: nn.Module, want: Any, run: Run, dtype: torch.dtype, every: bool = False
) -> tuple[dict[str, Apart], Lower | None]:
    """Measure how far rounding at random moves the outputs of a model.

    Args:
        model: the masked model.
        want: its outputs.
        run: calls it again, on the same inputs.
        dtype: the precision that it is run in.
        every: round at random in that precision, too, and not only where it is lower inside.

    Returns:
        By place in the outputs, how far they move; and where the precision is lower, if anywhere.
        Nothing, if that cannot be found out.
    """
    runner = copied(model).to(dtype).eval()
    try:
        with rounding(runner, dtype, every) as mode:
            got = run(runner)
        apart = {pair.place: Apart.of(pair) for pair in pairs_of(want, got)}
    except Exception:  # such as code that no dispatch mode may see: then nothing is known
        return {}, None
    return apart, mode.lower if mode.lower.dtype is not None else None


def explained(
    model: nn.Module, want: Any, run: Run, dtype: torch.dtype
) -> tuple[float, Lower | None]:
    """The relative deviation that the model's rounding explains, and where it is coarse."""
    most = allowed(dtype)
    noise, lower = noise_of(model, want, run, dtype)
    if lower is not None and lower.dtype is not None:
        most = max(most, min(allowed(lower.dtype), MORE * largest(noise.values())))
    return most, lower
