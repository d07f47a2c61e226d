"""What tracing finds in a network, operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparing import EXACT, assert_lossless
from sample_networks import Net, images, keep, pruned_of
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.models import catalogue


def operations(graph: uo.ChannelGraph) -> dict[str, Any]:
    return {op.name: op for op in graph.operations}


def spec(graph: uo.ChannelGraph, name: str) -> tuple[int | None, int, int]:
    """Channel axis, number of channels, features per channel."""
    tensor = graph.tensors[name]
    return tensor.axis, len(tensor.channels), tensor.features


def test_input_layer_channelwise_and_output() -> None:
    graph = uo.trace(
        Net(
            lambda m, x: m.head(torch.relu(m.norm(m.stem(x)))),
            stem=nn.Conv2d(3, 8, 3),
            norm=nn.BatchNorm2d(8),
            head=nn.Conv2d(8, 4, 1, bias=False),
        ).eval(),
        images(2, 8),
    )
    ops = operations(graph)
    assert [op.kind for op in graph.operations] == [
        "input", "layer", "channelwise", "channelwise", "layer", "output",
    ]  # fmt: skip
    stem, norm, relu, head = ops["stem"], ops["norm"], ops["relu"], ops["head"]
    assert (stem.weight, stem.in_axis, stem.out_axis, stem.bias) == (
        "stem.weight", 1, 0, "stem.bias",
    )  # fmt: skip
    assert (head.weight, head.bias) == ("head.weight", None)
    assert norm.keeps_zero
    assert {(use.name, use.role) for use in norm.parameters} == {
        ("norm.weight", "scale"),
        ("norm.bias", "shift"),
        ("norm.running_mean", "mean"),
        ("norm.running_var", "neutral"),
    }
    assert relu.keeps_zero
    assert not relu.parameters
    assert graph.parameters["stem.weight"] == (8, 3, 3, 3)
    assert graph.tensors["stem"].shape == (2, 8, 6, 6)
    assert graph.tensors["stem"].dtype == "float32"
    assert spec(graph, "stem") == (1, 8, 1)
    assert (
        graph.tensors["stem"].channels
        == graph.tensors["norm"].channels
        == graph.tensors["relu"].channels
    )
    assert [(len(s.channels), s.fixed) for s in graph.spaces] == [
        (3, "network input"),
        (8, None),
        (4, "network output"),
    ]


def test_linear_flatten_and_features() -> None:
    graph = uo.trace(
        Net(
            lambda m, x: m.head(torch.flatten(torch.relu(m.stem(x)), 1)),
            stem=nn.Conv2d(3, 8, 3),
            head=nn.Linear(8 * 36, 4),
        ).eval(),
        images(2, 8),
    )
    flatten = operations(graph)["flatten"]
    assert flatten.kind == "channelwise"
    assert flatten.keeps_zero
    assert spec(graph, "flatten") == (1, 8, 36)
    assert graph.tensors["flatten"].channels == graph.tensors["stem"].channels
    assert operations(graph)["head"].kind == "layer"


def test_tokens_carry_channels_on_the_last_axis() -> None:
    graph = uo.trace(catalogue.build("topology/tokens"), images(2, 8))
    assert spec(graph, "flatten") == (1, 12, 1)
    assert spec(graph, "transpose") == (2, 12, 1)
    assert operations(graph)["mix"].kind == "layer"
    assert spec(graph, "mix") == (2, 16, 1)
    assert spec(graph, "add") == (2, 12, 1)
    assert not [op for op in graph.operations if op.kind == "opaque"]


def test_transposed_and_depthwise_convolutions() -> None:
    graph = uo.trace(
        Net(
            lambda m, x: m.head(m.dw(m.up(m.stem(x)))),
            stem=nn.Conv2d(3, 8, 1),
            up=nn.ConvTranspose2d(8, 6, 2),
            dw=nn.Conv2d(6, 6, 3, groups=6),
            head=nn.Conv2d(6, 4, 1),
        ).eval(),
        images(2, 8),
    )
    up, dw = operations(graph)["up"], operations(graph)["dw"]
    assert (up.kind, up.in_axis, up.out_axis) == ("layer", 0, 1)
    assert dw.kind == "channelwise"
    assert [(u.name, u.axis, u.role) for u in dw.parameters] == [
        ("dw.weight", 0, "scale"),
        ("dw.bias", 0, "shift"),
    ]
    assert graph.tensors["dw"].channels == graph.tensors["up"].channels


@pytest.mark.parametrize(
    ("combine", "rule", "additive"),
    [
        (torch.add, "all", True),
        (lambda a, b: a + b, "all", True),
        (torch.mul, "any", False),
        (torch.sub, "all", False),
        (torch.maximum, "all", False),
        (lambda a, b: torch.add(a, b, alpha=2), "all", False),
        (torch.logaddexp, "never", False),
        (lambda a, b: torch.lerp(a, b, 0.5), "all", False),
    ],
)
def test_elementwise(combine: Callable[..., Tensor], rule: str, additive: bool) -> None:
    graph = uo.trace(
        Net(
            lambda m, x: m.head(combine(m.left(x), m.right(x))),
            left=nn.Conv2d(3, 8, 1),
            right=nn.Conv2d(3, 8, 1),
            head=nn.Conv2d(8, 4, 1),
        ).eval(),
        images(2, 8),
    )
    (op,) = [op for op in graph.operations if op.kind == "elementwise"]
    assert (op.zero_if, op.additive) == (rule, additive)
    assert op.inputs == ("left", "right")
    assert graph.tensors["left"].channels == graph.tensors["right"].channels
    assert len(graph.spaces) == 3


def test_cat_select_and_their_spaces() -> None:
    graph = uo.trace(
        Net(
            lambda m, x: m.head(torch.cat([m.b(x), (a := m.a(x))[:, 2:6], a], 1)),
            a=nn.Conv2d(3, 8, 1),
            b=nn.Conv2d(3, 5, 1),
            head=nn.Conv2d(17, 4, 1),
        ).eval(),
        images(2, 8),
    )
    ops = operations(graph)
    (select,) = [op for op in graph.operations if op.kind == "select"]
    (cat,) = [op for op in graph.operations if op.kind == "concat"]
    assert select.positions == (2, 3, 4, 5)
    assert cat.inputs == ("b", select.outputs[0], "a")
    a, b = graph.tensors["a"].channels, graph.tensors["b"].channels
    assert graph.sequence(cat.outputs[0]) == (*b, *a[2:6], *a)
    assert len(graph.originals) == 8, "those held twice, for each time"
    free = {space.channels for space in graph.spaces if space.fixed is None}
    assert free == {b, a[:2], a[2:6], a[6:]}
    assert ops["head"].inputs == cat.outputs


def test_chunks_are_selects() -> None:
    graph = uo.trace(catalogue.build("topology/chunk_reordered"), images(2, 8))
    selects = [op for op in graph.operations if op.kind == "select"]
    assert [op.positions for op in selects] == [
        tuple(range(4)), tuple(range(4, 8)), tuple(range(8, 12)),
    ]  # fmt: skip
    assert [len(s.channels) for s in graph.spaces if s.fixed is None] == [4, 4, 4]


def test_a_flip_and_a_shuffle_are_selects_in_another_order() -> None:
    flipped = uo.trace(catalogue.build("topology/rolled_read"), images(2, 8))
    (roll,) = [op for op in flipped.operations if op.kind == "select"]
    assert roll.positions == (5, 6, 7, 0, 1, 2, 3, 4)


def test_a_parameter_added_to_a_stream_has_a_role_per_channel() -> None:
    graph = uo.trace(catalogue.build("topology/layer_scale"), images(2, 8))
    uses = [u for op in graph.operations if op.kind == "channelwise" for u in op.parameters]
    assert [(u.name, u.axis, u.role) for u in uses] == [
        ("scale", 0, "scale"),
        ("shift", 1, "shift"),
    ]


def test_a_parameter_joined_to_a_stream_is_a_constant() -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.ones(1, 8, 1, 1))
            self.stem = nn.Conv2d(3, 8, 1)
            self.head = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Any:
            return self.head(torch.maximum(self.token * 1.0, self.stem(x)))

    model = Token().eval()
    graph = uo.trace(model, images(2, 8))
    pruned = pruned_of(model, images(2, 8))
    assert pruned.report is not None
    assert pruned.report.float64_error < EXACT
    assert any("token" in name for name in graph.parameters)


@pytest.mark.parametrize(
    ("middle", "word"),
    [
        (lambda x: x.cumsum(1), "cumsum"),
        (lambda x: x @ x.transpose(2, 3), "mixes the channels"),
        (lambda x: x.sort(1)[0], "sort"),
        (nn.LayerNorm((8, 8, 8)), "other axes"),
    ],
)
def test_opaque_operations_say_why(middle: Callable[[Tensor], Tensor], word: str) -> None:
    layers = {"middle": middle} if isinstance(middle, nn.Module) else {}
    model = Net(
        lambda m, x: m.head(middle(m.stem(x))),
        stem=nn.Conv2d(3, 8, 1),
        head=nn.Conv2d(8, 4, 1),
        **layers,
    ).eval()
    if isinstance(middle, nn.Module):
        model.run = lambda m, x: m.head(m.middle(m.stem(x)))
    graph = uo.trace(model, images(2, 8))
    opaque = [op for op in graph.operations if op.kind == "opaque"]
    assert opaque
    assert word in " ".join(op.reason for op in opaque)
    space = next(s for s in graph.spaces if graph.tensors["stem"].channels[0] in s.channels)
    assert space.fixed is not None
    assert opaque[0].name in space.fixed
    pruned = pruned_of(model, images(2, 8))
    assert pruned.report is not None
    assert pruned.report.float64_error < EXACT


def test_two_parameters_on_one_storage_are_lossless() -> None:
    """Not the same parameter, but one memory: what is done to one shows in the other."""
    model = Net(
        lambda m, x: m.head(torch.relu(m.b(torch.relu(m.a(x))))),
        a=nn.Conv2d(3, 8, 1),
        b=nn.Conv2d(8, 8, 1),
        head=nn.Conv2d(8, 4, 1),
    ).eval()
    part = model.get_parameter("b.weight").detach()[:4]
    model.get_submodule("head").weight = nn.Parameter(part)
    keep(model.get_parameter("b.weight"), 1, [1, 2])
    pruned = uo.prune(model, images(2, 8))
    assert pruned.report is not None
    assert pruned.report.float64_error < EXACT


@pytest.mark.parametrize("name", ["swin_t", "googlenet"])
def test_networks_beyond_the_list_are_traced(name: str) -> None:
    model = catalogue.build(name)
    graph = uo.trace(model, torch.zeros(1, 3, 224, 224))
    layers = [op for op in graph.operations if op.kind == "layer"]
    assert len(layers) > 10
    assert all(op.reason for op in graph.operations if op.kind == "opaque")
    assert uo.ChannelGraph.from_json(graph.to_json()) == graph


@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_layer_alone_is_taken_apart(norm_first: bool) -> None:
    """In eval mode it is one call on PyTorch's fast path, unless tracing keeps it off that."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True, norm_first=norm_first)
    model = catalogue.randomize(layer.eval(), 1).double()
    x = torch.randn(2, 7, 16).double()
    pruned = pruned_of(model, x)
    assert pruned.graph.capture == "fx"
    assert {"attention", "layer"} <= {op.kind for op in pruned.graph.operations}
    assert not [op for op in pruned.graph.operations if op.kind == "opaque"]
    assert torch.backends.mha.get_fastpath_enabled()
    assert_lossless(pruned.masked, pruned.model, x)
    assert_lossless(pruned.masked, pruned.model, torch.randn(5, 9, 16).double())
