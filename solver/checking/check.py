"""Check a plan without trusting whoever made it: is it sound, and does it keep all that matters?"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from upscale_opt.ir.graph import (
    Attention,
    ChannelGraph,
    Concat,
    Elementwise,
    Layer,
    Operation,
    Select,
    Symmetric,
    parameters_of,
)
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Read, Solution
from upscale_opt.solver.checking.check_arenas import misplaced
from upscale_opt.solver.network.index_lists import index_lists
from upscale_opt.solver.network.sets import ChannelSets, Ids, channel_sets


def damage(graph: ChannelGraph, solution: Solution) -> str | None:
    """The first misfit of ``solution`` with ``graph`` or itself; ``None`` if it is sound.

    Sound means: every operation gets and gives channels in matching sequences, views are
    contiguous, and the parameters' index lists are those that follow.
    """
    for name, layout in solution.tensors.items():
        size = len(graph.tensors[name].channels) if name in graph.tensors else 0
        if not layout or len(set(layout)) < len(layout) or max(layout) >= size:
            return f"the layout of tensor {name!r}"
    operations = {op.name: op for op in graph.operations}
    buffers: dict[str, dict[int, int]] = {}  # where the channels of an arena lie
    for arena in solution.arenas:
        broken = misplaced(graph, solution, arena)
        if broken is not None:
            return broken
        place = {channel: i for i, channel in enumerate(arena.channels)}
        buffers.update(dict.fromkeys(arena.tensors, place))
    selects: dict[tuple[str, int], Read] = {}
    places: dict[tuple[str, int], Read] = {}
    for read in solution.reads:
        op = operations.get(read.op)
        if op is None or read.operand >= len(op.inputs) or op.inputs[read.operand] != read.tensor:
            return f"read {read.name!r}, which the graph does not have"
        if read.tensor not in solution.tensors:
            return f"read {read.name!r} of a tensor that is not stored"
        table = places if read.kind == "place" else selects
        if (read.op, read.operand) in table:
            return f"read {read.name!r}, which is listed twice"
        table[read.op, read.operand] = read
        onto = op.outputs[0] if read.kind == "place" else read.tensor
        order = {entry: i for i, entry in enumerate(solution.tensors.get(onto, ()))}
        if read.tensor in buffers:
            channels, place = graph.tensors[read.tensor].channels, buffers[read.tensor]
            order = {entry: place[channels[entry]] for entry in order}
        indices = [order.get(entry, -1) for entry in read.channels]
        repeats = len(set(indices)) < len(indices)  # fine where the operation itself repeats
        if -1 in indices or (repeats and operations[read.op].kind != "select"):
            return f"the channels of read {read.name!r}"
        run = list(range(indices[0], indices[0] + len(indices))) if indices else []
        if read.plan != "gather" and indices != run:
            return f"read {read.name!r}, a view that is not contiguous"
    for op in graph.operations:
        if not op.outputs or op.outputs[0] in solution.tensors:
            for name in op.sizes:
                if graph.tensors[name].axis is not None and name not in solution.tensors:
                    return f"the lack of tensor {name!r}, whose size operation {op.name!r} uses"
        tensor = _misfit(op, graph, solution, selects, places)
        if tensor is not None:
            return f"what operation {op.name!r} gets of tensor {tensor!r}"
    try:
        expected = index_lists(graph, solution.tensors, solution.reads)
    except ValueError as error:
        return f"what operations that share the parameter {str(error)!r} keep of it"
    for parameter in (*expected, *solution.parameters):
        if expected.get(parameter) != solution.parameters.get(parameter):
            users = [op.name for op in graph.operations if parameter in parameters_of(op)]
            return f"the index lists of {parameter!r} (operation {', '.join(users) or 'none'})"
    return None


def _misfit(
    op: Operation,
    graph: ChannelGraph,
    solution: Solution,
    selects: dict[tuple[str, int], Read],
    places: dict[tuple[str, int], Read],
) -> str | None:
    """The input whose channels do not come in the sequence of the operation's result."""
    if isinstance(op, Layer):
        return _uneven(op, graph, solution, selects)
    if isinstance(op, Attention):
        return _headless(op, graph, solution, selects)
    if isinstance(op, Symmetric):
        name, result = op.inputs[0], op.outputs[0]
        if result not in solution.tensors:  # dead, or without channels: `losses` knows
            return None
        read = selects.get((op.name, 0))
        got = solution.tensors.get(name, ()) if read is None else read.channels
        size = len(graph.tensors[name].channels)
        fits = len(got) == size and _in_sequence(got, size, op.groups)
        left = tuple(range(len(graph.tensors[result].channels))) if op.reduces else got
        return None if fits and solution.tensors.get(result, left) == left else name
    if op.outputs and op.outputs[0] not in solution.tensors:
        return None
    in_arenas = {name for arena in solution.arenas for name in arena.tensors}
    start = 0
    for operand, name in enumerate(op.inputs):
        size = len(graph.tensors[name].channels)
        read = selects.get((op.name, operand))
        got = solution.tensors.get(name, ()) if read is None else read.channels
        if op.kind in ("opaque", "output"):
            fits = got == tuple(range(size))
        elif isinstance(op, Select):
            fits = got == tuple(op.positions[e] for e in solution.tensors[op.outputs[0]])
        elif isinstance(op, Concat):
            taken = solution.tensors[op.outputs[0]]
            if op.positions is not None:
                taken = tuple(op.positions[entry] for entry in taken)
            elif op.outputs[0] not in in_arenas and not _piece_by_piece(op, graph, taken):
                return name
            share = tuple(e - start for e in taken if start <= e < start + size)
            interleaved = op.positions is not None
            fits = set(share) <= set(got) if interleaved else got == share or not share
            start += size
        elif isinstance(op, Elementwise) and op.additive and not got:
            fits = True
        else:
            place = places.get((op.name, operand))
            fits = got == (solution.tensors[op.outputs[0]] if place is None else place.channels)
        if not fits:
            return name
    return None


def _piece_by_piece(op: Concat, graph: ChannelGraph, taken: Sequence[int]) -> bool:
    """A concatenation's result holds its operands one behind the other."""
    ends = list(accumulate(len(graph.tensors[name].channels) for name in op.inputs))
    owners = [bisect_right(ends, entry) for entry in taken]
    return owners == sorted(owners)


def _uneven(
    op: Layer,
    graph: ChannelGraph,
    solution: Solution,
    selects: dict[tuple[str, int], Read],
) -> str | None:
    """The input of a layer that is missing, or whose groups do not fit those of the output."""
    if not op.inputs or op.outputs[0] not in solution.tensors:
        return None
    source, result = op.inputs[0], op.outputs[0]
    read = selects.get((op.name, 0))
    if read is None and source not in solution.tensors:
        return source
    if op.groups == 1:
        return None
    got = solution.tensors.get(source, ()) if read is None else read.channels
    alive: list[set[int]] = []
    for name, entries in ((source, got), (result, solution.tensors[result])):
        size = len(graph.tensors[name].channels)
        counts = Counter(entry * op.groups // size for entry in entries)
        alive.append(set(counts))
        if len(set(counts.values())) != 1 or not _in_sequence(entries, size, op.groups):
            return source
    return None if alive[0] == alive[1] else source


def _headless(
    op: Attention,
    graph: ChannelGraph,
    solution: Solution,
    selects: dict[tuple[str, int], Read],
) -> str | None:
    """The input of which the heads do not get what they must: equally much, in one sequence."""
    if op.outputs[0] not in (solution.tensors if op.values else _computed(graph, solution)):
        return None
    got: list[tuple[int, ...]] = []
    for operand, name in enumerate(op.inputs):
        read = selects.get((op.name, operand))
        got.append(solution.tensors.get(name, ()) if read is None else read.channels)
        size = len(graph.tensors[name].channels)
        counts = Counter(entry * op.heads // size for entry in got[-1])
        level = len(counts) == op.heads and len(set(counts.values())) == 1
        if not level or not _in_sequence(got[-1], size, op.heads):
            return name
    if op.queries and got[0] != got[1]:
        return op.queries[1]
    if op.values and got[-1] != solution.tensors[op.outputs[0]]:
        return op.values[0]
    return None


def _computed(graph: ChannelGraph, solution: Solution) -> set[str]:
    """The tensors without channels on which anything that is stored, or returned, depends."""
    read: set[str] = set()
    for op in reversed(graph.operations):
        if not op.outputs or any(name in read or name in solution.tensors for name in op.outputs):
            read.update(n for n in (*op.inputs, *op.whole) if graph.tensors[n].axis is None)
    return read


def _in_sequence(entries: Sequence[int], size: int, groups: int) -> bool:
    """Entries of a channel sequence of this size come group by group."""
    numbers = [entry * groups // size for entry in entries]
    return numbers == sorted(numbers)


def losses(graph: ChannelGraph, masks: Masks, solution: Solution) -> list[str]:
    """The first thing that ``solution`` drops although, with these masks, it matters.

    An empty list means: every channel that a tensor does not store is zero or dead, every layer
    gets every channel that its weight reads, and every sum gets every part that is not zero.

    Args:
        graph: the channel graph.
        masks: what the model's zeros say (:func:`upscale_opt.masks_of`).
        solution: a solution for the graph.
    """
    sets = channel_sets(graph, masks, keep_one=False)
    selects = {(r.op, r.operand): r for r in solution.reads if r.kind == "select"}
    places = {(r.op, r.operand): r for r in solution.reads if r.kind == "place"}
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
            needed = _needs(op, operand, graph, sets)
            read = places.get((op.name, operand)) or selects.get((op.name, operand))
            missing = needed - _delivered(graph, solution, name, read)
            if missing:
                problems.append(f"channel {min(missing)} of {name!r}, which {op.name!r} reads")
    return problems


def _needs(op: Operation, operand: int, graph: ChannelGraph, sets: ChannelSets) -> Ids:
    source = op.inputs[operand]
    channels = frozenset(graph.tensors[source].channels)
    if isinstance(op, (Layer, Attention)):
        return sets.wants.get((op.name, operand), Ids())
    if op.kind in ("opaque", "output", "symmetric"):
        return channels
    needed = sets.needed[op.outputs[0]]
    if isinstance(op, Elementwise) and op.additive:
        return needed & sets.defined[source]
    return graph.taken(op, operand, needed) if isinstance(op, Concat) else needed


def _delivered(graph: ChannelGraph, solution: Solution, tensor: str, read: Read | None) -> Ids:
    sequence = graph.tensors[tensor].channels
    entries = solution.tensors.get(tensor, ()) if read is None else read.channels
    return frozenset(sequence[entry] for entry in entries)
