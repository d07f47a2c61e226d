"""Sessions of onnxruntime, and the nodes that it says it ran."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from upscale_opt.deploying import arrays_of, check_format, session_of
from upscale_opt.in_runtimes.nodes import Backend, Node, convolution, file_of
from upscale_opt.ir.profiles import ONNXRUNTIME as PRICES
from upscale_opt.tracing.examples import Inputs

_FILE = "nodes"
_NODE = "_kernel_time"

_KINDS = {
    **dict.fromkeys(("Gemm", "FusedGemm"), "linear"),
    **dict.fromkeys(("MatMul", "FusedMatMul", "Attention", "MultiHeadAttention"), "matmul"),
    **dict.fromkeys(("BatchNormalization", "LayerNormalization", "SkipLayerNormalization"), "norm"),
    **dict.fromkeys(("InstanceNormalization", "GroupNorm", "LRN"), "norm"),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Relu", "Sigmoid", "Clip", "Tanh"), "elementwise"),
    **dict.fromkeys(("HardSigmoid", "HardSwish", "QuickGelu", "Gelu", "LeakyRelu"), "elementwise"),
    **dict.fromkeys(("PRelu", "BiasGelu", "Erf", "Sqrt", "Pow", "Where", "Cast"), "elementwise"),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), "pool"),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax"), "reduce"),
    **dict.fromkeys(("Softmax", "LogSoftmax"), "softmax"),
    **dict.fromkeys(("Gather", "GatherND", "GatherElements"), "gather"),
    **dict.fromkeys(("Slice", "Split"), "slice"),
    **dict.fromkeys(("Concat", "Transpose", "Pad", "Expand"), "copy"),
    "ReorderInput": "reorder_in",
    "ReorderOutput": "reorder_out",
    "ConvTranspose": "transposed",
}
"""Kinds of kernels by onnxruntime's operators; convolutions have several."""


def call_of(data: bytes, inputs: Inputs, threads: int) -> Callable[[], object]:
    """A call that runs an ONNX file on the inputs."""
    session = session_of(data, threads=threads)
    names = [given.name for given in session.get_inputs()]
    feed = dict(zip(names, arrays_of(inputs), strict=True))
    return lambda: session.run(None, feed)


class Session:
    """A session that writes down the time of every node.

    Args:
        data: the ONNX file.
        inputs: to run it on.
        threads: to compute with.
    """

    def __init__(self, data: bytes, inputs: Inputs, threads: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        prefix = str(Path(self._folder.name) / _FILE)
        self._session = session_of(data, threads=threads, profile=prefix)
        names = [given.name for given in self._session.get_inputs()]
        self._feed = dict(zip(names, arrays_of(inputs), strict=True))

    def run(self) -> None:
        """Run once."""
        self._session.run(None, self._feed)

    def nodes(self, block: int) -> list[Node]:
        """Nodes that were run, in the order of execution; the session is over then.

        Args:
            block: the channels that onnxruntime stores together on this CPU.
        """
        times, first = self._ended()
        return [
            node_of(name, args, statistics.median(times[name]), block)
            for name, args in first.items()
        ]

    def block(self) -> int:
        """The channels stored together where this session's result was computed.

        It shows where they come out of that layout, rounded up; 1 if they never were in one.
        """
        for args in self._ended()[1].values():
            if args["op_name"] == "ReorderOutput":
                return _shapes(args["input_type_shape"])[0][1]
        return 1

    def _ended(self) -> tuple[Mapping[str, list[float]], Mapping[str, Mapping[str, Any]]]:
        """The times of every node, in nanoseconds, and what the profile says of it first."""
        events = json.loads(Path(self._session.end_profiling()).read_text())
        self._folder.cleanup()
        times: defaultdict[str, list[float]] = defaultdict(list)
        first: dict[str, Mapping[str, Any]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith(_NODE):
                name = event["name"].removesuffix(_NODE)
                times[name].append(1e3 * event["dur"])
                first.setdefault(name, event["args"])
        return times, first


def node_of(name: str, args: Mapping[str, Any], nanoseconds: float, block: int) -> Node:
    """A node, from what onnxruntime's profile says of it."""
    given, results = _shapes(args["input_type_shape"]), _shapes(args["output_type_shape"])
    operator = args["op_name"]
    kind = _KINDS.get(operator, "other")
    moved = 4 * sum(map(math.prod, (*given, *results)))
    macs = 0
    if operator in ("Conv", "FusedConv", "NhwcFusedConv") and len(given) > 1:
        read, depth = given[0][1], given[1][1]
        groups = read // depth if depth < read // 2 or read == given[1][0] else 1
        inside = block if "_nchwc" in name else 1
        kind, macs = convolution(given[0], given[1], results[0], groups, inside)
    elif kind == "linear" and given and given[0] and results:
        macs = math.prod(results[0]) * given[0][-1]
        moved += 4 * given[0][-1] * results[0][-1]  # the weight, which is kept elsewhere
    elif kind == "matmul" and given and given[0] and results:
        macs = math.prod(results[0]) * given[0][-1]
    elif kind == "transposed" and len(given) > 1:
        macs = math.prod(given[0]) * math.prod(given[1][1:])
    elif kind in ("gather", "slice"):
        moved = 8 * sum(map(math.prod, results))
    return Node(name, kind, moved, macs, nanoseconds)


def _shapes(found: Sequence[Mapping[str, Sequence[int]]]) -> list[list[int]]:
    return [list(shape) for one in found for shape in one.values()]


def block_here() -> int:
    """The channels that onnxruntime stores together on this CPU; 1 if it has no such layout."""
    inputs = torch.zeros(1, 64, 8, 8)
    one = Session(file_of(nn.Conv2d(64, 4, 3), inputs), inputs, 1)
    one.run()
    return one.block()


ONNXRUNTIME = Backend(
    name="onnxruntime",
    prices=PRICES,
    check=lambda: check_format("onnx"),
    call_of=call_of,
    profiled=Session,
    block_here=block_here,
)
"""Onnxruntime."""
