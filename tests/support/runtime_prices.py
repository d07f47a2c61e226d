"""Cost models of onnxruntime and OpenVINO by which few things cost anything."""

from __future__ import annotations

from typing import Any

from upscale_opt.ir.cost_model import BLOCKED_KINDS, KINDS, CostModel, KernelCost
from upscale_opt.ir.profiles import profile


def model_of(block: int = 1, align: int = 1, **prices: tuple[float, float, float]) -> CostModel:
    """A cost model of onnxruntime: launch, per byte, per multiply-add; else all is free."""
    kernels = {
        kind: KernelCost(launch=p[0], ns_per_byte=p[1], ns_per_mac=p[2])
        for kind in (*KINDS, *BLOCKED_KINDS)
        for p in [prices.get(kind, (0, 0, 0))]
    }
    return CostModel(
        device="cpu",
        device_name="a test",
        runtime="onnxruntime",
        block=block,
        align=align,
        kernels=kernels,
    )


MOVES: dict[str, Any] = {"slice": (50, 0.1, 0), "gather": (90, 0.3, 0), "reorder_in": (20, 0.1, 0)}
FREE_MACS = model_of(**MOVES, reorder_out=(100, 0.1, 0))
DEAR_MACS = model_of(**MOVES, conv=(0, 0, 1e3), conv1x1=(0, 0, 1e3))
BETWEEN = model_of(**MOVES, conv=(0, 0, 0.3), conv1x1=(0, 0, 0.3))
BLOCKS = model_of(4, 4, **MOVES, conv=(0, 0, 0.3), conv1x1=(0, 0, 0.3))


def openvino(**launches: float) -> CostModel:
    """Prices of OpenVINO by which kernels of these kinds cost so much, and all others nothing."""
    built_in = profile("openvino")
    free = KernelCost(launch=0, ns_per_byte=0)
    paid = {kind: KernelCost(launch=launch, ns_per_byte=0) for kind, launch in launches.items()}
    kernels = dict.fromkeys(built_in.kernels, free) | paid
    return built_in.model_copy(update={"kernels": kernels, "block": 1})
