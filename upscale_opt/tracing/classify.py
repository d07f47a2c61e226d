"""Say what one call of the captured program is: which operation of the channel graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from upscale_opt.ir import graph as ir
from upscale_opt.tracing.capture import hooked
from upscale_opt.tracing.channels import Array, Channels, units
from upscale_opt.tracing.interpret import Interpretation, Interpreter
from upscale_opt.tracing.record import MOVEMENT, Call, tensors_in
from upscale_opt.tracing.resize import resized
from upscale_opt.tracing.values import (
    Abstract,
    NotUnderstood,
    Traced,
    along,
    channel_axis,
    check_batch,
    labels,
)


@dataclass
class CallSite:
    """One call of the captured program, as executed.

    Attributes:
        node: the call.
        module: the module called, if one is.
        arguments: the call's arguments, with :class:`Traced` and :class:`Parameter` as leaves.
        inputs: the distinct tensors among them, in order.
        outputs: the tensors that it returned, apart from those that nobody uses.
        numbers: which of all tensors it returned each of ``outputs`` is.
        calls: the ATen operations it executed.
        run: execute the call on other arguments (of the same structure).
        parameters: what is known of parameters, by ``id`` of their fakes.
        own: the fakes of the called module's own parameters and buffers, by their names in it.
    """

    node: fx.Node
    module: nn.Module | None
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    inputs: list[Traced]
    outputs: list[Traced]
    numbers: list[int]
    calls: list[Call]
    run: Callable[[tuple[Any, ...], dict[str, Any]], Any]
    parameters: dict[int, Abstract]
    own: dict[str, torch.Tensor]


def classify(
    site: CallSite, channels: Channels, with_constants: Callable[[], CallSite] | None
) -> list[ir.Operation]:
    """The operations that ``site`` amounts to (several only for slices into pieces).

    The channel structure of the outputs is written into them. Whatever is not understood becomes
    one opaque operation, with the reason.

    Args:
        site: the call.
        channels: the channel identities of the program.
        with_constants: makes the same call with its parameters as tensors of the graph.
    """
    if not site.outputs:
        return []
    try:
        return _understood(site, channels)
    except NotUnderstood as refusal:
        reason = str(refusal)
    if with_constants is not None:
        try:
            return _understood(with_constants(), channels)
        except NotUnderstood as refusal:
            reason = reason if site.inputs else str(refusal)
    return [opaque(site, channels, reason)]


def _understood(site: CallSite, channels: Channels) -> list[ir.Operation]:
    if site.module is not None and hooked(site.module):
        raise NotUnderstood("the module has hooks")
    if isinstance(site.module, torch.jit.ScriptModule):
        raise NotUnderstood("TorchScript module")
    if not site.inputs:
        raise NotUnderstood("made from no channels")
    if _only_moves(site):
        return _movement(site, channels)
    return [_computation(site, channels)]


def opaque(site: CallSite, channels: Channels, reason: str) -> ir.Opaque:
    """Fix all channels around the call."""
    what = f"{site.node.name}: {reason}"
    for tensor in site.inputs:
        if tensor.ids is not None:
            channels.fix(tensor.ids, what)
    for tensor in site.outputs:
        tensor.axis, tensor.ids, tensor.why_fixed = None, None, what
    return ir.Opaque(
        name=site.node.name,
        inputs=tuple(t.name for t in site.inputs),
        outputs=tuple(t.name for t in site.outputs),
        reason=reason,
    )


def _only_moves(site: CallSite) -> bool:
    names = [call.name for call in site.calls if call.name not in ("sym_size", "device")]
    return bool(names) and all(
        call.name in MOVEMENT and not call.changed for call in site.calls if call.name in names
    )


# Data movement: run on labels.


def _movement(site: CallSite, channels: Channels) -> list[ir.Operation]:
    if len(site.inputs) == 1 and not any(call.name in ("cat", "stack") for call in site.calls):
        return _rearrangement(site, site.inputs[0])
    joins = [call for call in site.calls if call.name == "cat"]
    if len(joins) != 1 or len(site.calls) != 1:
        raise NotUnderstood("stacks or joins tensors in a way that is not understood")
    return [_concatenation(site, joins[0], channels)]


def _rearrangement(site: CallSite, source: Traced) -> list[ir.Operation]:
    if source.axis is None or source.ids is None:
        raise NotUnderstood("moves the elements of a tensor without channel structure")
    size = source.shape[source.axis]
    places = np.arange(size, dtype=np.int64)
    check_batch(source.shape, (output.shape for output in site.outputs))
    label = labels(Abstract(source.shape, source.axis, places)).contiguous()
    moved = tensors_in(_run_on(site, source, label))
    operations: list[ir.Operation] = []
    layouts: list[tuple[int, Array]] = []
    for label in (moved[number] for number in site.numbers):
        axis = channel_axis(label) if size > 1 else None
        if axis is None and _is_one_channel(label, source):
            axis = source.axis
        if axis is None:
            raise NotUnderstood("spreads the channels over several axes")
        layouts.append((axis, along(label, axis)))
    for index, output, (axis, taken) in zip(site.numbers, site.outputs, layouts, strict=True):
        output.axis, output.ids = axis, source.ids[taken]
        name = site.node.name if len(moved) == 1 else f"{site.node.name}.{index}"
        repeats = len(taken) // size
        if len(moved) == 1 and np.array_equal(taken, np.repeat(places, max(repeats, 1))):
            _check_resizable(site, source, output, repeats)
            operations.append(
                ir.ChannelWise(
                    name=name, inputs=(source.name,), outputs=(output.name,), keeps_zero=True
                )
            )
        else:
            _check_selection(site, source, output, index, taken)
            operations.append(
                ir.Select(
                    name=name,
                    inputs=(source.name,),
                    outputs=(output.name,),
                    positions=tuple(taken.tolist()),
                )
            )
    return operations


def _is_one_channel(label: torch.Tensor, source: Traced) -> bool:
    """Whether this may be one channel cut out of many, which varies along no axis."""
    assert source.axis is not None
    return (
        label.ndim == source.fake.ndim
        and label.shape[source.axis] == 1 < source.shape[source.axis]
        and bool((label == label.flatten()[0]).all())
    )


def _check_resizable(site: CallSite, source: Traced, output: Traced, repeats: int) -> None:
    """Check on labels that the call, sizes adapted, works with fewer channels in another order."""
    assert source.axis is not None
    assert output.axis is not None
    size = source.shape[source.axis]
    some = np.arange(size, dtype=np.int64)[::-2].copy()
    label = _narrowed(source, some)
    expected = np.repeat(some, repeats)
    args, kwargs = resized(site.node, site.arguments, output.axis, len(expected))
    try:
        result = site.run(*_replace(args, kwargs, source, label))
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


def _narrowed(source: Traced, some: Array) -> torch.Tensor:
    assert source.axis is not None
    shape = list(source.shape)
    shape[source.axis] = len(some)
    return labels(Abstract(tuple(shape), source.axis, some)).contiguous()


def _check_selection(
    site: CallSite, source: Traced, output: Traced, index: int, taken: Array
) -> None:
    """Check on a label per element that the call is an ``index_select`` on the channel axis."""
    assert source.axis is not None
    every = torch.arange(source.fake.numel()).reshape(source.shape)
    result = tensors_in(_run_on(site, source, every))[index]
    selected = every.index_select(source.axis, torch.from_numpy(taken))
    if result.shape != selected.shape or not torch.equal(result, selected):
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
        _commit(part, axis, channels)
    ids = [part.ids for part in parts if part.ids is not None]
    output.axis = axis
    names = tuple(part.name for part in parts)
    if axis == dim:
        output.ids = np.concatenate(ids)
        return ir.Concat(name=site.node.name, inputs=names, outputs=(output.name,))
    for other in ids[1:]:
        channels.tie(ids[0], other)
    output.ids = ids[0]
    return ir.Elementwise(name=site.node.name, inputs=names, outputs=(output.name,), zero_if="all")


def _commit(tensor: Traced, axis: int, channels: Channels) -> None:
    Abstract(tensor.shape, tensor.axis, tensor.ids, traced=tensor).commit(axis, channels)


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


# Everything else: interpret the ATen operations.


def _computation(site: CallSite, channels: Channels) -> ir.Operation:
    values = dict(site.parameters)
    for tensor in site.inputs:
        values[id(tensor.fake)] = Abstract(tensor.shape, tensor.axis, tensor.ids, traced=tensor)
    given = {id(tensor): values[id(tensor.fake)] for tensor in site.inputs}
    interpreter = Interpreter(channels, values)
    linear = _linear_operands(site)
    if linear is not None:
        done = interpreter.linear(*linear, site.outputs[0].fake)
    else:
        done = interpreter.run(_without_padding(site))
    if len(site.outputs) != 1:
        raise NotUnderstood("returns several tensors")
    output = site.outputs[0]
    result = interpreter.value(output.fake)
    if result.axis is None or result.ids is None:
        raise NotUnderstood("leaves no channel structure")
    operation = _operation(site, channels, done, given, result)
    for tensor in site.inputs:
        if tensor.name in operation.whole and tensor.ids is not None:
            channels.fix(tensor.ids, f"{site.node.name}: broadcast over all channels")
    output.axis, output.ids = result.axis, result.ids
    return operation


def _linear_operands(
    site: CallSite,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None:
    """Input, weight and bias, if the call is a linear layer (ATen has many ways to run one)."""
    if len(site.inputs) != 1:
        return None
    if isinstance(site.module, nn.Linear) and type(site.module).forward is nn.Linear.forward:
        weight = site.own.get("weight")
        return None if weight is None else (site.inputs[0].fake, weight, site.own.get("bias"))
    if site.node.target not in (nn.functional.linear, torch.ops.aten.linear.default):
        return None
    args, kwargs = site.arguments
    names = ("input", "weight", "bias")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    fakes = [getattr(given.get(name), "fake", None) for name in names]
    if fakes[0] is None or fakes[1] is None:
        return None
    return fakes[0], fakes[1], fakes[2]


def _without_padding(site: CallSite) -> list[Call]:
    """A convolution that pads circularly and the like copies images, never channels."""
    module = site.module
    if getattr(module, "padding_mode", "zeros") == "zeros":
        return site.calls
    assert isinstance(module, nn.Module)
    last = site.calls[-1]
    if last.name != "convolution" or len(site.inputs) != 1:
        return site.calls
    return [Call(last.func, (site.inputs[0].fake, *last.args[1:]), last.kwargs, last.result)]


def _operation(
    site: CallSite,
    channels: Channels,
    done: Interpretation,
    given: dict[int, Abstract],
    result: Abstract,
) -> ir.Operation:
    used = {id(v.traced) for v in done.whole}
    name, outputs = site.node.name, (site.outputs[0].name,)
    assert result.ids is not None
    structured = [t for t in site.inputs if id(t) not in used]

    def rest(inputs: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(t.name for t in site.inputs if t.name not in inputs)

    if done.layers:
        if len(done.layers) > 1 or done.combinations or done.parameters or len(site.inputs) != 1:
            raise NotUnderstood("uses several weights in one call")
        fact = done.layers[0]
        if result.ids is not fact.result.ids and not _same(channels, result.ids, fact.result.ids):
            raise NotUnderstood("rearranges the channels that it writes")
        inputs: tuple[str, ...] = ()
        if fact.source is not None:
            if not _same(channels, fact.source.ids, site.inputs[0].ids) or fact.source.zero != 0:
                raise NotUnderstood("rearranges the channels before its weight reads them")
            inputs = (site.inputs[0].name,)
        return ir.Layer(
            name=name,
            outputs=outputs,
            inputs=inputs,
            whole=rest(inputs),
            weight=fact.weight,
            in_axis=fact.in_axis,
            out_axis=fact.out_axis,
            bias=fact.bias,
        )
    if any(not _same(channels, t.ids, result.ids) for t in structured):
        raise NotUnderstood("rearranges or mixes channels")
    if len(structured) == 1:
        inputs = (structured[0].name,)
        return ir.ChannelWise(
            name=name,
            outputs=outputs,
            inputs=inputs,
            whole=rest(inputs),
            keeps_zero=result.zero == 0,
            parameters=tuple(done.parameters),
        )
    if done.parameters or not structured:
        raise NotUnderstood("combines several tensors and parameters in one call")
    facts = done.combinations
    direct = len(facts) == 1 and all(v in given.values() for v in facts[0].operands)
    if direct and facts[0].result is result:
        inputs = tuple(v.traced.name for v in facts[0].operands if v.traced is not None)
        return ir.Elementwise(
            name=name,
            outputs=outputs,
            inputs=inputs,
            whole=rest(inputs),
            zero_if=facts[0].zero_if,
            additive=facts[0].additive,
        )
    inputs = tuple(t.name for t in structured)
    return ir.Elementwise(
        name=name,
        outputs=outputs,
        inputs=inputs,
        whole=rest(inputs),
        zero_if="all" if result.zero == 0 else "never",
    )


def _same(channels: Channels, ids: Array | None, other: Array | None) -> bool:
    """Whether both list the same channels in the same sequence, features aside."""
    if ids is None or other is None:
        return False
    if ids is other or np.array_equal(ids, other):
        return True
    ours, theirs = units(channels.resolve(ids))[0], units(channels.resolve(other))[0]
    return np.array_equal(ours, theirs)
