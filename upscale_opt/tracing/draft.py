"""The channel graph while it is being built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from upscale_opt.ir import graph as ir
from upscale_opt.tracing.capture import Capture
from upscale_opt.tracing.channels import Array, Channels, find_spaces, units
from upscale_opt.tracing.examples import dtype_name
from upscale_opt.tracing.heads import HeadsRefused
from upscale_opt.tracing.values import Traced

Split = Mapping[str, tuple[Array, int]]
"""For every tensor with a channel axis: the ids along it, of shape (channels,), and how many
features each of them has. The axis is channels * features long; see :func:`units`."""


@dataclass
class Draft:
    """Operations and tensors so far, in order.

    Attributes:
        channels: the identities of their channels.
        tensors: the tensors by name.
        operations: the operations.
        shapes: of every parameter and buffer of the model.
        users: for each parameter, the operations that use it.
        untouchable: parameters that must stay as they are, with the reason.
        attending: the calls that work on attention heads.
    """

    channels: Channels = field(default_factory=Channels)
    tensors: dict[str, Traced] = field(default_factory=dict)
    operations: list[ir.Operation] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    users: dict[str, list[str]] = field(default_factory=dict)
    untouchable: dict[str, str] = field(default_factory=dict)
    attending: set[str] = field(default_factory=set)

    def new(self, name: str, fake: torch.Tensor) -> Traced:
        """Add a tensor."""
        self.tensors[name] = Traced(name, fake)
        return self.tensors[name]

    def enter(self, operation: ir.Operation) -> None:
        """Add an operation."""
        self.operations.append(operation)
        for name in ir.parameters_of(operation):
            self.users.setdefault(name, []).append(operation.name)

    def finish(self, capture: Capture, example: ir.Example) -> ir.ChannelGraph:
        """The graph: channels numbered by first appearance, and split into spaces."""
        self._share()
        twins = self.channels.originals()
        self._forget_detours()
        self._part_groups()
        roots = self.channels.roots()
        number = np.full(len(roots), -1, dtype=np.int64)
        count = 0
        split: dict[str, tuple[Array, int]] = {}  # a Split
        for name, tensor in self.tensors.items():
            if tensor.ids is None:
                continue
            own, features = units(roots[tensor.ids])
            fresh = own[number[own] < 0]
            _, first = np.unique(fresh, return_index=True)
            fresh = fresh[np.sort(first)]
            number[fresh] = np.arange(count, count + len(fresh))
            count += len(fresh)
            split[name] = (number[own], features)
        original = np.arange(count, dtype=np.int64)
        for twin, channel in twins.items():
            if number[twin] >= 0 and number[channel] >= 0:
                original[number[twin]] = number[channel]
        operations = _interleaved(self._by_channels(split), split)
        for op in operations:
            if isinstance(op, ir.Attention) and any(split[n][1] > 1 for n in op.inputs):
                raise HeadsRefused(f"{op.name}: heads of channels with several features")
        tensors = {name: self.tensors[name] for op in operations for name in op.outputs}
        fixed: dict[int, str] = {}
        for root, why in self.channels.fixed(roots).items():
            if number[root] >= 0:
                fixed.setdefault(int(original[number[root]]), why)
        held = np.unique(np.concatenate([split[n][0] for n in tensors if n in split] or [original]))
        made = held[original[held] != held]
        described = {}
        for name, tensor in tensors.items():
            own, features = split.get(name, (np.zeros(0, dtype=np.int64), 1))
            described[name] = ir.Tensor(
                shape=tensor.shape,
                dtype=dtype_name(tensor.fake.dtype),
                axis=tensor.axis,
                channels=tuple(own.tolist()),
                features=features,
            )
        named = sorted({name for op in operations for name in ir.parameters_of(op)})
        return ir.ChannelGraph(
            capture=capture,
            example=example,
            parameters={name: self.shapes[name] for name in named},
            spaces=find_spaces(
                (original[split[name][0]] for name in tensors if name in split),
                fixed,
                count,
                [original[group] for group in _groups(operations, split)],
            ),
            twins=(
                (ir.Twins(channels=tuple(made.tolist()), of=tuple(original[made].tolist())),)
                if len(made)
                else ()
            ),
            tensors=described,
            operations=operations,
        )

    def _by_channels(self, split: Split) -> tuple[ir.Operation, ...]:
        """Positions of channels instead of elements; a call is refused as a whole."""
        converted = [self._by_channel(op, split) for op in self.operations]
        refused = {
            op.name.split(".")[0]
            for op, original in zip(converted, self.operations, strict=True)
            if op.kind != original.kind
        }
        if any(name in refused for name in self.attending):
            raise HeadsRefused("heads cut through the features of one channel")
        return tuple(
            self._fixed(original, "cuts through the features of one channel")
            if isinstance(op, ir.Select) and op.name.split(".")[0] in refused
            else op
            for op, original in zip(converted, self.operations, strict=True)
        )

    def _by_channel(self, operation: ir.Operation, split: Split) -> ir.Operation:
        """Positions of elements become positions of channels; mixed features are refused."""
        if not isinstance(operation, (ir.Select, ir.Concat)):
            return operation
        if isinstance(operation, ir.Concat) and operation.positions is not None:
            return operation
        sizes = {split[name][1] for name in (*operation.inputs, *operation.outputs)}
        if len(sizes) == 1:
            size = sizes.pop()
            if size == 1 or isinstance(operation, ir.Concat):
                return operation
            starts = np.array(operation.positions[::size])
            if not np.any(starts % size) and np.array_equal(
                (starts[:, None] + np.arange(size)).ravel(), operation.positions
            ):
                return operation.model_copy(update={"positions": tuple((starts // size).tolist())})
        return self._fixed(operation, "cuts through the features of one channel")

    def _forget_detours(self) -> None:
        """Drop what spreads channels over several axes only for them to be joined again."""
        read: set[str] = set()
        kept: list[ir.Operation] = []
        refused = self._refused_detours()
        for op in reversed(self.operations):
            if op.name.split(".")[0] in refused:
                op = self._by_detour(op)
            if isinstance(op, ir.Opaque) and op.outputs and all(map(self._is_spread, op.outputs)):
                if read.isdisjoint(op.outputs):
                    for name in op.outputs:
                        del self.tensors[name]
                    continue
                for name in op.inputs:
                    ids = self.tensors[name].ids
                    if ids is not None:
                        self.channels.fix(ids, f"{op.name}: {op.reason}")
            read.update((*op.inputs, *op.whole, *op.sizes))
            kept.append(op)
        self.operations = kept[::-1]

    def _refused_detours(self) -> set[str]:
        """The calls that end a detour in a selection that cannot be expressed in channels."""
        roots = self.channels.roots()
        refused: set[str] = set()
        for op in self.operations:
            if isinstance(op, ir.Select) and self.tensors[op.outputs[0]].detour is not None:
                split = {}
                for name in (*op.inputs, *op.outputs):
                    ids = self.tensors[name].ids
                    assert ids is not None
                    split[name] = units(roots[ids])
                if self._by_channel(op, split).kind != "select":
                    refused.add(op.name.split(".")[0])
        return refused

    def _by_detour(self, op: ir.Operation) -> ir.Operation:
        """The way that the program takes, instead of a selection from where it began."""
        detour = self.tensors[op.outputs[0]].detour
        assert detour is not None
        fixed = self._fixed(op, "cuts through the features of one channel")
        return fixed.model_copy(update={"inputs": (detour,)})

    def _is_spread(self, name: str) -> bool:
        return self.tensors[name].spread is not None

    def _part_groups(self) -> None:
        """Operations on groups of channels need channels to group."""
        for index, op in enumerate(self.operations):
            if isinstance(op, ir.Attention):
                self._check_heads(op)
            if not isinstance(op, (ir.Layer, ir.Symmetric)) or op.groups == 1:
                continue
            for name in (*op.inputs, *op.outputs):
                ids = self.tensors[name].ids
                resolved = self.channels.resolve(ids) if ids is not None else None
                if resolved is not None and len(np.unique(resolved)) < len(resolved):
                    self.operations[index] = self._fixed(op, f"{op.groups} groups share channels")
                    break

    def _check_heads(self, op: ir.Attention) -> None:
        """Heads consist of channels, no two of them one.

        Raises:
            HeadsRefused: if they do not.
        """
        for name in (*op.inputs, *(op.outputs if op.values else ())):
            ids = self.tensors[name].ids
            assert ids is not None
            resolved = self.channels.resolve(ids)
            if len(np.unique(resolved)) < len(resolved):
                raise HeadsRefused(f"{op.name}: heads share channels")

    def _share(self) -> None:
        """Parameters that several calls use are cut alike by all of them, or stay as they are."""
        changed = True
        while changed:
            changed = False
            for index, operation in enumerate(self.operations):
                for name in ir.parameters_of(operation):
                    if name in self.untouchable:
                        reason = f"{name} must stay: {self.untouchable[name]}"
                    elif not self._can_share(name):
                        reason = f"{name} is shared by {', '.join(self.users[name])}"
                    else:
                        continue
                    self.operations[index] = self._fixed(operation, reason)
                    for other in ir.parameters_of(operation):
                        self.untouchable.setdefault(other, f"{operation.name} must stay")
                    changed = True
                    break

        for shared, users in self.users.items():
            if len(users) > 1 and shared not in self.untouchable:
                first, *others = self._uses(shared)
                for use in others:
                    for axis, ids in use.items():
                        self.channels.tie(first[axis], ids)

    def _can_share(self, name: str) -> bool:
        """Tell whether all calls of the parameter use the same axes, as many channels each."""
        if len(self.users[name]) == 1:
            return True
        sizes = [
            {axis: len(ids) for axis, ids in used.items()} for used in self._uses(name) if used
        ]
        alike = all(size == sizes[0] for size in sizes)
        return len(sizes) == len(self.users[name]) and alike and not self._groups_differ(name)

    def _groups_differ(self, name: str) -> bool:
        own = [op for op in self.operations if op.name in self.users[name]]
        return len({op.groups if isinstance(op, ir.Layer) else 1 for op in own}) > 1

    def _uses(self, name: str) -> list[dict[int, Array]]:
        """For every call that uses the parameter, the channels along each of its axes."""
        own = [op for op in self.operations if op.name in self.users[name]]
        return [
            {axis: self.ids_of(tensor) for axis, tensor in ir.axes_of(op, name).items()}
            for op in own
        ]

    def ids_of(self, name: str) -> Array:
        """The channel ids of a structured tensor."""
        ids = self.tensors[name].ids
        assert ids is not None
        return ids

    def _fixed(self, operation: ir.Operation, reason: str) -> ir.Opaque:
        for name in (*operation.inputs, *operation.whole, *operation.outputs):
            ids = self.tensors[name].ids
            if ids is not None:
                self.channels.fix(ids, f"{operation.name}: {reason}")
        return ir.Opaque(
            name=operation.name,
            inputs=(*operation.inputs, *operation.whole),
            outputs=operation.outputs,
            reason=reason,
        )


def count_groups(op: ir.Operation) -> int:
    """Into how many groups of equal size an operation's channels fall."""
    if isinstance(op, ir.Attention):
        return op.heads
    return op.groups if isinstance(op, (ir.Layer, ir.Symmetric)) else 1


def _groups(operations: Iterable[ir.Operation], split: Split) -> list[Array]:
    """The channels of every group that an operation treats for itself."""
    return [
        group
        for op in operations
        if count_groups(op) > 1
        for name in (*op.inputs, *op.outputs)
        if name in split
        for group in np.split(split[name][0], count_groups(op))
    ]


def _interleaved(operations: tuple[ir.Operation, ...], split: Split) -> tuple[ir.Operation, ...]:
    """Let a concatenation that is only read to be rearranged write that arrangement at once."""
    readers = Counter(name for op in operations for name in (*op.inputs, *op.whole, *op.sizes))
    joins = {
        op.outputs[0]: op for op in operations if isinstance(op, ir.Concat) and op.positions is None
    }
    absorbed: set[str] = set()
    result: list[ir.Operation] = []
    for op in operations:
        join = joins.get(op.inputs[0]) if isinstance(op, ir.Select) else None
        if (
            isinstance(op, ir.Select)
            and join is not None
            and readers[op.inputs[0]] == 1
            and len(set(op.positions)) == len(op.positions)
            and any(b - a != 1 for a, b in pairwise(op.positions))
            and {split[name][1] for name in (*join.inputs, *op.outputs)} == {1}
        ):
            absorbed.add(join.name)
            result.append(
                ir.Concat(
                    name=op.name, inputs=join.inputs, outputs=op.outputs, positions=op.positions
                )
            )
        else:
            result.append(op)
    return tuple(op for op in result if op.name not in absorbed)
