"""Sizes of tensors that a program asks for, and the calls that use the answers."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from upscale_opt.ir import graph as ir
from upscale_opt.tracing.channels import units
from upscale_opt.tracing.draft import Draft
from upscale_opt.tracing.heads import channel_axes
from upscale_opt.tracing.queries import asked, asks_rank, is_plain, picks_item, sizes_asked
from upscale_opt.tracing.values import Traced

_OF_NO_SIZE = {"dim", "ndim", "ndimension", "dtype", "device", "is_floating_point", "is_cuda"}
_SIZES = {"size", "shape", "sym_size"}


@dataclass
class Sizes:
    """The numbers that a program makes from the sizes of its tensors.

    Attributes:
        draft: the graph so far.
        understands_heads: whether attention is looked for.
        fixed: the calls whose answer is that of the original: they ask for sizes of parameters, how
            many heads there are, or channels in a head, or compute with such numbers.
        varying: the calls whose numbers, or tuples of numbers, may be others in another call of the
            model.
        given: those of ``varying`` that are inputs, or made of inputs that are numbers.
        axes: which size of which tensor a number is, by tensor and axis.
        settled: the calls whose numbers are of channels alone, and so the same in each call.
    """

    draft: Draft
    understands_heads: bool
    fixed: set[fx.Node] = field(default_factory=set, init=False)
    varying: set[fx.Node] = field(default_factory=set, init=False)
    given: set[fx.Node] = field(default_factory=set, init=False)
    axes: dict[fx.Node, tuple[str, int]] = field(default_factory=dict, init=False)
    settled: set[fx.Node] = field(default_factory=set, init=False)
    _tuples: dict[fx.Node, tuple[Traced, list[int]]] = field(default_factory=dict, init=False)
    _sources: dict[fx.Node, dict[str, None]] = field(default_factory=dict, init=False)

    def enter(self, node: fx.Node, value: Any) -> None:
        """Note that an input is a number, or holds numbers."""
        if not isinstance(value, Traced):
            self.varying.add(node)
            self.given.add(node)

    def hand_on(self, node: fx.Node, result: Any) -> None:
        """Note that a call makes numbers from those among its arguments."""
        self._sources[node] = self._before(node)
        sources = node.all_input_nodes
        if any(source in self.given for source in sources) and not isinstance(result, Traced):
            self.given.add(node)
        if sources and all(source in self.settled for source in sources):
            self.settled.add(node)
        if sources and all(source in self.fixed for source in sources) and _is_number(result):
            self.fixed.add(node)
        elif node.target is operator.getitem and node.args[0] in self._tuples:
            tensor, axes = self._tuples[node.args[0]]  # type: ignore[index]
            self._pick(node, tensor, axes)
        elif any(source in self.varying for source in sources) and not isinstance(result, Traced):
            self.varying.add(node)

    def ask(self, node: fx.Node, inputs: list[Traced], result: Any) -> None:
        """Note that a call makes no tensors: it asks for sizes and the like, or for data."""
        self._sources[node] = self._before(node)
        if not asks_rank(node):  # which is that of the example
            self._sources[node] |= dict.fromkeys(x.name for x in inputs)
        if not inputs:
            if _is_number(result):  # of parameters, as they were
                self.fixed.add(node)
            return
        name = asked(node)
        if name in _OF_NO_SIZE:
            return
        self.varying.add(node)
        if name in _SIZES:
            spread = any(tensor.spread is not None for tensor in inputs)
            if len(inputs) == 1:
                self._note(node, inputs[0], result)
            if not spread and self._is_single(node, inputs):
                return
            if spread and len(inputs) == 1 and self._is_of_heads(node, inputs[0]):
                self.fixed.add(node)
                self.varying.discard(node)
                self._sources[node].pop(inputs[0].name, None)
                return
        self._refuse(node, inputs)

    def read_by(self, nodes: Iterable[fx.Node]) -> list[str]:
        """The tensors whose sizes numbers were made from, which ``nodes`` are, or take."""
        found: dict[str, None] = {}
        for node in nodes:
            found |= self._sources.get(node, {}) | self._before(node)
        return list(found)

    def added(self, operation: ir.Operation, node: fx.Node, guarded: bool = False) -> ir.Operation:
        """``operation`` with the tensors whose sizes its call uses.

        Selections and joins are written without any, unless a number among them is ``guarded``.
        """
        if isinstance(operation, (ir.Select, ir.Concat)) and not guarded:
            return operation
        read = {*operation.inputs, *operation.whole}
        known = dict.fromkeys((*operation.sizes, *self._before(node)))
        sizes = tuple(name for name in known if name not in read)
        return operation.model_copy(update={"sizes": sizes}) if sizes else operation

    def _before(self, node: fx.Node) -> dict[str, None]:
        """The tensors whose sizes the numbers among the call's arguments were made from."""
        return {
            name: None for source in node.all_input_nodes for name in self._sources.get(source, ())
        }

    def _note(self, node: fx.Node, tensor: Traced, result: Any) -> None:
        """Note which sizes of ``tensor`` a call asks for."""
        if isinstance(result, (tuple, list)):
            self._tuples[node] = tensor, list(range(len(tensor.shape)))
        elif isinstance(result, int):
            axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
            if isinstance(axis, int):
                self._name(node, tensor, axis % len(tensor.shape))

    def _pick(self, node: fx.Node, tensor: Traced, axes: list[int]) -> None:
        """Note which of several sizes a call picks."""
        index: Any = node.args[1]
        self.varying.add(node)
        if isinstance(index, int):
            self._name(node, tensor, axes[index])
        elif isinstance(index, slice) and is_plain(index):
            self._tuples[node] = tensor, axes[index]
            if tensor.axis is not None and not any(self._varies(tensor, a) for a in axes[index]):
                self.varying.discard(node)

    def _name(self, node: fx.Node, tensor: Traced, axis: int) -> None:
        self.axes[node] = tensor.name, axis
        if not self._varies(tensor, axis):
            self.varying.discard(node)
            self.settled.add(node)

    def _varies(self, tensor: Traced, axis: int) -> bool:
        """Tell whether a size may be another in another call: all but numbers of channels."""
        return axis != tensor.axis or tensor.ids is None or units(tensor.ids)[1] > 1

    def _is_single(self, node: fx.Node, inputs: list[Traced]) -> bool:
        """Tell whether a call that asks for sizes uses the channel axis', if it does, by itself."""
        if len(node.args) > 1 and asked(node) != "shape":
            return True
        if node not in self._tuples:
            return all(picks_item(user) for user in node.users)
        return self._are_single(node, *self._tuples[node])

    def _are_single(self, node: fx.Node, tensor: Traced, axes: list[int]) -> bool:
        for user in node.users:
            if picks_item(user):
                continue
            index: Any = user.args[1] if user.target is operator.getitem else None
            if isinstance(index, slice) and is_plain(index):
                if not self._are_single(user, tensor, axes[index]):
                    return False
            elif tensor.axis is None or tensor.axis in axes:
                return False
        return True

    def _is_of_heads(self, node: fx.Node, tensor: Traced) -> bool:
        """Tell whether the sizes asked for are numbers of heads, or of channels in a head."""
        known = channel_axes(tensor) if self.understands_heads else []
        return bool(known) and sizes_asked(node, tensor.fake.ndim) <= set(known)

    def _refuse(self, node: fx.Node, inputs: list[Traced]) -> None:
        """Keep the tensors as they are, whatever the call asks for."""
        reason = "asks for more than single sizes"
        for tensor in inputs:
            if tensor.ids is not None:
                self.draft.channels.fix(tensor.ids, f"{node.name}: {reason}")
        names = tuple(tensor.name for tensor in inputs)
        self.draft.enter(ir.Opaque(name=node.name, inputs=names, reason=reason))


def _is_number(value: Any) -> bool:
    """Tell whether ``value`` is a number, or consists of numbers."""
    if isinstance(value, (tuple, list)):
        return all(map(_is_number, value))
    return isinstance(value, (int, float)) and not isinstance(value, (bool, torch.SymInt))
