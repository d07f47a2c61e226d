"""Channels that tensors must hold though nothing needs them, for layers to keep a plain shape.

An operand of a concatenation fills its place between the others; the groups of a grouped
convolution are of one size; operations that share a parameter read and write the same of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from upscale_opt.ir.graph import (
    Attention,
    ChannelGraph,
    Concat,
    Layer,
    axes_of,
    shared_parameters,
)
from upscale_opt.solver.network.sets import ChannelSets, Edge, Ids, in_groups, level


def fill_gaps(graph: ChannelGraph, sets: ChannelSets, stored: Mapping[str, Ids]) -> dict[Edge, Ids]:
    """Channels that operands must deliver for no place between others to be empty.

    Where the result's channels are selected (they are in another sequence, or have twins), these.
    """
    gaps: dict[Edge, Ids] = {}
    for op in graph.operations:
        if isinstance(op, Concat) and op.name in sets.live:
            whole = stored[op.outputs[0]]
            for operand in range(len(op.inputs)):
                edge = (op.name, operand)
                ids = graph.taken(op, operand, whole)
                wanted = sets.wants.get(edge, Ids())
                selected = op.positions is not None or edge in graph.renamed
                if not ids <= wanted if selected else ids and not wanted:
                    gaps[edge] = ids
    return gaps


def whole_operands(
    graph: ChannelGraph, sets: ChannelSets, stored: Mapping[str, Ids]
) -> dict[str, Ids]:
    """Twins that concatenations must store for their operands to be joined as they are."""
    floors: dict[str, Ids] = {}
    operations = {op.name: op for op in graph.operations}
    for name, operand in graph.renamed:
        op = operations[name]
        assert isinstance(op, Concat)
        if sets.wants.get((name, operand)):
            ids = graph.given(op, operand, stored[op.inputs[operand]])
            if not ids <= stored[op.outputs[0]]:
                floors[op.outputs[0]] = floors.get(op.outputs[0], Ids()) | ids
    return floors


def even_groups(
    graph: ChannelGraph, sets: ChannelSets, stored: Mapping[str, Ids]
) -> dict[str, Ids]:
    """Channels that grouped convolutions' results must store for their groups to be equal."""
    floors: dict[str, Ids] = {}
    for op in graph.operations:
        count = op.groups if isinstance(op, Layer) else 1
        if isinstance(op, Attention) and op.values:
            count = op.heads
        elif count == 1:
            continue
        if op.name in sets.live:
            name = op.outputs[0]
            own = stored[name]
            groups = [Ids(group) for group in in_groups(graph.tensors[name].channels, count)]
            alive = [group for group in groups if group & own or isinstance(op, Attention)]
            even = level(alive, own, max(len(group & own) for group in alive))
            if not even <= sets.needed[name]:
                floors[name] = even
    return floors


@dataclass(frozen=True)
class Link:
    """Reads and writes of the same channels, since one parameter's axis runs along all of them.

    Attributes:
        reads: layers that read by it.
        writes: operations that write by it, and the tensors written.
    """

    reads: tuple[str, ...]
    writes: tuple[tuple[str, str], ...]


def links_of(graph: ChannelGraph) -> list[Link]:
    """The axes of all parameters that several operations use."""
    links: dict[Link, None] = {}
    for name, operations in shared_parameters(graph).items():
        reads: dict[int, list[str]] = defaultdict(list)
        writes: dict[int, list[tuple[str, str]]] = defaultdict(list)
        for op in operations:
            for axis, tensor in axes_of(op, name).items():
                if tensor in op.inputs and tensor not in op.outputs:
                    reads[axis].append(op.name)
                else:
                    writes[axis].append((op.name, tensor))
        for axis in {**reads, **writes}:
            links[Link(tuple(reads[axis]), tuple(writes[axis]))] = None
    return list(links)


def agree(
    links: Sequence[Link],
    sets: ChannelSets,
    stored: Mapping[str, Ids],
    selects: Mapping[Edge, Ids],
) -> tuple[dict[Edge, Ids], dict[str, Ids]]:
    """Channels that operations which share parameters must read, and write, besides their needs."""
    extra: dict[Edge, Ids] = {}
    floors: dict[str, Ids] = {}
    for link in links:
        reads = [name for name in link.reads if name in sets.live]
        writes = [name for op, name in link.writes if op in sets.live]
        together = Ids().union(
            *(selects[name, 0] for name in reads),
            *(stored[name] for name in writes),
        )
        for name in reads:
            if selects[name, 0] != together:
                extra[name, 0] = together
        for name in writes:
            if not together <= sets.needed[name]:
                floors[name] = together
    return extra, floors


def linked_tensors(graph: ChannelGraph) -> frozenset[str]:
    """The tensors that are written by parameters which other operations use, too."""
    return frozenset(
        name
        for operations in shared_parameters(graph).values()
        for op in operations
        for name in op.outputs
    )
