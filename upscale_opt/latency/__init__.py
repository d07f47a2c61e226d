"""How long networks take: cost models, calibrated by the clock, and what they predict.

The built-in cost models are there without PyTorch; the rest loads it when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from upscale_opt.ir.profiles import profile

if TYPE_CHECKING:
    from upscale_opt.latency.calibrating import calibrate
    from upscale_opt.latency.estimating import Estimate, estimate

_WITH_TORCH = {"Estimate": "estimating", "calibrate": "calibrating", "estimate": "estimating"}

__all__ = ["Estimate", "calibrate", "estimate", "profile"]


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module 'upscale_opt.latency' has no attribute {name!r}")
    value = getattr(import_module(f"upscale_opt.latency.{_WITH_TORCH[name]}"), name)
    globals()[name] = value
    return value
