"""Files compiled by OpenVINO, and the nodes that it says it ran.

It convolves with channels innermost. A slice of channels stays in that layout, a gather does not:
it comes out of it and goes back.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from upscale_opt.deploying import arrays_of, check_format
from upscale_opt.errors import DeployError, needed
from upscale_opt.in_runtimes.nodes import Backend, Node, convolution
from upscale_opt.ir.cost_model import whole_blocks
from upscale_opt.ir.profiles import OPENVINO as PRICES
from upscale_opt.tracing.examples import Inputs

_KINDS = {
    "Deconvolution": "transposed",
    "FullyConnected": "linear",
    **dict.fromkeys(("MatMul", "ScaledDotProductAttentionWithKVCache"), "matmul"),
    **dict.fromkeys(("ScaledDotProductAttention", "MHA"), "matmul"),
    **dict.fromkeys(("MVN", "RMS", "NormalizeL2", "LRN"), "norm"),
    **dict.fromkeys(("Subgraph", "Eltwise", "Math", "Select", "Convert"), "elementwise"),
    **dict.fromkeys(("Pooling", "AdaptivePooling"), "pool"),
    "Reduce": "reduce",
    **dict.fromkeys(("Softmax", "LogSoftmax"), "softmax"),
    **dict.fromkeys(("Gather", "GatherND", "GatherElements"), "gather"),
    **dict.fromkeys(("Split", "StridedSlice", "Slice"), "slice"),
    **dict.fromkeys(("Concatenation", "Pad", "Broadcast", "ShuffleChannels"), "copy"),
}
"""Kinds of kernels by OpenVINO's types; convolutions have several."""

_IMAGE = 4


def _compiled(data: bytes, threads: int, *, profile: bool = False) -> Any:
    """A file compiled for the CPU, in float32.

    Raises:
        DeployError: if OpenVINO is missing.
    """
    check()
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # where a CPU has bfloat16, it would take that
        "CPU_DENORMALS_OPTIMIZATION": True,
        "ENABLE_CPU_PINNING": False,
        "PERF_COUNT": profile,
    }
    return core.compile_model(core.read_model(data), "CPU", settings)


def check() -> None:
    """Find out now, not after the work, if models cannot run in OpenVINO here.

    Raises:
        DeployError: if a library is missing.
    """
    check_format("onnx")
    needed("openvino", "OpenVINO needs", "openvino", DeployError)


def call_of(data: bytes, inputs: Inputs, threads: int) -> Callable[[], object]:
    """A call that runs an ONNX file on the inputs."""
    compiled = _compiled(data, threads)
    request = compiled.create_infer_request()
    feed = _feed(compiled, data, inputs)
    return lambda: request.infer(feed)


def _feed(compiled: Any, data: bytes, inputs: Inputs) -> dict[Any, Any]:
    """The arrays by the inputs of a compiled file, which has none that it does not use."""
    import onnx

    names = [given.name for given in onnx.load_model_from_string(data).graph.input]
    arrays = dict(zip(names, arrays_of(inputs), strict=True))
    return {
        given: arrays[next(name for name in given.names if name in arrays)]
        for given in compiled.inputs
    }


class Session:
    """A compiled file that writes down the time of every node.

    Args:
        data: the ONNX file.
        inputs: to run it on.
        threads: to compute with.
    """

    def __init__(self, data: bytes, inputs: Inputs, threads: int) -> None:
        self._compiled = _compiled(data, threads, profile=True)
        self._request = self._compiled.create_infer_request()
        self._feed = _feed(self._compiled, data, inputs)
        self._times: defaultdict[str, list[float]] = defaultdict(list)

    def run(self) -> None:
        """Run once."""
        self._request.infer(self._feed)
        for node in self._request.get_profiling_info():
            if node.status == node.Status.EXECUTED:
                self._times[node.node_name].append(1e9 * node.real_time.total_seconds())

    def nodes(self, block: int) -> list[Node]:
        """Nodes that were run, in the order of execution.

        Args:
            block: the channels that convolutions write together.
        """
        found = []
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            name = node.get_friendly_name()
            if name in self._times and node.get_input_size():
                given = [list(one.get_shape()) for one in node.inputs()]
                results = [list(one.get_shape()) for one in node.outputs()]
                info = {key: _text(value) for key, value in node.get_rt_info().items()}
                took = statistics.median(self._times[name])
                found.append(node_of(name, info, given, results, took, block))
        return found


def node_of(
    name: str,
    info: Mapping[str, str],
    given: Sequence[Sequence[int]],
    results: Sequence[Sequence[int]],
    nanoseconds: float,
    block: int,
) -> Node:
    """A node, from what OpenVINO says of it.

    Args:
        name: of the node.
        info: its ``layerType`` and ``outputLayouts``.
        given: the shapes that it reads, weights among them.
        results: the shapes that it writes.
        nanoseconds: that it took.
        block: the channels that convolutions write together.
    """
    what = info["layerType"]
    kind = _KINDS.get(what, "other")
    moved = 4 * sum(map(math.prod, (*given, *results)))
    macs = 0
    if what == "Convolution" and len(given) > 1:
        groups, weight = 1, given[1]
        if len(weight) > len(given[0]):  # (groups, C out of a group, C in of a group, …)
            groups, weight = weight[0], [weight[0] * weight[1], *weight[2:]]
        if groups == 1:
            weight = [whole_blocks(weight[0], block), *weight[1:]]
        kind, macs = convolution(given[0], weight, results[0], groups, 1)
        kind = kind.removeprefix("plain_")
        kind = {"plain": "conv", "plain1x1": "conv1x1"}.get(kind, kind)
    elif kind in ("linear", "matmul") and len(given) > 1:
        macs = math.prod(results[0]) * given[0][-1]
    elif kind == "transposed" and len(given) > 1:
        groups = len(given[1]) > len(given[0])  # then: (groups, C in of a group, C out of it, …)
        macs = math.prod(given[0]) * math.prod(given[1][1 + groups :])
    elif kind in ("gather", "slice"):
        moved = 8 * sum(map(math.prod, results))
    elif what in ("Reorder", "Transpose"):
        out = info["outputLayouts"] == "abcd" and len(results[0]) == _IMAGE
        kind, moved = "reorder_out" if out else "reorder_in", 8 * math.prod(results[0])
    return Node(name, kind, moved, macs, nanoseconds)


def _block_here() -> int:
    """The channels that convolutions write together: as many as fill a register."""
    return 16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 8


def _text(value: Any) -> str:
    """A piece of information in words; older versions wrap it."""
    return str(value.astype(str) if hasattr(value, "astype") else value)


OPENVINO = Backend(
    name="openvino",
    prices=PRICES,
    check=check,
    call_of=call_of,
    profiled=Session,
    block_here=_block_here,
)
"""OpenVINO, on a CPU."""
