"""Operations with weights: layers, norms and embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch

from upscale_opt.ir.graph import PerChannel
from upscale_opt.tracing.interpretation import LayerFact, Notes
from upscale_opt.tracing.record import Call, tensors_in
from upscale_opt.tracing.values import Abstract, NotUnderstood

_NORM_ROLES: tuple[Literal["scale", "shift", "mean", "neutral"], ...]
_NORM_ROLES = ("scale", "shift", "mean", "neutral")
"""The roles of a batch norm's weight, bias, running mean and running variance."""


# Layers: they read channels and write others.


def convolution(notes: Notes, call: Call) -> None:
    """A convolution, transposed or not; one with a filter per channel keeps the channels."""
    source, weight, bias = call.args[:3]
    stride_to_groups = call.args[3:]
    transposed, groups = bool(stride_to_groups[3]), int(stride_to_groups[5])
    name = notes.parameter_name(weight)
    bias_name = None if bias is None else notes.parameter_name(bias)
    value = notes.value(source)
    if 1 < groups == source.shape[1] and (not transposed or weight.shape[1] == 1):
        uses = [PerChannel(name=name, axis=0, role="scale")]
        if bias_name is not None:
            uses.append(PerChannel(name=bias_name, axis=0, role="shift"))
        _per_channel(notes, value, call.result, uses)
    else:
        axes = (0, 1) if transposed else (1, 0)
        _layer(notes, value, call.result, 1, name, *axes, bias_name, groups)


def matmul(notes: Notes, call: Call) -> None:
    """A product with a matrix that is a parameter, perhaps with a bias added."""
    bias = call.args[0] if call.name == "addmm" else None
    source, weight = call.args[-2:]
    if call.kwargs:
        raise NotUnderstood(f"aten.{call.name} with scaling")
    value, parameter = notes.value(source), notes.value(weight)
    if parameter.parameter is None:
        raise NotUnderstood("multiplies two activations")
    axes = (1, 0) if parameter.flipped else (0, 1)
    bias_name = None if bias is None else notes.parameter_name(bias)
    if bias is not None and tuple(bias.shape) != (parameter.shape[1],):
        raise NotUnderstood("adds a bias that is not one value per channel")
    _layer(notes, value, call.result, 1, parameter.parameter, *axes, bias_name)


def linear(
    notes: Notes,
    source: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    result: torch.Tensor,
) -> None:
    """A linear layer, along the last axis of an input of any rank."""
    name = notes.parameter_name(weight)
    bias_name = None if bias is None else notes.parameter_name(bias)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise NotUnderstood("adds a bias that is not one value per channel")
    _layer(notes, notes.value(source), result, source.ndim - 1, name, 1, 0, bias_name)


def _layer(
    notes: Notes,
    source: Abstract,
    result: torch.Tensor,
    axis: int,
    weight: str,
    in_axis: int,
    out_axis: int,
    bias: str | None,
    groups: int = 1,
) -> None:
    reads: Abstract | None = source
    try:
        source.commit(axis, notes.channels)
    except NotUnderstood:
        if groups > 1:
            raise
        reads = None
    ids = notes.channels.fresh(result.shape[axis])
    written = Abstract(tuple(result.shape), axis, ids)
    fact = LayerFact(reads, written, weight, in_axis, out_axis, bias, groups)
    notes.done.layers.append(fact)
    notes.write(result, written)


def embedding(notes: Notes, call: Call) -> None:
    """Channels that come from a table, whatever is looked up."""
    name = notes.parameter_name(call.args[0])
    where = notes.value(call.args[1])
    result: torch.Tensor = call.result
    axis = result.ndim - 1
    ids = notes.channels.fresh(result.shape[axis])
    notes.done.lookups.append((name, where))
    notes.write(result, Abstract(tuple(result.shape), axis, ids))


# Norms: every channel remains what it is.


def batch_norm(notes: Notes, call: Call) -> None:
    """A batch norm, in either mode."""
    uses = _norm_uses(notes, call.args[1:5])
    _per_channel(notes, notes.value(call.args[0]), tensors_in(call.result)[0], uses)


def instance_norm(
    notes: Notes,
    source: torch.Tensor,
    parameters: Iterable[torch.Tensor | None],
    result: torch.Tensor,
) -> None:
    """An instance norm: weight, bias, running mean and variance, or ``None``."""
    _per_channel(notes, notes.value(source), result, _norm_uses(notes, parameters))


def norm(notes: Notes, call: Call) -> None:
    """Layer norm and RMS norm over the channel axis alone, or group norm."""
    source = notes.value(call.args[0])
    if call.name == "native_group_norm":
        axis, groups, parameters = 1, int(call.args[6]), call.args[1:3]
    else:
        axis, groups = _last_axis(source, call), 1
        parameters = call.args[2:4] if call.name == "native_layer_norm" else call.args[2:3]
    source.commit(axis, notes.channels)
    _refuse_several(notes)
    result, *statistics = tensors_in(call.result)
    if source.shape[axis] % groups:
        raise NotUnderstood("has groups that do not divide the channels")
    uses = _norm_uses(notes, parameters)
    notes.done.mix(groups)
    notes.done.parameters.extend(uses)
    notes.write(result, Abstract(tuple(result.shape), axis, source.ids, zero=None))
    for tensor in statistics:
        notes.write(tensor, Abstract(tuple(tensor.shape), mixed=True, zero=None))


def _last_axis(source: Abstract, call: Call) -> int:
    """The axis over which a layer norm goes, if it is the channels' and no other.

    Raises:
        NotUnderstood: if it is not.
    """
    axis, count = len(source.shape) - 1, len(call.args[1])
    if count != 1:
        if source.axis is not None and source.axis < len(source.shape) - count:
            raise NotUnderstood(f"aten.{call.name} with one value per pixel")
        raise NotUnderstood(f"aten.{call.name} over channels and other axes at once")
    if source.axis is not None and source.axis != axis:
        raise NotUnderstood(f"aten.{call.name} along another axis than the channels'")
    return axis


def _norm_uses(notes: Notes, parameters: Iterable[object]) -> list[PerChannel]:
    """The roles of weight, bias, running mean and running variance, as far as they are tensors."""
    return [
        PerChannel(name=notes.parameter_name(tensor), role=role)
        for tensor, role in zip(parameters, _NORM_ROLES, strict=False)
        if isinstance(tensor, torch.Tensor)
    ]


def _per_channel(
    notes: Notes, source: Abstract, result: torch.Tensor, uses: list[PerChannel]
) -> None:
    """Parameters with one value, or one filter, for each channel along axis 1."""
    source.commit(1, notes.channels)
    _refuse_several(notes)
    notes.done.parameters.extend(uses)
    ids = source.ids
    assert ids is not None
    if result.shape[1] != len(ids):  # a depthwise convolution with several filters a channel
        ids = np.repeat(ids, result.shape[1] // len(ids))
    zero = 0.0 if source.zero == 0 else None
    notes.write(result, Abstract(tuple(result.shape), source.axis, ids, zero=zero))


def _refuse_several(notes: Notes) -> None:
    if notes.done.parameters:
        raise NotUnderstood("uses several per-channel parameters, one after the other")
