"""Sizes of tensors that a program asks for, and the calls that use the answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from upscale_opt.ir import graph as ir
from upscale_opt.tracing.draft import Draft
from upscale_opt.tracing.heads import channel_axes
from upscale_opt.tracing.queries import asked, picks_item, sizes_asked
from upscale_opt.tracing.values import Traced

_OF_NO_SIZE = {"dim", "ndim", "ndimension", "dtype", "device", "is_floating_point", "is_cuda"}
_SIZES = {"size", "shape", "sym_size"}


@dataclass
class Sizes:
    """The numbers that a program makes from the sizes of its tensors.

    Attributes:
        draft: the graph so far.
        understands_heads: whether attention is looked for.
        fixed: the calls that ask how many heads there are, or channels in a head; the answer is
            that of the original.
    """

    draft: Draft
    understands_heads: bool
    fixed: set[fx.Node] = field(default_factory=set, init=False)
    _sources: dict[fx.Node, dict[str, None]] = field(default_factory=dict, init=False)

    def hand_on(self, node: fx.Node) -> None:
        """Note that a call makes numbers from those among its arguments."""
        self._sources[node] = self._before(node)

    def ask(self, node: fx.Node, inputs: list[Traced]) -> None:
        """Note that a call makes no tensors: it asks for sizes and the like, or for data."""
        self._sources[node] = self._before(node) | dict.fromkeys(x.name for x in inputs)
        name = asked(node)
        if name in _OF_NO_SIZE:
            return
        if name in _SIZES:
            spread = any(tensor.spread is not None for tensor in inputs)
            if not spread and _is_single(node):
                return
            if spread and len(inputs) == 1 and self._is_of_heads(node, inputs[0]):
                self.fixed.add(node)
                self._sources[node].pop(inputs[0].name, None)
                return
        self._refuse(node, inputs)

    def added(self, operation: ir.Operation, node: fx.Node) -> ir.Operation:
        """``operation`` with the tensors whose sizes its call uses.

        Selections and joins are written without any.
        """
        if isinstance(operation, (ir.Select, ir.Concat)):
            return operation
        read = {*operation.inputs, *operation.whole}
        sizes = tuple(name for name in self._before(node) if name not in read)
        return operation.model_copy(update={"sizes": sizes}) if sizes else operation

    def _before(self, node: fx.Node) -> dict[str, None]:
        """The tensors whose sizes the numbers among the call's arguments were made from."""
        return {
            name: None for source in node.all_input_nodes for name in self._sources.get(source, ())
        }

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


def _is_single(node: fx.Node) -> bool:
    """Tell whether a call that asks for sizes uses them one by one."""
    one = len(node.args) > 1 and asked(node) != "shape"
    return one or all(picks_item(user) for user in node.users)
