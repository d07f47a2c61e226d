"""Pointwise operations: every element depends on the elements in its place."""

from __future__ import annotations

import math

from upscale_opt.ir.graph import PerChannel
from upscale_opt.tracing.interpretation import CombineFact, Notes
from upscale_opt.tracing.record import Call, tensors_in
from upscale_opt.tracing.values import Abstract, NotUnderstood
from upscale_opt.tracing.zeros import combine, maps_zero_to, parameter_role


def pointwise(notes: Notes, call: Call, known: list[Abstract]) -> None:
    """Tie the channels of the operands, and note what is zero where.

    Args:
        notes: what is known so far.
        call: the operation.
        known: what is known of the tensors among its arguments, in order.
    """
    fake = tensors_in(call.result)[0]
    shape = tuple(fake.shape)
    tied, axis = _operands(notes, known, shape)
    whole = [v for v in known if v not in tied and v.parameter is None and not v.noise]
    first = tied[0].ids
    assert first is not None
    for other in tied[1:]:
        assert other.ids is not None
        notes.channels.tie(first, other.ids)
    result = Abstract(shape, axis, first)
    several = len(set(tied)) > 1
    parameters = [v for v in known if v.parameter is not None]
    if parameters:
        if several or len(known) != 2:
            raise NotUnderstood("combines several tensors with a parameter")
        result.zero = _with_parameter(notes, call, known, parameters[0], axis - len(shape))
    else:
        if several:
            fact = _combination(call, known, tied, whole, result)
            notes.done.combinations.append(fact)
        zeros = {i: v.zero for i, v in enumerate(known) if v in tied}
        result.zero = maps_zero_to(call.func, call.args, call.kwargs, zeros)
    notes.done.whole.extend(whole)
    notes.write(fake, result)


def _operands(
    notes: Notes, known: list[Abstract], shape: tuple[int, ...]
) -> tuple[list[Abstract], int]:
    """The operands that carry the result's channels, and the result's channel axis.

    Raises:
        NotUnderstood: if there are none, or it has none.
    """
    rank = len(shape)
    axes = {
        v.axis + rank - len(v.shape)
        for v in known
        if v.axis is not None and v.shape[v.axis] == shape[v.axis + rank - len(v.shape)]
    }
    if not axes:
        raise NotUnderstood("computes with tensors without channel structure")
    if len(axes) > 1:
        raise NotUnderstood("combines tensors along different channel axes")
    axis = axes.pop()
    tied = []
    for v in known:
        own = axis - (rank - len(v.shape))
        if v.parameter is not None or v.noise or own < 0 or v.shape[own] != shape[axis]:
            continue
        v.commit(own, notes.channels)
        tied.append(v)
    return tied, axis


def _combination(
    call: Call,
    known: list[Abstract],
    tied: list[Abstract],
    whole: list[Abstract],
    result: Abstract,
) -> CombineFact:
    """Tell what an operation does that combines several tensors; a sum is told from the rest."""
    places = [i for i, v in enumerate(known) if v in tied]
    rule = combine(call.func, call.args, call.kwargs, places)
    dtypes = {tensor.dtype for tensor in tensors_in((call.args, call.kwargs))}
    additive = (
        call.name == "add"
        and len(call.args) == 2
        and call.kwargs.get("alpha", 1) == 1
        and rule == "all"
        and not whole
        and len(dtypes) == 1
        and all(v.shape == result.shape for v in tied)
    )
    return CombineFact(tuple(tied), tuple(whole), result, rule, additive)


def _with_parameter(
    notes: Notes, call: Call, known: list[Abstract], parameter: Abstract, axis: int
) -> float | None:
    """The value of a channel that is zero, together with a parameter; ``None`` if unknown.

    Args:
        notes: what is known so far.
        call: the operation.
        known: what is known of its two operands.
        parameter: one of them.
        axis: the channel axis of the result, counted from its end.
    """
    arguments = (call.func, call.args, call.kwargs)
    index = known.index(parameter)
    value = known[1 - index]
    own = axis + len(parameter.shape)
    assert parameter.parameter is not None
    if own < 0 or parameter.shape[own] == 1:
        return maps_zero_to(*arguments, {1 - index: value.zero})
    if math.prod(parameter.shape) != parameter.shape[own] or notes.done.parameters:
        raise NotUnderstood("uses a parameter that has more than one value per channel")
    # The parameter's own channel axis is its only axis longer than one.
    long = max(range(len(parameter.original)), key=lambda a: parameter.original[a])
    role = parameter_role(*arguments, index)
    if value.zero != 0:
        role = None
    use = PerChannel(name=parameter.parameter, axis=long, role=role or "neutral")
    notes.done.parameters.append(use)
    return None if role is None else 0.0
