"""Angles of rotary embeddings: only those computed that are left, where all heads have the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from torch import fx

from upscale_opt.materializing.state import State
from upscale_opt.runtime.modules import Gather
from upscale_opt.tracing.queries import asked

_Indices = tuple[int, ...]

_POINTWISE = frozenset(
    {"mul", "cos", "sin", "to", "float", "double", "half", "bfloat16", "type", "neg", "contiguous"}
)
_ASKED = frozenset({"dtype", "device"})


def taken_angles(state: State, node: fx.Node, angle: fx.Node, indices: _Indices) -> fx.Node:
    """Some of the angles of all of a head's channels.

    Args:
        state: the pruned program.
        node: what computes the angles in the captured program.
        angle: what does in the pruned one; its last axis is that of a head's channels.
        indices: which to take.
    """
    name = state.unused(f"gather_{node.name}")
    state.root.add_module(name, Gather(indices, -1, state.device))
    taken = state.new.call_module(name, (angle,))
    state.angles[taken] = (node, indices)
    return taken


def narrow_angles(state: State) -> None:
    """Let programs compute only those angles that are taken.

    That is done where everything that the parameter or buffer behind them is for takes the same.
    The program is then the one that the model's own code has, if that parameter is smaller.
    """
    by_root: dict[fx.Node, dict[fx.Node, _Indices]] = defaultdict(dict)
    lost: set[fx.Node] = set()
    for node, indices in state.angles.values():
        narrow: dict[fx.Node, _Indices] = {}
        root = _behind(state, node, indices, narrow)
        if root is not None:
            known = by_root[root]
            if any(known.get(one, own) != own for one, own in narrow.items()):
                lost.add(root)
            known.update(narrow)
    for root, narrow in by_root.items():
        if root in lost or not _all_narrow(state, narrow):
            continue
        state.narrowed[str(root.target)] = narrow[root]
        for taken, (node, _) in list(state.angles.items()):
            if node in narrow:
                taken.replace_all_uses_with(taken.args[0])  # type: ignore[arg-type]
                state.new.erase_node(taken)
                del state.angles[taken]


def _behind(
    state: State, node: fx.Node, indices: _Indices, narrow: dict[fx.Node, _Indices]
) -> fx.Node | None:
    """The parameter or buffer that angles are computed of, if that can be done with some of it.

    Args:
        state: the pruned program.
        node: what computes angles in the captured program.
        indices: those that are wanted, along its last axis.
        narrow: is filled with all calls on the way, and what they are to compute.
    """
    if narrow.get(node, indices) != indices:
        return None
    narrow[node] = indices
    if node.op == "get_attr":
        tensor = state.program.captured.tensors.get(str(node.target))
        plain = str(node.target) not in state.solution.parameters
        return node if plain and tensor is not None and tensor.ndim == 1 else None
    before = list(_needed(state, node, indices))
    if not before:
        return None
    roots = {None if one is None else _behind(state, *one, narrow) for one in before}
    return roots.pop() if len(roots) == 1 else None


def _needed(
    state: State, node: fx.Node, indices: _Indices
) -> Iterator[tuple[fx.Node, _Indices] | None]:
    """The tensors that a call reads, and which elements of their last axes; ``None`` if unknown."""
    shape, name = _shape(state, node), asked(node)
    tensors = [n for n in node.all_input_nodes if _shape(state, n)]
    if not shape or node.op not in ("call_function", "call_method"):
        yield None
    elif name == "cat":
        parts, dim = _cat(node)
        size = shape[-1] // len(parts) if parts else 0
        if dim not in (-1, len(shape) - 1) or any(
            not isinstance(n, fx.Node) or _shape(state, n)[-1:] != (size,) for n in parts
        ):
            yield None
            return
        runs = [[i - k * size for i in indices if i // size == k] for k in range(len(parts))]
        sorted_by_part = [i + k * size for k, run in enumerate(runs) for i in run]
        for part, run in zip(parts, runs, strict=True):
            yield (part, tuple(run)) if sorted_by_part == list(indices) else None
    elif name == "unsqueeze" and len(tensors) == 1:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        last = dim in (-1, len(shape) - 1) or not isinstance(dim, int)
        yield None if last else (tensors[0], indices)
    elif name in _POINTWISE:
        for tensor in tensors:
            size = _shape(state, tensor)[-1]
            if size == shape[-1]:
                yield tensor, indices
            elif size != 1:
                yield None
    else:
        yield None


def _cat(node: fx.Node) -> tuple[Sequence[Any], Any]:
    parts = node.args[0] if node.args else node.kwargs.get("tensors", ())
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return (parts if isinstance(parts, (tuple, list)) else ()), dim


def _shape(state: State, node: fx.Node) -> tuple[int, ...]:
    """The shape of a tensor in the captured program; empty for anything else."""
    if node.op == "get_attr":
        own = state.program.captured.tensors.get(str(node.target))
        return () if own is None else tuple(own.shape)
    name = state.program.values.get(node)
    tensor = state.graph.tensors.get(name) if isinstance(name, str) else None
    return () if tensor is None else tuple(tensor.shape)


def _all_narrow(state: State, narrow: dict[fx.Node, _Indices]) -> bool:
    """Tell whether nothing but these calls needs what they compute."""
    own: set[fx.Node] = set()
    for node in narrow:
        call = state.env.get(node)
        if not isinstance(call, fx.Node):
            return False
        own.add(call)
        if call.op == "call_method" and call.target == "detach":
            own.update(call.all_input_nodes)
    taken = {one for one, (node, _) in state.angles.items() if node in narrow}
    effects = {state.env.get(node) for node in state.program.effects}
    for call in own:
        for user in call.users:
            asks = user.target is getattr and user.args[1] in _ASKED
            idle = not user.users and user.op != "output" and user not in effects
            if user not in own and user not in taken and not asks and not idle:
                return False
    return True
