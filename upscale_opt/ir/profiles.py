"""Cost models that come with the package, for when nothing was calibrated."""

from __future__ import annotations

from upscale_opt.errors import SolverError
from upscale_opt.ir.cost_model import CostModel, KernelCost


def _kernel(
    launch: float,
    per_byte: float,
    per_mac: float = 0.0,
    *,
    far: float = 0.0,
    cache: int = 0,
    block: int = 1,
    uneven: float = 1.0,
    both: bool = True,
) -> KernelCost:
    return KernelCost(
        launch=launch,
        ns_per_byte=per_byte,
        ns_per_mac=per_mac,
        cache=cache,
        ns_per_far_byte=far,
        block=block,
        uneven=uneven,
        both=both,
    )


CPU = CostModel(
    device="cpu",
    device_name="one core of an x86-64 CPU with AVX-512",
    kernels={
        "conv1x1": _kernel(14e3, 0.049, 0.018),
        "conv": _kernel(25e3, 0.157, 0.0079, block=16),
        "depthwise": _kernel(94e3, 0.071, 0.0118, block=16, uneven=3),
        "grouped": _kernel(55e3, 0.14, 0.02),
        "transposed": _kernel(55e3, 0.14, 0.02),
        "linear": _kernel(10e3, 0.032, 0.019),
        "matmul": _kernel(5.4e3, 0.02, 0.025),
        "norm": _kernel(9.5e3, 0.018),
        "elementwise": _kernel(3.4e3, 0.012),
        "pool": _kernel(13e3, 0.75),
        "reduce": _kernel(23e3, 0.016),
        "softmax": _kernel(6e3, 0.1),
        "gather": _kernel(6.2e3, 0.016),
        "copy": _kernel(4.2e3, 0.02),
        "view_copy": _kernel(3.9e3, 0.013),
        "strided1x1": _kernel(5.3e3, 0.03, 0.019),
        "other": _kernel(9.5e3, 0.068),
    },
)
"""One thread of a current server's CPU, float32, contiguous: fitted to twelve networks' kernels.

What they run little of is scaled from elsewhere.
"""

CPU_CHANNELS_LAST = CPU.model_copy(
    update={
        "memory_format": "channels_last",
        "kernels": {
            **CPU.kernels,
            "conv1x1": _kernel(17e3, 0.057, 0.0176),
            "conv": _kernel(45e3, 0.144, 0.0073),
            "depthwise": _kernel(77e3, 0.013, 0.0246),
            "norm": _kernel(9.5e3, 0.026),
            "pool": _kernel(27e3, 0.042),
            "gather": _kernel(8.8e3, 0.045),
            "view_copy": _kernel(3e3, 0.018),
            "strided1x1": _kernel(4e3, 0.031, 0.0186),
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

COMPILED = CostModel(
    device="cpu",
    device_name="one core of an x86-64 CPU with AVX-512",
    runtime="compiled",
    block=16,
    align=16,
    kernels={
        "conv1x1": _kernel(15e3, 0.03, 0.0175),
        "conv": _kernel(18e3, 0.05, 0.0085),
        "depthwise": _kernel(30e3, 0.015, 0.02),
        "grouped": _kernel(30e3, 0.03, 0.02),
        "transposed": _kernel(30e3, 0.05, 0.016),
        "linear": _kernel(15e3, 0.032, 0.019),
        "matmul": _kernel(10e3, 0.02, 0.025),
        "norm": _kernel(3e3, 0.02),
        "elementwise": _kernel(3e3, 0.02),
        "pool": _kernel(10e3, 0.06),
        "reduce": _kernel(15e3, 0.02),
        "softmax": _kernel(5e3, 0.05),
        "gather": _kernel(3e3, 0.024),
        "copy": _kernel(3e3, 0.02),
        "view_copy": _kernel(3e3, 0.02),
        "strided1x1": _kernel(15e3, 0.03, 0.0175),
        "other": _kernel(3e3, 0.02),
        "plain1x1": _kernel(18e3, 0.04, 0.023),
        "plain": _kernel(22e3, 0.06, 0.0115),
        "plain_depthwise": _kernel(36e3, 0.03, 0.03),
        "slice": _kernel(3e3, 0.02),
        "reorder_in": _kernel(0, 0),
        "reorder_out": _kernel(0, 0),
    },
)
"""Networks by ``torch.compile`` on one thread of such a CPU, float32: set by hand, not fitted.
Convolutions are those of ``channels_last``; those that read no multiple of 16 pay for the loops
behind them, too."""

OPENVINO = CostModel(
    device="cpu",
    device_name="one core of an x86-64 CPU with AVX-512",
    runtime="openvino",
    block=16,
    kernels={
        "conv1x1": _kernel(9.3e3, 0.014, 0.0072, far=0.025, cache=2**23, block=16, both=False),
        "conv": _kernel(7.6e3, 0.021, 0.0072, far=0.12, cache=2**23, block=16, both=False),
        "depthwise": _kernel(9.6e3, 0.018, 0.013, far=0.038, cache=2**23),
        "grouped": _kernel(9.2e3, 0.036, 0.024),
        "transposed": _kernel(9.2e3, 0.036, 0.024),
        "linear": _kernel(30e3, 0.022, 0.0076),
        "matmul": _kernel(6.8e3, 0.036, 0.012),
        "norm": _kernel(3.2e3, 0.013),
        "elementwise": _kernel(5.2e3, 0.0082, far=0.011, cache=2**23),
        "pool": _kernel(17e3, 0.0053, far=0.062, cache=2**21),
        "reduce": _kernel(5.9e3, 0.022),
        "softmax": _kernel(6.8e3, 0.024),
        "gather": _kernel(2.5e3, 0.012, far=0.016, cache=2**22),
        "copy": _kernel(4e3, 0.011, far=0.018, cache=2**22),
        "view_copy": _kernel(5e3, 0.012),
        "strided1x1": _kernel(9.3e3, 0.014, 0.0072),
        "other": _kernel(5.6e3, 0.012),
        "plain1x1": _kernel(9.3e3, 0.014, 0.0072),
        "plain": _kernel(7.6e3, 0.021, 0.0072),
        "plain_depthwise": _kernel(9.6e3, 0.018, 0.013),
        "slice": _kernel(2.5e3, 0.011, far=0.018, cache=2**21),
        "reorder_in": _kernel(4.6e3, 0.014, far=0.042, cache=2**22),
        "reorder_out": _kernel(4.4e3, 0.015, far=0.05, cache=2**23),
    },
)
"""OpenVINO on one thread of such a CPU, float32: fitted to nodes of seven networks, whole and
pruned; what moves data, and what lies beyond caches, to eight at batch 1 and 8. Its convolutions
write whole blocks, and are never outside of its layout."""

PROFILES = {
    "cpu": CPU,
    "cpu-channels-last": CPU_CHANNELS_LAST,
    "gpu": GPU,
    "gpu-float32": GPU_FLOAT32,
    "onnxruntime": ONNXRUNTIME,
    "compiled": COMPILED,
    "openvino": OPENVINO,
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
