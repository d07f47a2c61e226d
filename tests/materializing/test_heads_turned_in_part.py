"""Attention of which a part of each head is turned, or whose heads share keys, in all shapes."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from comparing import EXACT, call, deviation
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import upscale_opt as uo
from upscale_opt.ir import graph as ir
from upscale_opt.ir.graph import slices_of


@dataclass(frozen=True)
class Shape:
    """The shape of an attention layer.

    Attributes:
        heads: of queries.
        keys: heads of keys and values.
        size: channels of a head.
        turned: how many of them are turned.
        last: the turned channels are a head's last ones.
        written: scores are multiplied and weighted one after the other.
        fused: one projection for queries, keys and values.
    """

    heads: int
    keys: int
    size: int
    turned: int
    last: bool = False
    written: bool = False
    fused: Literal["", "by part", "by head"] = ""


def rotate_half(x: Tensor) -> Tensor:
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


class Turning(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = [shape]  # out of sight
        width, narrow = shape.heads * shape.size, shape.keys * shape.size
        self.stem = nn.Linear(6, 8)
        if shape.fused:
            self.qkv = nn.Linear(8, width + 2 * narrow)
        else:
            self.q, self.k, self.v = (nn.Linear(8, n) for n in (width, narrow, narrow))
        self.o = nn.Linear(width, 8)
        self.head = nn.Linear(8, 3)

    def turned(self, x: Tensor) -> Tensor:
        """Queries or keys, of shape (batch, heads, tokens, channels), with some of them turned."""
        (shape,) = self.shape
        if not shape.turned:
            return x
        speeds = 1 / 7 ** (torch.arange(0, shape.turned, 2, dtype=x.dtype) / shape.turned)
        angles = torch.arange(x.shape[2])[:, None] * speeds
        angles = torch.cat((angles, angles), dim=-1)[None, None]
        cos, sin = angles.cos(), angles.sin()
        if shape.turned == shape.size:
            return (x * cos) + (rotate_half(x) * sin)
        rest = shape.size - shape.turned
        if shape.last:
            own, other = x[..., rest:], x[..., :rest]
            return torch.cat((other, (own * cos) + (rotate_half(own) * sin)), dim=-1)
        own, other = x[..., : shape.turned], x[..., shape.turned :]
        return torch.cat(((own * cos) + (rotate_half(own) * sin), other), dim=-1)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (shape,) = self.shape
        cut = (*x.shape[:-1], -1, shape.size)
        if shape.fused == "by head":  # queries, keys and values of one head beside each other
            qkv = self.qkv(x).view(*x.shape[:-1], -1, 3 * shape.size).transpose(1, 2)
            q, k, v = qkv.chunk(3, dim=-1)
            return q, k, v
        if shape.fused:
            width, narrow = shape.heads * shape.size, shape.keys * shape.size
            found = self.qkv(x).split([width, narrow, narrow], dim=-1)
        else:
            found = self.q(x), self.k(x), self.v(x)
        q, k, v = (part.view(cut).transpose(1, 2) for part in found)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        (shape,) = self.shape
        x = self.stem(x)
        q, k, v = self.parts(x)
        q, k = self.turned(q), self.turned(k)
        k, v = self.repeated(k), self.repeated(v)
        if shape.written:
            scores = torch.matmul(q, k.transpose(2, 3)) * shape.size**-0.5
            mixed = torch.matmul(scores.softmax(dim=-1), v)
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(*x.shape[:-1], -1)
        result: Tensor = self.head(x + self.o(mixed))
        return result

    def repeated(self, x: Tensor) -> Tensor:
        (shape,) = self.shape
        if shape.heads == shape.keys:
            return x
        batch, heads, length, size = x.shape
        copies = shape.heads // shape.keys
        x = x[:, :, None, :, :].expand(batch, heads, copies, length, size)
        return x.reshape(batch, heads * copies, length, size)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    size = draw(st.integers(2, 9))
    keys, copies = draw(st.sampled_from([(1, 2), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1), (2, 3)]))
    ways = ["", "by part", *(["by head"] if copies == 1 else [])]
    return Shape(
        heads=keys * copies,
        keys=keys,
        size=size,
        turned=draw(st.sampled_from(range(0, size + 1, 2))),
        last=draw(st.booleans()),
        written=draw(st.booleans()),
        fused=draw(st.sampled_from(ways)),
    )


def network(shape: Shape, seed: int) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = Turning(shape).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape) / 3)
    return model


def inputs(batch: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, length, 6, generator=generator, dtype=torch.float64)


def mask(model: nn.Module, graph: uo.ChannelGraph, shape: Shape, seed: int, side: str) -> None:
    """Drop random rows, columns or both, of which many are the same in every head."""
    rng = random.Random(seed)
    kept: dict[str, dict[int, tuple[int, ...]]] = {}
    for op in graph.operations:
        if not isinstance(op, ir.Layer):
            continue
        axes = {"input": [op.in_axis], "output": [op.out_axis]}
        for axis in axes.get(side, [op.in_axis, op.out_axis]):
            size, share = slices_of(graph, op.weight, axis), rng.choice((0, 0.2, 0.5, 0.8))
            in_head = [rng.random() < share for _ in range(shape.size)]
            if rng.random() < 0.5:  # pairs
                half = shape.turned // 2
                start = shape.size - shape.turned if shape.last else 0
                in_head[start + half : start + 2 * half] = in_head[start : start + half]
            alike = rng.random() < 0.7
            kept.setdefault(op.weight, {})[axis] = tuple(
                i
                for i in range(size)
                if (in_head[i % shape.size] if alike else rng.random() < share)
            )
    uo.apply_masks(model, graph, uo.Masks(kept=kept))


@settings(max_examples=16, deadline=None)
@given(
    shape=shapes(), seed=st.integers(0, 2**20), side=st.sampled_from(["input", "output", "both"])
)
def test_lossless(shape: Shape, seed: int, side: str) -> None:
    model = network(shape, seed)
    graph = uo.trace(model, inputs(2, 6))
    assert any(isinstance(op, ir.Attention) for op in graph.operations)
    mask(model, graph, shape, seed, side)
    masks = uo.masks_of(model, graph)
    solution = uo.solve(graph, masks)
    uo.check(solution, graph, masks)
    pruned = uo.materialize(model, solution)
    for batch, length in ((2, 6), (3, 10), (4, 2)):
        x = inputs(batch, length)
        assert deviation(call(model, x), call(pruned, x)) < EXACT


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("keys", [1, 2, 4])
@pytest.mark.parametrize("layer", ["q", "k"])
def test_heads_lose_as_many_pairs_and_as_many_others(layer: str, keys: int, last: bool) -> None:
    """Heads that lose equally much, but of different kinds, keep some of it."""
    shape = Shape(4, keys, 10, 6, last)
    model, x = network(shape, 0), inputs(2, 6)
    graph = uo.trace(model, x)
    weight, bias = (model.get_parameter(f"{layer}.{name}") for name in ("weight", "bias"))
    turned, rest = (range(4, 10), range(4)) if last else (range(6), range(6, 10))
    lost = [(*turned[::3], *rest[:3]), (*turned[::3], *turned[1::3], rest[0])]
    with torch.no_grad():
        for head in range(len(weight) // shape.size):
            group = head * keys // (len(weight) // shape.size)  # which shares a head of keys
            for gone in lost[group % 2]:
                weight[head * shape.size + gone], bias[head * shape.size + gone] = 0, 0
    pruned = uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))
    left = {name: len(value) for name, value in pruned.named_parameters()}
    kept = 2 * 2 + (1 if keys == 1 else 3)  # one pair is gone from all, and one or three others
    assert left["q.weight"] == 4 * kept
    assert left["k.weight"] == keys * kept
    for other in (x, inputs(3, 9)):
        assert deviation(call(model, other), call(pruned, other)) < EXACT
