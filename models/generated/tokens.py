"""Random steps about transformers: tokens, attention, perceptrons, embeddings, ConvNeXt blocks."""

from __future__ import annotations

import math

from torch import nn

from upscale_opt.models.blocks import ClassToken, Lookup, SelfAttention, TokenTable
from upscale_opt.models.generated.basics import add
from upscale_opt.models.generated.builder import Builder, Kind, Value
from upscale_opt.models.generated.layers import last_norm


def perceptron(b: Builder) -> None:
    """Add the MLP of a transformer: norm, wide, activation, narrow, scale, and the sum."""
    x = _last(b)
    feed_forward(b, x, last_norm(b, x) if x.channels > 1 and b.rng.random() < 0.7 else x)


def feed_forward(b: Builder, x: Value, y: Value) -> Value:
    """Add two linear layers, gated at times, behind ``y``, and their sum with ``x``."""
    hidden = b.width()
    if b.rng.random() < 0.3:  # SwiGLU
        both = b.layer(y, nn.Linear(y.channels, 2 * hidden))
        left = b.view("halve_last", both, *[(*both.rest, hidden)] * 2)
        right = b.values[-1]
        y = b.append("mul", [b.append("silu", [left], left.shape), right], left.shape)
    else:
        y = b.layer(y, nn.Linear(y.channels, hidden))
        y = b.layer(y, b.rng.choice([nn.GELU(), nn.ReLU(), nn.SiLU()]))
    y = b.layer(y, nn.Linear(hidden, x.channels, bias=b.rng.random() < 0.7))
    if b.rng.random() < 0.4:
        y = b.parameter(y, (x.channels,), ["mul"])
    return add(b, x, y)


def attention(b: Builder) -> None:
    """Add self-attention: fused, apart, with shared keys, or PyTorch's own; then the way back."""
    x = _tokens(b)
    y = last_norm(b, x) if x.channels > 1 and b.rng.random() < 0.5 else x
    style = b.rng.choice(["fused", "fused", "apart", "shared", "module"])
    heads, size = b.rng.choice([1, 2, 2, 3, 4]), b.rng.randint(1, 4)
    width = heads * size
    if style == "module":
        y = b.layer(y, SelfAttention(x.channels, b.divisor(x.channels), b.rng.random() < 0.8))
    elif style == "fused":
        y = b.layer(y, nn.Linear(x.channels, 3 * width, bias=b.rng.random() < 0.7))
        op = b.rng.choice(["heads", "heads_unbound", "heads_chunked", "heads_transposed"])
        y = b.append(op, [y], (x.shape[0], width), numbers=(heads,))
    else:
        others = [v for v in b.values if v.is_tokens and v.channels == y.channels]
        source = b.recent([*others, y]) if b.rng.random() < 0.3 else y
        kept = size if style == "shared" else width
        query = b.layer(y, nn.Linear(x.channels, width))
        key, value = (b.layer(source, nn.Linear(x.channels, kept)) for _ in range(2))
        y = attend(b, query, key, value, heads, shared=style == "shared")
    if y.channels != x.channels or b.rng.random() < 0.7:
        y = b.layer(y, nn.Linear(y.channels, x.channels))
    if b.rng.random() < 0.7:
        add(b, x, y)


def attend(b: Builder, query: Value, key: Value, value: Value, heads: int, shared: bool) -> Value:
    """Add attention of given operands, all heads sharing keys and values if ``shared``."""
    op = "attend_shared" if shared else b.rng.choice(["attend", "attend_written"])
    return b.append(op, [query, key, value], query.shape, numbers=(heads,), degree=value.degree)


def attention_of_any(b: Builder) -> None:
    """Add attention between tensors that happen to be there, whatever else reads them."""
    x = _tokens(b)
    others = [v for v in b.values if v.is_tokens and v.channels == x.channels]
    key = b.recent(others)
    value = b.rng.choice([v for v in others if v.shape == key.shape])
    attend(b, x, key, value, b.divisor(x.channels), shared=False)


def windows(b: Builder) -> None:
    """Add Swin's windowed attention on an image with channels last, or its patch merging."""
    x = b.find(lambda v: len(v.shape) == 3 and v.is_last and _even(v.rest))
    if x is None:
        image = b.find(lambda v: v.is_image and _even(v.rest))
        if image is None:
            return
        x = b.view("to_last", image, (*image.rest, image.channels), axis=2)
    if b.rng.random() < 0.35:
        height, width = x.rest
        merged = (height // 2, width // 2, 4 * x.channels)
        y = b.append("merge_patches", [x], merged)
        b.layer(y, nn.Linear(4 * x.channels, b.width(), bias=False))
        return
    heads, size = b.rng.randint(1, 3), b.rng.randint(1, 4)
    y = b.layer(x, nn.Linear(x.channels, 3 * heads * size))
    shape = (*x.rest, heads * size)
    y = b.append("windows", [y], shape, numbers=(heads, b.rng.randint(0, 1)))
    add(b, x, b.layer(y, nn.Linear(heads * size, x.channels)))


def mixer(b: Builder) -> None:
    """Add a linear layer along tokens instead of channels, as MLP-Mixer does, and the way back."""
    x = _tokens(b)
    y = b.view("swap", x, (x.channels, x.shape[0]), axis=0)
    y = b.layer(y, nn.Linear(x.shape[0], b.rng.choice([x.shape[0], 4])))
    if b.rng.random() < 0.7:
        b.view("swap", y, (y.shape[1], y.channels), axis=1)


def tokens(b: Builder) -> None:
    """Add one token, take the first, drop the first, or make an image's pixels tokens."""
    x = _tokens(b)
    style = b.rng.choice(["class_token", "class_token", "first_token", "drop_token"])
    if style == "first_token":
        b.view(style, x, (x.channels,))
    elif style == "drop_token" and x.shape[0] > 1:
        b.view(style, x, (x.shape[0] - 1, x.channels))
    else:
        b.layer(x, ClassToken(x.channels))


def embedding(b: Builder) -> None:
    """Add an embedding, of fixed indices or of indices computed from an image."""
    rows = b.rng.randint(2, 6)
    if b.rng.random() < 0.5:
        x = b.image()
        b.layer(x, Lookup(b.rng.randrange(x.channels), rows, b.width()))
        return
    x = _tokens(b)
    added = b.rng.random() < 0.6
    places = [b.rng.randrange(rows) for _ in range(x.shape[0])]
    b.layer(x, TokenTable(places, x.channels if added else b.rng.randint(2, 4), added))


def convnext(b: Builder) -> None:
    """Add the block of ConvNeXt: depthwise, channels last, norm, perceptron, and the sum."""
    x = b.image()
    y = b.layer(x, nn.Conv2d(x.channels, x.channels, 3, padding=1, groups=x.channels))
    y = b.view("to_last", y, (*x.rest, x.channels), axis=2)
    y = last_norm(b, y) if x.channels > 1 else y
    y = b.layer(y, nn.Linear(x.channels, b.width()))
    y = b.layer(y, nn.GELU())
    y = b.layer(y, nn.Linear(y.channels, x.channels))
    if b.rng.random() < 0.6:
        y = b.parameter(y, (x.channels,), ["mul"])
    add(b, x, b.view("from_last", y, x.shape, axis=0))


def _tokens(b: Builder) -> Value:
    """Pick tokens, or make the pixels of an image some."""
    x = b.find(lambda value: value.is_tokens)
    if x is not None and b.rng.random() < 0.7:
        return x
    image = b.image()
    return b.view("to_tokens", image, (math.prod(image.rest), image.channels))


def _last(b: Builder) -> Value:
    """Pick a tensor with channels last, or make it of an image."""
    x = b.find(lambda value: value.is_last)
    return x if x is not None and b.rng.random() < 0.7 else _tokens(b)


def _even(sides: tuple[int, ...]) -> bool:
    return all(side % 2 == 0 for side in sides)


TOKENS: list[tuple[Kind, float]] = [
    (perceptron, 5),
    (attention, 5),
    (attention_of_any, 4),
    (windows, 4),
    (mixer, 2),
    (tokens, 4),
    (embedding, 4),
    (convnext, 3),
]
"""The kinds of steps of this file, and how likely each is in a program that has it."""
