"""Random steps about the order and grouping of channels: reordered, cut, folded, padded, gated."""

from __future__ import annotations

import itertools
import math

from upscale_opt.models.generated.builder import LARGEST_SIDE, Builder, Kind, Value

_WIDEST = 16


def reorder(b: Builder) -> None:
    """Add an image with its channels mirrored, rolled, or in any other order."""
    x = _several(b)
    style = b.rng.choice(["flip", "roll", "take", "take"])
    if style == "flip":
        b.append("flip", [x], x.shape)
    elif style == "roll":
        b.append("roll", [x], x.shape, numbers=(b.rng.randint(1, x.channels - 1),))
    else:
        order = b.rng.sample(range(x.channels), b.rng.randint(2, x.channels))
        if b.rng.random() < 0.2:
            order.append(b.rng.choice(order))
        b.append("take", [x], (len(order), *x.rest), numbers=tuple(order))


def strided(b: Builder) -> None:
    """Add every second or third channel of an image, or the pieces of an uneven split."""
    x = _several(b)
    if b.rng.random() < 0.6:
        step = b.rng.randint(2, 3)
        start = b.rng.randint(0, min(step, x.channels) - 1)
        count = len(range(start, x.channels, step))
        b.view("stride", x, (count, *x.rest), numbers=(start, step))
        return
    uneven_split(b, x)


def uneven_split(b: Builder, x: Value) -> list[Value]:
    """Add a split of an image, which has several channels, into pieces of any sizes."""
    inner = b.rng.sample(range(1, x.channels), min(b.rng.randint(1, 3), x.channels - 1))
    bounds = [0, *sorted(inner), x.channels]
    sizes = [stop - start for start, stop in itertools.pairwise(bounds)]
    b.view("split", x, *((size, *x.rest) for size in sizes), numbers=tuple(sizes))
    return b.values[-len(sizes) :]


def rejoin(b: Builder) -> None:
    """Add a concatenation of the pieces of an image in another sequence, one of them missing."""
    x = _several(b)
    size = b.rng.randint(1, max(1, x.channels // 2))
    sizes = [min(size, x.channels - at) for at in range(0, x.channels, size)]
    b.view("split", x, *((size, *x.rest) for size in sizes), numbers=tuple(sizes))
    pieces = b.values[-len(sizes) :]
    b.rng.shuffle(pieces)
    pieces = pieces[: b.rng.randint(2, len(pieces))] if len(pieces) > 2 else pieces
    b.append("cat", pieces, (sum(piece.channels for piece in pieces), *x.rest))


def halves(b: Builder) -> None:
    """Add a gated linear unit, or the maximum of neighbouring channels."""
    x = b.find(lambda value: value.channels % 2 == 0 and (value.is_last or value.is_image))
    if x is None:
        return
    shape = (*x.shape[: x.axis], x.channels // 2, *x.shape[x.axis + 1 :])
    if x.is_image and b.rng.random() < 0.5:
        b.append("maxout", [x], shape)
    else:
        b.append("glu", [x], shape, numbers=(-1 if x.is_last else 1,))


def padded(b: Builder) -> None:
    """Add an image with zero channels behind or in front of its own."""
    x = b.image()
    before, after = b.rng.choice([(0, 1), (0, 3), (2, 0), (1, 2)])
    if x.channels + before + after <= _WIDEST:
        shape = (before + x.channels + after, *x.rest)
        b.append("pad_channels", [x], shape, numbers=(before, after))


def fold(b: Builder) -> None:
    """Add an image with pixels moved into channels, or channels into pixels."""
    x = b.image()
    channels, height, width = x.shape
    if channels % 4 == 0 and max(height, width) * 2 <= LARGEST_SIDE:
        b.view("pixel_shuffle", x, (channels // 4, height * 2, width * 2))
    elif channels * 4 <= _WIDEST and height % 2 == width % 2 == 0:
        b.view("pixel_unshuffle", x, (channels * 4, height // 2, width // 2))


def last_axis(b: Builder) -> None:
    """Add an image with its channels last, or such a tensor turned back into an image."""
    x = b.pick(lambda value: len(value.shape) == 3)
    if x.is_image:
        b.view("to_last", x, (*x.rest, x.channels), axis=2)
    else:
        b.view("from_last", x, (x.channels, *x.rest), axis=0)


def cut_last(b: Builder) -> None:
    """Add a slice or the halves of a tensor whose channels come last."""
    x = b.find(lambda value: value.is_last and value.channels > 1)
    if x is None:
        return
    places = x.rest
    if b.rng.random() < 0.5:
        start = b.rng.randint(0, x.channels - 1)
        stop = b.rng.randint(start + 1, x.channels)
        b.view("slice_last", x, (*places, stop - start), numbers=(start, stop))
        return
    size = math.ceil(x.channels / 2)
    b.view("halve_last", x, (*places, size), (*places, x.channels - size))


def _several(b: Builder) -> Value:
    """Pick an image of more than one channel; the input is one."""
    return b.pick(lambda value: value.is_image and value.channels > 1)


ORDERS: list[tuple[Kind, float]] = [
    (reorder, 4),
    (strided, 4),
    (rejoin, 4),
    (halves, 4),
    (padded, 1.5),
    (fold, 2),
    (last_axis, 4),
    (cut_last, 4),
]
"""The kinds of steps of this file, and how likely each is in a program that has it."""
