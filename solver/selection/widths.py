"""Widths of a network under any picks: who reads what, and what must be stored for it.

The shape of segments (where channels are selected) is that of masks in general position: wherever
sets happen to be equal, the layout may do better. What it really takes, ``accounts.py`` counts.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from upscale_opt.ir.cost_model import EACH, Blocks
from upscale_opt.ir.graph import Attention, Layer, Operation
from upscale_opt.solver.network.blocked_prices import pricing_of
from upscale_opt.solver.network.segments import Joints, find_joints
from upscale_opt.solver.selection.nodes import Flat, Node
from upscale_opt.solver.selection.pickers import ORDERED, Family, Ints, Picker, Picks, dropped_by
from upscale_opt.solver.selection.rates import WRITTEN, Side
from upscale_opt.solver.selection.setting import Bools, Floats, Setting

_Value = TypeVar("_Value", bound=np.generic)


@dataclass(frozen=True)
class Demand:
    """A need for channels: of readers, and such as are needed by all means.

    Attributes:
        readers: their numbers.
        always: channels.
        everything: all channels are needed.
    """

    readers: frozenset[int] = frozenset()
    always: frozenset[int] = frozenset()
    everything: bool = False

    def __or__(self, other: Demand) -> Demand:
        return Demand(
            self.readers | other.readers,
            self.always | other.always,
            self.everything or other.everything,
        )


_ALL = Demand(everything=True)


class Widths:
    """Widths and resources as functions of picks.

    Args:
        setting: the question.
        pickers: the decisions.
        joints: the shape of segments; by default that of random picks.
        relaxed: promise no width that might not be needed: groups need not be equally long, and
            grouped convolutions, whose groups may die one by one, cost and ask for nothing.
        gathers: let readers of a space that others read, too, pay for gathers unless they follow a
            common order. They may do better, by windows and good orders: it is a guess.

    Attributes:
        nodes: all widths; the first is the constant 1.
        left, right: of shape (terms,): nodes, whose products are paid for.
        coefficients: of shape (resources, terms), for the limits of the setting.
        constant: of shape (resources,).
        copies: by picker and family, of shape (resources, levels): a guess of what gathers take.
    """

    def __init__(
        self,
        setting: Setting,
        pickers: Sequence[Picker],
        joints: Joints | None = None,
        *,
        relaxed: bool = False,
        gathers: bool = False,
    ) -> None:
        self._relaxed = relaxed
        self.gathers = gathers
        self.setting = setting
        self.pickers = pickers
        self.joints = joints or joints_of(setting, pickers)
        self._graph = setting.graph
        self._place_of = {
            (p.reader.parameter, p.reader.axis): i for i, p in enumerate(setting.places)
        }
        self._pairs = {p.reader.operation: i for i, p in enumerate(setting.places) if not p.reads}
        self._operations = {op.name: op for op in self._graph.operations}
        self._demands: dict[str, Demand] = defaultdict(Demand)
        self._views: list[tuple[int, dict[int, int]]] = []
        self._numbers: dict[tuple[int, tuple[str, int]], int | None] = {}
        self._spread()
        self.families = self._tabulate()
        self._left: dict[int, Bools] = {}
        self._known: dict[tuple[object, ...], int] = {}
        one = Node(np.zeros(1, dtype=np.int64), np.ones(1, dtype=bool), 1)
        self.nodes: list[Node] = [one]
        self._terms()
        self.nodes_of: list[list[int]] = [[] for _ in pickers]
        for number, node in enumerate(self.nodes):
            for picker in node.ranks:
                self.nodes_of[picker].append(number)
        self.terms_of = [
            np.flatnonzero(np.isin(self.left, own) | np.isin(self.right, own))
            for own in self.nodes_of
        ]
        self.flat = Flat(self.nodes, self.nodes_of, pickers)
        self.copies = [[self._copies_of(family) for family in p.families] for p in pickers]

    # Who needs what.

    def _reader_demand(self, op: Layer) -> Demand:
        reader = self._place_of.get((op.weight, op.in_axis))
        return _ALL if reader is None else self._of_reader(reader)

    def _of_reader(self, reader: int) -> Demand:
        place = self.setting.places[reader]
        choosable = set(place.reader.slices)
        stuck = (
            (place.channels[s] for s in range(place.size) if s not in choosable)
            if place.reads
            else ()
        )
        return Demand(frozenset({reader}), frozenset(stuck))

    def _selection(self, edge: tuple[str, int]) -> Demand:
        """The need for what is selected at an edge."""
        op = self._operations[edge[0]]
        if isinstance(op, Layer):
            return self._reader_demand(op)
        if isinstance(op, Attention):
            if op.inputs[edge[1]] in op.queries[edge[1] : edge[1] + 1]:
                pair = self._pairs.get(op.name)
                return _ALL if pair is None else self._of_reader(pair)
            return self._demands.get(self.joints.segment.get(op.outputs[0], ""), _ALL)
        if op.name in self.joints.hoisted:
            for reader in self._readers[op.outputs[0]]:
                if reader in self.joints.selects or self._is_hoisted_join(reader):
                    return self._selection(reader)
        demand = self._demands.get(self.joints.segment.get(op.outputs[0], ""), _ALL)
        return self._before_twins(edge, demand)

    def _before_twins(self, edge: tuple[str, int], demand: Demand) -> Demand:
        """The need of what gets twins in a concatenation, for what is needed of the result.

        Readers of the twins get further numbers, one for every edge: what they ask for there.
        """
        renamed = self._graph.renamed.get(edge)
        if renamed is None or demand.everything:
            return demand
        views = (self._view(reader, edge) for reader in demand.readers)
        readers = frozenset(view for view in views if view is not None)
        always = frozenset(c for c, twin in renamed.items() if twin in demand.always)
        return Demand(readers, always)

    def _view(self, reader: int, edge: tuple[str, int]) -> int | None:
        """The number under which a reader asks for channels before they get twins at an edge.

        ``None`` if it asks for none of the twins: a segment may hold both, and its readers of the
        one are none of the other.
        """
        if (reader, edge) not in self._numbers:
            real, names = self.seen_by(reader)
            renamed = self._graph.renamed[edge]
            seen = {read: names[twin] for read, twin in renamed.items() if twin in names}
            self._numbers[reader, edge] = None
            if seen:
                self._numbers[reader, edge] = len(self.setting.places) + len(self._views)
                self._views.append((real, seen))
        return self._numbers[reader, edge]

    def seen_by(self, reader: int) -> tuple[int, dict[int, int]]:
        """The reader itself, and what the channels that it asks for are where it reads them."""
        places = self.setting.places
        if reader < len(places):
            return reader, {channel: channel for channel in places[reader].channels}
        return self._views[reader - len(places)]

    def _is_hoisted_join(self, edge: tuple[str, int]) -> bool:
        return edge[0] in self.joints.hoisted

    def _spread(self) -> None:
        """Find out for every segment what its tensors must store."""
        graph = self._graph
        self._readers: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for op in graph.operations:
            for operand, name in enumerate(op.inputs):
                self._readers[name].append((op.name, operand))
        for _ in range(len(graph.operations)):
            before = dict(self._demands)
            for op in reversed(graph.operations):
                self._ask(op.name)
            if before == self._demands:
                break

    def _is_left_out(self, op: Operation) -> bool:
        return self._relaxed and isinstance(op, Layer) and op.groups > 1

    def _ask(self, name: str) -> None:
        op, segment = self._operations[name], self.joints.segment
        asked: list[tuple[str, Demand]] = [(source, _ALL) for source in op.whole]
        if op.kind in ("input", "opaque", "symmetric") or (
            isinstance(op, Attention) and not op.values
        ):
            asked += [(result, _ALL) for result in op.outputs]
        for operand, source in enumerate(op.inputs):
            edge = (op.name, operand)
            if self._is_left_out(op):
                continue
            if op.kind in ("opaque", "output", "symmetric"):
                asked.append((source, _ALL))
            elif edge in self.joints.selects and op.kind != "select":
                asked.append((source, self._selection(edge)))
            elif op.outputs and segment.get(source) != segment.get(op.outputs[0]):
                if isinstance(op, Layer):
                    asked.append((source, self._reader_demand(op)))
                elif op.outputs[0] in segment:
                    asked.append((source, self._selection(edge)))
                else:
                    asked.append((source, _ALL))
        for source, demand in asked:
            root = segment.get(source)
            if root is not None:
                if demand.everything:
                    tensor = self._graph.tensors[source]
                    demand = Demand(always=frozenset(tensor.channels))
                self._demands[root] = self._demands[root] | demand

    # What picks ask for.

    def _tabulate(self) -> dict[int, dict[int, list[Ints]]]:
        """For every reader and its pickers, by family: at how many levels each channel is kept.

        Of shape (channels,), by their numbers; -1 if the picker does not decide.
        """
        self._count = max(self._graph.space_of, default=-1) + 1
        found: dict[int, dict[int, list[Ints]]] = defaultdict(dict)
        for number, picker in enumerate(self.pickers):
            readers = {part.reader for family in picker.families for part in family.parts}
            for reader in readers:
                found[reader][number] = [
                    self._kept_until(reader, family, picker.partial) for family in picker.families
                ]
        for view, (reader, names) in enumerate(self._views, len(self.setting.places)):
            for number, families in found[reader].items() if reader in found else ():
                found[view][number] = [_renamed(until, names, -1) for until in families]
        return dict(found)

    def _kept_until(self, reader: int, family: Family, partial: bool) -> Ints:
        place = self.setting.places[reader]
        levels = len(family.losses)
        part_at = next(at for at, part in enumerate(family.parts) if part.reader == reader)
        steps, cuts = family.parts[part_at].steps, family.cuts[:, part_at]
        channels = np.array(place.channels, dtype=np.int64)
        until = np.full(self._count, -1, dtype=np.int64)
        counts = np.searchsorted(cuts, np.arange(len(steps)), side="right")
        for at, step in enumerate(steps):
            for slice in step:
                channel = place.channels[slice]
                until[channel] = max(until[channel], int(counts[at]))
        if not partial:  # those that this family never drops
            gone = {slice for step in steps for slice in step}
            until[channels[[s for s in place.reader.slices if s not in gone]]] = levels
        return until

    def _undecided(self, reader: int) -> Bools:
        """Of shape (channels,): those that the reader might drop, but no picker lets it."""
        if reader not in self._left:
            real, names = self.seen_by(reader)
            if real != reader:
                self._left[reader] = _renamed(self._undecided(real), names, 0)
                return self._left[reader]
            place = self.setting.places[reader]
            left = np.zeros(self._count, dtype=bool)
            left[[place.channels[s] for s in place.reader.slices]] = True
            for families in self.families[reader].values():
                for until in families:
                    left &= until < 0
            self._left[reader] = left
        return self._left[reader]

    # Widths.

    def in_blocks(self, plain: int, blocks: Blocks) -> int:
        """The number of the node for the same channels, counted in blocks."""
        node = self.nodes[plain]
        if blocks == EACH or plain == 0:
            return plain
        key = (plain, blocks)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = len(self.nodes)
            other = Node(node.channels, node.fixed, 1, blocks, plain)
            other.ranks, other.readers = node.ranks, node.readers
            self.nodes.append(other)
        return found

    def counted(self, number: int) -> Floats:
        """The channels that a node in blocks counts for 0, 1, 2, …; of shape (channels + 1,).

        If widths are relaxed, the least for at least so many channels.
        """
        node = self.nodes[number]
        found = np.array([node.blocks.counted(width) for width in range(len(node.channels) + 1)])
        if self._relaxed:
            found = np.minimum.accumulate(found[::-1])[::-1]
        return np.asarray(found, dtype=np.float64)

    def node(self, tensor: str, demand: Demand, groups: int = 1, *, stored: bool = False) -> int:
        """The number of the node for what ``demand`` needs of a tensor."""
        structure = self._graph.tensors[tensor]
        groups = 1 if self._relaxed else groups
        if not structure.channels or structure.axis is None:
            return 0
        key = (demand, structure.channels, groups)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = len(self.nodes)
            self.nodes.append(self._make(structure.channels, demand, groups))
        self.nodes[found].stored |= stored
        self.nodes[found].tensors.append(tensor)
        return found

    def _make(self, channels: tuple[int, ...], demand: Demand, groups: int) -> Node:
        ids = np.array(channels, dtype=np.int64)
        fixed = np.array([demand.everything or c in demand.always for c in channels], dtype=bool)
        for reader in demand.readers:
            if reader not in self.families:  # no picker decides for it: it keeps all it reads
                fixed |= np.isin(ids, list(self.seen_by(reader)[1]))
                continue
            fixed |= self._undecided(reader)[ids]
        node = Node(ids, fixed, groups)
        node.readers = demand.readers
        if fixed.all():
            return node
        for reader in sorted(demand.readers):
            for picker, families in self.families.get(reader, {}).items():
                if (families[0][ids] < 0).all():
                    continue
                ranks = [np.maximum(until[ids], 0) for until in families]
                if picker in node.ranks:
                    pairs = zip(node.ranks[picker], ranks, strict=True)
                    ranks = [np.maximum(one, other) for one, other in pairs]
                node.ranks[picker] = ranks
        return node

    def _terms(self) -> None:
        resources = [limit.resource for limit in self.setting.limits]
        sums: dict[tuple[int, int], Floats] = defaultdict(lambda: np.zeros(len(resources)))
        self.groups_of: dict[tuple[int, int], int] = {}
        for op in self._graph.operations:
            for rate in [] if self._is_left_out(op) else self.setting.rates.of[op.name]:
                numbers = {
                    "macs": float(rate.macs if isinstance(op, Layer) else 0),
                    "parameters": float(rate.parameters),
                }
                plain = [self._side(op.name, side) for side in rate.sides]
                counted = list(map(self.in_blocks, plain, rate.blocks))
                for amounts, sides in ((numbers, plain), ({"latency": rate.nanoseconds}, counted)):
                    own = np.array([amounts.get(name, 0.0) for name in resources]) / rate.groups
                    if own.any():
                        low, high = sorted(sides)
                        sums[low, high] += own
        constant = [pair for pair in sums if all(self.nodes[n].fixed.all() for n in pair)]
        self.constant = np.zeros(len(resources))
        for pair in constant:
            sizes = [self.nodes[n].blocks.counted(len(self.nodes[n].channels)) for n in pair]
            self.constant += sums.pop(pair) * sizes[0] * sizes[1]
        pairs = sorted(sums)
        self.left = np.array([p[0] for p in pairs], dtype=np.int64)
        self.right = np.array([p[1] for p in pairs], dtype=np.int64)
        shape = (len(resources), len(pairs))
        self.coefficients = np.array([sums[p] for p in pairs]).reshape(shape[::-1]).T

    def _copies_of(self, family: Family) -> Floats:
        """The nanoseconds of gathering, by level, if it is to be paid for; else zeros."""
        setting = self.setting
        found = np.zeros((len(setting.limits), len(family.losses)))
        rows = [at for at, limit in enumerate(setting.limits) if limit.resource == "latency"]
        model = setting.cost_model
        if not rows or model is None or not self.gathers or family.origin in ORDERED:
            return found
        pricing = pricing_of(self._graph, model)
        for part, cuts in zip(family.parts, family.cuts.T, strict=True):
            place = setting.places[part.reader]
            if part.reader not in setting.sharing or not place.reads:
                continue
            edge = place.reader.operation, 0
            for level, cut in enumerate(cuts.tolist()):
                if cut:
                    found[rows, level] += pricing.gather(edge, place.tensor, place.width(cut))
        return found

    def _side(self, name: str, side: Side) -> int:
        op = self._operations[name]
        if side is None:
            return 0
        if side == WRITTEN:
            groups = op.groups if isinstance(op, Layer) else 1
            if isinstance(op, Attention) and op.values:
                groups = op.heads
            return self._stored(op.outputs[0], groups, stored=isinstance(op, Layer))
        source = op.inputs[side]
        if (name, side) in self.joints.selects and op.kind != "select":
            groups = op.groups if isinstance(op, Layer) else 1
            if isinstance(op, Attention):
                groups = op.heads
            return self.node(source, self._selection((name, side)), groups)
        return self._stored(source)

    def _stored(self, tensor: str, groups: int = 1, *, stored: bool = False) -> int:
        root = self.joints.segment.get(tensor)
        if root is None:
            return self.node(tensor, _ALL)
        return self.node(tensor, self._demands[root], groups, stored=stored)

    def stored_node(self, op: Layer) -> int:
        """The node of what a layer writes."""
        return self._side(op.name, WRITTEN)

    def launches(self) -> list[tuple[int, Floats]]:
        """The costs of operations for being run at all, with the nodes of what they write."""
        found = []
        row = [limit.resource for limit in self.setting.limits]
        for op in self._graph.operations:
            if self._is_left_out(op):
                continue
            paid = sum(
                rate.nanoseconds
                for rate in self.setting.rates.of[op.name]
                if rate.sides == (None, None)
            )
            if paid and op.outputs and "latency" in row:
                amounts = np.array([paid if name == "latency" else 0.0 for name in row])
                found.append((self._side(op.name, WRITTEN), amounts))
        return found

    # Evaluation.

    def start(self) -> Picks:
        """Everything kept, as far as the constraints allow."""
        return [
            (min(range(len(p.families)), key=lambda f: self._top(p, f)), 0) for p in self.pickers
        ]

    @staticmethod
    def _top(picker: Picker, number: int) -> float:
        return float(picker.families[number].losses[0])

    def loss(self, picks: Picks) -> float:
        """The sum of the losses picked."""
        return float(
            sum(
                p.families[f].losses[level]
                for p, (f, level) in zip(self.pickers, picks, strict=True)
            )
        )


def _renamed(
    values: npt.NDArray[_Value], names: Mapping[int, int], unnamed: int
) -> npt.NDArray[_Value]:
    """Values of channels under other names."""
    found = np.full_like(values, unnamed)
    found[list(names)] = values[list(names.values())]
    return found


def joints_of(
    setting: Setting, pickers: Sequence[Picker], seeds: Iterable[int] = (0, 1, 2)
) -> Joints:
    """The shape of segments under picks in general position."""
    found: list[Joints] = []
    for seed in seeds:
        rng = random.Random(seed)
        picks = []
        for picker in pickers:
            family = rng.randrange(len(picker.families))
            levels = len(picker.families[family].losses)
            picks.append((family, rng.randrange(levels // 3, levels)))
        masks = setting.masks(dropped_by(setting, pickers, picks))
        found.append(find_joints(setting.graph, masks))
    return min(found, key=lambda one: (len(one.hoisted), len(set(one.segment.values()))))
