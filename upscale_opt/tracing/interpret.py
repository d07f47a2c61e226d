"""Interpret the ATen operations of one call: few families, no Python names.

A call (a module, a function, a method) is run on fake tensors while a dispatch mode records the
ATen operations that it executes. Each operation's effect on channels is worked out here; together
they say what the call as a whole is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from upscale_opt.tracing.interpretation import Notes
from upscale_opt.tracing.layers import batch_norm, convolution, embedding, matmul, norm
from upscale_opt.tracing.pointwise import pointwise
from upscale_opt.tracing.record import MOVEMENT, Call, as_it_was, tensors_in
from upscale_opt.tracing.values import (
    Abstract,
    NotUnderstood,
    along,
    channel_axis,
    check_batch,
    places,
)

_IGNORED = frozenset(
    {
        "device",
        "sym_size",
        "sym_numel",
        "sym_stride",
        "is_same_size",
        "_assert_async",
    }
)
_LIKE = frozenset(
    {
        "empty_like",
        "new_empty",
        "rand_like",
        "randn_like",
        "zeros_like",
        "ones_like",
        "new_zeros",
        "new_ones",
        "new_full",
        "full_like",
    }
)
_UNMOVED = MOVEMENT - {
    *("flip", "roll", "index", "index_select", "repeat", "tile", "cat", "stack"),
    *("channel_shuffle", "native_channel_shuffle", "pixel_shuffle", "pixel_unshuffle"),
}
"""Movements that leave elements in their sequence, if all remain and one axis is long."""
_SPATIAL = ("pool1d", "pool2d", "pool3d", "upsample_", "reflection_pad", "replication_pad")
_REDUCTIONS = frozenset({"mean", "sum", "amax", "amin", "linalg_vector_norm", "var", "std"})
_NORMS = frozenset({"native_layer_norm", "native_group_norm", "_fused_rms_norm"})
_ALSO_POINTWISE = frozenset(
    {
        "hardswish",
        "_to_copy",
        "mul",
        "add",
        "sub",
        "div",
        "log_sigmoid_forward",
        "_prelu_kernel",
    }
)
_BATCH_NORMS = frozenset(
    {
        "native_batch_norm",
        "cudnn_batch_norm",
        "miopen_batch_norm",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training",
        "_batch_norm_with_update",
        "_batch_norm_no_update",
        "batch_norm",
    }
)


def interpret(notes: Notes, calls: Sequence[Call]) -> None:
    """Interpret all operations of a call in order.

    Raises:
        NotUnderstood: naming the first operation that is not understood.
    """
    for call in calls:
        _step(notes, call)


def _step(notes: Notes, call: Call) -> None:
    name = call.name
    tensors = tensors_in((call.args, call.kwargs))
    if name in _IGNORED or not tensors:  # using what was made from nothing is refused later
        return
    if any(tensor is not call.args[0] for tensor in call.changed):
        raise NotUnderstood(f"aten.{name} writes into an argument")
    known = [notes.value(t) for t in tensors]
    if name in _LIKE or (all(v.noise for v in known) and _scatters(call)):
        for result in tensors_in(call.result):
            notes.write(result, Abstract(tuple(result.shape), noise=True, zero=None))
    elif all(v.noise for v in known):
        raise NotUnderstood(f"aten.{name} tells channels apart")
    elif all(v.parameter is not None for v in known):
        _parameter(notes, call, known)
    elif all(v.mixed or v.noise for v in known):
        for result in tensors_in(call.result):
            # What is expanded is broadcast all the same; so it is as if it had not been.
            shape = known[0].shape if name == "expand" else tuple(result.shape)
            notes.write(result, Abstract(shape, mixed=True, zero=None))
    else:
        _on_channels(notes, call, known)


def _scatters(call: Call) -> bool:
    """Tell whether noise remains noise: no element is told from the others by its place."""
    tags = call.func.tags
    random = torch.Tag.nondeterministic_seeded in tags
    pointwise = torch.Tag.pointwise in tags or call.name in _ALSO_POINTWISE
    return random or pointwise or call.name in _UNMOVED


def _on_channels(notes: Notes, call: Call, known: list[Abstract]) -> None:
    """An operation on tensors that may have channels."""
    name = call.name
    if name == "embedding":
        embedding(notes, call)
    elif name in _NORMS:
        norm(notes, call)
    elif name in ("_softmax", "_log_softmax"):
        _softmax(notes, call)
    elif name == "as_strided" and as_it_was(call.args[0], call.result):
        notes.write(call.result, notes.value(call.args[0]))
    elif name in MOVEMENT:
        _movement(notes, call)
    elif name in ("convolution", "conv1d", "conv2d", "conv3d"):
        convolution(notes, call)
    elif name in ("addmm", "mm"):
        matmul(notes, call)
    elif name in _BATCH_NORMS:
        batch_norm(notes, call)
    elif name in _REDUCTIONS or name == "constant_pad_nd" or any(s in name for s in _SPATIAL):
        _spatial(notes, call)
    elif torch.Tag.pointwise in call.func.tags or name in _ALSO_POINTWISE:
        pointwise(notes, call, known)
    else:
        raise NotUnderstood(f"aten.{name} is not understood")


def _parameter(notes: Notes, call: Call, known: list[Abstract]) -> None:
    """Parameters alone: follow reshapes, and ignore buffers that count batches."""
    if call.changed:
        return
    value = known[0]
    result = call.result
    if call.name not in _UNMOVED or len(known) != 1 or not isinstance(result, torch.Tensor):
        raise NotUnderstood(f"aten.{call.name} computes with parameters")
    shape = tuple(result.shape)
    if call.name == "t" and len(shape) == 2:
        flipped = not value.flipped
    elif max(shape, default=1) == max(value.shape, default=1) == result.numel():
        flipped = value.flipped  # one value per channel, however it is reshaped
    else:
        raise NotUnderstood(f"aten.{call.name} rearranges a parameter")
    notes.write(
        result,
        Abstract(
            shape,
            parameter=value.parameter,
            original=value.original,
            flipped=flipped,
            zero=None,
        ),
    )


def _movement(notes: Notes, call: Call) -> None:
    """Move labels as the operation moves elements."""
    if call.name in ("cat", "stack"):
        raise NotUnderstood("concatenates inside a module")
    value = notes.value(call.args[0])
    if value.axis is None:
        if value.traced is not None:
            raise NotUnderstood("moves the elements of a tensor without channel structure")
        for fake in tensors_in(call.result):  # of which nothing was known before
            notes.write(fake, Abstract(tuple(fake.shape), zero=None))
        return
    if len(tensors_in((call.args, call.kwargs))) != 1:
        raise NotUnderstood(f"aten.{call.name} moves several tensors at once")
    assert value.ids is not None
    moved = call.func(places(value.shape, value.axis), *call.args[1:], **call.kwargs)
    fakes = tensors_in(call.result)
    check_batch(value.shape, (tuple(fake.shape) for fake in fakes))
    for fake, label in zip(fakes, tensors_in(moved), strict=True):
        axis = channel_axis(label)
        if axis is None:
            raise NotUnderstood("spreads the channels over several axes")
        ids = value.ids[along(label, axis)]
        notes.write(fake, Abstract(tuple(label.shape), axis, ids, zero=value.zero))


def _softmax(notes: Notes, call: Call) -> None:
    source = notes.value(call.args[0])
    if source.axis is None:
        raise NotUnderstood("softmax of a tensor without channel structure")
    if int(call.args[1]) % len(source.shape) == source.axis:
        notes.done.mix()
    notes.write(call.result, Abstract(source.shape, source.axis, source.ids, zero=None))


def _spatial(notes: Notes, call: Call) -> None:
    """Pooling, padding, resizing and reductions: along some axes, and not the others."""
    value = notes.value(call.args[0])
    if value.axis is None:
        raise NotUnderstood(f"aten.{call.name} of a tensor without channel structure")
    if any(not notes.value(t).noise for t in tensors_in((call.args[1:], call.kwargs))):
        raise NotUnderstood(f"aten.{call.name} of several tensors")
    touched, kept = _touched_axes(call, len(value.shape))
    result, *others = tensors_in(call.result)
    if value.axis in touched:
        if call.name not in _REDUCTIONS:
            raise NotUnderstood(f"aten.{call.name} works along the channel axis")
        notes.done.mix()
        for fake in (result, *others):
            notes.write(fake, Abstract(tuple(fake.shape), mixed=True, zero=None))
        return
    axis = value.axis if kept else value.axis - sum(a < value.axis for a in touched)
    keeps = call.name != "constant_pad_nd" or not (call.args[2:] and call.args[2])
    zero = 0.0 if value.zero == 0 and keeps else None
    notes.write(result, Abstract(tuple(result.shape), axis, value.ids, zero=zero))
    for indices in others:
        notes.write(indices, Abstract(tuple(indices.shape), zero=None))


def _touched_axes(call: Call, rank: int) -> tuple[set[int], bool]:
    """The axes along which a spatial operation mixes elements, and whether they remain."""
    name = call.name
    if name in _REDUCTIONS:
        names = [argument.name for argument in call.func._schema.arguments]
        given = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
        dims, keep = given.get("dim"), bool(given.get("keepdim", False))
        if dims is None or (isinstance(dims, Sequence) and not dims):
            return set(range(rank)), keep
        listed = dims if isinstance(dims, Sequence) else [dims]
        return {int(d) % rank for d in listed}, keep
    if name == "constant_pad_nd":
        padding = call.args[1]
        return {rank - 1 - i // 2 for i, amount in enumerate(padding) if amount}, True
    digits = [int(c) for c, d in pairwise(name) if c.isdigit() and d == "d"]
    if not digits:
        raise NotUnderstood(f"aten.{name} is not understood")
    return set(range(rank - digits[0], rank)), True
