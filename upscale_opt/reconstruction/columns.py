"""Layers as matrix products: unfolded inputs times a matrix of weights, group by group.

Columns come channel after channel, and for each channel the taps of the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional

from upscale_opt.reconstruction.watching import Convolving, Seen

_NUMBERS = 2**23
"""So many unfolded numbers are looked at at a time: 64 MiB in float64."""


def matrix(weight: Tensor, in_axis: int, groups: int = 1) -> Tensor:
    """A layer's weight as float64, of shape (groups, columns, outputs of a group).

    Args:
        weight: of a convolution or linear layer.
        in_axis: the axis that reads; 0 for transposed convolutions and ``x @ weight``.
        groups: into how many groups the channels fall.
    """
    weight = weight.detach().double()
    taps = math.prod(weight.shape[2:])
    by_group = weight.reshape(groups, -1, weight.shape[1], taps)
    # (groups, outputs, inputs, taps), or (groups, inputs, outputs, taps)
    by_group = by_group.permute(0, 2, 3, 1) if in_axis == 1 else by_group.permute(0, 1, 3, 2)
    return by_group.reshape(groups, -1, by_group.shape[-1])


def from_matrix(values: Tensor, like: Tensor, in_axis: int, groups: int = 1) -> Tensor:
    """A weight of the shape of ``like``, from what :func:`matrix` gives."""
    taps = math.prod(like.shape[2:])
    by_group = values.reshape(groups, -1, taps, values.shape[-1])
    by_group = by_group.permute(0, 3, 1, 2) if in_axis == 1 else by_group.permute(0, 1, 3, 2)
    return by_group.reshape(like.shape).to(like)


def rows_of(seen: Seen, start: int = 0, stop: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """The unfolded inputs of a layer, and what it wrote, a chunk of positions at a time.

    Args:
        seen: the layer at work.
        start: the first of the samples (or rows, of a matrix product) to look at.
        stop: and the one behind the last.

    Yields:
        Inputs of shape (groups, positions, columns), outputs of shape (groups, positions, outputs
        of a group), both in the layer's dtype.
    """
    x, y = seen.x.detach()[start:stop], seen.y.detach()[start:stop]
    if not len(x):
        return
    settings = seen.convolving
    if settings is None:
        step = max(1, _NUMBERS // max(x.shape[1], 1))
        for at in range(0, len(x), step):
            yield x[at : at + step][None], y[at : at + step][None]
        return
    each = x.shape[1] * math.prod(settings.kernel) * math.prod(y.shape[2:])
    step = max(1, _NUMBERS // max(each, 1))
    for at in range(0, len(x), step):
        written = y[at : at + step].movedim(1, -1)  # (samples, places, outputs)
        written = written.reshape(-1, settings.groups, y.shape[1] // settings.groups)
        yield unfolded(x[at : at + step], settings), written.transpose(0, 1)


def unfolded(x: Tensor, settings: Convolving) -> Tensor:
    """The inputs that a convolution's windows see, of shape (groups, positions, columns)."""
    spatial = x.shape[2:]
    kernel, dilation = settings.kernel, settings.dilation
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if settings.transposed:
        for axis, step in enumerate(settings.stride):
            if step > 1:  # zeros between
                wide = x.new_zeros(*x.shape[: 3 + axis], step, *x.shape[3 + axis :])
                wide.select(3 + axis, 0).copy_(x)
                x = wide.flatten(2 + axis, 3 + axis).narrow(
                    2 + axis, 0, (x.shape[2 + axis] - 1) * step + 1
                )
        sides = [
            (r - p, r - p + extra)
            for r, p, extra in zip(reach, settings.padding, settings.output_padding, strict=True)
        ]
        stride = (1,) * len(spatial)
    else:
        sides = [(p, p) for p in settings.padding]
        stride = settings.stride
    pads = [size for pair in reversed(sides) for size in pair]
    x = functional.pad(x, pads) if any(pads) else x
    x = x.contiguous()
    places = [
        (size - r - 1) // step + 1 for size, r, step in zip(x.shape[2:], reach, stride, strict=True)
    ]
    strides = x.stride()
    windows = x.as_strided(
        (*x.shape[:2], *kernel, *places),
        (
            *strides[:2],
            *(s * d for s, d in zip(strides[2:], dilation, strict=True)),
            *(s * step for s, step in zip(strides[2:], stride, strict=True)),
        ),
    )
    axes = len(kernel)
    if settings.transposed:
        windows = windows.flip(tuple(range(2, 2 + axes)))
    samples, channels = x.shape[:2]
    groups = settings.groups
    windows = windows.reshape(samples, groups, channels // groups, *kernel, *places)
    order = (1, 0, *range(3 + axes, 3 + 2 * axes), 2, *range(3, 3 + axes))
    return windows.permute(order).reshape(groups, samples * math.prod(places), -1)
