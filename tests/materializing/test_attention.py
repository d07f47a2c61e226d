"""Attention: the channels of every head, of queries and keys and of values, are removed."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import EXACT, call, deviation
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

import upscale_opt as uo
from upscale_opt.ir import graph as ir
from upscale_opt.ir.graph import slices_of
from upscale_opt.runtime.swin import join_windows, split_windows
from upscale_opt.solver.checking.check import damage

WIDTH, HEADS = 12, 3


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    """Tokens of six features, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, 6, generator=generator, dtype=torch.float64)


def image(batch: int, size: int, seed: int = 0) -> Tensor:
    """Square images of six features, channels last, in float64."""
    return tokens(batch, size * size, seed).reshape(batch, size, size, 6)


class Net(nn.Module):
    """A layer, attention given as a function of the layer's result, and another layer.

    Args:
        function: takes this module and tokens of twelve features.
        parts: the modules and tensors that it uses.
    """

    def __init__(self, function: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        self.stem = nn.Linear(6, WIDTH)
        self.head = nn.Linear(WIDTH, 4)
        for name, part in parts.items():
            setattr(self, name, part)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape) / 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        y = self.function(self, x)
        return (self.head(x + y[0]), *y[1:]) if isinstance(y, tuple) else self.head(x + y)


def fused(m: Any, x: Tensor) -> Tensor:
    batch, length, width = x.shape
    parts = m.qkv(x).reshape(batch, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
    query, key, value = parts.unbind(0)
    mixed = functional.scaled_dot_product_attention(query, key, value)
    result: Tensor = m.proj(mixed.transpose(1, 2).reshape(batch, length, width))
    return result


def written(m: Any, x: Tensor) -> Tensor:
    batch, length, width = x.shape
    parts = m.qkv(x).reshape(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    query = parts[0] * parts[0].shape[-1] ** -0.5
    scores = query @ parts[1].transpose(-2, -1)
    mixed = functional.dropout(scores.softmax(dim=-1), 0.1, False) @ parts[2]
    result: Tensor = m.proj(mixed.transpose(1, 2).reshape(batch, length, width))
    return result


def split(m: Any, x: Tensor) -> list[Tensor]:
    return [
        part.view(x.size(0), x.size(1), HEADS, WIDTH // HEADS).transpose(1, 2)
        for part in (m.query(x), m.key(x), m.value(x))
    ]


def separate(m: Any, x: Tensor) -> Tensor:
    query, key, value = split(m, x)
    scores = torch.matmul(0.5 * query, key.mT) / 2 + m.bias
    mixed = torch.matmul(functional.softmax(scores, dim=-1), value)
    result: Tensor = m.proj(mixed.transpose(1, 2).flatten(2))
    return result


def masked(m: Any, x: Tensor) -> Tensor:
    q, k, v = split(m, x)
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=m.bias, scale=0.7)
    result: Tensor = m.proj(mixed.transpose(1, 2).flatten(2))
    return result


def causal(m: Any, x: Tensor) -> Tensor:
    q, k, v = split(m, x)
    mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    result: Tensor = m.proj(mixed.transpose(1, 2).flatten(2))
    return result


def normed(m: Any, x: Tensor) -> Tensor:
    query, key, value = split(m, x)
    mixed = functional.scaled_dot_product_attention(m.norm(query), m.norm(key), value)
    result: Tensor = m.proj(mixed.transpose(1, 2).flatten(2))
    return result


def single(m: Any, x: Tensor) -> Tensor:
    weights = torch.bmm(m.query(x), m.key(x).transpose(1, 2)).softmax(-1)
    result: Tensor = m.proj(torch.bmm(weights, m.value(x)))
    return result


def torchs(m: Any, x: Tensor) -> Tensor:
    result: Tensor = m.attention(x, x, x, need_weights=False)[0]
    return result


def torchs_unused(m: Any, x: Tensor) -> Tensor:
    result, _ = m.attention(x, x, x)
    out: Tensor = result
    return out


def torchs_weights(m: Any, x: Tensor) -> Any:
    return m.attention(x, x, x, average_attn_weights=False)


def later(x: Tensor) -> Tensor:
    """The tokens behind each."""
    return torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)


def short(x: Tensor) -> Tensor:
    """Tokens that are none."""
    return (torch.arange(x.shape[1]) > 3)[None, :].expand(x.shape[0], -1)


def torchs_masked(m: Any, x: Tensor) -> Any:
    return m.attention(x, x, x, attn_mask=later(x), need_weights=False)[0]


def torchs_causal(m: Any, x: Tensor) -> Any:
    mask = torch.zeros(x.shape[1], x.shape[1], dtype=x.dtype).masked_fill(later(x), float("-inf"))
    return m.attention(x, x, x, attn_mask=mask, need_weights=False, is_causal=True)[0]


def torchs_by_head(m: Any, x: Tensor) -> Any:
    mask = torch.arange(x.shape[0] * HEADS, dtype=x.dtype)[:, None, None] * later(x).to(x.dtype)
    return m.attention(x, x, x, attn_mask=mask, need_weights=False)[0]


def torchs_padded(m: Any, x: Tensor) -> Any:
    return m.attention(x, x, x, key_padding_mask=short(x), need_weights=False)[0]


def torchs_all(m: Any, x: Tensor) -> Any:
    return m.attention(x, x, x, key_padding_mask=short(x), attn_mask=later(x))


def torchs_of_widths(m: Any, x: Tensor) -> Any:
    return m.attention(x, m.keys(x), m.values(x), key_padding_mask=short(x), need_weights=False)[0]


def crossing(m: Any, x: Tensor) -> Any:
    y = x.flip(1)[:, 1:]
    return m.attention(x, y, y, need_weights=False)[0]


def placed(m: Any, x: Tensor) -> Any:
    """Queries and keys know where they are, and values do not."""
    y = x + torch.arange(x.shape[1], dtype=x.dtype)[:, None]
    return m.attention(y, y, x)[0]


def three(m: Any, x: Tensor) -> Any:
    return m.attention(x, x.flip(1), x.roll(1, 1), attn_mask=later(x), need_weights=False)[0]


def encoded(m: Any, x: Tensor) -> Any:
    return m.attention(x)


def encoded_padded(m: Any, x: Tensor) -> Any:
    return m.attention(x, src_key_padding_mask=short(x))


def encoded_causal(m: Any, x: Tensor) -> Any:
    return m.attention(x, later(x))


def decoded(m: Any, x: Tensor) -> Any:
    return m.attention(x, x.flip(1), tgt_mask=later(x))


def windowed(m: Any, x: Tensor) -> Tensor:
    result: Tensor = m.attention(x)
    return result


def linears(*names: str, **more: Any) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        return {name: nn.Linear(WIDTH, WIDTH) for name in names} | {
            name: copy.deepcopy(part) for name, part in more.items()
        }

    return make


def multihead(**options: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"attention": nn.MultiheadAttention(WIDTH, HEADS, **options)}


def of_widths() -> dict[str, Any]:
    """Keys and values of other widths than queries."""
    attention = nn.MultiheadAttention(WIDTH, HEADS, kdim=8, vdim=10, batch_first=True)
    return {"attention": attention, "keys": nn.Linear(WIDTH, 8), "values": nn.Linear(WIDTH, 10)}


def encoder(kind: type[nn.Module] | None = None, **options: Any) -> Callable[[], dict[str, Any]]:
    """A layer of a transformer of torch's, or two of them."""

    def make() -> dict[str, Any]:
        of: Any = kind or nn.TransformerEncoderLayer
        layer = of(WIDTH, HEADS, 20, **{"batch_first": True, **options})
        if kind:
            return {"attention": layer}
        return {"attention": nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)}

    return make


ONE = nn.TransformerEncoderLayer
QKV = ("query", "key", "value", "proj")
BIAS = nn.Parameter(torch.randn(HEADS, 1, 1))
FORMS: dict[str, tuple[Callable[[Any, Tensor], Any], Callable[[], dict[str, Any]]]] = {
    "fused": (fused, linears("proj", qkv=nn.Linear(WIDTH, 3 * WIDTH))),
    "written": (written, linears("proj", qkv=nn.Linear(WIDTH, 3 * WIDTH, bias=False))),
    "separate": (separate, linears(*QKV, bias=BIAS)),
    "masked": (masked, linears(*QKV, bias=BIAS)),
    "causal": (causal, linears(*QKV)),
    "normed": (normed, linears(*QKV, norm=nn.LayerNorm(WIDTH // HEADS))),
    "single": (single, linears(*QKV)),
    "torch": (torchs, multihead(batch_first=True)),
    "torch, tokens first": (torchs, multihead()),
    "torch without bias": (torchs, multihead(bias=False, batch_first=True)),
    "torch with unused weights": (torchs_unused, multihead(batch_first=True)),
    "torch with weights": (torchs_weights, multihead()),
    "torch with dropout": (torchs, multihead(dropout=0.1, batch_first=True)),
    "torch, masked": (torchs_masked, multihead(batch_first=True)),
    "torch, causal": (torchs_causal, multihead(batch_first=True)),
    "torch, masked by head": (torchs_by_head, multihead(batch_first=True)),
    "torch, padded": (torchs_padded, multihead(batch_first=True)),
    "torch, masked and padded, with weights": (torchs_all, multihead(batch_first=True)),
    "torch, crossing": (crossing, multihead(batch_first=True)),
    "torch, crossing, no bias": (crossing, multihead(bias=False, batch_first=True)),
    "torch, of other widths": (torchs_of_widths, of_widths),
    "torch, a token added": (torchs, multihead(add_bias_kv=True, batch_first=True)),
    "torch, zeros added": (torchs_weights, multihead(add_zero_attn=True)),
    "torch, both added, all masks": (
        torchs_all,
        multihead(add_bias_kv=True, add_zero_attn=True, batch_first=True),
    ),
    "torch, both added, masked by head": (
        torchs_by_head,
        multihead(add_bias_kv=True, add_zero_attn=True, bias=False, batch_first=True),
    ),
    "torch, both added, causal": (
        torchs_causal,
        multihead(add_bias_kv=True, add_zero_attn=True, batch_first=True),
    ),
    "torch, placed": (placed, multihead(batch_first=True, dropout=0.1)),
    "torch, of three": (three, multihead(batch_first=True)),
    "torch's layer": (encoded, encoder(ONE)),
    "torch's layer, norms first": (encoded, encoder(ONE, norm_first=True, activation="gelu")),
    "torch's layer, padded": (encoded_padded, encoder(ONE)),
    "torch's encoder, causal": (encoded_causal, encoder()),
    "torch's encoder, padded": (encoded_padded, encoder()),
    "torch's decoder": (decoded, encoder(nn.TransformerDecoderLayer)),
}


def network(form: str, seed: int = 0) -> Net:
    function, parts = FORMS[form]
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Net(function, **parts())


def windows(shift: int, seed: int = 0) -> Net:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Net(windowed, attention=ShiftedWindowAttention(WIDTH, [4, 4], [shift] * 2, HEADS))


def grid() -> Net:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        attention = RelativePositionalMultiHeadAttention(WIDTH, WIDTH // HEADS, 16)
        return Net(windowed, attention=attention)


SHARES = (0.0, 0.1, 0.5, 0.5, 0.9, 1.0)


def random_masks(
    graph: uo.ChannelGraph, rng: random.Random, shares: tuple[float, ...] = SHARES
) -> uo.Masks:
    """Random rows and columns of every layer."""
    kept: dict[str, dict[int, tuple[int, ...]]] = {}
    for op in graph.operations:
        if isinstance(op, ir.Layer):
            for axis in rng.choice([(op.in_axis,), (op.out_axis,), (op.in_axis, op.out_axis)]):
                size = slices_of(graph, op.weight, axis)
                share = rng.choice(shares)
                chosen = tuple(i for i in range(size) if rng.random() < share)
                kept.setdefault(op.weight, {})[axis] = chosen
    return uo.Masks(kept=kept)


def pruned_of(masked_model: nn.Module, graph: uo.ChannelGraph) -> nn.Module:
    masks = uo.masks_of(masked_model, graph)
    solution = uo.solve(graph, masks)
    uo.check(solution, graph, masks)
    return uo.materialize(masked_model, solution)


class Traced:
    """A model that is traced once, to be masked again and again."""

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        self.model, self.inputs = model, inputs
        self.original = copy.deepcopy(model.state_dict())
        self.graph = uo.trace(model, inputs)


@cache
def traced(form: str) -> Traced:
    return Traced(network(form), tokens(2, 5))


@cache
def traced_windows(shift: int) -> Traced:
    return Traced(windows(shift), image(2, 8))


@cache
def traced_grid() -> Traced:
    return Traced(grid(), rows_of_windows(2))


def rows_of_windows(batch: int) -> Tensor:
    return tokens(batch, 3 * 16).reshape(batch, 3, 16, 6)


def check(traced: Traced, others: Tensor, seed: int) -> None:
    model, inputs, graph = traced.model, traced.inputs, traced.graph
    assert graph.capture == "fx"
    model.load_state_dict(traced.original)
    uo.apply_masks(model, graph, random_masks(graph, random.Random(seed)))
    pruned = pruned_of(model, graph)
    for x in (inputs, others):
        assert deviation(call(model, x), call(pruned, x)) < EXACT


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_lossless(form: str, seed: int) -> None:
    check(traced(form), tokens(3, 7, 1), seed)


@pytest.mark.parametrize("shift", [0, 2])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_windows_lossless(shift: int, seed: int) -> None:
    check(traced_windows(shift), image(3, 10, 1), seed)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_grid_lossless(seed: int) -> None:
    check(traced_grid(), rows_of_windows(3), seed)


def rows(model: nn.Module, *gone: int) -> None:
    """Zero rows of what writes queries, keys and values."""
    weight, bias = (model.get_parameter(f"attention.in_proj_{n}") for n in ("weight", "bias"))
    with torch.no_grad():
        weight[list(gone)] = 0
        bias[list(gone)] = 0


def sizes(model: nn.Module) -> tuple[int, int, int]:
    """Rows written and columns read in attention, and the result of another pruning's check."""
    names = ("attention.in_proj_weight", "attention.out_proj.weight")
    first, second = (model.get_parameter(name) for name in names)
    return first.shape[0], first.shape[1], second.shape[1]


@pytest.mark.parametrize(
    ("form", "place"),
    [
        *((f"torch{how}", "attention") for how in (" with dropout", ", masked", ", causal")),
        *(
            (f"torch, {how}", "attention")
            for how in ("padded", "masked by head", "crossing", "of three", "placed")
        ),
        ("torch, masked and padded, with weights", "attention"),
        ("torch's layer", "attention.self_attn"),
        ("torch's layer, padded", "attention.self_attn"),
        ("torch's encoder, causal", "attention.layers.1.self_attn"),
        ("torch's decoder", "attention.self_attn"),
        ("torch's decoder", "attention.multihead_attn"),
    ],
)
def test_a_channel_of_every_head_is_removed(form: str, place: str) -> None:
    model, x = network(form), tokens(2, 5)
    with torch.no_grad():
        for name in (f"{place}.in_proj_weight", f"{place}.in_proj_bias"):
            for part in range(3):
                model.get_parameter(name)[part * WIDTH : (part + 1) * WIDTH : WIDTH // HEADS] = 0
    pruned = pruned_of(model, uo.trace(model, x))
    assert pruned.get_parameter(f"{place}.in_proj_weight").shape[0] == 3 * (WIDTH - HEADS)
    assert pruned.get_parameter(f"{place}.out_proj.weight").shape[1] == WIDTH - HEADS
    for other in (x, tokens(3, 7, 1)):
        assert deviation(call(model, other), call(pruned, other)) < EXACT


@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_a_mask_by_head_of_tokens_without_a_batch(first: bool, added: bool) -> None:
    def one(m: Any, x: Tensor) -> Any:
        mask = torch.arange(HEADS, dtype=x.dtype)[:, None, None] * x[None, :, :1].mT
        mask = mask.expand(HEADS, x.shape[0], x.shape[0])
        return m.attention(x, x, x, attn_mask=mask, need_weights=False)[0]

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        more = {"add_bias_kv": added, "add_zero_attn": added}
        attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=first, **more)
        model = Net(one, attention=attention)
    check(Traced(model, tokens(1, 5)[0]), tokens(1, 7, 1)[0], 3)


def test_added_tokens_and_other_widths_lose_channels() -> None:
    size = WIDTH // HEADS
    for form in ("torch, of other widths", "torch, a token added"):
        model = network(form)
        tensors = dict(model.get_submodule("attention").named_parameters())
        with torch.no_grad():
            for name in ("k_proj_weight", "v_proj_weight"):
                if name in tensors:
                    tensors[name][::size] = 0
            for name in ("in_proj_weight", "in_proj_bias"):
                if tensors.get(name) is not None:
                    tensors[name][WIDTH::size] = 0
            for name in ("bias_k", "bias_v"):
                if name in tensors:
                    tensors[name][..., ::size] = 0
        pruned = pruned_of(model, uo.trace(model, tokens(2, 5)))
        left = dict(pruned.named_parameters())
        assert left["attention.out_proj.weight"].shape[1] == WIDTH - HEADS
        rows = {n: len(left[f"attention.{n}"]) for n in tensors if n.endswith("proj_weight")}
        assert sum(rows.values()) == 3 * (WIDTH - HEADS)
        assert deviation(call(model, tokens(3, 7)), call(pruned, tokens(3, 7))) < EXACT


def test_crossing_attention_computes_no_more_than_it_reads() -> None:
    model = network("torch, crossing")
    rows(model, 0, 4, 8)
    pruned = pruned_of(model, uo.trace(model, tokens(2, 5)))
    left: list[int] = []
    own = functional.linear

    def counting(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        left.append(len(weight))
        return own(x, weight, bias)

    for node in pruned.graph.nodes:  # type: ignore[union-attr]
        if node.target is own:
            node.target = counting
    torch.fx.Interpreter(pruned).run(tokens(2, 5))
    assert left == [WIDTH - 3, 2 * WIDTH - 3]


def test_dropout_of_attention_stays_as_it_was_traced_and_says_so() -> None:
    model = network("torch with dropout")
    pruned = pruned_of(model, uo.trace(model, tokens(2, 5)))
    with pytest.warns(UserWarning, match="asks for its mode"):
        pruned.train()
    plain = pruned_of(network("torch"), uo.trace(network("torch"), tokens(2, 5)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain.train()


def test_padding_of_torchs_encoder_is_left_to_it() -> None:
    """Without gradients it makes zeros of padded tokens, which its layers do not."""
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 20, batch_first=True)
    model = Net(encoded_padded, attention=nn.TransformerEncoder(layer, 2))
    with torch.no_grad():
        want = model(tokens(2, 5))
    with suppress(uo.TraceError):  # refused, as the tensors inside have no sizes
        pruned = pruned_of(model, uo.trace(model, tokens(2, 5)))
        assert deviation(want, call(pruned, tokens(2, 5))) < EXACT


def test_removes_what_is_zero_in_every_head() -> None:
    model = network("torch")
    rows(model, 0, 5, WIDTH + 10)  # a query of heads 0 and 1, a key of head 2
    rows(model, 2 * WIDTH + 1, 2 * WIDTH + 6)  # values of heads 0 and 1
    with torch.no_grad():
        model.get_parameter("attention.out_proj.weight")[:, 9] = 0  # and of head 2
    graph = uo.trace(model, tokens(2, 5))
    pruned = pruned_of(model, graph)
    assert sizes(pruned) == (27, 12, 9)
    assert deviation(call(model, tokens(3, 4)), call(pruned, tokens(3, 4))) < EXACT


def test_levels_heads() -> None:
    model = network("torch")
    rows(model, 0, 1, 2 * WIDTH, 2 * WIDTH + 1)  # of head 0 alone: all others are full
    pruned = pruned_of(model, uo.trace(model, tokens(2, 5)))
    assert sizes(pruned) == (36, 12, 10)  # values of all heads, of which two are not read


def test_dead_heads_keep_one_channel() -> None:
    model = network("torch")
    rows(model, *range(4), *range(5, 8), *range(9, 12))
    rows(model, *range(2 * WIDTH, 2 * WIDTH + 4))  # nothing is left of head 0 ...
    rows(model, *(2 * WIDTH + i for i in (5, 6, 7, 9, 10, 11)))  # ... and one of the others
    pruned = pruned_of(model, uo.trace(model, tokens(2, 5)))
    assert sizes(pruned) == (9, 12, 2)
    assert deviation(call(model, tokens(3, 4)), call(pruned, tokens(3, 4))) < EXACT


def test_scale_is_that_of_the_original() -> None:
    pruned = pruned_of(network("fused"), uo.trace(network("fused"), tokens(2, 5)))
    (attention,) = (
        node
        for node in pruned.graph.nodes  # type: ignore[union-attr]
        if node.target is functional.scaled_dot_product_attention
    )
    assert attention.kwargs["scale"] == (WIDTH // HEADS) ** -0.5


def test_damage_is_found() -> None:
    model = network("fused")
    graph = uo.trace(model, tokens(2, 5))
    masks = random_masks(graph, random.Random(3))
    solution = uo.solve(graph, masks)
    assert damage(graph, solution) is None
    (attention,) = (op for op in graph.operations if isinstance(op, ir.Attention))
    for operand in range(3):
        reads = tuple(
            read.model_copy(update={"channels": read.channels[:-1]})
            if (read.op, read.operand) == (attention.name, operand)
            else read
            for read in solution.reads
        )
        broken = solution.model_copy(update={"reads": reads})
        assert "scaled_dot_product_attention" in str(damage(graph, broken))
    other = tuple(
        read.model_copy(update={"channels": read.channels[:1][::-1] + read.channels[:0:-1]})
        if (read.op, read.operand) == (attention.name, 0)
        else read
        for read in solution.reads
    )
    assert damage(graph, solution.model_copy(update={"reads": other})) is not None


@pytest.mark.parametrize("form", FORMS)
def test_pruned_twice(form: str) -> None:
    model = network(form)
    x = tokens(2, 5)
    graph = uo.trace(model, x)
    uo.apply_masks(model, graph, random_masks(graph, random.Random(1), (0.8, 1.0)))
    pruned = pruned_of(model, graph)
    again = uo.trace(pruned, x)
    uo.apply_masks(pruned, again, random_masks(again, random.Random(2)))
    twice = pruned_of(pruned, again)
    assert deviation(call(pruned, tokens(3, 7)), call(twice, tokens(3, 7))) < EXACT
    if form != "normed":
        assert any(isinstance(op, ir.Attention) for op in again.operations)


@pytest.mark.parametrize(
    "make", [lambda: network("fused"), lambda: network("torch"), lambda: windows(2)]
)
def test_saved_and_loaded(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = make()
    x = image(2, 8) if model.function is windowed else tokens(2, 5)
    graph = uo.trace(model, x)
    uo.apply_masks(model, graph, random_masks(graph, random.Random(1)))
    pruned = pruned_of(model, graph)
    uo.save(pruned, tmp_path / "pruned")
    loaded = uo.load(make(), tmp_path / "pruned")
    assert torch.equal(call(pruned, x), call(loaded, x))


@pytest.mark.parametrize("height", [7, 8, 11])
@pytest.mark.parametrize("shift", [0, 2])
def test_windows_are_undone(height: int, shift: int) -> None:
    x = torch.randn(2, height, 9, 5)
    cut = split_windows(x, [4, 4], [shift, shift])
    assert cut.shape[1:] == (16, 5)
    assert torch.equal(join_windows(cut, height, 9, [4, 4], [shift, shift]), x)


def test_windows_of_other_sizes_than_traced() -> None:
    model = windows(2)
    pruned = pruned_of(model, uo.trace(model, image(2, 4)))  # one window: nothing is rolled
    for size in (4, 8, 9):
        assert deviation(call(model, image(3, size)), call(pruned, image(3, size))) < EXACT


def test_cosine_attention_stays_opaque() -> None:
    model = Net(windowed, attention=ShiftedWindowAttentionV2(WIDTH, [4, 4], [2, 2], HEADS))
    x = image(2, 8)
    graph = uo.trace(model, x)
    assert not any(isinstance(op, ir.Attention) for op in graph.operations)
    pruned = pruned_of(model, graph)
    assert deviation(call(model, image(3, 8)), call(pruned, image(3, 8))) < EXACT
