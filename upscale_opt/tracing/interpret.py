"""Interpret the ATen operations of one call: few families, no Python names.

A call (a module, a function, a method) is run on fake tensors while a dispatch mode records the
ATen operations that it executes. Each operation's effect on channels is worked out here; together
they say what the call as a whole is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch

from upscale_opt.ir.graph import PerChannel
from upscale_opt.tracing.channels import Channels
from upscale_opt.tracing.record import MOVEMENT, Call, as_it_was, tensors_in
from upscale_opt.tracing.values import (
    Abstract,
    NotUnderstood,
    along,
    channel_axis,
    check_batch,
    places,
)
from upscale_opt.tracing.zeros import ZeroRule, combine, maps_zero_to, parameter_role

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
    }
)
_NORM_ROLES: tuple[Literal["scale", "shift", "mean", "neutral"], ...]
_NORM_ROLES = ("scale", "shift", "mean", "neutral")
"""What a batch norm's weight, bias, running mean and running variance do."""

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


@dataclass(frozen=True)
class LayerFact:
    """A weight read channels of ``source`` (or what has none) and wrote those of ``result``."""

    source: Abstract | None
    result: Abstract
    weight: str
    in_axis: int
    out_axis: int
    bias: str | None
    groups: int = 1


@dataclass(frozen=True)
class CombineFact:
    """Several tensors with the same channels were combined channel by channel."""

    operands: tuple[Abstract, ...]
    whole: tuple[Abstract, ...]
    result: Abstract
    zero_if: Literal["all", "any", "never"]
    additive: bool


@dataclass
class Interpretation:
    """What one call does, operation by operation.

    Attributes:
        layers: the weights that read and wrote channels.
        combinations: the operations on several tensors.
        parameters: the per-channel parameters used.
        moved: whether data-movement operations took part.
        whole: tensors read as they are, broadcast over all channels.
        lookups: the embeddings.
        mixes: into how many groups channels fall, within which all are needed in any order;
            ``None`` if every channel is treated for itself.
    """

    layers: list[LayerFact] = field(default_factory=list)
    combinations: list[CombineFact] = field(default_factory=list)
    parameters: list[PerChannel] = field(default_factory=list)
    moved: bool = False
    whole: list[Abstract] = field(default_factory=list)
    lookups: list[tuple[str, Abstract]] = field(default_factory=list)
    mixes: int | None = None

    def mix(self, groups: int = 1) -> None:
        """All channels are needed here, in any order within each of ``groups`` runs."""
        if self.mixes not in (None, groups):
            raise NotUnderstood("treats channels in groups of different sizes")
        self.mixes = groups


class Interpreter:
    """Interprets the recorded operations of one call.

    Attributes:
        values: what is known of each tensor, by ``id`` of the fake tensor.
    """

    def __init__(self, channels: Channels, values: dict[int, Abstract]) -> None:
        self._channels = channels
        self.values = values
        self.done = Interpretation()

    def run(self, calls: Sequence[Call]) -> Interpretation:
        """Interpret all operations in order.

        Raises:
            NotUnderstood: naming the first operation that is not understood.
        """
        for call in calls:
            self._step(call)
        return self.done

    def linear(
        self,
        source: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        result: torch.Tensor,
    ) -> Interpretation:
        """Interpret a linear layer, along the last axis of an input of any rank.

        Raises:
            NotUnderstood: if weight or bias is not a parameter as it is.
        """
        name = self._parameter_name(weight)
        bias_name = None if bias is None else self._parameter_name(bias)
        if bias is not None and bias.shape != weight.shape[:1]:
            raise NotUnderstood("adds a bias that is not one value per channel")
        self._layer(self.value(source), result, source.ndim - 1, name, 1, 0, bias_name)
        return self.done

    def instance_norm(
        self, source: torch.Tensor, parameters: Sequence[torch.Tensor | None], result: torch.Tensor
    ) -> Interpretation:
        """Interpret an instance norm: weight, bias, running mean and variance, or ``None``.

        Raises:
            NotUnderstood: if a parameter is not one as it is, or the channels are not on axis 1.
        """
        uses = [
            PerChannel(name=self._parameter_name(tensor), role=role)
            for tensor, role in zip(parameters, _NORM_ROLES, strict=True)
            if tensor is not None
        ]
        self._per_channel(self.value(source), result, 1, uses)
        return self.done

    def value(self, tensor: torch.Tensor) -> Abstract:
        """What is known of ``tensor``."""
        found = self.values.get(id(tensor))
        if found is None:
            raise NotUnderstood("uses a tensor of unknown origin")
        return found

    def _step(self, call: Call) -> None:
        name = call.name
        tensors = tensors_in((call.args, call.kwargs))
        if name in _IGNORED or not tensors:  # using what was made from nothing is refused later
            return
        if any(tensor is not call.args[0] for tensor in call.changed):
            raise NotUnderstood(f"aten.{name} writes into an argument")
        known = [self.value(t) for t in tensors]
        if name in _LIKE or (known and all(v.noise for v in known)):
            for result in tensors_in(call.result):
                self.values[id(result)] = Abstract(tuple(result.shape), noise=True, zero=None)
        elif all(v.parameter is not None for v in known):
            self._parameter(call, known)
        elif all(v.mixed or v.noise for v in known):
            for result in tensors_in(call.result):
                # What is expanded is broadcast all the same; so it is as if it had not been.
                shape = known[0].shape if name == "expand" else tuple(result.shape)
                self.values[id(result)] = Abstract(shape, mixed=True, zero=None)
        elif name == "embedding":
            self._embedding(call)
        elif name in _NORMS:
            self._norm(call, name)
        elif name in ("_softmax", "_log_softmax"):
            self._softmax(call)
        elif name == "as_strided" and as_it_was(call.args[0], call.result):
            self.values[id(call.result)] = self.value(call.args[0])
        elif name in MOVEMENT:
            self._movement(call)
        elif name in ("convolution", "conv1d", "conv2d", "conv3d"):
            self._convolution(call)
        elif name in ("addmm", "mm"):
            self._matmul(call)
        elif name in _BATCH_NORMS:
            self._batch_norm(call)
        elif name in _REDUCTIONS or name == "constant_pad_nd" or any(s in name for s in _SPATIAL):
            self._spatial(call)
        elif (
            torch.Tag.pointwise in call.func.tags
            or name in _ALSO_POINTWISE
            or name == "_prelu_kernel"
        ):
            self._pointwise(call, known)
        else:
            raise NotUnderstood(f"aten.{name} is not understood")

    def _parameter(self, call: Call, known: list[Abstract]) -> None:
        """Parameters alone: follow reshapes, and ignore buffers that count batches."""
        if call.changed:
            return
        value = known[0]
        result = call.result
        if call.name not in MOVEMENT or len(known) != 1 or not isinstance(result, torch.Tensor):
            raise NotUnderstood(f"aten.{call.name} computes with parameters")
        shape = tuple(result.shape)
        if call.name == "t" and len(shape) == 2:
            flipped = not value.flipped
        elif max(shape, default=1) == max(value.shape, default=1) == result.numel():
            flipped = value.flipped  # one value per channel, however it is reshaped
        else:
            raise NotUnderstood(f"aten.{call.name} rearranges a parameter")
        self.values[id(result)] = Abstract(
            shape,
            parameter=value.parameter,
            original=value.original,
            flipped=flipped,
            zero=None,
        )

    def _movement(self, call: Call) -> None:
        if call.name in ("cat", "stack"):
            raise NotUnderstood("concatenates inside a module")
        value = self.value(call.args[0])
        if value.axis is None:
            if value.traced is not None:
                raise NotUnderstood("moves the elements of a tensor without channel structure")
            for fake in tensors_in(call.result):  # of which nothing was known before
                self.values[id(fake)] = Abstract(tuple(fake.shape), zero=None)
            return
        if len(tensors_in((call.args, call.kwargs))) != 1:
            raise NotUnderstood(f"aten.{call.name} moves several tensors at once")
        assert value.ids is not None
        moved = call.func(places(value.shape, value.axis), *call.args[1:], **call.kwargs)
        self.done.moved = True
        fakes = tensors_in(call.result)
        check_batch(value.shape, (tuple(fake.shape) for fake in fakes))
        for fake, label in zip(fakes, tensors_in(moved), strict=True):
            axis = channel_axis(label)
            if axis is None:
                raise NotUnderstood("spreads the channels over several axes")
            ids = value.ids[along(label, axis)]
            self.values[id(fake)] = Abstract(tuple(label.shape), axis, ids, zero=value.zero)

    def _convolution(self, call: Call) -> None:
        source, weight, bias = call.args[:3]
        stride_to_groups = call.args[3:]
        transposed, groups = bool(stride_to_groups[3]), int(stride_to_groups[5])
        name = self._parameter_name(weight)
        bias_name = None if bias is None else self._parameter_name(bias)
        value = self.value(source)
        fake: torch.Tensor = call.result
        axes = (0, 1) if transposed else (1, 0)
        if 1 < groups == source.shape[1] and (not transposed or weight.shape[1] == 1):
            uses = [PerChannel(name=name, axis=0, role="scale")]
            if bias_name is not None:
                uses.append(PerChannel(name=bias_name, axis=0, role="shift"))
            self._per_channel(value, fake, 1, uses)
        else:
            self._layer(value, fake, 1, name, *axes, bias_name, groups)

    def _matmul(self, call: Call) -> None:
        bias = call.args[0] if call.name == "addmm" else None
        source, weight = call.args[-2:]
        if call.kwargs:
            raise NotUnderstood(f"aten.{call.name} with scaling")
        value, parameter = self.value(source), self.value(weight)
        if parameter.parameter is None:
            raise NotUnderstood("multiplies two activations")
        in_axis, out_axis = (1, 0) if parameter.flipped else (0, 1)
        bias_name = None if bias is None else self._parameter_name(bias)
        if bias is not None and tuple(bias.shape) != (parameter.shape[1],):
            raise NotUnderstood("adds a bias that is not one value per channel")
        self._layer(value, call.result, 1, parameter.parameter, in_axis, out_axis, bias_name)

    def _layer(
        self,
        source: Abstract,
        fake: torch.Tensor,
        axis: int,
        weight: str,
        in_axis: int,
        out_axis: int,
        bias: str | None,
        groups: int = 1,
    ) -> None:
        reads: Abstract | None = source
        try:
            source.commit(axis, self._channels)
        except NotUnderstood:
            if groups > 1:
                raise
            reads = None
        ids = self._channels.fresh(fake.shape[axis])
        result = Abstract(tuple(fake.shape), axis, ids)
        fact = LayerFact(reads, result, weight, in_axis, out_axis, bias, groups)
        self.done.layers.append(fact)
        self.values[id(fake)] = result

    def _batch_norm(self, call: Call) -> None:
        source, weight, bias, mean, variance = call.args[:5]
        uses = [
            PerChannel(name=self._parameter_name(tensor), role=role)
            for tensor, role in zip((weight, bias, mean, variance), _NORM_ROLES, strict=True)
            if isinstance(tensor, torch.Tensor)
        ]
        self._per_channel(self.value(source), tensors_in(call.result)[0], 1, uses)

    def _per_channel(
        self, source: Abstract, fake: torch.Tensor, axis: int, uses: list[PerChannel]
    ) -> None:
        source.commit(axis, self._channels)
        if self.done.parameters:
            raise NotUnderstood("uses several per-channel parameters, one after the other")
        self.done.parameters.extend(uses)
        zero = 0.0 if source.zero == 0 else None
        ids = source.ids
        assert ids is not None
        if fake.shape[axis] != len(ids):  # a depthwise convolution with several filters a channel
            ids = np.repeat(ids, fake.shape[axis] // len(ids))
        self.values[id(fake)] = Abstract(tuple(fake.shape), source.axis, ids, zero=zero)

    def _norm(self, call: Call, name: str) -> None:
        """Layer norm over the channel axis alone, or group norm."""
        source = self.value(call.args[0])
        if name == "native_group_norm":
            weight, bias, groups = call.args[1], call.args[2], int(call.args[6])
            axis = 1
        else:
            sizes, weight = call.args[1:3]
            bias = call.args[3] if name == "native_layer_norm" else None
            axis, groups = len(source.shape) - 1, 1
            if len(sizes) != 1:
                if source.axis is not None and source.axis < len(source.shape) - len(sizes):
                    raise NotUnderstood(f"aten.{name} with one value per pixel")
                raise NotUnderstood(f"aten.{name} over channels and other axes at once")
            if source.axis is not None and source.axis != axis:
                raise NotUnderstood(f"aten.{name} along another axis than the channels'")
        source.commit(axis, self._channels)
        if self.done.parameters:
            raise NotUnderstood("uses several per-channel parameters, one after the other")
        fake = tensors_in(call.result)[0]
        if source.shape[axis] % groups:
            raise NotUnderstood("has groups that do not divide the channels")
        uses = [
            PerChannel(name=self._parameter_name(tensor), role=role)
            for tensor, role in zip((weight, bias), _NORM_ROLES, strict=False)
            if isinstance(tensor, torch.Tensor)
        ]
        self.done.mix(groups)
        self.done.parameters.extend(uses)
        self.values[id(fake)] = Abstract(tuple(fake.shape), axis, source.ids, zero=None)
        for statistics in tensors_in(call.result)[1:]:
            self.values[id(statistics)] = Abstract(tuple(statistics.shape), mixed=True, zero=None)

    def _softmax(self, call: Call) -> None:
        source = self.value(call.args[0])
        if source.axis is None:
            raise NotUnderstood("softmax of a tensor without channel structure")
        if int(call.args[1]) % len(source.shape) == source.axis:
            self.done.mix()
        self.values[id(call.result)] = Abstract(source.shape, source.axis, source.ids, zero=None)

    def _embedding(self, call: Call) -> None:
        name = self._parameter_name(call.args[0])
        where = self.value(call.args[1])
        fake: torch.Tensor = call.result
        axis = fake.ndim - 1
        result = Abstract(tuple(fake.shape), axis, self._channels.fresh(fake.shape[axis]))
        self.done.lookups.append((name, where))
        self.values[id(fake)] = result

    def _spatial(self, call: Call) -> None:
        value = self.value(call.args[0])
        if value.axis is None:
            raise NotUnderstood(f"aten.{call.name} of a tensor without channel structure")
        if any(not self.value(t).noise for t in tensors_in((call.args[1:], call.kwargs))):
            raise NotUnderstood(f"aten.{call.name} of several tensors")
        rank = len(value.shape)
        touched, kept = _touched_axes(call, rank)
        if value.axis in touched:
            if call.name not in _REDUCTIONS:
                raise NotUnderstood(f"aten.{call.name} works along the channel axis")
            self.done.mix()
            for fake in tensors_in(call.result):
                self.values[id(fake)] = Abstract(tuple(fake.shape), mixed=True, zero=None)
            return
        axis = value.axis if kept else value.axis - sum(a < value.axis for a in touched)
        keeps = call.name != "constant_pad_nd" or not (call.args[2:] and call.args[2])
        zero = 0.0 if value.zero == 0 and keeps else None
        fakes = tensors_in(call.result)
        self.values[id(fakes[0])] = Abstract(tuple(fakes[0].shape), axis, value.ids, zero=zero)
        for indices in fakes[1:]:
            self.values[id(indices)] = Abstract(tuple(indices.shape), zero=None)

    def _pointwise(self, call: Call, known: list[Abstract]) -> None:
        fake = tensors_in(call.result)[0]
        rank = fake.ndim
        tied, axis = self._operands(known, rank, tuple(fake.shape))
        if axis is None:
            raise NotUnderstood("computes with tensors without channel structure")
        whole = [v for v in known if v not in tied and v.parameter is None and not v.noise]
        first = tied[0].ids
        assert first is not None
        for other in tied[1:]:
            assert other.ids is not None
            self._channels.tie(first, other.ids)
        arguments = (call.func, call.args, call.kwargs)
        per_channel = [v for v in known if v.parameter is not None]
        result = Abstract(tuple(fake.shape), axis, first)
        distinct = list(dict.fromkeys(tied))
        if per_channel:
            if len(distinct) > 1 or len(known) != 2:
                raise NotUnderstood("combines several tensors with a parameter")
            result.zero = self._with_parameter(arguments, known, per_channel[0], axis, rank)
        elif len(distinct) == 1:
            zeros = {i: distinct[0].zero for i, v in enumerate(known) if v is distinct[0]}
            result.zero = maps_zero_to(*arguments, zeros)
        else:
            rule: ZeroRule = combine(*arguments, [i for i, v in enumerate(known) if v in tied])
            plain = call.name == "add" and call.kwargs.get("alpha", 1) == 1 and not whole
            kinds = {t.dtype for t in tensors_in((call.args, call.kwargs))}
            same_shape = all(v.shape == tuple(fake.shape) for v in tied) and len(kinds) == 1
            additive = plain and same_shape and rule == "all" and len(call.args) == 2
            self.done.combinations.append(
                CombineFact(tuple(tied), tuple(whole), result, rule, additive)
            )
            zeros = {i: v.zero for i, v in enumerate(known) if v in tied}
            result.zero = maps_zero_to(*arguments, zeros)
        self.done.whole.extend(whole)
        self.values[id(fake)] = result

    def _operands(
        self, known: list[Abstract], rank: int, shape: tuple[int, ...]
    ) -> tuple[list[Abstract], int | None]:
        """The operands that carry the result's channels, and the result's channel axis."""
        axes = {
            v.axis + rank - len(v.shape)
            for v in known
            if v.axis is not None and v.shape[v.axis] == shape[v.axis + rank - len(v.shape)]
        }
        if not axes:
            return [], None
        if len(axes) > 1:
            raise NotUnderstood("combines tensors along different channel axes")
        axis = axes.pop()
        tied = []
        for v in known:
            own = axis - (rank - len(v.shape))
            if v.parameter is not None or v.noise or own < 0 or v.shape[own] != shape[axis]:
                continue
            v.commit(own, self._channels)
            tied.append(v)
        return tied, axis

    def _with_parameter(
        self,
        arguments: tuple[Any, tuple[Any, ...], dict[str, Any]],
        known: list[Abstract],
        parameter: Abstract,
        axis: int,
        rank: int,
    ) -> float | None:
        index = known.index(parameter)
        value = known[1 - index]
        own = axis - (rank - len(parameter.shape))
        assert parameter.parameter is not None
        if own < 0 or parameter.shape[own] == 1:
            return maps_zero_to(*arguments, {1 - index: value.zero})
        if math.prod(parameter.shape) != parameter.shape[own] or self.done.parameters:
            raise NotUnderstood("uses a parameter that has more than one value per channel")
        # The parameter's own channel axis is its only axis longer than one.
        long = max(range(len(parameter.original)), key=lambda a: parameter.original[a])
        role = parameter_role(*arguments, index)
        if role is None or value.zero != 0:
            self.done.parameters.append(
                PerChannel(name=parameter.parameter, axis=long, role="neutral")
            )
            return None
        self.done.parameters.append(PerChannel(name=parameter.parameter, axis=long, role=role))
        return 0.0

    def _parameter_name(self, tensor: torch.Tensor) -> str:
        value = self.value(tensor)
        if value.parameter is None:
            raise NotUnderstood("computes its weight instead of reading a parameter")
        if value.shape != value.original:
            raise NotUnderstood("rearranges its weight before using it")
        return value.parameter


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
