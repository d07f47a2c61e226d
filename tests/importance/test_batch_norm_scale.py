"""Batch-norm scales: which norms are nearest, by hand and by walking channel by channel."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from importance_reference import UNITS, WAYS, Small, masked, scores_of, segments_of, traced
from network_strategies import SEEDS
from sample_networks import Net
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.importance import BatchNormScale
from upscale_opt.importance.choosing import choose_masks
from upscale_opt.ir.graph import ChannelWise, Concat, Elementwise, Layer, Select
from upscale_opt.masking.segments import Method, Side, find_segments


class Scaled(Net):
    """Layers by name, and what to do with them; scales are 1.5, 2.5 … with changing signs."""

    def __init__(self, run: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__(run, **layers)
        self.double().eval()
        count = 0
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                scale = torch.arange(len(module.weight)) + count + 1.5
                count += len(module.weight)
                module.weight.data.copy_(scale * (-1) ** torch.arange(len(scale)))


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1)


def bn_scores(
    model: nn.Module, side: Side, method: Method = "unconstrained"
) -> dict[str, list[float] | None]:
    return scores_of(segments_of(model, method, side), BatchNormScale())


def test_the_norm_behind_and_the_norm_before() -> None:
    model = Scaled(
        lambda m, x: m.b(m.act(m.pool(m.norm(m.a(x))))),
        a=conv(3, 3),
        norm=nn.BatchNorm2d(3),
        pool=nn.MaxPool2d(2),
        act=nn.Sigmoid(),
        b=conv(3, 2),
    )
    assert bn_scores(model, "both") == {
        "a.weight (output)": [1.5, 2.5, 3.5],
        "b.weight (input)": [1.5, 2.5, 3.5],
    }


def test_through_what_keeps_channels_apart() -> None:
    model = Scaled(
        lambda m, x: m.b(m.depthwise(m.norm(m.plain(m.depthwise2(m.a(x).relu()))))),
        a=conv(3, 3),
        depthwise2=nn.Conv2d(3, 3, 3, padding=1, groups=3),
        plain=nn.BatchNorm2d(3, affine=False),
        norm=nn.BatchNorm2d(3),
        depthwise=nn.Conv2d(3, 3, 3, padding=1, groups=3),
        b=conv(3, 2),
    )
    assert bn_scores(model, "both") == {
        "a.weight (output)": [1.5, 2.5, 3.5],
        "b.weight (input)": [1.5, 2.5, 3.5],
    }


def test_only_the_nearest_counts() -> None:
    model = Scaled(
        lambda m, x: m.b(m.second(m.first(m.a(x)).relu())),
        a=conv(3, 2),
        first=nn.BatchNorm2d(2),
        second=nn.BatchNorm2d(2),
        b=conv(2, 2),
    )
    assert bn_scores(model, "both") == {
        "a.weight (output)": [1.5, 2.5],
        "b.weight (input)": [3.5, 4.5],
    }


def test_concatenations_and_slices() -> None:
    def run(m: Any, x: Tensor) -> Any:
        one, two = m.a(x), m.b(x)
        joined = m.norm(torch.cat([two, one], dim=1)).relu()
        left, right = joined.chunk(2, dim=1)
        return m.c(left), m.d(right), m.e(joined.flip(1))

    model = Scaled(
        run,
        a=conv(3, 3),
        b=conv(3, 1),
        norm=nn.BatchNorm2d(4),
        c=conv(2, 1),
        d=conv(2, 1),
        e=conv(4, 1),
    )
    assert bn_scores(model, "both") == {
        "a.weight (output)": [2.5, 3.5, 4.5],
        "b.weight (output)": [1.5],
        "c.weight (input)": [1.5, 2.5],
        "d.weight (input)": [3.5, 4.5],
        "e.weight (input)": [4.5, 3.5, 2.5, 1.5],
    }


def test_channels_that_are_repeated() -> None:
    model = Scaled(
        lambda m, x: m.b(m.norm(m.a(x).repeat(1, 2, 1, 1))),
        a=conv(3, 2),
        norm=nn.BatchNorm2d(4),
        b=conv(4, 2),
    )
    found = bn_scores(model, "both")
    assert found["a.weight (output)"] == [2.5, 3.5]
    assert found["b.weight (input)"] == [1.5, 2.5, 3.5, 4.5]


def test_the_mean_of_all_readers_norms() -> None:
    def run(m: Any, x: Tensor) -> Any:
        x = m.a(x)
        return m.b(m.first(x)), m.c(m.second(x)), m.d(x)

    model = Scaled(
        run,
        a=conv(3, 2),
        first=nn.BatchNorm2d(2),
        second=nn.BatchNorm2d(2),
        b=conv(2, 1),
        c=conv(2, 1),
        d=conv(2, 1),
    )
    assert bn_scores(model, "output") == {"a.weight (output)": [2.5, 3.5]}
    assert bn_scores(model, "input") == {
        "b.weight (input)": [1.5, 2.5],
        "c.weight (input)": [3.5, 4.5],
        "d.weight (input)": None,
    }


def test_sums_are_crossed_only_where_nothing_is_nearer() -> None:
    def run(m: Any, x: Tensor) -> Any:
        x = m.norm(m.a(x))
        x = (x + m.b(x)).relu()
        return m.c(m.behind(x))

    model = Scaled(
        run,
        a=conv(3, 2),
        norm=nn.BatchNorm2d(2),
        b=conv(2, 2),
        behind=nn.BatchNorm2d(2),
        c=conv(2, 1),
    )
    assert bn_scores(model, "both") == {
        "a.weight (output)": [1.5, 2.5],
        "b.weight (input)": [1.5, 2.5],
        "b.weight (output)": [3.5, 4.5],
        "c.weight (input)": [3.5, 4.5],
    }


def test_all_operands_of_sums_and_products_before_a_layer() -> None:
    def run(m: Any, x: Tensor) -> Any:
        x = m.one(m.a(x)).relu()
        x = x + m.two(m.b(x))
        x = x * m.c(x.mean((2, 3), keepdim=True)).sigmoid()
        return m.d(x)

    model = Scaled(
        run,
        a=conv(3, 2),
        one=nn.BatchNorm2d(2),
        b=conv(2, 2),
        two=nn.BatchNorm2d(2),
        c=conv(2, 2),
        d=conv(2, 1),
    )
    found = bn_scores(model, "both")
    assert found["b.weight (input)"] == [1.5, 2.5]
    assert found["c.weight (input)"] == [2.5, 3.5]
    assert found["d.weight (input)"] == [2.5, 3.5]
    assert found["c.weight (output)"] is None


def test_a_norm_that_is_met_twice_counts_once() -> None:
    def run(m: Any, x: Tensor) -> Any:
        x = m.one(m.a(x))
        return m.c(x * x.sigmoid() + m.two(m.b(x)))

    model = Scaled(
        run,
        a=conv(3, 1),
        one=nn.BatchNorm2d(1),
        b=conv(1, 1),
        two=nn.BatchNorm2d(1),
        c=conv(1, 1),
    )
    assert bn_scores(model, "input")["c.weight (input)"] == [2.0]


def test_features_of_a_flattened_image() -> None:
    model = Scaled(
        lambda m, x: m.b(m.norm(m.a(x).flatten(1))),
        a=nn.Conv2d(3, 3, 5),
        norm=nn.BatchNorm1d(12),
        b=nn.Linear(12, 2),
    )
    means = [(first + first + 3) / 2 for first in (1.5, 5.5, 9.5)]  # of 4 features each
    assert bn_scores(model, "both") == {"a.weight (output)": means, "b.weight (input)": means}


def test_channels_without_a_norm_go_last() -> None:
    def run(m: Any, x: Tensor) -> Any:
        return m.c(torch.cat([m.norm(m.a(x)), m.b(x)], dim=1))

    model = Scaled(run, a=conv(3, 3), norm=nn.BatchNorm2d(3), b=conv(3, 2), c=conv(5, 1))
    infinite = float("inf")
    assert bn_scores(model, "both") == {
        "a.weight (output)": [1.5, 2.5, 3.5],
        "b.weight (output)": None,
        "c.weight (input)": [1.5, 2.5, 3.5, infinite, infinite],
    }
    graph = traced(model)
    for amount, kept in ((0.4, (2, 3, 4)), (0.8, (4,))):
        masks = choose_masks(model, graph, amount, criterion=BatchNormScale())
        assert masks.kept["c.weight"][1] == kept


def test_norms_without_running_statistics() -> None:
    model = Scaled(
        lambda m, x: m.b(m.norm(m.a(x))),
        a=conv(3, 2),
        norm=nn.BatchNorm2d(2, track_running_stats=False),
        b=conv(2, 1),
    )
    assert bn_scores(model, "input") == {"b.weight (input)": [1.5, 2.5]}


def test_layer_scale_is_no_batch_norm() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(3, 2), conv(2, 1)
            self.scale = nn.Parameter(torch.randn(2, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(self.a(x) * self.scale)
            return out

    with pytest.raises(uo.MaskError, match="BatchNormScale has nothing to say"):
        bn_scores(Scaled().double(), "input")


def test_groups_count_all_their_norms_once() -> None:
    def run(m: Any, x: Tensor) -> Any:
        x = m.one(m.a(x)).relu()
        x = x + m.two(m.b(x))
        return m.c(x), m.d(x)

    model = Scaled(
        run,
        a=conv(3, 2),
        one=nn.BatchNorm2d(2),
        b=conv(2, 2),
        two=nn.BatchNorm2d(2),
        c=conv(2, 1),
        d=conv(2, 1),
    )
    sides: list[Side] = ["input", "output", "both"]
    for side in sides:
        found = list(bn_scores(model, side, "constrained").values())
        assert found == [[2.5, 3.5]]


@pytest.mark.parametrize(("method", "side"), WAYS)
@pytest.mark.parametrize("together", [False, True])
def test_norms_choose_masks_per_layer_and_globally(
    method: Method, side: Side, together: bool
) -> None:
    model = Small()
    own, other = (n.weight.detach().abs().tolist() for n in (model.norm, model.body_norm))
    stream = [(a + b) / 2 for a, b in zip(own, other, strict=True)]
    head = [*stream, *[float("inf")] * 3]
    scores: dict[tuple[Method, Side], list[list[float] | None]] = {
        ("unconstrained", "input"): [own, stream, head, None],
        ("unconstrained", "output"): [own, other, None, None],
        ("unconstrained", "both"): [own, own, other, stream, None, head, None, None],
        ("constrained", "input"): [stream, None, None],
        ("constrained", "output"): [stream, None, None],
        ("constrained", "both"): [stream, None, None],
    }
    masks = choose_masks(
        model,
        traced(model),
        0.5,
        criterion=BatchNormScale(),
        method=method,
        side=side,
        is_global=together,
    )
    expected = masked(UNITS[method, side], scores[method, side], 0.5, together)
    for (weight, axis), kept in expected.items():
        assert set(masks.kept[weight][axis]) == kept, (weight, axis)


def _walk_ahead(graph: uo.ChannelGraph, tensor: str, place: int, sums: bool) -> set[Any]:
    """The next norms of one channel, step by step."""
    near: set[Any] = set()
    far: set[Any] = set()
    for op in graph.operations:
        if isinstance(op, ChannelWise) and tensor in op.inputs:
            if any(u.role == "mean" for u in op.parameters) and any(
                u.role == "scale" for u in op.parameters
            ):
                near.add((op.parameters[0].name, place))
            else:
                near |= _walk_ahead(graph, op.outputs[0], place, False)
                far |= _walk_ahead(graph, op.outputs[0], place, True)
        elif isinstance(op, Elementwise) and tensor in op.inputs:
            far |= _walk_ahead(graph, op.outputs[0], place, True)
        elif isinstance(op, Concat):
            start = 0
            for name in op.inputs:
                if name == tensor:
                    near |= _walk_ahead(graph, op.outputs[0], start + place, False)
                    far |= _walk_ahead(graph, op.outputs[0], start + place, True)
                start += len(graph.tensors[name].channels)
        elif isinstance(op, Select) and tensor in op.inputs:
            for at, position in enumerate(op.positions):
                if position == place:
                    near |= _walk_ahead(graph, op.outputs[0], at, False)
                    far |= _walk_ahead(graph, op.outputs[0], at, True)
    return near or far if sums else near


def _walk_behind(graph: uo.ChannelGraph, tensor: str, place: int) -> set[Any]:
    """The last norms of one channel, step by step."""
    op = next(op for op in graph.operations if tensor in op.outputs)
    if isinstance(op, ChannelWise) and any(u.role == "mean" for u in op.parameters):
        scale = next((u.name for u in op.parameters if u.role == "scale"), None)
        if scale is not None:
            return {(scale, place)}
    if isinstance(op, ChannelWise | Elementwise):
        return set().union(*(_walk_behind(graph, name, place) for name in op.inputs))
    if isinstance(op, Concat):
        for name in op.inputs:
            size = len(graph.tensors[name].channels)
            if place < size:
                return _walk_behind(graph, name, place)
            place -= size
    if isinstance(op, Select):
        return _walk_behind(graph, op.inputs[0], op.positions[place])
    return set()


class Drawn(nn.Module):
    """A random network with many norms, sums, concatenations and slices."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.steps: list[tuple[str, int, int]] = []
        self.layers = nn.ModuleDict({"stem": conv(3, 4)})
        sizes = [4]
        for number in range(draw.randint(3, 14)):
            kind = draw.choice(
                ["norm", "norm", "conv", "relu", "add", "mul", "cat", "half", "flip"]
            )
            one, two = draw.randrange(len(sizes)), draw.randrange(len(sizes))
            size = sizes[one]
            if kind in ("add", "mul") and sizes[two] != size:
                kind = "conv"
            if kind == "half" and size < 4:
                kind = "flip"
            self.steps.append((kind, one, two))
            if kind == "norm":
                self.layers[str(number)] = nn.BatchNorm2d(size)
            elif kind == "conv":
                outputs = draw.choice([2, 4])
                self.layers[str(number)] = conv(size, outputs)
                size = outputs
            sizes.append({"cat": size + sizes[two], "half": size // 2}.get(kind, size))
        self.double().eval()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape))

    def forward(self, x: Tensor) -> list[Tensor]:
        found = [self.layers["stem"](x)]
        for number, (kind, one, two) in enumerate(self.steps):
            left, right = found[one], found[two]
            if kind in ("norm", "conv"):
                found.append(self.layers[str(number)](left))
            elif kind == "cat":
                found.append(torch.cat([left, right], dim=1))
            elif kind in ("add", "mul"):
                found.append(left + right if kind == "add" else left * right)
            elif kind == "half":
                found.append(left.chunk(2, dim=1)[1])
            else:
                found.append(left.relu() if kind == "relu" else left.flip(1))
        return [value.mean() for value in found]


@given(seed=SEEDS)
@example(seed=1079)
@settings(max_examples=25, deadline=None)
def test_norms_of_random_networks(seed: int) -> None:
    model = Drawn(seed)
    graph = traced(model)
    segments = find_segments(model, graph, "both")
    criterion = BatchNormScale()
    criterion.prepare(segments)
    layers = {op.weight: op for op in graph.operations if isinstance(op, Layer)}
    tensors = dict(model.named_parameters())
    features = {  # a channel tied to itself flipped holds two elements
        use.name: graph.tensors[op.outputs[0]].features
        for op in graph.operations
        if isinstance(op, ChannelWise)
        for use in op.parameters
    }
    for segment in segments:
        (share,) = segment.shares
        layer = layers[share.weight]
        expected = []
        for place in range(len(segment.channels)):
            if share.side == "input":
                met = _walk_behind(graph, layer.inputs[0], place)
            else:
                met = _walk_ahead(graph, layer.outputs[0], place, True)
            values = [
                float(tensors[name].detach().abs().reshape(-1, features[name])[at].mean())
                for name, at in met
            ]
            expected.append(statistics.fmean(values) if values else float("inf"))
        scores = criterion.score(segment)
        if all(value == float("inf") for value in expected):
            assert scores is None
        else:
            assert scores is not None
            assert scores.tolist() == pytest.approx(expected)
