"""Nodes of other programs by their profiles, and forecasts of what they run."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from three_readers import stream
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.in_runtimes import openvino
from upscale_opt.in_runtimes.nodes import file_of
from upscale_opt.in_runtimes.onnxruntime import Session, block_here, node_of
from upscale_opt.ir.cost_model import (
    CostModel,
    KernelCost,
    whole_blocks,
)
from upscale_opt.ir.profiles import profile
from upscale_opt.solver.forecast import forecast


def shapes(*found: list[int]) -> list[dict[str, list[int]]]:
    return [{"float": shape} for shape in found]


NODES: dict[str, tuple[str, dict[str, Any], tuple[str, int, int]]] = {
    "in blocks": (
        "relu_nchwc",
        {"op_name": "Conv", "in": ([1, 20, 8, 8], [10, 20, 3, 3], [10]), "out": ([1, 10, 8, 8],)},
        ("conv", 64 * 9 * 16 * 32, 4 * (1280 + 1800 + 10 + 640)),
    ),
    "of an image's three channels": (
        "relu_nchwc_token_3",
        {"op_name": "Conv", "in": ([1, 3, 8, 8], [10, 3, 3, 3]), "out": ([1, 10, 8, 8],)},
        ("conv", 64 * 9 * 16 * 3, 4 * (192 + 270 + 640)),
    ),
    "outside": (
        "node_conv2d",
        {"op_name": "FusedConv", "in": ([1, 6, 8, 8], [10, 6, 1, 1]), "out": ([1, 10, 8, 8],)},
        ("plain1x1", 64 * 10 * 6, 4 * (384 + 60 + 640)),
    ),
    "depthwise": (
        "node_conv2d",
        {"op_name": "Conv", "in": ([1, 6, 8, 8], [6, 1, 3, 3]), "out": ([1, 6, 8, 8],)},
        ("plain_depthwise", 64 * 9 * 6, 4 * (384 + 54 + 384)),
    ),
    "a norm": (
        "x_nchwc",
        {"op_name": "Conv", "in": ([1, 16, 8, 8], [16, 1, 1, 1]), "out": ([1, 16, 8, 8],)},
        ("norm", 0, 4 * (1024 + 16 + 1024)),
    ),
    "a slice": (
        "node_slice",
        {"op_name": "Slice", "in": ([1, 9, 8, 8], [1]), "out": ([1, 4, 8, 8],)},
        ("slice", 0, 8 * 256),
    ),
    "a product": (
        "node_linear",
        {"op_name": "Gemm", "in": ([2, 30], [10]), "out": ([2, 10],)},
        ("linear", 600, 4 * (60 + 10 + 20 + 300)),
    ),
    "unknown": ("x", {"op_name": "Einsum", "in": ([4],), "out": ([4],)}, ("other", 0, 32)),
}


@pytest.mark.parametrize("case", NODES)
def test_nodes_by_hand(case: str) -> None:
    name, said, (kind, macs, moved) = NODES[case]
    args = {
        "op_name": said["op_name"],
        "input_type_shape": shapes(*said["in"]),
        "output_type_shape": shapes(*said["out"]),
    }
    node = node_of(name, args, 5.0, 16)
    assert (node.kind, node.macs, node.bytes) == (kind, macs, moved)


OPENVINO_NODES: dict[str, tuple[str, tuple[list[int], ...], list[int], tuple[str, int, int]]] = {
    "a convolution": (
        "Convolution",
        ([1, 20, 8, 8], [10, 20, 3, 3]),
        [1, 10, 8, 8],
        ("conv", 64 * 9 * 16 * 20, 4 * (1280 + 1800 + 640)),
    ),
    "a pointwise one": (
        "Convolution",
        ([1, 20, 8, 8], [16, 20, 1, 1]),
        [1, 16, 8, 8],
        ("conv1x1", 64 * 16 * 20, 4 * (1280 + 320 + 1024)),
    ),
    "depthwise": (
        "Convolution",
        ([1, 6, 8, 8], [6, 1, 1, 3, 3]),
        [1, 6, 8, 8],
        ("depthwise", 64 * 9 * 6, 4 * (384 + 54 + 384)),
    ),
    "in groups": (
        "Convolution",
        ([1, 8, 8, 8], [2, 3, 4, 3, 3]),
        [1, 6, 8, 8],
        ("grouped", 64 * 9 * 6 * 4, 4 * (512 + 216 + 384)),
    ),
    "a transposed one in groups": (
        "Deconvolution",
        ([1, 16, 8, 8], [4, 4, 4, 3, 3]),
        [1, 16, 10, 10],
        ("transposed", 64 * 16 * 4 * 9, 4 * (1024 + 576 + 1600)),
    ),
    "a product": ("FullyConnected", ([2, 30], [10, 30]), [2, 10], ("linear", 600, 1520)),
    "a slice": ("StridedSlice", ([1, 9, 8, 8], [1]), [1, 4, 8, 8], ("slice", 0, 8 * 256)),
    "a gather": ("Gather", ([1, 9, 8, 8], [4]), [1, 4, 8, 8], ("gather", 0, 8 * 256)),
    "a way out": ("Reorder", ([1, 9, 8, 8],), [1, 9, 8, 8], ("reorder_out", 0, 8 * 576)),
    "unknown": ("Einsum", ([4],), [4], ("other", 0, 32)),
}


@pytest.mark.parametrize("case", OPENVINO_NODES)
def test_nodes_of_openvino_by_hand(case: str) -> None:
    what, given, result, (kind, macs, moved) = OPENVINO_NODES[case]
    info = {"layerType": what, "outputLayouts": "abcd"}
    node = openvino.node_of("x", info, given, [result], 5.0, 16)
    assert (node.kind, node.macs, node.bytes) == (kind, macs, moved)
    inside = openvino.node_of("x", {**info, "outputLayouts": "acdb"}, given, [result], 5.0, 16)
    assert inside.kind == ("reorder_in" if what == "Reorder" else kind)


class Selecting(nn.Module):
    """A part of what a convolution writes, for another one: a slice or a gather."""

    def __init__(self, channels: list[int] | slice) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Of shape (N, 32, H, W)."""
        y: Tensor = self.second(torch.relu(self.first(x))[:, self.channels])
        return y


def test_what_prices_say_of_openvino_is_what_it_does() -> None:
    """A gather is put between reorders there, a slice is not."""
    x = torch.randn(1, 3, 24, 24)
    kinds = {}
    channels: dict[str, list[int] | slice] = {"slice": slice(4, 20), "gather": [*range(0, 32, 2)]}
    for name, chosen in channels.items():
        one = openvino.Session(file_of(Selecting(chosen).eval(), x), x, 1)
        one.run()
        kinds[name] = Counter(node.kind for node in one.nodes(16))
    assert kinds["slice"]["conv"] == kinds["gather"]["conv"] == 2
    assert kinds["slice"]["slice"] == kinds["gather"]["gather"] == 1
    reorders = {name: own["reorder_in"] + own["reorder_out"] for name, own in kinds.items()}
    assert reorders["gather"] == reorders["slice"] + 2


def test_widths_in_blocks() -> None:
    assert [whole_blocks(width, 16) for width in (1, 16, 17)] == [16, 16, 32]
    assert block_here() in (1, 4, 8, 16)


def test_a_whole_tensor_leaves_no_slice_and_no_gather() -> None:
    """What the plan says of reads is what onnxruntime runs."""
    model, x = stream()
    graph = uo.trace(model, x)
    masks = uo.masks_of(model, graph)
    built_in = profile("onnxruntime")
    free = {"conv": built_in.kernels["conv"].model_copy(update={"ns_per_mac": 0.0})}
    cheap = built_in.model_copy(update={"kernels": {**built_in.kernels, **free}})
    kinds = {}
    both: dict[str, str | CostModel] = {"eager": "cpu", "whole": cheap}
    for name, prices in both.items():
        solution = uo.solve(graph, masks, objective="latency", cost_model=prices)
        pruned = uo.materialize(model, solution)
        uo.verify(model, pruned, x)
        one = Session(file_of(pruned, x), x, 1)
        one.run()
        kinds[name] = [node.kind for node in one.nodes(1)]
    moves = {"slice", "gather"}
    assert moves & set(kinds["eager"])
    assert not moves & set(kinds["whole"])


def counting(kind: str, block: int) -> CostModel:
    """A cost model by which a kernel of one kind takes a nanosecond, and all others nothing."""
    built_in = profile("onnxruntime")
    free = KernelCost(launch=0, ns_per_byte=0)
    kernels = dict.fromkeys(built_in.kernels, free) | {kind: KernelCost(launch=1, ns_per_byte=0)}
    steps = {"block": block, "align": min(block, 4)}
    return built_in.model_copy(update={"kernels": kernels, **steps})


@pytest.mark.parametrize("prices", ["cpu", "openvino"])
def test_the_forecast_of_openvino_has_the_moves_that_run(prices: str) -> None:
    """Slices and gathers, and the ways into the layout and out of it: as many as there are."""
    model, x = stream()
    graph = uo.trace(model, x)
    solution = uo.solve(graph, uo.masks_of(model, graph), objective="latency", cost_model=prices)
    one = openvino.Session(file_of(uo.materialize(model, solution), x), x, 1)
    one.run()
    ran = Counter(node.kind for node in one.nodes(16))
    built_in = profile("openvino")
    free = KernelCost(launch=0, ns_per_byte=0)
    for kind in ("slice", "gather", "conv", "reorder_in"):
        kernels = dict.fromkeys(built_in.kernels, free) | {
            kind: KernelCost(launch=1, ns_per_byte=0)
        }
        counted = built_in.model_copy(update={"kernels": kernels})
        assert forecast(graph, solution, counted) == ran[kind], kind


@pytest.mark.parametrize("prices", ["cpu", "onnxruntime"])
def test_the_forecast_has_the_nodes_that_run(prices: str) -> None:
    """Convolutions in the layout and outside, slices, gathers, reorders: as many as there are."""
    block = block_here()
    model, x = stream()
    graph = uo.trace(model, x)
    solution = uo.solve(graph, uo.masks_of(model, graph), objective="latency", cost_model=prices)
    one = Session(file_of(uo.materialize(model, solution), x), x, 1)
    one.run()
    ran = Counter(node.kind for node in one.nodes(block))
    seen = ("conv", "conv1x1", "plain", "plain1x1", "slice", "gather", "reorder_in", "reorder_out")
    for kind in seen:
        assert forecast(graph, solution, counting(kind, block)) == ran[kind], kind
    assert ran["conv"] + ran["plain"] == 4
