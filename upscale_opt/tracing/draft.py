"""The channel graph while it is being built."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from upscale_opt.ir import graph as ir
from upscale_opt.tracing.capture import Capture
from upscale_opt.tracing.channels import Array, Channels, find_spaces, units
from upscale_opt.tracing.examples import dtype_name
from upscale_opt.tracing.values import Traced


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
    """

    channels: Channels = field(default_factory=Channels)
    tensors: dict[str, Traced] = field(default_factory=dict)
    operations: list[ir.Operation] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    users: dict[str, list[str]] = field(default_factory=dict)
    untouchable: dict[str, str] = field(default_factory=dict)

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
        self._share_nothing()
        roots = self.channels.roots()
        number = np.full(len(roots), -1, dtype=np.int64)
        count = 0
        split: dict[str, tuple[Array, int]] = {}
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
        operations = self._by_channels(split)
        fixed = {
            int(number[root]): why
            for root, why in self.channels.fixed(roots).items()
            if number[root] >= 0
        }
        tensors = {}
        for name, tensor in self.tensors.items():
            own, features = split.get(name, (np.zeros(0, dtype=np.int64), 1))
            tensors[name] = ir.Tensor(
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
            spaces=find_spaces((ids for ids, _ in split.values()), fixed, count),
            tensors=tensors,
            operations=operations,
        )

    def _by_channels(self, split: dict[str, tuple[Array, int]]) -> tuple[ir.Operation, ...]:
        """Positions of channels instead of elements; a call is refused as a whole."""
        converted = [self._by_channel(op, split) for op in self.operations]
        refused = {
            op.name.split(".")[0]
            for op, original in zip(converted, self.operations, strict=True)
            if op.kind != original.kind
        }
        return tuple(
            self._fixed(original, "cuts through the features of one channel")
            if isinstance(op, ir.Select) and op.name.split(".")[0] in refused
            else op
            for op, original in zip(converted, self.operations, strict=True)
        )

    def _by_channel(
        self, operation: ir.Operation, split: dict[str, tuple[Array, int]]
    ) -> ir.Operation:
        """Positions of elements become positions of channels; mixed features are refused."""
        if not isinstance(operation, (ir.Select, ir.Concat)):
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

    def _share_nothing(self) -> None:
        """What several calls share cannot follow all of them: it stays as it is."""
        changed = True
        while changed:
            changed = False
            for index, operation in enumerate(self.operations):
                for name in ir.parameters_of(operation):
                    if len(self.users[name]) > 1:
                        reason = f"{name} is shared by {', '.join(self.users[name])}"
                    elif name in self.untouchable:
                        reason = f"{name} must stay: {self.untouchable[name]}"
                    else:
                        continue
                    self.operations[index] = self._fixed(operation, reason)
                    for other in ir.parameters_of(operation):
                        self.untouchable.setdefault(other, f"{operation.name} must stay")
                    changed = True
                    break

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
