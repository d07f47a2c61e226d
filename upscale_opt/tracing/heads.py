"""Attention: products of tensors whose channels are spread over heads, an axis of its own.

Only products that treat each head for itself and each of its channels alike are understood: a sum
over the channels that queries and keys have in common, and a mean of values over tokens. What
lies between the two (scales, biases, masks, softmax, dropout) has no channels, and is not looked
at.
"""

from __future__ import annotations

import math
import operator
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional

from upscale_opt.ir import graph as ir
from upscale_opt.tracing.channels import Array, Channels
from upscale_opt.tracing.moving import SPREADS
from upscale_opt.tracing.site import CallSite
from upscale_opt.tracing.values import (
    Arrangement,
    HeadCall,
    HeadOperand,
    NotUnderstood,
    Spread,
    Traced,
    places,
    varying_axes,
)


class HeadsRefused(Exception):  # noqa: N818 - caught in tracing: trace again without heads
    """Attention cannot be expressed in this graph after all."""


def on_heads(site: CallSite, channels: Channels) -> list[ir.Operation] | None:
    """The operations that a call on heads amounts to; ``None`` if it is no such call.

    Raises:
        NotUnderstood: with the reason.
    """
    if len(site.outputs) != 1 or any(call.changed for call in site.calls):
        return None
    product = _product(site)
    if product is not None and any(_has_channels(x) for x in product.operands):
        return _Writer(site, channels).product(product)
    if (
        len(site.inputs) == 1
        and site.inputs[0].spread is not None
        and sum(arg is site.inputs[0] for arg in site.arguments[0]) == 1
        and not site.arguments[1]
        and _only_scales(site)
    ):
        return _Writer(site, channels).scaled(site.inputs[0])
    return None


def _has_channels(x: Traced) -> bool:
    return not x.is_constant and (x.spread is not None or x.axis is not None)


def _only_scales(site: CallSite) -> bool:
    """Whether the call multiplies or divides one tensor by numbers, and does nothing else."""
    return bool(site.calls) and all(
        call.name in ("mul", "div")
        and isinstance(call.args[0], torch.Tensor)
        and len(call.args) == 2
        and isinstance(call.args[1], (int, float))
        and math.isfinite(call.args[1])
        and (call.args[1] != 0 or call.name == "mul")
        and not call.kwargs
        for call in site.calls
    )


# Which call multiplies what.


@dataclass(frozen=True)
class _Product:
    """A call as a product of tensors, with a letter for every axis.

    Attributes:
        how: what kind of call it is.
        operands: what is multiplied.
        letters: of every operand.
        result: of the result.
        equation: of an ``einsum``.
        scale: what scores are multiplied by, if this is attention in one call.
    """

    how: Literal["attention", "matmul", "einsum"]
    operands: tuple[Traced, ...]
    letters: tuple[str, ...]
    result: str
    equation: str = ""
    scale: float | None = None


_MATMULS = {torch.matmul, torch.bmm, operator.matmul}
_METHODS = {"matmul", "bmm", "__matmul__"}
_ATTENTION = {functional.scaled_dot_product_attention}


def _product(site: CallSite) -> _Product | None:
    target = site.node.target
    name = ""
    if isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.split("::")[1]
    if site.node.op == "call_module":
        return None
    if target in _ATTENTION or name == "scaled_dot_product_attention":
        return _attention(site)
    if target is torch.einsum:
        return _einsum(site)
    if target in _MATMULS or name in ("matmul", "bmm"):
        return _matmul(site)
    if site.node.op == "call_method" and target in _METHODS:
        return _matmul(site)
    return None


def attention_arguments(args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``scaled_dot_product_attention``, by name."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _attention(site: CallSite) -> _Product | None:
    given = attention_arguments(*site.arguments)
    operands = tuple(given.get(name) for name in ("query", "key", "value"))
    if given.get("enable_gqa") or not all(isinstance(x, Traced) for x in operands):
        return None
    query = operands[0]
    assert isinstance(query, Traced)
    batch = string.ascii_lowercase[: len(query.shape) - 2]
    scale = given.get("scale")
    if not (scale is None or isinstance(scale, (int, float))):
        return None
    return _checked(
        _Product(
            "attention",
            operands,  # type: ignore[arg-type]
            (batch + "yz", batch + "xz", batch + "xw"),
            batch + "yw",
            scale=query.shape[-1] ** -0.5 if scale is None else scale,
        ),
        site,
    )


def _matmul(site: CallSite) -> _Product | None:
    args, kwargs = site.arguments
    if kwargs or len(args) != 2 or not all(isinstance(x, Traced) for x in args):
        return None
    batch = string.ascii_lowercase[: len(args[0].shape) - 2]
    return _checked(_Product("matmul", args, (batch + "yz", batch + "zx"), batch + "yx"), site)


def _einsum(site: CallSite) -> _Product | None:
    args, kwargs = site.arguments
    operands = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
    equation = args[0].replace(" ", "") if isinstance(args[0], str) else ""
    sides = equation.split("->")
    if kwargs or len(operands) != 2 or len(sides) != 2 or "." in equation:
        return None
    letters = tuple(sides[0].split(","))
    if len(letters) != 2 or not all(isinstance(x, Traced) for x in operands):
        return None
    return _checked(_Product("einsum", tuple(operands), letters, sides[1], equation), site)


def _checked(product: _Product, site: CallSite) -> _Product | None:
    """``product``, if every letter stands for one size and nothing is broadcast."""
    sizes: dict[str, int] = {}
    shapes = [x.shape for x in product.operands]
    for letters, shape in zip(
        (*product.letters, product.result), (*shapes, site.outputs[0].shape), strict=True
    ):
        if len(letters) != len(shape) or len(set(letters)) < len(letters):
            return None
        if any(sizes.setdefault(c, size) != size for c, size in zip(letters, shape, strict=True)):
            return None
    return product


# What the operands hold.


@dataclass(frozen=True)
class _Heads:
    """A tensor's channels: which lie where.

    Attributes:
        source: the tensor with a channel axis.
        taken: the entries of its axis, head after head; ``None`` if it is the operand itself.
        arrangement: from the channels taken to the operand.
        ids: their ids.
        head: the operand's axis of heads, if there is one.
        channel: the operand's axis of a head's channels.
    """

    source: Traced
    taken: Array | None
    arrangement: Arrangement | None
    ids: Array
    head: int | None
    channel: int

    @property
    def count(self) -> int:
        return 1 if self.arrangement is None else self.arrangement.heads


def channel_axes(x: Traced) -> list[int]:
    """The axes along which the channels of ``x`` vary."""
    if x.axis is not None:
        return [x.axis]
    if x.spread is None or x.spread.source.ids is None or x.spread.source.axis is None:
        return []
    source = x.spread.source
    assert source.axis is not None
    return varying_axes(x.spread.move(places(source.shape, source.axis)))


def _heads(x: Traced, channel: int) -> _Heads:
    """How the channels of ``x`` lie, if axis ``channel`` runs along those of each head.

    Raises:
        NotUnderstood: if they do not lie head by head.
    """
    axes = channel_axes(x)
    if channel not in axes or len(axes) > 2:
        raise NotUnderstood("multiplies along axes that are not those of heads and channels")
    if x.axis is not None:
        assert x.ids is not None
        return _Heads(x, None, None, x.ids, None, channel)
    assert x.spread is not None
    source = x.spread.source
    assert source.axis is not None
    assert source.ids is not None
    if len(axes) != 2:
        raise NotUnderstood("shares channels between heads")
    head = next(axis for axis in axes if axis != channel)
    every = torch.arange(source.fake.numel(), dtype=torch.int64).reshape(source.shape)
    moved = x.spread.move(every)
    order = _order(moved, source, head, channel)
    label = x.spread.move(places(source.shape, source.axis))
    corner = label.permute([head, channel, *(a for a in range(label.ndim) if a not in axes)])
    taken = corner.reshape(*corner.shape[:2], -1)[:, :, 0].flatten().numpy().astype(np.int64)
    arrangement = Arrangement(source.axis, x.shape[head], order)
    if not np.array_equal(taken, np.arange(taken[0], taken[0] + len(taken))):
        raise NotUnderstood("the heads' channels do not lie side by side")
    expected = arrangement.spread(every.index_select(source.axis, torch.from_numpy(taken)))
    if moved.shape != expected.shape or not torch.equal(moved, expected):
        raise NotUnderstood("moves channels and other elements at once")
    return _Heads(source, taken, arrangement, source.ids[taken], head, channel)


def _order(moved: torch.Tensor, source: Traced, head: int, channel: int) -> tuple[int, ...]:
    """Which axis of ``source``, its channel axis split in two, each axis of ``moved`` is."""
    assert source.axis is not None
    if moved.ndim != len(source.shape) + 1:
        raise NotUnderstood("splits or joins axes besides those of heads and channels")
    if source.shape[0] == 1 != moved.shape[0]:
        raise NotUnderstood("moves the batch axis of a batch of one; trace with two or more")
    strides = {}
    for axis, size in enumerate(source.shape):
        if axis != source.axis and size > 1:
            stride = int(np.prod(source.shape[axis + 1 :], dtype=np.int64))
            strides[stride] = axis + (axis > source.axis)
    known: dict[int, int] = {head: source.axis, channel: source.axis + 1}
    for axis, size in enumerate(moved.shape):
        if axis in known or size == 1:
            continue
        first = moved[(0,) * moved.ndim]
        second = moved[tuple(int(a == axis) for a in range(moved.ndim))]
        place = strides.get(int(second - first))
        if place is None:
            raise NotUnderstood("splits or joins axes besides those of heads and channels")
        known[axis] = place
    rest = [place for place in range(moved.ndim) if place not in known.values()]
    single = [axis for axis in range(moved.ndim) if axis not in known]
    if len(rest) > 1 or len(rest) != len(single) or len(set(known.values())) < len(known):
        raise NotUnderstood("has several axes of size one; trace with larger inputs")
    known.update(zip(single, rest, strict=True))
    return tuple(known[axis] for axis in range(moved.ndim))


# What the call amounts to.


class _Writer:
    """Writes the operations of one call."""

    def __init__(self, site: CallSite, channels: Channels) -> None:
        self.site = site
        self.channels = channels
        self.name = site.node.name
        self.written: list[ir.Operation] = []

    def product(self, product: _Product) -> list[ir.Operation]:
        if product.how == "attention":
            return self._attention(product)
        left, right = product.operands
        if not _has_channels(left) or not _has_channels(right):
            return self._mix(product, int(_has_channels(right)))
        shared = self._contracted(product, 0, 1)
        if shared is None:
            try:
                return self._mix(product, 1)
            except NotUnderstood:
                self.written.clear()
                self.site.between.clear()
                return self._mix(product, 0)
        return self._finish(product, shared, None, 0)

    def scaled(self, x: Traced) -> list[ir.Operation]:
        """A product with a number: of the channels as they lie before they are spread."""
        axes = channel_axes(x)
        if len(axes) != 2:
            raise NotUnderstood(SPREADS)
        heads: _Heads | None = None
        for channel in reversed(axes):
            try:
                heads = _heads(x, channel)
                break
            except NotUnderstood as refusal:
                reason = refusal
        if heads is None:
            raise reason
        source = self._cut(heads, 0)
        result = self._between(self.site.node.name + ".scaled", source.shape, heads)
        self.written.append(
            ir.ChannelWise(
                name=self.name, inputs=(source.name,), outputs=(result.name,), keeps_zero=True
            )
        )
        assert heads.arrangement is not None
        self._spread(result, heads.arrangement)
        operands = tuple(
            HeadOperand(source.name) if arg is x else HeadOperand()
            for arg in self.site.arguments[0]
        )
        self.site.heads.append(
            HeadCall("pointwise", operands, tensor=result.name, arrangement=heads.arrangement)
        )
        return self.written

    def _attention(self, product: _Product) -> list[ir.Operation]:
        *_, value = product.operands
        shared = None
        if all(_has_channels(x) for x in product.operands[:2]):
            try:
                shared = self._contracted(product, 0, 1)
            except NotUnderstood:
                shared = None
        return self._finish(product, shared, self._carried(product, 2, value), 2)

    def _mix(self, product: _Product, index: int) -> list[ir.Operation]:
        heads = self._carried(product, index, product.operands[index])
        return self._finish(product, None, heads, index)

    def _contracted(self, product: _Product, left: int, right: int) -> tuple[_Heads, _Heads] | None:
        """The channels of two operands that are multiplied and summed."""
        pair = [product.operands[i] for i in (left, right)]
        letters = [product.letters[i] for i in (left, right)]
        varying = [
            {c[axis] for axis in channel_axes(x)} for x, c in zip(pair, letters, strict=True)
        ]
        summed = varying[0] & varying[1] - set(product.result)
        if len(summed) != 1:
            return None
        (letter,) = summed
        first, second = (_heads(x, c.index(letter)) for x, c in zip(pair, letters, strict=True))
        if varying[0] != varying[1] or first.count != second.count:
            raise NotUnderstood("multiplies heads with other heads")
        if varying[0] - {letter} - set(product.result):
            raise NotUnderstood("sums over heads")
        return first, second

    def _carried(self, product: _Product, index: int, x: Traced) -> _Heads:
        """The channels of an operand that the result has, too."""
        letters = product.letters[index]
        others = set("".join(c for i, c in enumerate(product.letters) if i != index))
        own = [axis for axis in channel_axes(x) if letters[axis] not in others]
        if not own or any(letters[axis] not in product.result for axis in channel_axes(x)):
            raise NotUnderstood("mixes the channels of a tensor")
        return _heads(x, own[-1])

    def _finish(
        self,
        product: _Product,
        shared: tuple[_Heads, _Heads] | None,
        carried: _Heads | None,
        index: int,
    ) -> list[ir.Operation]:
        """Write what was found.

        Args:
            product: the call.
            shared: the channels of queries and keys, if they are known.
            carried: the channels of the values, if the result has them.
            index: which operand the values are.
        """
        structured: dict[int, _Heads] = {}
        if shared is not None:
            structured.update(enumerate(shared))
        if carried is not None:
            structured[index] = carried
        counts = {heads.count for heads in structured.values()}
        if len(counts) != 1:
            raise NotUnderstood("multiplies heads with other heads")
        for heads in structured.values():
            ids = self.channels.resolve(heads.ids)
            if len(np.unique(ids)) < len(ids):
                raise NotUnderstood("shares channels between heads")
        operands: list[HeadOperand] = []
        inputs: list[str] = []
        whole: list[Traced] = []
        for number, x in enumerate(product.operands):
            if number not in structured:
                whole.append(x)
                operands.append(HeadOperand())
                continue
            tensor = self._cut(structured[number], number)
            inputs.append(tensor.name)
            arrangement = structured[number].arrangement
            operands.append(HeadOperand(tensor.name, arrangement))
        known = {id(x) for x in product.operands}
        whole += [x for x in self.site.inputs if id(x) not in known]
        for x in whole:
            if x.ids is not None:
                self.channels.fix(x.ids, f"{self.name}: multiplied as it is")
        result, arrangement = self._result(product, carried, index)
        if shared is not None:
            self.channels.tie(shared[0].ids, shared[1].ids)
        form: Literal["whole", "scores", "mix"] = "mix"
        if shared is not None:
            form = "scores" if carried is None else "whole"
        self.written.append(
            ir.Attention(
                name=self.name,
                inputs=tuple(inputs),
                whole=tuple(dict.fromkeys(x.name for x in whole)),
                outputs=(result.name,),
                heads=counts.pop(),
                form=form,
            )
        )
        if arrangement is not None:
            self._spread(result, arrangement)
        self.site.heads.append(
            HeadCall(
                product.how,
                tuple(operands),
                product.equation,
                product.scale,
                None if carried is None else result.name,
                arrangement,
            )
        )
        return self.written

    def _result(
        self, product: _Product, carried: _Heads | None, index: int
    ) -> tuple[Traced, Arrangement | None]:
        """The tensor with the result's channels, and how the call's result lies in it."""
        output = self.site.outputs[0]
        if carried is None:
            output.axis, output.ids = None, None
            output.why_fixed = f"{self.name}: made of all channels alike"
            return output, None
        letters = product.letters[index]
        channel = product.result.index(letters[carried.channel])
        if carried.arrangement is None:
            output.axis, output.ids = channel, carried.ids
            return output, None
        assert carried.head is not None
        head = product.result.index(letters[carried.head])
        # The other axes come in the sequence in which the values had them.
        fresh = iter(c for c in product.result if c not in letters)
        others: list[str] = []
        for place in carried.arrangement.back:
            letter = letters[place]
            if place in (carried.head, carried.channel):
                continue
            following = letter if letter in product.result else next(fresh, "")
            others.append(following)
        if sorted(others) != sorted(
            c for i, c in enumerate(product.result) if i not in (head, channel)
        ):
            raise NotUnderstood("the result has other axes than the values")
        axis = carried.arrangement.axis
        split = [*others[:axis], product.result[head], product.result[channel], *others[axis:]]
        order = tuple(split.index(c) for c in product.result)
        sizes = dict(zip(product.result, output.shape, strict=True))
        shape = [sizes[c] for c in others]
        shape.insert(axis, output.shape[head] * output.shape[channel])
        arrangement = Arrangement(axis, output.shape[head], order)
        return self._between(f"{self.name}.joined", shape, carried, axis), arrangement

    # Tensors in between.

    def _cut(self, heads: _Heads, number: int) -> Traced:
        """The tensor of the channels that an operand holds, cut out of where they come from."""
        if heads.taken is None:
            return heads.source
        source = heads.source
        assert source.axis is not None
        name = f"{self.name}.{number}"
        shape = list(source.shape)
        shape[source.axis] = len(heads.taken)
        tensor = self._between(f"{name}.heads", shape, heads)
        self.written.append(
            ir.Select(
                name=name,
                inputs=(source.name,),
                outputs=(tensor.name,),
                positions=tuple(heads.taken.tolist()),
            )
        )
        return tensor

    def _between(
        self, name: str, shape: Sequence[int], heads: _Heads, axis: int | None = None
    ) -> Traced:
        tensor = Traced(name, self.site.outputs[0].fake.new_empty(tuple(shape)))
        tensor.axis = heads.source.axis if axis is None else axis
        tensor.ids = heads.ids
        self.site.between.append(tensor)
        return tensor

    def _spread(self, joined: Traced, arrangement: Arrangement) -> None:
        """The call's result: no harm is done if only data movement reads it."""
        output = self.site.outputs[0]
        output.axis, output.ids = None, None
        output.spread = Spread(joined, arrangement.spread)
        output.why_fixed = f"{self.name}: {SPREADS}"
        self.written.append(
            ir.Opaque(
                name=f"{self.name}.spread",
                inputs=(joined.name,),
                outputs=(output.name,),
                reason=SPREADS,
            )
        )
