"""Cost models that come with the package, for when nothing was calibrated."""

from __future__ import annotations

from upscale_opt.errors import SolverError
from upscale_opt.ir.cost_model import CostModel, KernelCost


def _kernel(
    launch: float, per_byte: float, per_mac: float = 0.0, *, far: float = 0.0, cache: int = 0
) -> KernelCost:
    return KernelCost(
        launch=launch,
        ns_per_byte=per_byte,
        ns_per_mac=per_mac,
        cache=cache,
        ns_per_far_byte=far,
    )


CPU = CostModel(
    device="cpu",
    device_name="one core of an x86-64 CPU with AVX-512",
    kernels={
        "conv1x1": _kernel(27e3, 0.125, 0.019),
        "conv": _kernel(79e3, 0.20, 0.018),
        "depthwise": _kernel(190e3, 0.18, 0.012),
        "grouped": _kernel(80e3, 0.20, 0.03),
        "transposed": _kernel(80e3, 0.20, 0.03),
        "linear": _kernel(15e3, 0.11, 0.011),
        "matmul": _kernel(8e3, 0.05, 0.022),
        "norm": _kernel(18e3, 0.036),
        "elementwise": _kernel(6.5e3, 0.015),
        "pool": _kernel(20e3, 0.9),
        "reduce": _kernel(57e3, 0.028),
        "softmax": _kernel(8e3, 0.15),
        "gather": _kernel(8.5e3, 0.044),
        "copy": _kernel(11e3, 0.041),
        "view_copy": _kernel(11e3, 0.041),
        "strided1x1": _kernel(13e3, 0.06, 0.02),
        "other": _kernel(14e3, 0.1),
    },
)
"""One thread of a current server's CPU, float32, contiguous: fitted to ten networks' kernels."""

CPU_CHANNELS_LAST = CPU.model_copy(
    update={
        "memory_format": "channels_last",
        "kernels": {
            **CPU.kernels,
            "conv1x1": _kernel(35e3, 0.12, 0.019),
            "conv": _kernel(61e3, 0.17, 0.0185),
            "depthwise": _kernel(135e3, 0.051, 0.041),
            "norm": _kernel(18e3, 0.045),
            "pool": _kernel(50e3, 0.062),
            "gather": _kernel(9e3, 0.08),
            "view_copy": _kernel(13e3, 0.09),
            "strided1x1": _kernel(13e3, 0.10, 0.021),
        },
    }
)
"""The same in channels_last, where gathers are slower and pooling is faster."""

GPU = CostModel(
    device="cuda",
    device_name="data-centre GPU",
    dtype="float16",
    memory_format="channels_last",
    kernels={
        "conv1x1": _kernel(4e3, 4e-4, 1e-5),
        "conv": _kernel(4e3, 4e-4, 1e-5),
        "depthwise": _kernel(4e3, 8e-4, 5e-5),
        "grouped": _kernel(4e3, 6e-4, 4e-5),
        "transposed": _kernel(4e3, 6e-4, 2e-5),
        "linear": _kernel(4e3, 4e-4, 5e-6),
        "matmul": _kernel(4e3, 4e-4, 5e-6),
        "norm": _kernel(4e3, 4e-4),
        "elementwise": _kernel(4e3, 4e-4),
        "pool": _kernel(4e3, 5e-4),
        "reduce": _kernel(4e3, 5e-4),
        "softmax": _kernel(4e3, 5e-4),
        "gather": _kernel(4e3, 8e-4),
        "copy": _kernel(4e3, 5e-4),
        "view_copy": _kernel(4e3, 5e-4),
        "strided1x1": _kernel(6e3, 4e-4, 1e-5),
        "other": _kernel(4e3, 5e-4),
    },
)
"""A current data-centre GPU such as an H100, half precision, channels last: by its data sheet."""

_SINGLE_IS_SLOWER = 8

GPU_FLOAT32 = GPU.model_copy(
    update={
        "dtype": "float32",
        "memory_format": "contiguous",
        "kernels": {
            kind: price.model_copy(update={"ns_per_mac": price.ns_per_mac * _SINGLE_IS_SLOWER})
            for kind, price in GPU.kernels.items()
        },
    }
)
"""The same in single precision, multiplied as TF32."""

ONNXRUNTIME = CostModel(
    device="cpu",
    device_name="one core of an x86-64 CPU with AVX-512",
    runtime="onnxruntime",
    block=16,
    align=4,
    kernels={
        "conv1x1": _kernel(9.1e3, 0.031, 0.0094),
        "conv": _kernel(6.8e3, 0.1, 0.0088),
        "depthwise": _kernel(3.9e3, 0.036, 0.014),
        "grouped": _kernel(3.9e3, 0.029, 0.019),
        "transposed": _kernel(3.9e3, 0.097, 0.029),
        "linear": _kernel(4.1e3, 0.073, 0.0097),
        "matmul": _kernel(3.9e3, 0.029, 0.019),
        "norm": _kernel(8.3e3, 0.018, 0, far=0.051, cache=2**20),
        "elementwise": _kernel(3.6e3, 0.019, 0, far=0.075, cache=2**21),
        "pool": _kernel(39e3, 0.00017, 0, far=0.066, cache=2**20),
        "reduce": _kernel(4.5e3, 0.029),
        "softmax": _kernel(3.9e3, 0.048),
        "gather": _kernel(4.4e3, 0.02, 0, far=0.027, cache=2**19),
        "copy": _kernel(7.2e3, 0.0063, 0, far=0.034, cache=2**19),
        "view_copy": _kernel(3.9e3, 0.039),
        "strided1x1": _kernel(3.9e3, 0.029, 0.019),
        "other": _kernel(3.5e3, 0),
        "plain1x1": _kernel(8.8e3, 0.038, 0.012),
        "plain": _kernel(44e3, 0.042, 0.017),
        "plain_depthwise": _kernel(16e3, 0.12, 0.24),
        "slice": _kernel(5.1e3, 0.015, 0, far=0.053, cache=2**20),
        "reorder_in": _kernel(3.9e3, 0.011, 0, far=0.027, cache=2**20),
        "reorder_out": _kernel(3.9e3, 0.024, 0, far=0.041, cache=2**21),
    },
)
"""Onnxruntime on one thread of such a CPU, float32: fitted to nodes of seven networks, whole and
pruned."""

PROFILES = {
    "cpu": CPU,
    "cpu-channels-last": CPU_CHANNELS_LAST,
    "gpu": GPU,
    "gpu-float32": GPU_FLOAT32,
    "onnxruntime": ONNXRUNTIME,
}
"""The built-in cost models by name."""


def profile(name: str) -> CostModel:
    """The built-in cost model called ``name``.

    Raises:
        SolverError: if there is none of that name.
    """
    if name not in PROFILES:
        raise SolverError(f"no cost model {name!r}; built in are {', '.join(PROFILES)}")
    return PROFILES[name]
