"""Check a plan without trusting whoever made it: does it keep all that matters?"""

from __future__ import annotations

from upscale_opt.ir.graph import ChannelGraph, Concat, Elementwise, Layer, Operation
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Read, Solution
from upscale_opt.solver.sets import ChannelSets, Ids, channel_sets, kept_columns


def losses(graph: ChannelGraph, masks: Masks, solution: Solution) -> list[str]:
    """What ``solution`` drops although, with these masks, it can be non-zero and matters.

    An empty list means: every channel that a tensor does not store is zero or dead, every layer
    gets every channel that its weight reads, and every sum gets every part that is not zero.

    Args:
        graph: the channel graph.
        masks: what the model's zeros say (:meth:`Masks.from_model`).
        solution: a solution for the graph.
    """
    sets = channel_sets(graph, masks, keep_one=False)
    selects = {(r.op, r.operand): r for r in solution.reads if r.kind == "select"}
    places = {(r.op, r.operand): r for r in solution.reads if r.kind == "place"}
    columns = kept_columns(graph, masks)
    problems: list[str] = []
    for name, needed in sets.needed.items():
        sequence = graph.tensors[name].channels
        stored = {sequence[entry] for entry in solution.tensors.get(name, ())}
        if not needed <= stored:
            problems.append(f"channel {min(needed - stored)} of tensor {name!r}")
    for op in graph.operations:
        if op.name not in sets.live:
            continue
        for operand, name in enumerate(op.inputs):
            if name not in sets.needed:
                continue
            needed = _needs(op, operand, graph, sets, columns)
            read = places.get((op.name, operand)) or selects.get((op.name, operand))
            missing = needed - _delivered(graph, solution, name, read)
            if missing:
                problems.append(f"channel {min(missing)} of {name!r}, which {op.name!r} reads")
    return problems


def _needs(
    op: Operation, operand: int, graph: ChannelGraph, sets: ChannelSets, columns: dict[str, Ids]
) -> Ids:
    source = op.inputs[operand]
    channels = frozenset(graph.tensors[source].channels)
    if isinstance(op, Layer):
        return columns[op.name] & sets.defined[source]
    if op.kind in ("opaque", "output"):
        return channels
    needed = sets.needed[op.outputs[0]]
    if isinstance(op, Elementwise) and op.additive:
        return needed & sets.defined[source]
    return needed & channels if isinstance(op, Concat) else needed


def _delivered(graph: ChannelGraph, solution: Solution, tensor: str, read: Read | None) -> Ids:
    sequence = graph.tensors[tensor].channels
    entries = solution.tensors.get(tensor, ()) if read is None else read.channels
    return frozenset(sequence[entry] for entry in entries)
