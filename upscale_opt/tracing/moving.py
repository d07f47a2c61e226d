"""Calls that only move data: run them on labels, and see what becomes of the channels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from upscale_opt.ir import graph as ir
from upscale_opt.tracing.channels import Array, Channels
from upscale_opt.tracing.record import MOVEMENT, Call, tensors_in
from upscale_opt.tracing.resize import resized, takes_sizes
from upscale_opt.tracing.site import CallSite
from upscale_opt.tracing.values import (
    Abstract,
    HeadCall,
    HeadOperand,
    NotUnderstood,
    Spread,
    Traced,
    along,
    channel_axis,
    check_batch,
    places,
    varying_axes,
)

_ROLLS = {"roll", torch.roll, torch.ops.aten.roll.default}

SPREADS = "spreads the channels over several axes"
"""The reason why a rearrangement is opaque, unless a later one joins the channels again."""


def only_moves(site: CallSite) -> bool:
    """Tell whether the call does nothing but move data."""
    names = [call.name for call in site.calls if call.name not in ("sym_size", "device")]
    return bool(names) and all(
        call.name in MOVEMENT and not call.changed for call in site.calls if call.name in names
    )


def movement(
    site: CallSite, channels: Channels, understands_heads: bool = True
) -> list[ir.Operation]:
    """The operations that a call amounts to that only moves data.

    Args:
        site: the call.
        channels: the channel identities of the program.
        understands_heads: whether attention is looked for.

    Raises:
        NotUnderstood: with the reason.
    """
    factor = _shuffled(site)
    if factor is not None:
        return [_shuffle(site, factor, channels)]
    if len(site.inputs) == 1 and not any(call.name in ("cat", "stack") for call in site.calls):
        return _rearrangement(site, site.inputs[0], understands_heads)
    joins = [call for call in site.calls if call.name == "cat"]
    if len(joins) != 1 or len(site.calls) != 1:
        raise NotUnderstood("stacks or joins tensors in a way that is not understood")
    return [_concatenation(site, joins[0], channels)]


def _shuffled(site: CallSite) -> int | None:
    """The factor of a pixel shuffle of a tensor with channels where these are expected."""
    if len(site.inputs) != 1 or [call.name for call in site.calls] != ["pixel_shuffle"]:
        return None
    source, factor = site.inputs[0], int(site.calls[0].args[1])
    return factor if source.axis == len(source.shape) - 3 and factor > 1 else None


def _shuffle(site: CallSite, factor: int, channels: Channels) -> ir.Operation:
    """Channels go to pixels in blocks: those of one block are one channel, in several features."""
    source, output = site.inputs[0], site.outputs[0]
    assert source.axis is not None
    assert source.ids is not None
    check_batch(source.shape, (output.shape,))
    blocks = source.ids.reshape(-1, factor * factor)
    for place in range(1, factor * factor):
        channels.tie(blocks[:, 0], blocks[:, place])
    output.axis, output.ids = source.axis, blocks[:, 0].copy()
    return ir.ChannelWise(
        name=site.node.name, inputs=(source.name,), outputs=(output.name,), keeps_zero=True
    )


@dataclass(frozen=True)
class _Move:
    """A tensor that a call makes of one with channel structure, perhaps by way of earlier calls.

    Attributes:
        site: the call.
        source: that tensor.
        through: the tensor that the call reads: ``source`` itself, or what earlier calls made of it
            when they spread its channels over several axes.
        understands_heads: whether the call may be written again, given ``source``.
    """

    site: CallSite
    source: Traced
    through: Traced
    understands_heads: bool

    @property
    def indirect(self) -> bool:
        return self.through is not self.source

    def on(self, label: torch.Tensor) -> list[torch.Tensor]:
        """The call's results if ``source`` held ``label``."""
        if self.indirect:
            assert self.through.spread is not None
            label = self.through.spread.move(label)
        return tensors_in(_run_on(self.site, self.through, label))


def _rearrangement(site: CallSite, through: Traced, understands_heads: bool) -> list[ir.Operation]:
    source = through
    if _detaches(site) and through.spread is not None:
        raise NotUnderstood(_DETACHES)
    if through.axis is None and through.spread is not None:
        source = through.spread.source
    if source.axis is None or source.ids is None:
        raise NotUnderstood("moves the elements of a tensor without channel structure")
    if any(output.fake.dtype != source.fake.dtype for output in site.outputs):
        raise NotUnderstood("reads the elements as another type")
    move = _Move(site, source, through, understands_heads)
    size = source.shape[source.axis]
    if not source.is_constant:
        check_batch(through.shape, (output.shape for output in site.outputs))
    moved = move.on(places(source.shape, source.axis))
    layouts: list[tuple[int, Array]] = []
    for label in (moved[number] for number in site.numbers):
        axis = channel_axis(label) if size > 1 else None
        if axis is None and _is_one_channel(label, source):
            axis = source.axis
        if axis is None:
            if _detaches(site):
                raise NotUnderstood(_DETACHES)
            if not source.is_constant and size > 1 and len(varying_axes(label)) > 1:
                return _spreading(move)
            raise NotUnderstood(SPREADS)
        layouts.append((axis, along(label, axis)))
    return [
        operation
        for index, output, (axis, taken) in zip(site.numbers, site.outputs, layouts, strict=True)
        for operation in _moved(move, index, output, axis, taken, single=len(moved) == 1)
    ]


def _copies(move: _Move, index: int, output: Traced) -> int | None:
    """The axis of a result along which there are copies, if there is one."""
    source = move.source
    if source.copies is None and output.fake.numel() <= source.fake.numel():
        return None
    shape = [1 if axis == source.copies else size for axis, size in enumerate(source.shape)]
    every = torch.arange(math.prod(shape)).reshape(shape).expand(source.shape)
    moved = move.on(every)[index]
    varying = varying_axes(moved)
    axes = [axis for axis, size in enumerate(moved.shape) if size > 1 and axis not in varying]
    return axes[0] if len(axes) == 1 else None


def _moved(
    move: _Move, index: int, output: Traced, axis: int, taken: Array, *, single: bool
) -> list[ir.Operation]:
    """One result that has a channel axis again, with the entries ``taken`` of the source's."""
    site, source = move.site, move.source
    assert source.axis is not None
    assert source.ids is not None
    size = source.shape[source.axis]
    output.axis, output.ids = axis, source.ids[taken]
    output.copies = _copies(move, index, output)
    name = site.node.name if single else f"{site.node.name}.{index}"
    repeats = len(taken) // size
    whole = np.array_equal(taken, np.repeat(np.arange(size), max(repeats, 1)))
    if single and whole and not move.indirect:
        try:
            _check_resizable(site, source, output, repeats)
        except NotUnderstood:
            if repeats != 1 or site.node.target not in _ROLLS:
                raise
        else:
            return [
                ir.ChannelWise(
                    name=name, inputs=(source.name,), outputs=(output.name,), keeps_zero=True
                )
            ]
    if _detaches(site):
        output.axis, output.ids = None, None
        raise NotUnderstood(_DETACHES)
    if single and move.indirect and move.understands_heads:
        reshaped = _reshaping(move, output, taken, whole=whole)
        if reshaped is not None:
            return reshaped
    try:
        _check_selection(move, output, index, taken)
    except NotUnderstood:
        output.axis, output.ids = None, None
        if single and move.understands_heads and not source.is_constant:
            return _spreading(move)  # perhaps a single head
        raise
    output.detour = move.through.name if move.indirect else None
    return [
        ir.Select(
            name=name,
            inputs=(source.name,),
            outputs=(output.name,),
            positions=tuple(taken.tolist()),
        )
    ]


_DETACHES = "keeps gradients from where the channels come from"


def _detaches(site: CallSite) -> bool:
    """Tell whether gradients end here, which must not get lost with the call."""
    return any(call.name == "detach" for call in site.calls)


def _spreading(move: _Move) -> list[ir.Operation]:
    """Results without a channel axis; if nothing but data movement reads them, no harm is done."""
    site = move.site
    for number, output in zip(site.numbers, site.outputs, strict=True):

        def moved(label: torch.Tensor, number: int = number) -> torch.Tensor:
            return move.on(label)[number]

        output.axis, output.ids = None, None
        output.spread = Spread(move.source, moved)
        output.why_fixed = f"{site.node.name}: {SPREADS}"
    return [
        ir.Opaque(
            name=site.node.name,
            inputs=(move.through.name,),
            outputs=tuple(output.name for output in site.outputs),
            reason=SPREADS,
        )
    ]


def _reshaping(
    move: _Move, output: Traced, taken: Array, *, whole: bool
) -> list[ir.Operation] | None:
    """The operations that a call amounts to that lists sizes, given what was spread before that.

    ``None`` if it would not do the same: if that was moved, and has not its elements in the same
    sequence any more.
    """
    site, source = move.site, move.source
    assert source.axis is not None
    assert source.ids is not None
    size = source.shape[source.axis]
    if not takes_sizes(site.node) or (len(taken) > size and not whole):
        return None
    every = torch.arange(source.fake.numel(), dtype=torch.int32).reshape(source.shape)
    selected = every.index_select(source.axis, torch.from_numpy(taken))
    if output.shape == tuple(selected.shape):
        return None
    if not np.array_equal(move.on(every)[0].numpy(), selected.reshape(output.shape).numpy()):
        return None
    written: list[ir.Operation] = []
    if not whole:
        shape = tuple(selected.shape)
        cut = Traced(f"{site.node.name}.cut", output.fake.new_empty(shape), source.axis)
        cut.ids = source.ids[taken]
        written.append(
            ir.Select(
                name=f"{site.node.name}.taken",
                inputs=(source.name,),
                outputs=(cut.name,),
                positions=tuple(taken.tolist()),
            )
        )
        source = cut
    try:
        _check_resizable(site, source, output, 1, given=move.through)
    except NotUnderstood:
        return None
    if not whole:
        site.between.append(source)
    site.heads.append(HeadCall("reshape", (HeadOperand(source.name),)))
    written.append(
        ir.ChannelWise(
            name=site.node.name, inputs=(source.name,), outputs=(output.name,), keeps_zero=True
        )
    )
    return written


def _is_one_channel(label: torch.Tensor, source: Traced) -> bool:
    """Tell whether this may be one channel cut out of many, which varies along no axis."""
    assert source.axis is not None
    return (
        label.ndim == source.fake.ndim
        and label.shape[source.axis] == 1 < source.shape[source.axis]
        and bool((label == label.flatten()[0]).all())
    )


def _check_resizable(
    site: CallSite, source: Traced, output: Traced, repeats: int, given: Traced | None = None
) -> None:
    """Check on labels that the call, sizes adapted, works with another number of channels.

    Args:
        site: the call.
        source: the tensor with a channel axis.
        output: the result.
        repeats: how many elements of the result there are for each of the source's channels.
        given: what the call is given, if it shall be given ``source`` instead.
    """
    assert source.axis is not None
    given = given or source
    size = source.shape[source.axis]
    # With a single channel it would not show which axis is theirs.
    _check_resized(site, source, output, repeats, given, (size + 1) // 2 if size != 2 else 3)
    if any(call.name in ("roll", "index", "index_select") for call in site.calls):
        _check_resized(site, source, output, repeats, given, size + 1)  # which it is no multiple of


def _check_resized(
    site: CallSite, source: Traced, output: Traced, repeats: int, given: Traced, fewer: int
) -> None:
    assert source.axis is not None
    assert output.axis is not None
    narrow = tuple(fewer if a == source.axis else s for a, s in enumerate(source.shape))
    label = places(narrow, source.axis)
    expected = np.repeat(np.arange(fewer, dtype=np.int64), repeats)
    args, kwargs = resized(site.node, site.arguments, output.axis, len(expected))
    try:
        result = site.run(*_replace(args, kwargs, given, label))
    except Exception:
        raise NotUnderstood("has sizes that cannot be adapted to fewer channels") from None
    shape = list(output.shape)
    shape[output.axis] = len(expected)
    if (
        not isinstance(result, torch.Tensor)
        or tuple(result.shape) != tuple(shape)
        or (len(expected) > 1 and channel_axis(result) != output.axis)
        or not np.array_equal(along(result, output.axis), expected)
    ):
        raise NotUnderstood("has sizes that cannot be adapted to fewer channels")


def _check_selection(move: _Move, output: Traced, index: int, taken: Array) -> None:
    """Check on a label per element that the call is an ``index_select`` on the channel axis."""
    source = move.source
    assert source.axis is not None
    every = torch.arange(source.fake.numel(), dtype=torch.int32).reshape(source.shape)
    result = move.on(every)[index]
    selected = every.index_select(source.axis, torch.from_numpy(taken))
    if result.shape != selected.shape or not np.array_equal(result, selected):
        raise NotUnderstood("moves channels and other elements at once")


def _concatenation(site: CallSite, call: Call, channels: Channels) -> ir.Operation:
    output = site.outputs[0]
    by_fake = {id(t.fake): t for t in site.inputs}
    operands = [by_fake.get(id(fake)) for fake in call.args[0]]
    if None in operands:
        raise NotUnderstood("joins a parameter and an activation")
    parts = [t for t in operands if t is not None]
    dim = int(call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)) % output.fake.ndim
    known = {t.axis for t in parts if t.axis is not None}
    if len(known) != 1:
        raise NotUnderstood("joins tensors with different channel axes")
    axis = known.pop()
    for part in parts:
        Abstract(part.shape, part.axis, part.ids, traced=part).commit(axis, channels)
    ids = [part.ids for part in parts if part.ids is not None]
    output.axis = axis
    names = tuple(part.name for part in parts)
    if axis == dim:
        output.ids = np.concatenate(channels.apart(ids))
        return ir.Concat(name=site.node.name, inputs=names, outputs=(output.name,))
    for other in ids[1:]:
        channels.tie(ids[0], other)
    output.ids = ids[0]
    return ir.Elementwise(name=site.node.name, inputs=names, outputs=(output.name,), zero_if="all")


def _run_on(site: CallSite, source: Traced, label: torch.Tensor) -> Any:
    try:
        return site.run(*_replace(*site.arguments, source, label))
    except Exception:
        raise NotUnderstood("does not run on integers") from None


def _replace(
    args: tuple[Any, ...], kwargs: dict[str, Any], source: Traced, label: torch.Tensor
) -> tuple[Any, Any]:
    def swap(leaf: Any) -> Any:
        if isinstance(leaf, (tuple, list)):
            return type(leaf)(swap(item) for item in leaf)
        if isinstance(leaf, dict):
            return {key: swap(item) for key, item in leaf.items()}
        return label if leaf is source else leaf

    return tuple(swap(arg) for arg in args), swap(kwargs)
