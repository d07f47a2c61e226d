"""Rebuild a captured model with fewer channels, call by call, as a solution says."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from upscale_opt.ir import graph as ir
from upscale_opt.ir.solution import Read, Solution
from upscale_opt.materializing.attention import emit_heads
from upscale_opt.materializing.in_place import protect
from upscale_opt.materializing.origin import origin_of
from upscale_opt.materializing.parameters import fill_root, slice_parameters
from upscale_opt.materializing.pruned_module import PrunedModule
from upscale_opt.materializing.stages import stages_of
from upscale_opt.materializing.state import Reading
from upscale_opt.materializing.sums import Sums
from upscale_opt.runtime.gather import compact
from upscale_opt.runtime.modules import OURS, Wanted, require_inputs
from upscale_opt.tracing.claims import Resize, Sizes
from upscale_opt.tracing.program import Program
from upscale_opt.tracing.resize import resized, takes_sizes
from upscale_opt.tracing.values import HeadCall


def rebuild(
    model: nn.Module,
    program: Program,
    solution: Solution,
    *,
    gather_views: bool = False,
    in_place: bool = True,
) -> PrunedModule:
    """The pruned model; that ``solution`` is sound and belongs to ``program`` must be known.

    Args:
        model: the model that ``program`` captured. It is not changed, and nothing is shared with
            it.
        program: the captured model and its graph.
        solution: which channels to keep, in which order, and how reads are served.
        gather_views: serve views that select channels as gathers.
        in_place: let concatenations write into buffers, and sums into their summands.
    """
    with torch.inference_mode(False):  # or else the export could never be trained
        pruned = _Rebuild(model, program, solution, gather_views, in_place).build()
    pruned.solution = solution
    # What an earlier pruning added is traced through, and not named, but its work is done, too.
    ours = [name for name, m in model.named_modules() if isinstance(m, OURS)]
    pruned.named = frozenset((*program.captured.modules, *program.captured.tensors, *ours))
    pruned.origin = origin_of(model, pruned, gather_views)
    pruned.earlier = stages_of(model)
    return pruned


class _Rebuild:
    """Writes the pruned program, call by call."""

    def __init__(
        self,
        model: nn.Module,
        program: Program,
        solution: Solution,
        gather_views: bool,
        in_place: bool,
    ) -> None:
        self.model = model
        self.program = program
        self.graph = program.graph
        self.solution = solution
        self.in_place = in_place
        self.operations = {op.name: op for op in self.graph.operations}
        self.reading = Reading(model, program, solution, gather_views, in_place)
        self.sums = Sums(self.reading)
        self.new, self.root, self.env = self.reading.new, self.reading.root, self.reading.env
        self.groups: dict[str, int] = {}
        self.sizes: dict[str, tuple[Resize | None, Sizes]] = {}

    def build(self) -> PrunedModule:
        memo: dict[int, Any] = {**slice_parameters(self.model, self.graph, self.solution)}
        old = self.program.captured.graph
        for node in old.nodes:
            self.env[node] = self._emit(node)
        self.new.set_codegen(copy.deepcopy(old._codegen))
        effects = {self.env[node] for node in self.program.effects if node in self.env}
        self.new.eliminate_dead_code(
            is_impure_node=lambda n: n.op in ("placeholder", "output") or n in effects
        )
        self._drop_unused()
        protect(
            self.program,
            self.new,
            self.root,
            self.env,
            self.reading.computed,
            in_place=self.in_place,
        )
        self._require_inputs()
        captured = self.program.captured
        fill_root(self.root, self.new, self.model, captured, memo, self.groups, self.sizes)
        pruned = PrunedModule(self.root, self.new)
        for name, module in pruned.named_modules():
            own = _submodule(self.model, name)
            module.training = self.model.training if own is None else own.training
        pruned.carry(self.model, type(self.model).__name__)
        return pruned

    def _require_inputs(self) -> None:
        """Let the model refuse inputs that its program was not captured for."""
        for check in self.program.captured.checks:
            found: list[tuple[fx.Node, str, Wanted]] = []
            for source, name, want in zip(check.inputs, check.names, check.wanted, strict=True):
                node = self.env.get(source)
                if isinstance(node, fx.Node) and node in self.new.nodes:
                    found.append((node, name, self._without_channels(source, want)))
            first = [node for node in self.new.nodes if node.op == "placeholder"]
            last = [node for node in self.new.nodes if node in {node for node, _, _ in found}]
            if last:
                with self.new.inserting_after(first[-1] if last[-1] in first else last[-1]):
                    self.new.call_function(require_inputs, tuple(zip(*found, strict=True)))

    def _without_channels(self, source: fx.Node, want: Wanted) -> Wanted:
        """The sizes wanted of an activation, but not how many channels it has."""
        tensor = self.graph.tensors.get(str(self.program.values.get(source)))
        if source.op == "placeholder" or not isinstance(want, tuple) or tensor is None:
            return want
        return tuple(None if axis == tensor.axis else size for axis, size in enumerate(want))

    def _drop_unused(self) -> None:
        """Forget the modules of ours that no call is left of."""
        used = {str(node.target) for node in self.new.nodes if node.op == "call_module"}
        for name, module in list(self.root.named_children()):
            if isinstance(module, OURS) and name not in used:
                delattr(self.root, name)

    # Calls.

    def _emit(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            copied = self.new.node_copy(node)
            copied.type = None  # an annotation given as a string cannot be pickled
            return copied
        if node.op == "get_attr":
            return self.new.create_node("get_attr", node.target, name=node.name)
        if node in self.program.fixed_sizes:
            return self.program.values[node]
        size = self._channel_count(node)
        if size is not None:
            return size
        if node in self.program.heads:
            return self._emit_heads(node, self.program.heads[node])
        names = self.program.operations.get(node, ())
        operations = [self.operations[name] for name in names if name in self.operations]
        if names and not any(self._alive(op) for op in operations):
            return None
        if operations and isinstance(operations[0], ir.Select):
            return self._emit_selects(node, operations)
        op = operations[0] if operations else None
        if isinstance(op, ir.Concat):
            return self.reading.concats.emit(node, op)
        if isinstance(op, ir.Elementwise) and self.sums.concerns(op):
            return self.sums.emit(node, op)
        if node.target is operator.getitem:
            container = self._argument(node.args[0], None)
            if not isinstance(container, fx.Node):
                return None if container is None else container[node.args[1]]
        return self._emit_call(node, op)

    def _alive(self, op: ir.Operation) -> bool:
        """Whether the result is computed at all; tensors without channels are left to FX."""
        return not op.outputs or any(
            name in self.solution.tensors or self.graph.tensors[name].axis is None
            for name in op.outputs
        )

    def _channel_count(self, node: fx.Node) -> int | None:
        """The original channel count, for calls that ask a tensor for the size of that axis."""
        value = self.program.values.get(node)
        if not isinstance(value, int) or isinstance(value, bool) or not node.args:
            return None
        source = node.args[0]
        if node.target is operator.getitem and isinstance(source, fx.Node) and source.args:
            asked, index = source.args[0], node.args[1]
        elif (node.op == "call_method" and node.target == "size") or (
            isinstance(node.target, torch._ops.OpOverload)
            and node.target._schema.name == "aten::sym_size"
        ):
            asked, index = source, node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        else:
            return None
        name = self.program.values.get(asked) if isinstance(asked, fx.Node) else None
        if not isinstance(name, str) or name not in self.graph.tensors:
            return None
        tensor = self.graph.tensors[name]
        if tensor.axis is None or not isinstance(index, int):
            return None
        return value if index % len(tensor.shape) == tensor.axis else None

    def _argument(
        self,
        tree: Any,
        reads: dict[str, Any] | None,
        constants: Mapping[fx.Node, Any] = MappingProxyType({}),
    ) -> Any:
        """A call's arguments in the new program.

        Args:
            tree: the arguments in the old one.
            reads: what to read instead of tensors of the graph.
            constants: what to read instead of parameters.
        """

        def swap(node: fx.Node) -> Any:
            if node in constants:
                return constants[node]
            name = self.program.values.get(node)
            if reads is not None and isinstance(name, str) and name in reads:
                return reads[name]
            value = self.env[node]
            if reads is not None and isinstance(name, (tuple, list)) and isinstance(value, tuple):
                return tuple(reads.get(n, part) for n, part in zip(name, value, strict=True))
            return value

        return fx.node.map_arg(tree, swap)

    def _emit_call(self, node: fx.Node, op: ir.Operation | None) -> fx.Node:
        reads: dict[str, Any] = {}
        if op is not None:
            for operand, name in enumerate(op.inputs):
                read = self.reading.selects.get((op.name, operand))
                if read is not None and name not in reads:
                    value = self.reading.select(self.reading.node_of(node, name), read)
                    reads[name] = self._compacted(op, read, value)
        constants = {
            source: reads[name]
            for name in reads.keys() & self.program.constants.keys()
            for source in node.all_input_nodes
            if source.op == "get_attr" and self.reading.names(source, self.program.constants[name])
        }
        args = self._argument(node.args, reads, constants)
        kwargs = self._argument(dict(node.kwargs), reads, constants)
        target = node.target
        if op is not None and len(op.outputs) == 1 and op.outputs[0] in self.solution.tensors:
            tensor = self.graph.tensors[op.outputs[0]]
            assert tensor.axis is not None
            size = len(self.solution.tensors[op.outputs[0]]) * tensor.features
            args = self._listed(node, args)
            args, kwargs = resized(node, (args, kwargs), tensor.axis, size)
            groups = self._groups(op)
            if node in self.program.ruled:
                self.sizes[str(node.target)] = self._sizes(node, op, groups or 1)
            elif groups is not None:
                args, kwargs = self._regroup(node, args, kwargs, groups)
        as_type = "dtype" in kwargs or any(isinstance(arg, torch.dtype) for arg in args)
        if node.op == "call_method" and target == "view" and not as_type:
            target = "reshape"  # what is read may be a view that is not contiguous
            if "size" in kwargs:
                kwargs = {"shape": kwargs["size"]}
        elif target is torch.ops.aten.view.default:
            target = torch.ops.aten.reshape.default
        call = self.new.create_node(node.op, target, args, kwargs, name=node.name)
        self.reading.computed.add(call)
        return call

    def _compacted(self, op: ir.Operation, read: Read, value: fx.Node) -> fx.Node:
        """A view without gaps in memory, in front of operations that want it so."""
        tensor = self.graph.tensors[read.tensor]
        strict = isinstance(op, ir.Layer) or (isinstance(op, ir.ChannelWise) and op.parameters)
        part = len(read.channels) < len(self.solution.tensors[read.tensor])
        gap = part or self.reading.concats.holds(read.tensor)
        if not (strict and gap and tensor.axis == 1 and len(tensor.shape) in (4, 5)):
            return value
        return value if read.plan == "gather" else self.new.call_function(compact, (value,))

    def _sizes(self, node: fx.Node, op: ir.Operation, groups: int) -> tuple[Resize | None, Sizes]:
        """How a module that the user gave a rule for is told its sizes, and which."""
        read = self.reading.selects.get((op.name, 0))
        name = (op.inputs or op.whole)[0]
        source = self.graph.tensors[name]
        entries = self.solution.tensors[name] if read is None else read.channels
        written = self.graph.tensors[op.outputs[0]].features
        sizes = Sizes(
            inputs=len(entries) * source.features,
            outputs=len(self.solution.tensors[op.outputs[0]]) * written,
            groups=groups,
        )
        return self.program.ruled[node].resize, sizes

    def _emit_heads(self, node: fx.Node, call: HeadCall) -> fx.Node | None:
        """A call on attention heads, on the channels that are left of each."""
        operations = [
            self.operations[name]
            for name in self.program.operations[node]
            if name in self.operations
        ]
        return emit_heads(
            self.reading, node, call, operations, lambda tree: self._argument(tree, None)
        )

    def _listed(self, node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Sizes that come as one (``y.shape``), one by one, so that one can be another."""
        if not takes_sizes(node) or len(args) < 2 or not isinstance(args[1], fx.Node):
            return args
        sizes = self.program.values.get(node.args[1])  # type: ignore[arg-type]
        if not isinstance(sizes, tuple):
            return args
        listed = [self.new.call_function(operator.getitem, (args[1], i)) for i in range(len(sizes))]
        return args[0], tuple(listed), *args[2:]

    def _groups(self, op: ir.Operation) -> int | None:
        """Into how many groups the channels of a (depthwise or grouped) convolution now fall."""
        layout = self.solution.tensors[op.outputs[0]]
        source = self.graph.tensors[op.inputs[0]] if op.inputs else None
        if isinstance(op, ir.ChannelWise) and source is not None:
            return len(layout) * source.features
        if isinstance(op, ir.Layer) and op.groups > 1:
            size = len(self.graph.tensors[op.outputs[0]].channels)
            return len({entry * op.groups // size for entry in layout})
        return None

    def _regroup(
        self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], groups: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Tell a convolution that is called as a function how many groups it has."""
        name = getattr(node.target, "__name__", "") or str(node.target)
        if node.op == "call_module":
            self.groups.setdefault(str(node.target), groups)
        if node.op != "call_function" or "conv" not in name:
            return args, kwargs
        place = 8 if "convolution" in name else 6
        if len(args) > place:
            return (*args[:place], groups, *args[place + 1 :]), kwargs
        return args, {**kwargs, "groups": groups}

    def _emit_selects(self, node: fx.Node, operations: Sequence[ir.Operation]) -> Any:
        results: dict[str, Any] = {}
        for op in operations:
            if not self._alive(op):
                continue
            value = self.reading.node_of(node, op.inputs[0])
            read = self.reading.selects.get((op.name, 0))
            results[op.outputs[0]] = value if read is None else self.reading.select(value, read)
        return pytree.tree_map(results.get, self.program.values[node])


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
