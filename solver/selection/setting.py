"""The question: a graph, losses, a budget, and what follows from them for every reader."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from upscale_opt.errors import BudgetError
from upscale_opt.ir.budget import Budget, Resource, matches
from upscale_opt.ir.cost_model import CostModel
from upscale_opt.ir.graph import ChannelGraph, Layer, slices_of
from upscale_opt.ir.losses import Losses, Reader
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.profiles import profile
from upscale_opt.solver.network.segments import find_segments
from upscale_opt.solver.selection.accounts import Account, account
from upscale_opt.solver.selection.rates import Rates

Dropped = tuple[frozenset[int], ...]
"""For every reader, the slices that go: a choice."""

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


NOUNS: dict[Resource, str] = {
    "macs": "multiply-adds",
    "parameters": "parameters",
    "latency": "latency",
}
"""The resources in messages."""

_LEAST = 1e-9
"""A limit is more than nothing: shares of it are taken."""


@dataclass(frozen=True)
class Limit:
    """The most of one resource.

    Attributes:
        resource: which.
        most: how much, in its unit.
        before: the unpruned network's.
    """

    resource: Resource
    most: float
    before: float


class Place:
    """A reader in its graph.

    Attributes:
        reader: the reader.
        tensor: the tensor along whose channel axis its slices lie.
        channels: of every slice, by its number.
        originals: the same, with those that twins were made of in place of them.
        groups: into how many groups or heads its slices fall.
        allowed: for 0, 1, 2, … units dropped, if the budget's constraints allow it.
    """

    def __init__(self, graph: ChannelGraph, reader: Reader) -> None:
        self.reader = reader
        operations = {op.name: op for op in graph.operations}
        op = operations.get(reader.operation)
        layer = next(
            o for o in graph.operations if isinstance(o, Layer) and o.weight == reader.parameter
        )
        if op is None:
            raise BudgetError(f"the losses name {reader.operation!r}, which the graph has not")
        self.reads = layer.in_axis == reader.axis and bool(layer.inputs)
        self.tensor = layer.inputs[0] if self.reads else layer.outputs[0]
        tensor = graph.tensors[self.tensor]
        size = slices_of(graph, reader.parameter, reader.axis)
        self.features = tensor.features
        self.channels = tuple(tensor.channels[s // tensor.features] for s in range(size))
        self.originals = tuple(map(graph.original, self.channels))
        self.groups = 1
        if self.reads:
            self.groups = layer.groups
        else:
            self.groups = getattr(op, "heads", 1)
        self.size = size
        self.allowed: Bools = np.ones(reader.sizes + 1, dtype=bool)

    @property
    def name(self) -> str:
        """The name that a person knows it by: of its module."""
        return self.reader.parameter.rpartition(".")[0] or self.reader.operation

    def width(self, dropped: int) -> int:
        """The channels kept, of all groups, after so many units are dropped."""
        return (self.pruned - dropped * self.reader.unit + self.stuck) // self.features

    @cached_property
    def pruned(self) -> int:
        """The number of slices that may go."""
        return len(self.reader.slices)

    @cached_property
    def stuck(self) -> int:
        """The number of slices that may not, of those masks count for this reader."""
        if self.reads:
            return self.size - self.pruned
        return 0  # of a weight that writes queries, keys and values in one


class Setting:
    """A question to the solvers, and what they all need of it.

    Args:
        graph: the channel graph.
        losses: of its readers.
        budget: what may remain.

    Attributes:
        places: of the readers.
        limits: what the budget says, in units.
        before: what the unpruned network takes.

    Raises:
        BudgetError: if the budget contradicts itself, or names layers that are not there.
        SchemaError: if the losses are of another graph.
    """

    def __init__(self, graph: ChannelGraph, losses: Losses, budget: Budget) -> None:
        ChannelGraph.require(graph)
        Losses.require(losses)
        losses.check(graph)
        self.graph = graph
        self.losses = losses
        self.budget = budget
        self.cost_model = self._cost_model()
        self.rates = Rates(graph, self.cost_model)
        self.places = [Place(graph, reader) for reader in losses.readers]
        self._check_readers()
        self.before = self.account(tuple(frozenset() for _ in self.places))
        self.limits = self._limits()
        self.equal: list[list[int]] = []
        self._constrain()

    def _cost_model(self) -> CostModel | None:
        budget = self.budget
        if not budget.limits_time:
            return None
        return budget.prices or profile("cpu")

    def _check_readers(self) -> None:
        taken: dict[tuple[str, int, int], str] = {}
        for place in self.places:
            reader = place.reader
            for index in reader.slices:
                key = reader.parameter, reader.axis, index
                if key in taken:
                    raise BudgetError(
                        f"the losses list slice {index} of {reader.parameter!r} twice: for "
                        f"{taken[key]!r} and {reader.operation!r}"
                    )
                taken[key] = reader.operation

    def _limits(self) -> tuple[Limit, ...]:
        budget, before = self.budget, self.before
        limits: list[Limit] = []
        if budget.macs is not None:
            most = max(math.floor(budget.macs * before.macs), _LEAST)
            limits.append(Limit("macs", most, before.macs))
        if budget.parameters is not None:
            most = max(math.floor(budget.parameters * before.parameters), _LEAST)
            limits.append(Limit("parameters", most, before.parameters))
        times = []
        if budget.latency is not None:
            times.append(budget.latency * before.latency)
        if budget.milliseconds is not None:
            times.append(budget.milliseconds * 1e6)
        if times:
            limits.append(Limit("latency", min(times), before.latency))
        return tuple(limits)

    @cached_property
    def readers_of(self) -> dict[int, list[int]]:
        """For every space, the readers that may drop channels of it."""
        readers: dict[int, list[int]] = {}
        space_of = self.graph.space_of
        for i, place in enumerate(self.places):
            for space in {space_of[place.channels[s]] for s in place.reader.slices}:
                readers.setdefault(space, []).append(i)
        return readers

    @cached_property
    def sharing(self) -> frozenset[int]:
        """The readers that share a space with others."""
        shared = [own for own in self.readers_of.values() if len(own) > 1]
        return frozenset(i for own in shared for i in own)

    # What a person wants.

    def _named(self, pattern: str, what: str) -> list[int]:
        found = [i for i, p in enumerate(self.places) if matches(pattern, p.reader.parameter)]
        if found:
            return found
        layers = [op.weight for op in self.graph.operations if isinstance(op, Layer)]
        if any(matches(pattern, name) for name in layers):
            return []  # it keeps everything anyway
        modules = list(dict.fromkeys(name.rpartition(".")[0] or name for name in layers))
        near = difflib.get_close_matches(pattern, modules, n=3, cutoff=0.4) or modules[:3]
        raise BudgetError(
            f"{what} names {pattern!r}, which is no layer here; there are {', '.join(near)} …"
        )

    def _constrain(self) -> None:
        budget = self.budget
        bounds: dict[int, list[tuple[str, float, float]]] = {}
        for pattern in budget.keep:
            for i in self._named(pattern, "keep"):
                bounds.setdefault(i, []).append((f"keep={pattern!r}", 1.0, 1.0))
        for pattern, (low, high) in budget.bounds.items():
            for i in self._named(pattern, "shares"):
                bounds.setdefault(i, []).append((f"shares[{pattern!r}]", low, high))
        for i, place in enumerate(self.places):
            self._restrict(place, bounds.get(i, []))
        seen: dict[int, str] = {}
        for pattern in budget.equal:
            members = self._named(pattern, "equal")
            for i in members:
                if i in seen:
                    raise BudgetError(
                        f"equal names {self.places[i].name!r} twice, in {seen[i]!r} and {pattern!r}"
                    )
                seen[i] = pattern
            if len(members) > 1:
                self._equate(members, pattern)

    def _restrict(self, place: Place, bounds: list[tuple[str, float, float]]) -> None:
        """Leave the sizes that all of the constraints allow."""
        low = max((b[1] for b in bounds), default=0.0)
        high = min((b[2] for b in bounds), default=1.0)
        names = " and ".join(b[0] for b in bounds)
        if low > high:
            raise BudgetError(f"{place.name!r} cannot keep what {names} ask for: they contradict")
        kept_whole = low == 1.0
        widths = np.array([place.width(d) for d in range(len(place.allowed))])
        full = widths[0]
        fits = np.ones(len(widths), dtype=bool)
        least = min(self.budget.at_least * place.groups, full)
        fits &= widths >= max(least, 1)
        step = self.budget.round_to * place.groups
        if step > 1 and not kept_whole:
            even = (widths % step == 0) & fits
            if even.any():
                fits = even
            else:
                fits &= widths == full
        if not fits.any():  # there is nothing to choose
            fits[0] = True
        share = widths / full
        inside = fits & (share >= low - 1e-9) & (share <= high + 1e-9)
        if not inside.any():
            away = np.maximum(low - share, share - high)
            away[~fits] = math.inf
            grain = max(step, place.reader.unit // place.features) / full
            if away.min() > grain:
                raise BudgetError(
                    f"{place.name!r} cannot keep what {names} ask for: of {full} channels it may "
                    f"keep {_some(widths[fits])} (at_least={self.budget.at_least}, "
                    f"round_to={self.budget.round_to})"
                )
            inside = away == away.min()
        place.allowed = inside

    def _equate(self, members: Sequence[int], pattern: str) -> None:
        common: set[int] | None = None
        for i in members:
            place = self.places[i]
            sizes = {place.width(int(d)) for d in np.flatnonzero(place.allowed)}
            common = sizes if common is None else common & sizes
        if not common:
            names = ", ".join(self.places[i].name for i in members)
            raise BudgetError(f"equal={pattern!r}: no width is possible for all of {names}")
        for i in members:
            place = self.places[i]
            for d in np.flatnonzero(place.allowed):
                place.allowed[d] = place.width(int(d)) in common
        self.equal.append(list(members))

    # Choices.

    def masks(self, dropped: Dropped) -> Masks:
        """The masks of a choice."""
        gone: dict[tuple[str, int], set[int]] = {}
        for place, slices in zip(self.places, dropped, strict=True):
            reader = place.reader
            gone.setdefault((reader.parameter, reader.axis), set()).update(slices)
            for bias in reader.biases:
                gone.setdefault((bias, 0), set()).update(slices)
        kept: dict[str, dict[int, tuple[int, ...]]] = {}
        for (name, axis), away in gone.items():
            size = slices_of(self.graph, name, axis)
            kept.setdefault(name, {})[axis] = tuple(i for i in range(size) if i not in away)
        return Masks(kept=kept, graph_fingerprint=self.graph.masks_fingerprint)

    def account(self, dropped: Dropped) -> Account:
        """The resources that a choice takes, copies apart."""
        return account(self.graph, *find_segments(self.graph, self.masks(dropped)), self.rates)

    def meets(self, account: Account) -> bool:
        """All limits hold, copies apart."""
        return all(account.of(limit.resource) <= limit.most for limit in self.limits)

    def fits(self, dropped: Dropped) -> bool:
        """Every reader keeps what the constraints allow."""
        for place, slices in zip(self.places, dropped, strict=True):
            units, rest = divmod(len(slices), place.reader.unit)
            if rest or not place.allowed[units]:
                return False
        return True

    def loss(self, dropped: Dropped) -> float:
        """The loss of a choice: of what is no column, by estimate."""
        pairs = zip(self.books, dropped, strict=True)
        return float(sum(book.loss(slices)[0] for book, slices in pairs))

    @cached_property
    def books(self) -> list[Book]:
        """The prices of any sets, by reader."""
        return [Book(place.reader) for place in self.places]


class Book:
    """The loss of any set of slices of one reader.

    Of columns it is known. Of others it is the sum of what their slices added to a chain when they
    were dropped from it: an upper bound where losses grow by more, the more is gone already
    (supermodular), as those of least squares on redundant channels do.
    """

    def __init__(self, reader: Reader) -> None:
        self._unit = reader.unit
        self._chains = reader.chains
        self._step = [
            {s: at for at, step in enumerate(chain.steps) for s in step} for chain in reader.chains
        ]
        self._each: dict[int, dict[int, float]] = {}
        self.deltas = [np.diff(np.array(chain.losses)) for chain in reader.chains]

    def loss(self, dropped: Iterable[int]) -> tuple[float, bool]:
        """The loss, and whether it is that of a column."""
        slices = list(dropped)
        if not slices:
            return min(chain.losses[0] for chain in self._chains), True
        known: list[float] = []
        guesses: list[float] = []
        for chain, step, deltas in zip(self._chains, self._step, self.deltas, strict=True):
            if any(s not in step for s in slices):
                continue
            places = [step[s] for s in slices]
            last = max(places) + 1
            if last * self._unit == len(slices):
                known.append(chain.losses[last])
            guesses.append(chain.losses[0] + float(sum(deltas[at] for at in places)) / self._unit)
        if known:
            return min(known), True
        return (min(guesses) if guesses else math.inf), False

    def column(self, dropped: Iterable[int]) -> tuple[str, int]:
        """The chain that a set is a column of (the best, if of several), and its steps dropped."""
        slices = list(dropped)
        best: tuple[float, str, int] | None = None
        for chain, step in zip(self._chains, self._step, strict=True):
            last = max((step.get(s, len(step)) for s in slices), default=-1) + 1
            if last * self._unit == len(slices):
                found = chain.losses[last], chain.origin, last
                best = found if best is None else min(best, found)
        return ("", 0) if best is None else best[1:]

    def each(self, chain: int) -> dict[int, float]:
        """The share of every slice in a chain's losses."""
        if chain not in self._each:
            deltas = self.deltas[chain] / self._unit
            self._each[chain] = {s: float(deltas[at]) for s, at in self._step[chain].items()}
        return self._each[chain]


def chain_of(reader: Reader, origin: str) -> int:
    """The number of the chain of that origin; the first if there is none."""
    for number, chain in enumerate(reader.chains):
        if chain.origin == origin:
            return number
    return 0


def _some(widths: npt.NDArray[np.int64]) -> str:
    known = sorted(int(w) for w in widths)
    if len(known) <= 6:
        return ", ".join(map(str, known))
    return f"{known[0]}, {known[1]}, … {known[-1]}"
