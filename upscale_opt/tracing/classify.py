"""Say what one call of the captured program is: which operation of the channel graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from upscale_opt.ir import graph as ir
from upscale_opt.runtime.recorded import assign
from upscale_opt.tracing.attention import joining_heads, on_heads
from upscale_opt.tracing.channels import Array, Channels, units
from upscale_opt.tracing.claims import operation_of
from upscale_opt.tracing.interpret import interpret
from upscale_opt.tracing.interpretation import Interpretation, Notes
from upscale_opt.tracing.layers import instance_norm, linear
from upscale_opt.tracing.moving import movement, only_moves
from upscale_opt.tracing.record import MOVEMENT, Call, tensors_in
from upscale_opt.tracing.rules import Rule, call_of
from upscale_opt.tracing.site import CallSite
from upscale_opt.tracing.symbolic import hooked
from upscale_opt.tracing.values import Abstract, NotUnderstood


def classify(
    site: CallSite,
    channels: Channels,
    with_constants: Callable[[], CallSite] | None,
    rule: Rule | None = None,
    understands_heads: bool = True,
) -> list[ir.Operation]:
    """The operations that ``site`` amounts to (several only for slices into pieces).

    The channel structure of the outputs is written into them. Whatever is not understood becomes
    one opaque operation, with the reason.

    Args:
        site: the call.
        channels: the channel identities of the program.
        with_constants: makes the same call with its parameters as tensors of the graph.
        rule: what the user says about such calls.
        understands_heads: whether attention is looked for.
    """
    if not site.outputs:
        return []
    if rule is None and _asks_kind(site):
        return [_made_anew(site)]
    kinds = _kinds(site) if rule is None else ()
    if kinds:
        rest = replace(site, inputs=[x for x in site.inputs if x.name not in kinds])
        found = classify(rest, channels, None, None, understands_heads)
        return [found[0].model_copy(update={"sizes": kinds}), *found[1:]]
    try:
        return _understood(site, channels, understands_heads, rule)
    except NotUnderstood as refusal:
        reason = str(refusal)
    if with_constants is not None and rule is None:
        try:
            return _understood(with_constants(), channels, understands_heads)
        except NotUnderstood as refusal:
            reason = reason if site.inputs else str(refusal)
    return [opaque(site, channels, reason)]


def _understood(
    site: CallSite, channels: Channels, understands_heads: bool, rule: Rule | None = None
) -> list[ir.Operation]:
    if site.module is not None and hooked(site.module):
        raise NotUnderstood("the module has hooks")
    if isinstance(site.module, torch.jit.ScriptModule):
        raise NotUnderstood("TorchScript module")
    if site.node.target is assign:
        raise NotUnderstood("assigns to a part of a tensor")
    if not site.inputs:
        raise NotUnderstood("made from no channels")
    if rule is not None:
        with rule.blamed(site.node.name):
            return [operation_of(rule.claim(call_of(site)), site, channels)]
    if only_moves(site):
        joined = _on_heads(site, channels, joining_heads) if understands_heads else None
        return joined or movement(site, channels, understands_heads)
    if understands_heads:
        found = _on_heads(site, channels, on_heads)
        if found is not None:
            return found
    return [_computation(site, channels)]


_ANEW = {"new_zeros", "new_ones", "new_full", "new_empty"}
"""Operations that make tensors of given sizes, of the kind of another."""


def _asks_kind(site: CallSite) -> bool:
    """Tell whether a call asks its tensors for nothing but dtype and device."""
    plain = site.module is None and len(site.inputs) == 1 and len(site.outputs) == 1
    return plain and [call.name in _ANEW for call in site.calls] == [True]


def _kinds(site: CallSite) -> tuple[str, ...]:
    """The tensors that a conversion is only given for their dtype and device."""
    if site.node.op != "call_method" or site.node.target not in ("to", "type_as"):
        return ()
    read = {id(x) for call in site.calls for x in tensors_in((call.args, call.kwargs))}
    kinds = [x for x in site.inputs if id(x.fake) not in read]
    others = any(x not in kinds for x in site.inputs)
    return tuple(x.name for x in kinds) if others else ()


def _made_anew(site: CallSite) -> ir.Opaque:
    """A tensor without channels, whatever those of the tensor are whose kind it is of."""
    output = site.outputs[0]
    reason = "made from no channels"
    output.why_fixed = f"{site.node.name}: {reason}"
    return ir.Opaque(
        name=site.node.name,
        sizes=tuple(t.name for t in site.inputs),
        outputs=(output.name,),
        reason=reason,
    )


def _on_heads(
    site: CallSite,
    channels: Channels,
    understand: Callable[[CallSite, Channels], list[ir.Operation] | None],
) -> list[ir.Operation] | None:
    try:
        return understand(site, channels)
    except NotUnderstood:
        site.between.clear()
        site.heads.clear()
        raise


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


# Everything else: interpret the ATen operations.


def _computation(site: CallSite, channels: Channels) -> ir.Operation:
    values = dict(site.parameters)
    for tensor in site.inputs:
        values[id(tensor.fake)] = Abstract(tensor.shape, tensor.axis, tensor.ids, traced=tensor)
    given = {id(tensor): values[id(tensor.fake)] for tensor in site.inputs}
    notes = Notes(channels, values)
    of_linear = _linear_operands(site)
    of_instance_norm = _instance_norm_operands(site)
    if of_linear is not None:
        linear(notes, *of_linear, site.outputs[0].fake)
    elif of_instance_norm is not None:
        instance_norm(notes, *of_instance_norm, site.outputs[0].fake)
    else:
        interpret(notes, _without_padding(site))
    done = notes.done
    if len(site.outputs) != 1:
        raise NotUnderstood("returns several tensors")
    output = site.outputs[0]
    result = notes.value(output.fake)
    if done.mixes is not None:
        return _symmetric(site, channels, done, result)
    if done.lookups:
        return _lookup(site, channels, done, result)
    if result.axis is None or result.ids is None:
        raise NotUnderstood("leaves no channel structure")
    operation = _operation(site, channels, done, given, result)
    for tensor in site.inputs:
        if tensor.name in operation.whole and tensor.ids is not None:
            channels.fix(tensor.ids, f"{site.node.name}: broadcast over all channels")
    output.axis, output.ids = result.axis, result.ids
    return operation


def _symmetric(
    site: CallSite, channels: Channels, done: Interpretation, result: Abstract
) -> ir.Operation:
    """A call that needs all channels, in any order."""
    output = site.outputs[0]
    used = {id(v.traced) for v in done.whole}
    structured = [t for t in site.inputs if id(t) not in used]
    if len(structured) != 1 or done.layers or done.combinations or done.lookups:
        raise NotUnderstood("mixes the channels of several tensors")
    (source,) = structured
    if result.axis is None:
        if not result.mixed or done.parameters:
            raise NotUnderstood("leaves no channel structure")
        output.why_fixed = f"{site.node.name}: made of all channels alike"
    elif not _same(channels, source.ids, result.ids):
        raise NotUnderstood("rearranges or mixes channels")
    else:
        output.axis, output.ids = result.axis, result.ids
    computing = [call for call in site.calls if call.name not in MOVEMENT]
    parameters = done.parameters
    if len(computing) > 1:  # who knows whether what is scaled to zero remains so
        parameters = [use.model_copy(update={"role": "neutral"}) for use in parameters]
    whole = tuple(t for t in site.inputs if id(t) in used)
    for tensor in whole:
        if tensor.ids is not None:
            channels.fix(tensor.ids, f"{site.node.name}: broadcast over all channels")
    return ir.Symmetric(
        name=site.node.name,
        inputs=(source.name,),
        whole=tuple(t.name for t in whole),
        outputs=(output.name,),
        reduces=result.axis is None,
        parameters=tuple(parameters),
        groups=done.mixes or 1,
    )


def _lookup(
    site: CallSite, channels: Channels, done: Interpretation, result: Abstract
) -> ir.Operation:
    """An embedding: channels that come from a parameter, whatever is looked up."""
    output = site.outputs[0]
    others = done.layers or done.combinations or done.parameters
    if len(done.lookups) > 1 or others or len(site.calls) > 1:
        raise NotUnderstood("does more than look up an embedding")
    for tensor in site.inputs:
        if tensor.ids is not None:
            channels.fix(tensor.ids, f"{site.node.name}: looked up")
    output.axis, output.ids = result.axis, result.ids
    return ir.Constant(
        name=site.node.name,
        outputs=(output.name,),
        whole=tuple(t.name for t in site.inputs),
        parameter=done.lookups[0][0],
        axis=1,
    )


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


def _instance_norm_operands(
    site: CallSite,
) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]] | None:
    """Input and parameters, if the call is an instance norm (ATen makes a batch norm of it).

    A group norm of which every channel is a group is one, too.
    """
    if len(site.inputs) != 1:
        return None
    module = site.module
    if isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels:
        none = (None, None)
        return site.inputs[0].fake, (site.own.get("weight"), site.own.get("bias"), *none)
    names = ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats")
    if (
        isinstance(site.module, _InstanceNorm)
        and type(site.module).forward is _InstanceNorm.forward
    ):
        if site.inputs[0].fake.ndim < 3 or site.inputs[0].fake.ndim == _unbatched(site.module):
            raise NotUnderstood("normalises an instance without a batch")
        given: dict[str, Any] = {"input": site.inputs[0].fake, **site.own}
        of_input = site.module.training or not site.module.track_running_stats
    elif site.node.target in (nn.functional.instance_norm, torch.instance_norm):
        args, kwargs = site.arguments
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        given = {name: getattr(leaf, "fake", leaf) for name, leaf in given.items()}
        of_input = given.get("use_input_stats", True)
    else:
        return None
    statistics = (None, None) if of_input else (given.get("running_mean"), given.get("running_var"))
    if of_input and given.get("running_mean") is not None:
        raise NotUnderstood("updates running statistics")
    return given["input"], (given.get("weight"), given.get("bias"), *statistics)


def _unbatched(module: _InstanceNorm) -> int:
    """The number of axes of an input without a batch."""
    return {nn.InstanceNorm1d: 2, nn.InstanceNorm2d: 3, nn.InstanceNorm3d: 4}.get(type(module), 0)


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
            groups=fact.groups,
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
    """Tell whether both list the same channels in the same sequence, features aside."""
    if ids is None or other is None:
        return False
    if ids is other or np.array_equal(ids, other):
        return True
    ours, theirs = units(channels.resolve(ids))[0], units(channels.resolve(other))[0]
    return np.array_equal(ours, theirs)
