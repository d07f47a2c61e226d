"""Rebuild a captured model with fewer channels, call by call, as a solution says."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from upscale_opt.concats import Concats
from upscale_opt.errors import MaterializeError
from upscale_opt.heads import join, spread, write_call
from upscale_opt.ir import graph as ir
from upscale_opt.ir.solution import Read, Solution
from upscale_opt.kernels import compact
from upscale_opt.modules import (
    OURS,
    Gather,
    PlacedSum,
    Placement,
    Wanted,
    fit_sizes,
    require_inputs,
)
from upscale_opt.origin import kind_of, origin_of
from upscale_opt.pruned_module import PrunedModule
from upscale_opt.slicing import sliced
from upscale_opt.stages import stages_of
from upscale_opt.tracing.claims import Resize, Sizes, resize
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


_IN_PLACE_OPERATORS = frozenset({"iadd", "isub", "imul", "itruediv"})

_COMPUTING = frozenset(
    {
        *("conv1d", "conv2d", "conv3d", "convolution", "_convolution", "linear", "addmm"),
        *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "mm", "bmm", "matmul"),
        *("batch_norm", "layer_norm", "group_norm", "instance_norm", "add", "sub", "mul"),
        *("relu", "relu6", "leaky_relu", "gelu", "silu", "elu", "sigmoid", "tanh", "hardswish"),
    }
)
"""Functions that compute anew whatever the mode; dropout, for one, may return what it gets."""

_COMPUTING_MODULES = frozenset(
    f"torch.nn.modules.{name}"
    for name in ("conv", "linear", "batchnorm", "instancenorm", "normalization", "activation")
)
"""Where the modules are defined that do the same."""


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
        self.gather_views = gather_views
        self.device = kind_of(model)[1]
        self.operations = {op.name: op for op in self.graph.operations}
        self.selects: dict[tuple[str, int], Read] = {}
        self.places: dict[tuple[str, int], Read] = {}
        for read in solution.reads:
            table = self.places if read.kind == "place" else self.selects
            table[read.op, read.operand] = read
        self.new = fx.Graph()
        self.env: dict[fx.Node, Any] = {}
        self.root = nn.Module()
        self.memo: dict[int, Any] = {}
        self.computed: set[fx.Node] = set()
        self.groups: dict[str, int] = {}
        self.sizes: dict[str, tuple[Resize | None, Sizes]] = {}
        self.joined: dict[str, fx.Node] = {}  # what calls on heads hand to one another
        self.makers = _makers(program)
        self.in_place = in_place
        self.concats = Concats(self, in_place)

    def build(self) -> PrunedModule:
        self._slice_parameters()
        old = self.program.captured.graph
        for node in old.nodes:
            self.env[node] = self._emit(node)
        self.new.set_codegen(copy.deepcopy(old._codegen))
        effects = {self.env[node] for node in self.program.effects if node in self.env}
        self.new.eliminate_dead_code(
            is_impure_node=lambda n: n.op in ("placeholder", "output") or n in effects
        )
        self._drop_unused()
        self._protect()
        self._require_inputs()
        self._fill_root()
        pruned = PrunedModule(self.root, self.new)
        for name, module in pruned.named_modules():
            own = _submodule(self.model, name)
            module.training = self.model.training if own is None else own.training
        pruned.carry(self.model, type(self.model).__name__)
        return pruned

    # Parameters and modules.

    def _slice_parameters(self) -> None:
        """Copy what changes, smaller; the memo makes deep copies use these."""
        own: dict[str, torch.Tensor] = dict(self.model.named_parameters(remove_duplicate=False))
        own.update(self.model.named_buffers(remove_duplicate=False))
        for name, by_axis in self.solution.parameters.items():
            tensor = own[name]
            data = sliced(tensor.detach(), by_axis, self.graph.grouped.get(name, 1))
            form = {4: torch.channels_last, 5: torch.channels_last_3d}.get(data.ndim)
            if form is not None and tensor.is_contiguous(memory_format=form):
                data = data.contiguous(memory_format=form)
            self.memo[id(tensor)] = (
                nn.Parameter(data.clone(), requires_grad=tensor.requires_grad)
                if isinstance(tensor, nn.Parameter)
                else data.clone()
            )

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

    def _protect(self) -> None:
        """Let no call modify in place what others still read, and let sums modify what none does.

        The original is free of the former (tracing sees to it), but here a tensor may be a view of
        another where the original had a copy. Only what was just computed is safe to modify.
        """
        written: dict[fx.Node, fx.Node] = {}  # which node a call was written for, in order
        for node, call in self.env.items():
            if isinstance(call, fx.Node) and call.op.startswith("call_"):
                written.setdefault(call, node)
        fresh = {c for c, node in written.items() if node in self.program.fresh} & self.computed
        mutations = self.program.mutations - self.program.effects
        owned: set[fx.Node] = set()  # of these it is even known that nobody keeps them elsewhere
        for call, node in written.items():
            if self._makes_its_result(call, call in fresh):
                owned.add(call)
            if self._is_placed_sum(call):
                fresh.add(call)
                self._let_write(call, owned)
            if node not in mutations or call not in self.computed:
                continue
            for value in (*call.args[:1], *call.kwargs.values()):
                if isinstance(value, fx.Node) and not (value in fresh and len(value.users) == 1):
                    with self.new.inserting_before(call):
                        copied = self.new.call_method("clone", (value,))
                    owned.add(copied)
                    call.replace_input_with(value, copied)
            if self._returns_what_it_modifies(call):
                fresh.add(call)
                owned.update({call} if call.args[0] in owned else ())

    def _let_write(self, call: fx.Node, owned: Set[fx.Node]) -> None:
        """Let a sum be computed in its whole summand if nobody else reads that."""
        placed = self.root.get_submodule(str(call.target))
        assert isinstance(placed, PlacedSum)
        whole = [value for value, all_of in zip(call.args, placed.whole, strict=True) if all_of]
        if self.in_place and len(whole) == 1 and isinstance(whole[0], fx.Node):
            alone = len(whole[0].users) == 1 and call.args.count(whole[0]) == 1
            placed.spare = alone and (whole[0] in owned or self._makes_its_result(whole[0], False))

    def _is_placed_sum(self, call: fx.Node) -> bool:
        ours = call.op == "call_module" and getattr(self.root, str(call.target), None)
        return isinstance(ours, PlacedSum)

    def _makes_its_result(self, call: fx.Node, computes: bool) -> bool:
        """Whether a call is known to return, in any mode, memory that nothing else refers to.

        Args:
            call: in the new program.
            computes: whether it computed something new when it was traced.
        """
        name = getattr(call.target, "__name__", str(call.target)).partition(".")[0]
        if call.op == "call_method":
            return name == "clone" or (computes and name in _COMPUTING)
        if call.op == "call_function":
            return call.target is torch.cat or (computes and name in _COMPUTING)
        ours = getattr(self.root, str(call.target), None)
        if isinstance(ours, (Gather, PlacedSum)):
            return True
        module = self.program.captured.modules.get(str(call.target))
        known = type(module).__module__ in _COMPUTING_MODULES
        return computes and known and module is not None and not module._forward_hooks

    def _returns_what_it_modifies(self, call: fx.Node) -> bool:
        """Whether a call modifies its first argument, and gives just that back."""
        if call.op == "call_module":
            module = self.program.captured.modules[str(call.target)]
            ours = type(module).__module__.startswith("torch.nn.modules.activation")
            return ours and getattr(module, "inplace", False) is True
        name = getattr(call.target, "__name__", str(call.target))
        if call.op == "call_function" and getattr(operator, name, None) is call.target:
            return name in _IN_PLACE_OPERATORS
        return call.op == "call_method" and name.endswith("_") and not name.endswith("__")

    def _fill_root(self) -> None:
        """Copy the modules and tensors that the new program names into the root."""
        captured = self.program.captured
        transient = {
            f"{prefix}.{name}".lstrip(".")
            for prefix, module in self.model.named_modules()
            for name in module._non_persistent_buffers_set
        }
        for node in self.new.nodes:
            target = str(node.target)
            if node.op == "call_module" and target in captured.modules:
                try:
                    module = copy.deepcopy(captured.modules[target], self.memo)
                except RuntimeError as error:
                    raise MaterializeError(
                        f"module {target!r} cannot be copied: {error}"
                    ) from error
                fit_sizes(module, self.groups.get(target))
                if target in self.sizes:
                    resize(module, *self.sizes[target])
                _attach(self.root, target, module)
            elif node.op == "get_attr":
                value = copy.deepcopy(captured.tensors[target], self.memo)
                _attach(self.root, target, value, persistent=target not in transient)

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
            return self.concats.emit(node, op)
        if isinstance(op, ir.Elementwise) and self._is_partial(op):
            return self._emit_sum(node, op)
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
                read = self.selects.get((op.name, operand))
                if read is not None and name not in reads:
                    value = self.select(self.node_of(node, name), read)
                    reads[name] = self._compacted(op, read, value)
        constants = {
            source: reads[name]
            for name in reads.keys() & self.program.constants.keys()
            for source in node.all_input_nodes
            if source.op == "get_attr" and self._names(source, self.program.constants[name])
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
        self.computed.add(call)
        return call

    def _compacted(self, op: ir.Operation, read: Read, value: fx.Node) -> fx.Node:
        """A view without gaps in memory, in front of operations that want it so."""
        tensor = self.graph.tensors[read.tensor]
        strict = isinstance(op, ir.Layer) or (isinstance(op, ir.ChannelWise) and op.parameters)
        part = len(read.channels) < len(self.solution.tensors[read.tensor])
        gap = part or self.concats.holds(read.tensor)
        if not (strict and gap and tensor.axis == 1 and len(tensor.shape) in (4, 5)):
            return value
        return value if read.plan == "gather" else self.new.call_function(compact, (value,))

    def _sizes(self, node: fx.Node, op: ir.Operation, groups: int) -> tuple[Resize | None, Sizes]:
        """How a module that the user gave a rule for is told its sizes, and which."""
        read = self.selects.get((op.name, 0))
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
        last = next(op for op in operations if not isinstance(op, (ir.Select, ir.Opaque)))
        stored = (*last.inputs, *(() if call.tensor is None else (call.tensor,)))
        if any(name not in self.solution.tensors for name in stored):
            return None
        for op in operations:
            if isinstance(op, ir.Select):
                value = self.node_of(node, op.inputs[0])
                read = self.selects.get((op.name, 0))
                self.joined[op.outputs[0]] = value if read is None else self.select(value, read)
        values: dict[int, fx.Node] = {}
        for number, operand in enumerate(call.operands):
            if operand.tensor is None:
                continue
            value = self.node_of(node, operand.tensor)
            channels = self.solution.tensors[operand.tensor]
            read = self.selects.get((last.name, len(values)))
            if read is not None:
                value, channels = self.select(value, read), read.channels
            if operand.arrangement is not None and call.how != "pointwise":
                value = spread(self.new, value, operand.arrangement, len(channels))
            values[number] = value
        result = write_call(self.new, node, call, values, lambda tree: self._argument(tree, None))
        self.computed.add(result)
        if call.tensor is not None and call.arrangement is not None:
            if call.how == "pointwise":
                self.joined[call.tensor] = result
                return spread(
                    self.new, result, call.arrangement, len(self.solution.tensors[call.tensor])
                )
            self.joined[call.tensor] = join(self.new, result, call.arrangement)
        return result

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

    # Reads.

    def node_of(self, reader: fx.Node, name: str) -> Any:
        """The new program's value of tensor ``name``, among the arguments of ``reader``."""
        if name in self.joined:
            return self.joined[name]
        for node in reader.all_input_nodes:
            value = self.program.values[node]
            if value == name:
                return self.env[node]
            if isinstance(value, (tuple, list)) and name in value:
                container, index = self.env[node], list(value).index(name)
                if isinstance(container, fx.Node):
                    return self.new.call_function(operator.getitem, (container, index))
                return container[index]
            if isinstance(value, dict) and name in value.values():
                key = next(k for k, v in value.items() if v == name)
                return self.new.call_function(operator.getitem, (self.env[node], key))
        if name in self.makers:  # what the reader gets only by way of calls that are left out
            node, key = self.makers[name]
            value = self.env[node]
            if key is None:
                return value
            if isinstance(value, fx.Node):
                return self.new.call_function(operator.getitem, (value, key))
            return value[key]
        if name in self.program.constants:  # a parameter as a tensor
            for node in reader.all_input_nodes:
                if node.op == "get_attr" and self._names(node, self.program.constants[name]):
                    return self.env[node]
        raise MaterializeError(f"call {reader.name!r} does not read {name!r}")

    def _names(self, node: fx.Node, parameter: str) -> bool:
        tensors = self.program.captured.tensors
        own = tensors.get(parameter)
        if own is None:
            state: dict[str, torch.Tensor] = {}
            state.update(self.model.named_parameters(remove_duplicate=False))
            state.update(self.model.named_buffers(remove_duplicate=False))
            own = state[parameter]
        return tensors[str(node.target)] is own or str(node.target) == parameter

    def select(self, value: fx.Node, read: Read) -> fx.Node:
        """What a read takes of the tensor ``value``."""
        tensor = self.graph.tensors[read.tensor]
        layout = self.solution.tensors[read.tensor]
        assert tensor.axis is not None
        if self.concats.holds(read.tensor):
            return self.concats.read(read)
        if read.channels == layout:
            return value
        place = {entry: i for i, entry in enumerate(layout)}
        indices = [place[entry] for entry in read.channels]
        if read.plan != "gather" and not self.gather_views:
            start, length = indices[0] * tensor.features, len(indices) * tensor.features
            return self.new.call_function(torch.narrow, (value, tensor.axis, start, length))
        elements = [i * tensor.features + f for i in indices for f in range(tensor.features)]
        name = self.unused(f"gather_{read.op.replace('.', '_')}_{read.operand}")
        self.root.add_module(name, Gather(elements, tensor.axis, self.device))
        return self.new.call_module(name, (value,))

    def _emit_selects(self, node: fx.Node, operations: Sequence[ir.Operation]) -> Any:
        results: dict[str, Any] = {}
        for op in operations:
            if not self._alive(op):
                continue
            value = self.node_of(node, op.inputs[0])
            read = self.selects.get((op.name, 0))
            results[op.outputs[0]] = value if read is None else self.select(value, read)
        return pytree.tree_map(results.get, self.program.values[node])

    def _is_partial(self, op: ir.Elementwise) -> bool:
        return op.additive and any(
            name not in self.solution.tensors
            or (op.name, operand) in self.places
            or self._skipped(op, operand)
            for operand, name in enumerate(op.inputs)
        )

    def _skipped(self, op: ir.Elementwise, operand: int) -> bool:
        read = self.selects.get((op.name, operand))
        return read is not None and not read.channels

    def _emit_sum(self, node: fx.Node, op: ir.Elementwise) -> fx.Node:
        """A sum in which operands are placed into some of the channels, or left out."""
        result = self.graph.tensors[op.outputs[0]]
        layout = self.solution.tensors[op.outputs[0]]
        place_of = {entry: i for i, entry in enumerate(layout)}
        values: list[fx.Node] = []
        placements: list[Placement] = []
        for operand, name in enumerate(op.inputs):
            if name not in self.solution.tensors or self._skipped(op, operand):
                continue
            value = self.node_of(node, name)
            select = self.selects.get((op.name, operand))
            values.append(value if select is None else self.select(value, select))
            place = self.places.get((op.name, operand))
            if place is None or place.channels == layout:
                placements.append(None)
                continue
            at = [place_of[entry] for entry in place.channels]
            f = result.features
            if place.plan == "view":
                placements.append((at[0] * f, len(at) * f))
            else:
                placements.append([i * f + k for i in at for k in range(f)])
        if len(values) == 1 and placements[0] is None:
            return values[0]
        assert result.axis is not None
        size, rank = len(layout) * result.features, len(result.shape)
        module = PlacedSum(placements, size, result.axis, rank, self.device)
        target = self.unused(f"sum_{node.name}")
        self.root.add_module(target, module)
        return self.new.create_node("call_module", target, tuple(values), name=node.name)

    def unused(self, name: str) -> str:
        """``name``, or a longer one if the model has that already."""
        while hasattr(self.model, name) or hasattr(self.root, name):
            name += "_"
        return name


def _makers(program: Program) -> dict[str, tuple[fx.Node, Any]]:
    """For every tensor of the graph, the call that makes it, and which of its results it is."""
    makers: dict[str, tuple[fx.Node, Any]] = {}
    for node, value in program.values.items():
        if isinstance(value, str):
            makers.setdefault(value, (node, None))
        elif isinstance(value, (tuple, list)):
            for key, name in enumerate(value):
                if isinstance(name, str):
                    makers.setdefault(name, (node, key))
    return makers


def _attach(root: nn.Module, target: str, value: Any, persistent: bool = True) -> None:
    """Set ``value`` as attribute ``target``, with plain modules on the way to it."""
    *path, last = target.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    if isinstance(value, nn.Module):
        root.add_module(last, value)
    elif isinstance(value, nn.Parameter):
        root.register_parameter(last, value)
    else:
        root.register_buffer(last, value, persistent)


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
