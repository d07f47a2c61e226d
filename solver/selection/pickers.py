"""Pickers: the single decisions of a choice, each among nested sets.

Unconstrained, a picker decides for one reader. Readers that shall keep equally many channels share
one; in constrained pruning all readers of a space do.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.solver.network.coupling import groups
from upscale_opt.solver.selection.setting import Dropped, Floats, Place, Setting, chain_of

Ints = npt.NDArray[np.int64]
Steps = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Part:
    """A reader's share in a family.

    Attributes:
        reader: its number.
        steps: the slices dropped, one step after the other.
    """

    reader: int
    steps: Steps


@dataclass(frozen=True)
class Family:
    """Nested sets to pick from.

    Attributes:
        origin: where they come from.
        parts: of all readers that the picker decides for.
        cuts: of shape (levels, parts): the steps of every part that each level drops; ascending.
        losses: of shape (levels,); estimates, where the sets are no columns.
    """

    origin: str
    parts: tuple[Part, ...]
    cuts: Ints
    losses: Floats

    def at(self, levels: Sequence[int] | Ints) -> Family:
        """The family with some of its levels only."""
        chosen = np.asarray(levels, dtype=np.int64)
        return Family(self.origin, self.parts, self.cuts[chosen], self.losses[chosen])


@dataclass(frozen=True)
class Picker:
    """A decision.

    Attributes:
        name: for messages.
        families: of which one is taken, at one level.
        partial: other pickers, or none, decide for the other slices of its readers.
    """

    name: str
    families: tuple[Family, ...]
    partial: bool = False


ORDERED = ("space", "aligned", "whole")
"""Origins of sets in which all readers of a space follow one order: no gathers are needed."""

Picks = list[tuple[int, int]]
"""For every picker, its family and level."""


def dropped_by(setting: Setting, pickers: Sequence[Picker], picks: Picks) -> Dropped:
    """The choice that the picks make."""
    gone: list[set[int]] = [set() for _ in setting.places]
    for picker, (number, level) in zip(pickers, picks, strict=True):
        family = picker.families[number]
        for part, cut in zip(family.parts, family.cuts[level], strict=True):
            for step in part.steps[: int(cut)]:
                gone[part.reader].update(step)
    return tuple(map(frozenset, gone))


# Unconstrained.


def single_pickers(
    setting: Setting, *, aligned: bool = False, only_aligned: bool = False
) -> list[Picker]:
    """One decision for every reader, or for several that shall keep equally many channels.

    Args:
        setting: the question.
        aligned: with families in which all readers of a space follow one order.
        only_aligned: with no others, where several readers share a space. So it is in any case if
            widths are rounded: what readers ask for together is a multiple then, too.
    """
    extra = aligned_chains(setting) if aligned else {}
    only_aligned |= aligned and setting.budget.round_to > 1
    shared = setting.sharing if only_aligned else frozenset()
    pickers: list[Picker] = []
    tied = {i: members for members in setting.equal for i in members}
    for i, place in enumerate(setting.places):
        if i in tied:
            if tied[i][0] == i:
                pickers.append(_equal_picker(setting, tied[i], extra))
            continue
        families: list[Family | None] = []
        if i not in shared or i not in extra:
            families += [
                _family(setting, i, chain.origin, chain.steps, np.array(chain.losses))
                for chain in place.reader.chains
            ]
        if i in extra:
            one = extra[i]
            families.append(_family(setting, i, "aligned", one.steps, one.losses, ends=one.ends))
        found = tuple(f for f in families if f is not None)
        if not found:
            found = (_nothing(i, min(c.losses[0] for c in place.reader.chains)),)
        pickers.append(Picker(place.name, found))
    return pickers


def _nothing(reader: int, loss: float) -> Family:
    return Family("whole", (Part(reader, ()),), np.zeros((1, 1), dtype=np.int64), np.array([loss]))


def _family(
    setting: Setting,
    reader: int,
    origin: str,
    steps: Steps,
    losses: Floats,
    *,
    ends: Ints | None = None,
) -> Family | None:
    allowed = setting.places[reader].allowed[: len(steps) + 1]
    if ends is not None:
        allowed = allowed & np.isin(np.arange(len(allowed)), ends)
    cuts = np.flatnonzero(allowed)
    if not len(cuts):
        return None
    return Family(origin, (Part(reader, steps),), cuts[:, None], losses[cuts])


def _equal_picker(setting: Setting, members: Sequence[int], extra: dict[int, Aligned]) -> Picker:
    """One decision about a width."""
    origins = dict.fromkeys(
        chain.origin for i in members for chain in setting.places[i].reader.chains
    )
    families: list[Family] = []
    for origin in (*origins, *(["aligned"] if all(i in extra for i in members) else [])):
        parts, by_width, losses = [], [], []
        for i in members:
            place = setting.places[i]
            if origin == "aligned":
                steps, known = extra[i].steps, extra[i].losses
            else:
                chain = place.reader.chains[chain_of(place.reader, origin)]
                steps, known = chain.steps, np.array(chain.losses)
            possible = np.flatnonzero(place.allowed[: len(steps) + 1])
            parts.append(Part(i, steps))
            by_width.append({place.width(int(d)): int(d) for d in possible})
            losses.append(known)
        widths = sorted(set.intersection(*(set(w) for w in by_width)), reverse=True)
        if widths:
            cuts = np.array([[own[w] for own in by_width] for w in widths], dtype=np.int64)
            total = sum(known[cuts[:, at]] for at, known in enumerate(losses))
            families.append(Family(origin, tuple(parts), cuts, np.asarray(total)))
    return Picker(", ".join(setting.places[i].name for i in members), tuple(families))


# One order per space.


def _consensus(setting: Setting) -> dict[int, list[int]]:
    """For every space, the channels that readers may drop: those that are missed least first."""
    worth: dict[int, float] = defaultdict(float)
    order: dict[int, int] = {}
    for place, book in zip(setting.places, setting.books, strict=True):
        number = chain_of(place.reader, "space")
        chain = place.reader.chains[number]
        for slice, value in book.each(number).items():
            worth[place.originals[slice]] += value
        for at, step in enumerate(chain.steps):
            for slice in step:
                order.setdefault(place.originals[slice], at)
    spaces: dict[int, list[int]] = defaultdict(list)
    for channel in worth:
        spaces[setting.graph.space_of[channel]].append(channel)
    readers = setting.readers_of
    found: dict[int, list[int]] = {}
    for space, channels in spaces.items():
        common = _common_order(setting, readers[space])
        if common is not None:
            found[space] = common
        else:
            found[space] = sorted(channels, key=lambda c: (worth[c], order.get(c, 0), c))
    return found


def _common_order(setting: Setting, members: Sequence[int]) -> list[int] | None:
    """The order in which all readers of a space drop its channels, where their chains have one."""
    found: list[int] | None = None
    for i in members:
        place = setting.places[i]
        chain = place.reader.chains[chain_of(place.reader, "space")]
        own = list(dict.fromkeys(place.originals[s] for step in chain.steps for s in step))
        if len({setting.graph.space_of[c] for c in own}) > 1 or (found or own) != own:
            return None
        found = own
    return found


@dataclass(frozen=True)
class Aligned:
    """A chain of prefixes of common orders.

    Attributes:
        steps: the slices dropped, step by step.
        losses: estimated, unless the chain is one of the reader's.
        ends: the numbers of steps after which every space has lost a multiple of ``round_to``.
    """

    steps: Steps
    losses: Floats
    ends: Ints


def aligned_chains(setting: Setting) -> dict[int, Aligned]:
    """For every reader, a chain whose sets are prefixes of one order per space, with its losses.

    Readers of prefixes of one order copy nothing, and what they read together is a prefix, too. So
    widths are multiples of ``round_to`` wherever all drop such multiples. Losses are estimated.
    """
    orders = _consensus(setting)
    step = setting.budget.round_to
    found: dict[int, Aligned] = {}
    for i, (place, book) in enumerate(zip(setting.places, setting.books, strict=True)):
        if place.groups > 1:
            continue
        number = chain_of(place.reader, "space")
        each = book.each(number)
        slices: dict[int, list[int]] = defaultdict(list)
        for slice in place.reader.slices:
            slices[place.channels[slice]].append(slice)
        spaces = _places_of_spaces(setting.graph, list(slices), orders)
        worth = {c: sum(each.get(s, 0.0) for s in own) for c, own in slices.items()}
        if any(len(own) != place.reader.unit for own in slices.values()):
            continue  # it reads channels twice
        runs = _merged(spaces, worth, step)
        sequence = [channel for run in runs for channel in run]
        steps = tuple(tuple(slices[c]) for c in sequence)
        ends = np.cumsum([0, *map(len, runs)])
        losses = place.reader.chains[number].losses[0] + np.concatenate(
            [[0.0], np.cumsum([worth[c] for c in sequence])]
        )
        for chain in place.reader.chains:
            if tuple(map(frozenset, chain.steps)) == tuple(map(frozenset, steps)):
                losses = np.array(chain.losses)
        found[i] = Aligned(steps, losses, ends)
    return found


_Place = tuple[int, int]
"""A space, and how many of its channels' twins a tensor holds before this one."""


def _places_of_spaces(
    graph: ChannelGraph, channels: Iterable[int], orders: Mapping[int, Sequence[int]]
) -> dict[_Place, list[int]]:
    """The channels that a reader may drop, in the orders of their spaces, twins by themselves."""
    named: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for channel in channels:
        named[graph.space_of[channel]][graph.original(channel)].append(channel)
    found: dict[_Place, list[int]] = defaultdict(list)
    for space, twins in named.items():
        for original in orders.get(space, ()):
            for at, channel in enumerate(twins.get(original, ())):
                found[space, at].append(channel)
    return dict(found)


def _merged(spaces: dict[_Place, list[int]], worth: dict[int, float], step: int) -> list[list[int]]:
    """Spaces' channels in one sequence of runs of ``step``: the least missed runs first."""
    waiting: list[tuple[float, _Place, int]] = []

    def push(space: _Place, at: int) -> None:
        channels = spaces[space]
        if at < len(channels):
            run = channels[at : at + _first(len(channels), at, step)]
            mean = sum(worth[c] for c in run) / len(run)
            heapq.heappush(waiting, (mean, space, at))

    for space in sorted(spaces):
        push(space, 0)
    result: list[list[int]] = []
    while waiting:
        _, space, at = heapq.heappop(waiting)
        size = _first(len(spaces[space]), at, step)
        result.append(spaces[space][at : at + size])
        push(space, at + size)
    return result


def _first(size: int, at: int, step: int) -> int:
    """The length of a run: the first one takes what is no multiple."""
    return size % step or step if at == 0 else step


# Constrained.


def space_pickers(setting: Setting) -> list[Picker]:
    """One decision for every space: all of its readers keep the same channels.

    The knapsack over coupled groups of Shen et al., *Structural Pruning via Latency-Saliency
    Knapsack* (HALP), NeurIPS 2022; here with chains in place of scores where they fit.
    """
    graph, budget = setting.graph, setting.budget
    orders = _consensus(setting)
    readers = setting.readers_of
    coupled = groups(graph)
    known = {(p.reader.parameter, p.reader.axis): i for i, p in enumerate(setting.places)}
    alone = _alone(setting)
    may_drop = [{p.originals[s] for s in p.reader.slices} for p in setting.places]
    slices: list[dict[int, list[int]]] = []
    for place in setting.places:
        slices.append(defaultdict(list))
        for slice in place.reader.slices:
            slices[-1][place.originals[slice]].append(slice)
    pickers: list[Picker] = []
    for space, order in sorted(orders.items()):
        group = coupled[space]
        weights = [(m.parameter, m.axis) for m in group.consumers]
        if group.fixed is not None or any(key not in known for key in weights):
            continue
        members = sorted(set(readers[space]) | {known[key] for key in weights})
        places = [setting.places[i] for i in members]
        items = _items(setting, order, places)
        may_go = set.intersection(*(may_drop[i] for i in members))
        items = [item for item in items if may_go.issuperset(item)]
        if not items or any(not place.allowed[1:].any() for place in places):
            continue
        size = len(group.channels)
        step = budget.round_to
        kept = [size - int(gone) for gone in np.cumsum([0, *map(len, items)])]
        groups_of = max(place.groups for place in places)
        even = [
            at
            for at, width in enumerate(kept)
            if width >= min(budget.at_least * groups_of, size)
            and width > 0
            and (width % (step * groups_of) == 0 or step == 1)
        ]
        if alone.issuperset(members):
            gone = np.cumsum([0, *map(len, items)])
            even = [at for at in even if all(_allows(place, int(gone[at])) for place in places)]
        else:
            low, high = zip(*map(_extremes, places), strict=True)
            even = [at for at in even if max(low) <= kept[at] / size <= min(high)]
        if not even:
            continue
        parts, losses = [], np.zeros(len(items) + 1)
        for i in members:
            steps = tuple(tuple(s for c in item for s in slices[i][c]) for item in items)
            parts.append(Part(i, steps))
            losses += _losses(setting, i, steps)
        cuts = np.repeat(np.array(even, dtype=np.int64)[:, None], len(parts), axis=1)
        family = Family("space", tuple(parts), cuts, losses[even])
        pickers.append(Picker(f"space {space}", (family,), partial=True))
    return pickers


def _alone(setting: Setting) -> set[int]:
    """The readers whose slices all lie in one space."""
    space_of = setting.graph.space_of
    return {
        i
        for i, place in enumerate(setting.places)
        if len({space_of[place.originals[s]] for s in place.reader.slices}) == 1
    }


def _extremes(place: Place) -> tuple[float, float]:
    """The least and the largest share that a reader may keep."""
    possible = np.flatnonzero(place.allowed)
    full = place.width(0)
    return place.width(int(possible[-1])) / full, place.width(int(possible[0])) / full


def _allows(place: Place, gone: int) -> bool:
    units, rest = divmod(gone * place.features, place.reader.unit)
    return rest == 0 and units < len(place.allowed) and bool(place.allowed[units])


def _items(
    setting: Setting, order: Sequence[int], places: Sequence[Place]
) -> list[tuple[int, ...]]:
    """The channels that go together: single ones, or as many of each group."""
    for place in places:
        if place.groups > 1 and place.reader.unit > 1:
            chain = place.reader.chains[chain_of(place.reader, "space")]
            return [tuple(dict.fromkeys(place.originals[s] for s in step)) for step in chain.steps]
    return [(channel,) for channel in order]


def _losses(setting: Setting, reader: int, steps: Steps) -> Floats:
    """The losses along steps that are a chain of the reader, or an estimate."""
    place = setting.places[reader]
    found: Floats | None = None
    for chain in place.reader.chains:
        if chain.steps[: len(steps)] == steps:
            own = np.array(chain.losses[: len(steps) + 1])
            found = own if found is None else np.minimum(found, own)
    if found is not None:
        return found
    number = chain_of(place.reader, "space")
    each = setting.books[reader].each(number)
    deltas = [sum(each.get(s, 0.0) for s in step) for step in steps]
    return np.concatenate([[0.0], np.cumsum(deltas)])
