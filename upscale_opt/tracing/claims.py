"""Claims of rules about what a call does to channels, and the operations that they amount to."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from upscale_opt.errors import RuleError
from upscale_opt.ir import graph as ir
from upscale_opt.tracing.channels import Channels
from upscale_opt.tracing.site import CallSite
from upscale_opt.tracing.values import Abstract, NotUnderstood, Traced

Role = Literal["scale", "shift", "mean", "neutral"]
Parameters = Mapping[str, Role | tuple[Role, int]]
"""The role of each parameter with one entry per channel, and perhaps the axis of the channels."""


@dataclass(frozen=True)
class ChannelWiseClaim:
    """See :meth:`upscale_opt.rules.Call.channelwise`."""

    axis: int
    out_axis: int
    keeps_zero: bool
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True)
class SymmetricClaim:
    """See :meth:`upscale_opt.rules.Call.symmetric`."""

    axis: int
    out_axis: int
    groups: int
    reduces: bool
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True)
class LayerClaim:
    """See :meth:`upscale_opt.rules.Call.layer`."""

    axis: int
    out_axis: int
    weight: str
    reads: int
    writes: int
    bias: str | None
    groups: int


@dataclass(frozen=True)
class ElementwiseClaim:
    """See :meth:`upscale_opt.rules.Call.elementwise`."""

    axis: int
    out_axis: int
    zero_if: Literal["all", "any", "never"]


@dataclass(frozen=True)
class OpaqueClaim:
    """See :meth:`upscale_opt.rules.Call.opaque`."""

    reason: str


Claim = ChannelWiseClaim | SymmetricClaim | LayerClaim | ElementwiseClaim | OpaqueClaim
"""The claims that a rule can return."""


def operation_of(claim: Claim, site: CallSite, channels: Channels) -> ir.Operation:
    """The operation of the graph that ``claim`` makes of a call.

    Raises:
        NotUnderstood: if the claim does not apply here, as where the tensor's channels lie along
            another axis.
        RuleError: if the claim does not fit the call at all.
    """
    if isinstance(claim, OpaqueClaim):
        raise NotUnderstood(claim.reason)
    if len(site.outputs) != 1:
        raise NotUnderstood("returns several tensors, for which there are no rules")
    check_sizes(claim, [t.shape for t in site.inputs], site.outputs[0].shape)
    if isinstance(claim, LayerClaim):
        return _layer(claim, site, channels)
    if isinstance(claim, ElementwiseClaim):
        return _elementwise(claim, site, channels)
    return _per_channel(claim, site, channels)


def check_sizes(claim: Claim, inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> None:
    """Compare a claim with the shapes of the tensors around the call.

    Raises:
        RuleError: if it does not fit.
    """
    if isinstance(claim, OpaqueClaim):
        return
    size, result = inputs[0][claim.axis], 0
    if not (isinstance(claim, SymmetricClaim) and claim.reduces):
        result = output[claim.out_axis]
    if isinstance(claim, ChannelWiseClaim) and (size == 0 or result % size):
        raise RuleError(f"claims to be channelwise, but makes {result} channels of {size}")
    if isinstance(claim, SymmetricClaim) and not claim.reduces and result != size:
        raise RuleError(f"claims to be symmetric, but makes {result} channels of {size}")
    if isinstance(claim, (SymmetricClaim, LayerClaim)) and size % claim.groups:
        raise RuleError(f"claims {claim.groups} groups of {size} channels")
    if isinstance(claim, ElementwiseClaim):
        for shape in (*inputs, output):
            if len(shape) != len(inputs[0]) or shape[claim.axis] != size:
                raise RuleError(
                    f"claims to be elementwise, but combines the shapes {inputs} to {output}"
                )


def _per_channel(
    claim: ChannelWiseClaim | SymmetricClaim, site: CallSite, channels: Channels
) -> ir.Operation:
    source, output = site.inputs[0], site.outputs[0]
    ids = _committed(source, claim.axis, channels)
    reduces = isinstance(claim, SymmetricClaim) and claim.reduces
    size = len(ids) if reduces else output.shape[claim.out_axis]
    named = {name: _parameter(site, name) for name in claim.parameters}
    shapes = {name: found[1] for name, found in named.items() if found is not None}
    uses = tuple(
        ir.PerChannel(name=found[0], axis=axis, role=role)
        for name, (role, axis) in roles(claim.parameters, shapes, size).items()
        if (found := named[name]) is not None
    )
    whole = _whole(site, (source,), channels)
    if reduces:
        output.why_fixed = f"{site.node.name}: made of all channels alike"
    else:
        output.axis, output.ids = claim.out_axis, np.repeat(ids, size // len(ids))
    name, inputs, outputs = site.node.name, (source.name,), (output.name,)
    if isinstance(claim, ChannelWiseClaim):
        return ir.ChannelWise(
            name=name,
            inputs=inputs,
            whole=whole,
            outputs=outputs,
            keeps_zero=claim.keeps_zero,
            parameters=uses,
        )
    return ir.Symmetric(
        name=name,
        inputs=inputs,
        whole=whole,
        outputs=outputs,
        reduces=claim.reduces,
        parameters=uses,
        groups=claim.groups,
    )


def roles(
    parameters: Parameters, shapes: Mapping[str, tuple[int, ...]], size: int
) -> dict[str, tuple[Role, int]]:
    """The role and the channel axis of each of a claim's parameters that the call really has.

    Raises:
        RuleError: if a parameter has not one axis that is as long as there are channels.
    """
    found: dict[str, tuple[Role, int]] = {}
    for name, said in parameters.items():
        if name not in shapes:
            continue
        role, axis = said if isinstance(said, tuple) else (said, None)
        shape = shapes[name]
        fitting = [a for a, length in enumerate(shape) if length == size]
        if axis is not None:
            fitting = [a for a in fitting if a == axis % len(shape)]
        if not fitting:
            raise RuleError(
                f"names the parameter {name!r}, whose shape {shape} has no axis of {size} channels"
            )
        if len(fitting) > 1 and size > 1:
            raise RuleError(
                f"does not say which axis of the parameter {name!r}, of shape {shape}, runs along "
                f"the channels; give {name!r}: ({role!r}, axis)"
            )
        found[name] = role, fitting[0]
    return found


def _layer(claim: LayerClaim, site: CallSite, channels: Channels) -> ir.Layer:
    source, output = site.inputs[0], site.outputs[0]
    weight = _parameter(site, claim.weight)
    bias = None if claim.bias is None else _parameter(site, claim.bias)
    if weight is None:
        raise RuleError(f"names the weight {claim.weight!r}, which is None")
    sizes = source.shape[claim.axis], output.shape[claim.out_axis]
    check_layer(claim, weight[1], None if bias is None else bias[1], *sizes)
    inputs: tuple[Traced, ...] = (source,)
    try:
        _committed(source, claim.axis, channels)
    except NotUnderstood:
        if claim.groups > 1:
            raise
        inputs = ()
    output.axis, output.ids = claim.out_axis, channels.fresh(sizes[1])
    return ir.Layer(
        name=site.node.name,
        inputs=tuple(t.name for t in inputs),
        whole=_whole(site, inputs, channels),
        outputs=(output.name,),
        weight=weight[0],
        in_axis=claim.reads,
        out_axis=claim.writes,
        bias=None if bias is None else bias[0],
        groups=claim.groups,
    )


def check_layer(
    claim: LayerClaim,
    weight: tuple[int, ...],
    bias: tuple[int, ...] | None,
    read: int,
    written: int,
) -> None:
    """Compare the shapes of weight and bias with the numbers of channels read and written.

    Raises:
        RuleError: if they do not fit.
    """
    expected = {claim.reads: read, claim.writes: written}
    if claim.groups > 1:
        if set(expected) != {0, 1}:
            raise RuleError("claims groups for a weight whose channel axes are not the first two")
        expected[1] //= claim.groups
    for axis, size in expected.items():
        if axis >= len(weight) or weight[axis] != size:
            raise RuleError(
                f"claims {size} channels along axis {axis} of the weight {claim.weight!r}, whose "
                f"shape is {weight}"
            )
    if bias is not None and bias[:1] != (written,):
        raise RuleError(f"claims {written} channels for the bias {claim.bias!r} of shape {bias}")


def _elementwise(claim: ElementwiseClaim, site: CallSite, channels: Channels) -> ir.Elementwise:
    output = site.outputs[0]
    if len(site.inputs) == 1:
        raise RuleError("claims to be elementwise over several tensors, but was given one")
    first, *others = [_committed(tensor, claim.axis, channels) for tensor in site.inputs]
    for other in others:
        channels.tie(first, other)
    output.axis, output.ids = claim.axis, first
    return ir.Elementwise(
        name=site.node.name,
        inputs=tuple(t.name for t in site.inputs),
        outputs=(output.name,),
        zero_if=claim.zero_if,
    )


def _committed(tensor: Traced, axis: int, channels: Channels) -> np.ndarray[Any, Any]:
    value = Abstract(tensor.shape, tensor.axis, tensor.ids, traced=tensor)
    value.commit(axis, channels)
    assert value.ids is not None
    return value.ids


def _whole(site: CallSite, read: tuple[Traced, ...], channels: Channels) -> tuple[str, ...]:
    """The further tensors that the call reads, as they are."""
    others = [t for t in site.inputs if all(t is not other for other in read)]
    for tensor in others:
        if tensor.ids is not None:
            channels.fix(tensor.ids, f"{site.node.name}: read as it is")
    return tuple(tensor.name for tensor in others)


def _parameter(site: CallSite, name: str) -> tuple[str, tuple[int, ...]] | None:
    """The state dict's name and the shape of one of the call's parameters, if it is not ``None``.

    Raises:
        NotUnderstood: if it is computed.
        RuleError: if there is no such thing.
    """
    if site.module is not None:
        fake = site.own.get(name)
        if fake is None:
            fake = held_by(site.module, name)
    else:
        found = argument(site.node.target, *site.arguments, name)
        fake = None if found is None else getattr(found, "fake", None)
        if found is not None and fake is None:
            raise RuleError(f"names the parameter {name!r}, which is a {type(found).__name__}")
    if fake is None:
        return None
    known = site.parameters.get(id(fake))
    if known is None or known.parameter is None:
        raise NotUnderstood(f"its {name!r} is computed, and not a parameter")
    return known.parameter, known.shape


def held_by(module: nn.Module, name: str) -> torch.Tensor | None:
    """A module's attribute ``name`` (dots allowed).

    Raises:
        RuleError: if it has no such tensor.
    """
    try:
        value = operator.attrgetter(name)(module)
    except AttributeError:
        value = module
    if value is None or isinstance(value, torch.Tensor):
        return value
    state = [n for n, _ in (*module.named_parameters(), *module.named_buffers())]
    raise RuleError(f"names the parameter {name!r}; there are {', '.join(state) or 'none'}")


def argument(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str) -> Any:
    """A call's argument by its name, or by its position (``"0"``).

    Raises:
        RuleError: if there is no such argument.
    """
    if name.isdigit() and int(name) < len(args):
        return args[int(name)]
    try:
        bound = inspect.signature(target).bind(*args, **kwargs)
    except (TypeError, ValueError):
        bound = None
    given = {**kwargs} if bound is None else {**kwargs, **bound.arguments}
    if name not in given:
        if bound is not None and name in bound.signature.parameters:
            return bound.signature.parameters[name].default
        raise RuleError(f"names the parameter {name!r}; the call has {', '.join(given) or 'none'}")
    return given[name]


Size = Literal["inputs", "outputs", "groups"]


@dataclass(frozen=True)
class Sizes:
    """The elements that a call reads and writes along the channel axis once it is pruned.

    Attributes:
        inputs: of its first tensor.
        outputs: of its result (``inputs``, if that has no channels).
        groups: the number of groups of channels.
    """

    inputs: int
    outputs: int
    groups: int = 1


Resize = Mapping[str, Size] | Callable[[nn.Module, Sizes], None]
"""The way to tell a module its new sizes: attributes to set, or a function that sets them."""


def resize(module: nn.Module, how: Resize | None, sizes: Sizes) -> None:
    """Tell a pruned module its sizes.

    Raises:
        RuleError: if it does not have them.
    """
    if callable(how):
        how(module, sizes)
    elif how is not None:
        for name, which in how.items():
            if not hasattr(module, name):
                raise RuleError(f"resizes {name!r}, which {type(module).__name__} does not have")
            setattr(module, name, getattr(sizes, which))
