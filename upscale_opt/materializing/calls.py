"""Write the calls of a captured program again, with fewer channels, as a solution says."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from upscale_opt.ir import graph as ir
from upscale_opt.materializing.attention import emit_heads
from upscale_opt.materializing.concats import emit_concat
from upscale_opt.materializing.reads import read_operand, select
from upscale_opt.materializing.state import State
from upscale_opt.materializing.sums import emit_sum, lacks_channels
from upscale_opt.runtime.squeezing import squeeze_others
from upscale_opt.tracing.claims import Resize, Sizes
from upscale_opt.tracing.queries import asks_rank, squeezes_all
from upscale_opt.tracing.resize import listed_size, resized, takes_sizes


def emit(state: State, node: fx.Node) -> Any:
    """Write a call of the captured program into the pruned one.

    Returns:
        What stands for it there: a call, a plain value, a collection of such, or ``None`` if
        nothing is left of it.
    """
    program = state.program
    if node.op == "placeholder":
        copied = state.new.node_copy(node)
        copied.type = None  # an annotation given as a string cannot be pickled
        return copied
    if node.op == "get_attr":
        return state.new.create_node("get_attr", node.target, name=node.name)
    if node in program.fixed_sizes:
        return program.values[node]
    if asks_rank(node) and _argument(state, node.args[0]) is None:
        return program.values[node]  # of what is all zero
    size = _channel_count(state, node)
    if size is not None:
        return size
    names = program.operations.get(node, ())
    operations = [state.operations[name] for name in names if name in state.operations]
    call = program.heads.get(node)
    if call is not None and call.how != "reshape":
        return emit_heads(state, node, call, operations, lambda tree: _argument(state, tree))
    if names and not any(_is_alive(state, op) for op in operations):
        return None
    if call is not None:
        return _emit_reshape(state, node, operations)
    op = operations[0] if operations else None
    if isinstance(op, ir.Select):
        return _emit_selects(state, node, operations)
    if isinstance(op, ir.Concat):
        return emit_concat(state, node, op)
    if isinstance(op, ir.Elementwise) and lacks_channels(state, op):
        return emit_sum(state, node, op)
    if node.target is operator.getitem:
        container = _argument(state, node.args[0])
        if not isinstance(container, fx.Node):
            return None if container is None else container[node.args[1]]
    return _emit_call(state, node, op)


def _is_alive(state: State, op: ir.Operation) -> bool:
    """Tell whether the result is computed at all; tensors without channels are left to FX."""
    return not op.outputs or any(
        name in state.solution.tensors or state.graph.tensors[name].axis is None
        for name in op.outputs
    )


def _channel_count(state: State, node: fx.Node) -> Any:
    """The original size, for calls that ask a tensor for the size of its channel axis.

    Where channels have several features, how many these are may depend on the inputs' sizes.
    """
    name, axis = state.program.sizes.get(node, ("", 0))
    tensor = state.graph.tensors.get(name)
    if tensor is None or tensor.axis != axis:
        return None
    original: int = state.program.values[node]
    kept = len(state.solution.tensors.get(name, ()))
    if tensor.features == 1 or not kept:
        return original
    source: Any = node.args[0]
    container = _argument(state, source)
    if container is None or (isinstance(container, tuple) and not container):
        return original
    size = _emit_call(state, node, None)
    return rescaled(state, size, len(tensor.channels), kept)


def rescaled(state: State, number: fx.Node, factor: int, divisor: int) -> fx.Node:
    """``number``, of which ``divisor`` is a divisor, times ``factor / divisor``."""
    product = state.new.call_function(operator.mul, (number, factor))
    return state.new.call_function(operator.floordiv, (product, divisor))


def _argument(
    state: State,
    tree: Any,
    reads: Mapping[str, Any] = MappingProxyType({}),
    constants: Mapping[fx.Node, Any] = MappingProxyType({}),
) -> Any:
    """A call's arguments in the new program.

    Args:
        state: the pruned program.
        tree: the arguments in the old one.
        reads: what to read instead of tensors of the graph.
        constants: what to read instead of parameters.
    """

    def swap(node: fx.Node) -> Any:
        if node in constants:
            return constants[node]
        name, value = state.program.values.get(node), state.env[node]
        if not reads:
            return value
        if isinstance(name, str):
            return reads.get(name, value)
        if isinstance(name, (tuple, list)) and isinstance(value, tuple):
            return tuple(reads.get(n, part) for n, part in zip(name, value, strict=True))
        return value

    return fx.node.map_arg(tree, swap)


def _emit_selects(state: State, node: fx.Node, operations: Sequence[ir.Operation]) -> Any:
    """A call that takes channels out of a tensor, perhaps for several results."""
    results = {
        op.outputs[0]: read_operand(state, node, op.inputs[0], op.name, 0)
        for op in operations
        if _is_alive(state, op)
    }
    return pytree.tree_map(results.get, state.program.values[node])


def _emit_reshape(
    state: State, node: fx.Node, operations: Sequence[ir.Operation]
) -> fx.Node | None:
    """The same call, given what was spread over several axes as it was before that."""
    *selects, op = operations
    if not _is_alive(state, op):
        return None
    for cut in selects:
        taken = read_operand(state, node, cut.inputs[0], cut.name, 0)
        state.joined[cut.outputs[0]] = taken
    spread = state.program.values[node.args[0]]  # type: ignore[index]
    before = read_operand(state, node, op.inputs[0], op.name, 0)
    return _emit_call(state, node, op, {str(spread): before})


def _emit_call(
    state: State, node: fx.Node, op: ir.Operation | None, given: dict[str, fx.Node] | None = None
) -> fx.Node:
    """The same call, on fewer channels.

    Args:
        state: the pruned program.
        node: the call in the captured one.
        op: what it amounts to, if anything.
        given: what it is given instead of tensors, if that is not what ``op`` reads.
    """
    reads = given or ({} if op is None else _reads(state, node, op))
    parameters = state.program.constants
    constants = {
        source: reads[name]
        for name in reads.keys() & parameters.keys()
        for source in node.all_input_nodes
        if source.op == "get_attr" and state.gets(source, parameters[name])
    }
    args = _argument(state, node.args, reads, constants)
    kwargs = _argument(state, dict(node.kwargs), reads, constants)
    if op is not None and len(op.outputs) == 1 and op.outputs[0] in state.solution.tensors:
        tensor = state.graph.tensors[op.outputs[0]]
        assert tensor.axis is not None
        kept = len(state.solution.tensors[op.outputs[0]])
        size: Any = kept * tensor.features
        args = _listed(state, node, args)
        listed = listed_size(node, (args, kwargs), tensor.axis)
        if tensor.features > 1 and isinstance(listed, fx.Node):  # which follows the inputs' sizes
            size = rescaled(state, listed, kept, len(tensor.channels))
        args, kwargs = resized(node, (args, kwargs), tensor.axis, size)
        groups = _groups(state, op)
        if node in state.program.ruled:
            state.sizes[str(node.target)] = _sizes(state, node, op, groups or 1)
        elif groups is not None:
            if node.op == "call_module":
                state.groups.setdefault(str(node.target), groups)
            args, kwargs = _regrouped(node, args, kwargs, groups)
        if squeezes_all(node) and isinstance(op, ir.ChannelWise):
            rank, axis = len(tensor.shape), state.axis_of(op.inputs[0])
            more = (rank - 1 - tensor.axis,) if op.outputs[0] in state.program.loose else ()
            call = state.new.call_function(squeeze_others, (args[0], axis, rank, *more))
            state.computed.add(call)
            return call
    target, kwargs = _for_any_strides(node, args, kwargs)
    call = state.new.create_node(node.op, target, args, kwargs, name=node.name)
    state.computed.add(call)
    return call


def _reads(state: State, node: fx.Node, op: ir.Operation) -> dict[str, fx.Node]:
    """The nodes that an operation reads instead of the inputs that it takes channels of."""
    reads: dict[str, fx.Node] = {}
    for operand, name in enumerate(op.inputs):
        read = state.selects.get((op.name, operand))
        if read is not None and name not in reads:
            reads[name] = select(state, state.node_of(node, name), read)
            state.selected[op.name, operand] = reads[name]
    return reads


def _sizes(
    state: State, node: fx.Node, op: ir.Operation, groups: int
) -> tuple[Resize | None, Sizes]:
    """The way a module that the user gave a rule for is told its sizes, and the sizes."""
    read = state.selects.get((op.name, 0))
    name = (op.inputs or op.whole)[0]
    source = state.graph.tensors[name]
    entries = state.solution.tensors[name] if read is None else read.channels
    written = state.graph.tensors[op.outputs[0]].features
    sizes = Sizes(
        inputs=len(entries) * source.features,
        outputs=len(state.solution.tensors[op.outputs[0]]) * written,
        groups=groups,
    )
    return state.program.ruled[node].resize, sizes


def _listed(state: State, node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Sizes that come as one (``y.shape``), one by one, so that one can be another."""
    if not takes_sizes(node) or len(args) < 2 or not isinstance(args[1], fx.Node):
        return args
    sizes = state.program.values.get(node.args[1])  # type: ignore[arg-type]
    if not isinstance(sizes, tuple):
        return args
    listed = [state.new.call_function(operator.getitem, (args[1], i)) for i in range(len(sizes))]
    return args[0], tuple(listed), *args[2:]


def _groups(state: State, op: ir.Operation) -> int | None:
    """Into how many groups the channels of a (depthwise or grouped) convolution now fall."""
    layout = state.solution.tensors[op.outputs[0]]
    source = state.graph.tensors[op.inputs[0]] if op.inputs else None
    if isinstance(op, ir.ChannelWise) and source is not None:
        return len(layout) * source.features
    if isinstance(op, ir.Layer) and op.groups > 1:
        size = len(state.graph.tensors[op.outputs[0]].channels)
        return len({entry * op.groups // size for entry in layout})
    return None


def _regrouped(
    node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], groups: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Tell a convolution that is called as a function how many groups it has."""
    name = getattr(node.target, "__name__", "") or str(node.target)
    if node.op != "call_function" or "conv" not in name:
        return args, kwargs
    place = 8 if "convolution" in name else 6
    if len(args) > place:
        return (*args[:place], groups, *args[place + 1 :]), kwargs
    return args, {**kwargs, "groups": groups}


def _for_any_strides(
    node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The method to call instead of ``view``, as a view that is not contiguous may be read."""
    as_type = "dtype" in kwargs or any(isinstance(arg, torch.dtype) for arg in args)
    if node.op == "call_method" and node.target == "view" and not as_type:
        return "reshape", {"shape": kwargs["size"]} if "size" in kwargs else kwargs
    if node.target is torch.ops.aten.view.default:
        return torch.ops.aten.reshape.default, kwargs
    return node.target, kwargs
