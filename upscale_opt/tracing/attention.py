"""Attention: products of tensors whose channels are spread over heads, an axis of its own.

Only products that treat each head for itself and each of its channels alike are understood: a sum
over the channels that queries and keys have in common, and a mean of values over tokens. What
lies between the two (scales, biases, masks, softmax, dropout) has no channels, and is not looked
at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from upscale_opt.ir import graph as ir
from upscale_opt.runtime.rotary import rotate
from upscale_opt.tracing.channels import Array, Channels
from upscale_opt.tracing.heads import Heads, channel_axes, has_channels, heads_of
from upscale_opt.tracing.moving import SPREADS
from upscale_opt.tracing.products import Product, product_of
from upscale_opt.tracing.site import CallSite
from upscale_opt.tracing.values import (
    Arrangement,
    HeadCall,
    HeadOperand,
    Kind,
    Merged,
    NotUnderstood,
    Spread,
    Traced,
)


def on_heads(site: CallSite, channels: Channels) -> list[ir.Operation] | None:
    """The operations that a call on heads amounts to; ``None`` if it is no such call.

    Raises:
        NotUnderstood: with the reason.
    """
    if len(site.outputs) != 1 or any(call.changed for call in site.calls):
        return None
    product = product_of(site)
    if product is not None and any(has_channels(x) for x in product.operands):
        return _Writer(site, channels).product(product)
    if site.node.target is rotate and not site.arguments[1]:
        x, *others = site.arguments[0]
        if isinstance(x, Traced) and (x.spread is not None or x.axis == len(x.shape) - 1):
            return _Writer(site, channels).rotated(x, others)
    if (
        len(site.inputs) == 1
        and site.inputs[0].spread is not None
        and sum(arg is site.inputs[0] for arg in site.arguments[0]) == 1
        and not site.arguments[1]
        and _only_scales(site)
    ):
        return _Writer(site, channels).scaled(site.inputs[0])
    return None


def joining_heads(site: CallSite, channels: Channels) -> list[ir.Operation] | None:
    """The operations that joining channels of heads amounts to; ``None`` if it is no such call.

    Raises:
        NotUnderstood: with the reason.
    """
    if [call.name for call in site.calls] != ["cat"] or len(site.outputs) != 1:
        return None
    (call,) = site.calls
    by_fake = {id(x.fake): x for x in site.inputs}
    parts = [by_fake.get(id(fake)) for fake in call.args[0]]
    known = [x for x in parts if x is not None and x.spread is not None]
    if len(known) < len(parts) or len(parts) < 2:
        return None
    dim = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)
    return _Writer(site, channels).joined(known, int(dim) % len(known[0].shape))


def _only_scales(site: CallSite) -> bool:
    """Tell whether the call multiplies or divides one tensor by numbers, and does nothing else."""
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


_TURNS = "turns channels in a way that is not understood"
_SHARES = "shares channels between heads"

FLAT = "flat"
"""The end of the names of operations that make one axis of those behind that of the channels."""


PART = "part"
"""The end of the names of operations that say which channels of queries, or keys, are one."""

ROTATED = "rotated"
"""The end of the names of tensors whose pairs of channels were turned, head after head."""

TURNED = "turned"
"""The end of the names of operations that make scores of pairs that were turned."""

Runs = tuple[tuple[int, ...], ...]
"""Places of a head's channels: one run, or two that are the same channels."""

REPEATED = "repeated"
"""The end of the names of operations that repeat heads."""


class _Writer:
    """Writes the operations of one call."""

    def __init__(self, site: CallSite, channels: Channels) -> None:
        self.site = site
        self.channels = channels
        self.name = site.node.name
        self.written: list[ir.Operation] = []

    def product(self, product: Product) -> list[ir.Operation]:
        """A product of tensors: scores of queries and keys, a mean of values, or both at once."""
        if product.how == "attention":
            return self._attention(product)
        left, right = product.operands
        if not has_channels(left) or not has_channels(right):
            return self._mix(product, int(has_channels(right)))
        shared = self._contracted(product)
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
        heads: Heads | None = None
        for channel in reversed(axes):
            try:
                heads = heads_of(x, channel)
                break
            except NotUnderstood as refusal:
                reason = refusal
        if heads is None:
            raise reason
        if heads.repeats > 1:
            raise NotUnderstood(_SHARES)
        source = self._cut(heads, 0)
        result = self._between(f"{self.name}.scaled", source.shape, heads)
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

    def rotated(self, x: Traced, others: Sequence[object]) -> list[ir.Operation]:
        """A rotation of pairs of a head's channels, by angles that are the same in all heads."""
        heads = heads_of(x, len(x.shape) - 1)
        size = x.shape[-1]
        angles = [a for a in others if isinstance(a, Traced) and len(a.shape) == len(x.shape)]
        if len(angles) != 2 or size % 2 or size < 4:
            raise NotUnderstood(_TURNS)
        if any(a.shape[-1] != size for a in angles):
            raise NotUnderstood(_TURNS)
        if heads.head is not None and any(a.shape[heads.head] != 1 for a in angles):
            raise NotUnderstood(_TURNS)
        source = self._cut(heads, 0)
        result = self.site.outputs[0]
        if heads.arrangement is not None:
            result = self._between(f"{self.name}.{ROTATED}", source.shape, heads)
        elif result.shape != x.shape:
            raise NotUnderstood(_TURNS)
        result.axis, result.ids = source.axis, heads.ids
        grid = heads.ids.reshape(-1, size)
        self.channels.tie(grid[:, : size // 2].flatten(), grid[:, size // 2 :].flatten())
        for angle in angles:
            if angle.ids is not None:
                self.channels.fix(angle.ids, f"{self.name}: multiplied as it is")
        self.written.append(
            ir.ChannelWise(
                name=self.name,
                inputs=(source.name,),
                whole=tuple(dict.fromkeys(a.name for a in angles)),
                outputs=(result.name,),
                keeps_zero=True,
            )
        )
        if heads.arrangement is not None:
            self._spread(result, heads.arrangement, heads.repeats)
        operands = (HeadOperand(source.name, repeats=heads.repeats), HeadOperand(), HeadOperand())
        self.site.heads.append(
            HeadCall("rotation", operands, tensor=result.name, arrangement=heads.arrangement)
        )
        return self.written

    def joined(self, parts: Sequence[Traced], dim: int) -> list[ir.Operation]:
        """Channels of each head behind others of the same head."""
        all_heads = [heads_of(x, dim) for x in parts]
        first = all_heads[0]
        alike = all(h.arrangement == first.arrangement and h.repeats == 1 for h in all_heads)
        if not alike or first.arrangement is None:
            raise NotUnderstood("joins other heads")
        cuts = [self._cut(heads, number) for number, heads in enumerate(all_heads)]
        starts = np.cumsum([0, *(len(heads.ids) for heads in all_heads)])
        places = [
            (start + np.arange(len(heads.ids))).reshape(first.count, -1)
            for start, heads in zip(starts, all_heads, strict=False)
        ]
        positions = np.concatenate(places, axis=1).flatten()
        axis = cuts[0].axis
        shape = [len(positions) if a == axis else n for a, n in enumerate(cuts[0].shape)]
        result = self._between(f"{self.name}.joined", shape, first)
        result.ids = np.concatenate([heads.ids for heads in all_heads])[positions]
        self.written.append(
            ir.Concat(
                name=self.name,
                inputs=tuple(cut.name for cut in cuts),
                outputs=(result.name,),
                positions=tuple(positions.tolist()),
            )
        )
        self._spread(result, first.arrangement)
        operands = tuple(HeadOperand(cut.name, first.arrangement) for cut in cuts)
        self.site.heads.append(
            HeadCall("cat", operands, tensor=result.name, arrangement=first.arrangement)
        )
        return self.written

    def _attention(self, product: Product) -> list[ir.Operation]:
        shared = None
        if all(has_channels(x) for x in product.operands[:2]):
            try:
                shared = self._contracted(product)
            except NotUnderstood:
                shared = None
        carried = self._carried(product, 2)
        if shared is not None and shared[1].count != carried.count:
            shared = None
        if shared is not None and shared[1].arrangement is None and carried.arrangement is None:
            head = shared[1].head  # as queries tell, if they have several
            carried = replace(carried, head=head, repeats=shared[1].repeats)
        return self._finish(product, shared, carried, 2)

    def _mix(self, product: Product, index: int) -> list[ir.Operation]:
        return self._finish(product, None, self._carried(product, index), index)

    def _contracted(self, product: Product) -> tuple[Heads, Heads] | None:
        """The channels of the first two operands, if they are multiplied and summed."""
        pair, letters = product.operands[:2], product.letters[:2]
        varying = [
            {c[axis] for axis in channel_axes(x)} for x, c in zip(pair, letters, strict=True)
        ]
        summed = varying[0] & varying[1] - set(product.result)
        if len(summed) != 1:
            return None
        (letter,) = summed
        first, second = (heads_of(x, c.index(letter)) for x, c in zip(pair, letters, strict=True))
        if first.repeats > 1:
            raise NotUnderstood(_SHARES)
        others = varying[0] - varying[1]
        if second.arrangement is None and len(others) == 1 and others <= set(letters[1]):
            (head,) = others  # along which one head of keys is there for all queries
            repeats = first.count // product.repeats
            second = replace(second, head=letters[1].index(head), repeats=repeats)
            varying[1] = varying[0]
        if varying[0] != varying[1] or first.count != (
            second.count * second.repeats * product.repeats
        ):
            raise NotUnderstood("multiplies heads with other heads")
        if varying[0] - {letter} - set(product.result):
            raise NotUnderstood("sums over heads")
        return first, second

    def _carried(self, product: Product, index: int) -> Heads:
        """The channels of an operand that the result has, too."""
        x, letters = product.operands[index], product.letters[index]
        others = set("".join(c for i, c in enumerate(product.letters) if i != index))
        own = [axis for axis in channel_axes(x) if letters[axis] not in others]
        if not own or any(letters[axis] not in product.result for axis in channel_axes(x)):
            raise NotUnderstood("mixes the channels of a tensor")
        heads = heads_of(x, own[-1])
        copies = x.copies
        if heads.arrangement is None and copies is not None and letters[copies] in product.result:
            return replace(heads, head=copies, repeats=x.shape[copies])
        if heads.arrangement is None and product.repeats > 1:
            return replace(heads, head=len(x.shape) - 3)
        return heads

    def _finish(
        self,
        product: Product,
        shared: tuple[Heads, Heads] | None,
        carried: Heads | None,
        index: int,
    ) -> list[ir.Operation]:
        """Write what was found.

        Args:
            product: the call.
            shared: the channels of queries and keys, if they are known.
            carried: the channels of the values, if the result has them.
            index: which operand the values are.
        """
        structured = dict(enumerate(shared or ()))
        if carried is not None:
            structured[index] = carried
        merging = self._tied(shared)
        count = self._count(structured, merging)
        operands: list[HeadOperand] = []
        inputs: list[str] = []
        pairs: list[str] = []
        for number in range(len(product.operands)):
            if number not in structured:
                operands.append(HeadOperand())
                continue
            heads = structured[number]
            tensor, merged = self._cut(heads, number).name, None
            if merging is not None and number < 2:
                merged = self._merged(tensor, heads, number, merging)
                *turned, tensor = (kind.tensor for kind in merged.kinds)
                pairs += turned
            inputs.append(tensor)
            operands.append(HeadOperand(tensor, heads.arrangement, heads.repeats, merged))
        whole = (*self._whole(product, structured), *self._turned_scores(pairs, count))
        result, arrangement = self._result(product, carried, index)
        repeats = 1 if carried is None else carried.repeats * product.repeats
        mixed = result
        if repeats > 1:
            if carried is None or arrangement is None:
                raise NotUnderstood(_SHARES)
            mixed = self._between(f"{self.name}.mixed", _unrepeated(result, repeats), carried)
            mixed.axis, mixed.like = result.axis, result.like
            result.ids = carried.ids[_repeated(count, len(carried.ids), repeats)]
        form: Literal["whole", "scores", "mix"] = "mix"
        if shared is not None:
            form = "scores" if carried is None else "whole"
        self.written.append(
            ir.Attention(
                name=self.name,
                inputs=tuple(inputs),
                whole=whole,
                outputs=(mixed.name,),
                heads=count,
                form=form,
            )
        )
        if repeats > 1:
            positions = _repeated(count, len(mixed.ids), repeats)  # type: ignore[arg-type]
            self.written.append(
                ir.Select(
                    name=f"{self.name}.{REPEATED}",
                    inputs=(mixed.name,),
                    outputs=(result.name,),
                    positions=tuple(positions.tolist()),
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

    def _tied(self, shared: tuple[Heads, Heads] | None) -> tuple[int, tuple[Runs, ...]] | None:
        """Let queries and keys have the same channels.

        Returns:
            How many heads of queries have one head of keys, and the kinds of a head's channels;
            ``None`` if each channel of both is one of its own.
        """
        if shared is None:
            return None
        queries, keys = shared
        copies = queries.count // keys.count
        grid, other = (h.ids.reshape(h.count, -1) for h in shared)
        self.channels.tie(grid.flatten(), np.repeat(other, copies, axis=0).flatten())
        kinds = _kinds(self.channels.resolve(other.flatten()).reshape(other.shape))
        return (copies, kinds) if copies > 1 or len(kinds[0]) > 1 else None

    def _merged(
        self, held: str, heads: Heads, number: int, merging: tuple[int, tuple[Runs, ...]]
    ) -> Merged:
        """The channels of queries or keys, each of them once.

        Args:
            held: the tensor of them.
            heads: where they are.
            number: 0 for queries, 1 for keys.
            merging: what :meth:`_tied` says.
        """
        copies, kinds = merging
        copies = copies if number == 0 else 1
        size = len(heads.ids) // heads.count
        merged = []
        for op, runs in zip(
            (f"{self.name}.{TURNED}", self.name)[-len(kinds) :], kinds, strict=True
        ):
            merged.append(Kind(op, self._once(held, f"{op}.{number}", heads, copies, runs), runs))
        return Merged(held, size, copies, tuple(merged))

    def _once(self, held: str, name: str, heads: Heads, copies: int, runs: Runs) -> str:
        """The tensor of a kind of channels, each of them once."""
        place = np.arange(len(heads.ids)).reshape(-1, copies, len(heads.ids) // heads.count)
        cut = next((x for x in self.site.between if x.name == held), heads.source)
        count = len(place) * len(runs[0])
        shape = [count if a == cut.axis else n for a, n in enumerate(cut.shape)]
        parts: list[str] = []
        for copy in range(copies):
            for run in runs:
                taken = place[:, copy][:, run].flatten()
                part = self._between(f"{name}.{len(parts)}.part", shape, heads)
                part.ids = heads.ids[taken]
                parts.append(part.name)
                self.written.append(
                    ir.Select(
                        name=f"{name}.{len(parts)}.{PART}",
                        inputs=(held,),
                        outputs=(part.name,),
                        positions=tuple(taken.tolist()),
                    )
                )
        if len(parts) == 1:
            return parts[0]
        merged = self._between(f"{name}.merged", shape, heads)
        merged.ids = part.ids
        self.written.append(
            ir.Elementwise(
                name=f"{name}.{PART}",
                inputs=tuple(parts),
                outputs=(merged.name,),
                zero_if="all",
            )
        )
        return merged.name

    def _turned_scores(self, pairs: Sequence[str], count: int) -> list[str]:
        """Scores of the pairs, where there are other channels, to whose scores they are added.

        Every head must keep as many pairs as the others, and as many of the rest: together they
        would be counted alike, but a pair is two channels in the end.

        Args:
            pairs: the tensors of queries and keys, if there are such pairs.
            count: the number of heads.
        """
        if not pairs:
            return []
        name = f"{self.name}.{TURNED}"
        scores = Traced(f"{name}.scores", self.site.outputs[0].fake.new_empty(()))
        self.site.between.append(scores)
        self.written.append(
            ir.Attention(
                name=name, inputs=tuple(pairs), outputs=(scores.name,), heads=count, form="scores"
            )
        )
        return [scores.name]

    def _count(
        self, structured: dict[int, Heads], merging: tuple[int, tuple[Runs, ...]] | None
    ) -> int:
        """The number of heads.

        Raises:
            NotUnderstood: if operands differ in that, or a channel is in several places.
        """
        copies, kinds = merging or (1, ())
        once = [place for runs in kinds for place in runs[0]]
        counts = set()
        for number, heads in structured.items():
            again = copies if number == 0 and merging is not None else 1
            counts.add(heads.count // again)
            grid = self.channels.resolve(heads.ids).reshape(heads.count // again, again, -1)
            alone = grid[:, 0]
            ids = (alone[:, once] if number < 2 and kinds else alone).flatten()
            if len(np.unique(ids)) < len(ids):
                raise NotUnderstood(_SHARES)
        if len(counts) != 1:
            raise NotUnderstood("multiplies heads with other heads")
        return counts.pop()

    def _whole(self, product: Product, structured: dict[int, Heads]) -> tuple[str, ...]:
        """The tensors that are read as they are: the other operands, masks and the like."""
        operands = {id(x) for x in product.operands}
        whole = [x for number, x in enumerate(product.operands) if number not in structured]
        whole += [x for x in self.site.inputs if id(x) not in operands]
        for x in whole:
            if x.ids is not None:
                self.channels.fix(x.ids, f"{self.name}: multiplied as it is")
        return tuple(dict.fromkeys(x.name for x in whole))

    def _result(
        self, product: Product, carried: Heads | None, index: int
    ) -> tuple[Traced, Arrangement | None]:
        """The tensor with the result's channels, and how the call's result lies in it."""
        output = self.site.outputs[0]
        if carried is None:
            output.axis, output.ids = None, None
            output.why_fixed = f"{self.name}: made of all channels alike"
            return output, None
        letters = product.letters[index]
        channel = product.result.index(letters[carried.channel])
        if carried.head is None:
            output.axis, output.ids = channel, carried.ids
            return output, None
        head = product.result.index(letters[carried.head])
        others = _others(product, letters, carried)
        axis = len(others) if carried.arrangement is None else carried.arrangement.axis
        split = [*others[:axis], product.result[head], product.result[channel], *others[axis:]]
        order = tuple(split.index(c) for c in product.result)
        sizes = dict(zip(product.result, output.shape, strict=True))
        shape = [sizes[c] for c in others]
        shape.insert(axis, output.shape[head] * output.shape[channel])
        arrangement = Arrangement(axis, output.shape[head], order)
        joined = self._between(f"{self.name}.joined", shape, carried, axis)
        sizes_of = [_holder(product, c) for c in others]
        joined.like = (*sizes_of[:axis], None, *sizes_of[axis:])
        return joined, arrangement

    # Tensors in between.

    def _cut(self, heads: Heads, number: int) -> Traced:
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
        if not heads.flat:
            return tensor
        shape[source.axis + 1 :] = [math.prod(shape[source.axis + 1 :])]
        flat = self._between(f"{name}.flattened", shape, heads)
        self.written.append(
            ir.ChannelWise(
                name=f"{name}.{FLAT}",
                inputs=(tensor.name,),
                outputs=(flat.name,),
                keeps_zero=True,
            )
        )
        return flat

    def _between(
        self, name: str, shape: Sequence[int], heads: Heads, axis: int | None = None
    ) -> Traced:
        tensor = Traced(name, self.site.outputs[0].fake.new_empty(tuple(shape)))
        tensor.axis = heads.source.axis if axis is None else axis
        tensor.ids = heads.ids
        same = len(shape) if len(shape) == len(heads.source.shape) else heads.source.axis or 0
        tensor.like = tuple(
            None if a == heads.source.axis or a >= same else (heads.source, a)
            for a in range(len(shape))
        )
        self.site.between.append(tensor)
        return tensor

    def _spread(self, joined: Traced, arrangement: Arrangement, repeats: int = 1) -> None:
        """The call's result: no harm is done if only data movement reads it."""
        output = self.site.outputs[0]
        output.axis, output.ids = None, None

        def moved(values: torch.Tensor) -> torch.Tensor:
            return arrangement.spread(values).repeat_interleave(repeats, arrangement.head)

        output.spread = Spread(joined, arrangement.spread if repeats == 1 else moved)
        output.why_fixed = f"{self.name}: {SPREADS}"
        self.written.append(
            ir.Opaque(
                name=f"{self.name}.spread",
                inputs=(joined.name,),
                outputs=(output.name,),
                reason=SPREADS,
            )
        )


def _kinds(known: Array) -> tuple[Runs, ...]:
    """The places of a head's channels, each of them once: of pairs, and of those that are none.

    Args:
        known: the channels, of shape (heads, channels of a head).
    """
    groups: dict[int, list[int]] = {}
    for place, channel in enumerate(known[0].tolist()):
        groups.setdefault(channel, []).append(place)
    pairs = [group for group in groups.values() if len(group) == 2]
    alone = tuple(group[0] for group in groups.values() if len(group) == 1)
    first, second = (tuple(pair[end] for pair in pairs) for end in (0, 1))
    alike = np.array_equal(known[:, first], known[:, second])
    if not pairs or not alike or 2 * len(pairs) + len(alone) < known.shape[1]:
        return ((tuple(range(known.shape[1])),),)
    return ((first, second), (alone,)) if alone else ((first, second),)


def _unrepeated(result: Traced, repeats: int) -> tuple[int, ...]:
    """The shape of ``result`` without repeated heads."""
    return tuple(
        size // repeats if axis == result.axis else size for axis, size in enumerate(result.shape)
    )


def _repeated(heads: int, channels: int, repeats: int) -> Array:
    """The places of channels, each head ``repeats`` times in sequence."""
    return np.repeat(np.arange(channels).reshape(heads, -1), repeats, axis=0).flatten()


def _holder(product: Product, letter: str) -> tuple[Traced, int]:
    """The first operand that has an axis, and which of its axes that is."""
    return next(
        (x, c.index(letter))
        for x, c in zip(product.operands, product.letters, strict=True)
        if letter in c
    )


def _others(product: Product, letters: str, carried: Heads) -> list[str]:
    """The result's axes besides those of heads and channels, in the sequence of the values'.

    Args:
        product: the call.
        letters: of the values.
        carried: the channels of the values.

    Raises:
        NotUnderstood: if the result has other axes than the values.
    """
    sequence = range(len(letters)) if carried.arrangement is None else carried.arrangement.back
    fresh = iter(c for c in product.result if c not in letters)
    own = [letters[axis] for axis in sequence if axis not in (carried.head, carried.channel)]
    others = [c if c in product.result else next(fresh, "") for c in own]
    of_heads = {letters[axis] for axis in (carried.head, carried.channel) if axis is not None}
    if sorted(others) != sorted(c for c in product.result if c not in of_heads):
        raise NotUnderstood("the result has other axes than the values")
    return others
