"""Prices by which latency can be proven minimal on networks of real sizes."""

from __future__ import annotations

from upscale_opt.ir.cost_model import CostModel
from upscale_opt.ir.profiles import CPU


def without_windows() -> CostModel:
    """The built-in prices of a CPU, but no window is worth its multiply-adds."""
    kernels = {
        kind: price.model_copy(update={"ns_per_mac": 1000 * price.ns_per_mac})
        for kind, price in CPU.kernels.items()
    }
    return CPU.model_copy(update={"kernels": kernels})


def gathers_like_copies() -> CostModel:
    """The built-in prices of a CPU, but a gather costs what copying a view does."""
    return CPU.model_copy(update={"kernels": CPU.kernels | {"gather": CPU.kernels["copy"]}})
