"""A lower bound for all choices: Lagrangian prices, and pairs of widths priced for themselves.

Copies are free, and a tensor is as wide as its widest reader at least (the union of what is read is
relaxed to that; behind a concatenation, to the sum of its parts). What is left are sizes, one per
picker and one per tensor, whose costs are products of two: a pairwise energy. With a price for the
resources (and one for each sum over a concatenation) its minimum is a bound, and that minimum is
bounded by min-sum diffusion (Werner, *A linear programming approach to max-sum problem*, IEEE TPAMI
29, 2007): costs are shifted between pairs and single sizes until all agree. Any prices and any
shifts give a bound, so it is true whenever we stop.

Sizes that are far from a known choice are told apart in buckets only. Near it, nothing is lost by
that: a product is split into two parts that are linear in one size each, and exact, and the product
of the distances from the choice, which alone is taken at the best corner of a bucket.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from upscale_opt.ir.cost_model import EACH
from upscale_opt.ir.graph import Attention, Layer
from upscale_opt.ir.losses import Reader
from upscale_opt.solver.network.segments import Joints
from upscale_opt.solver.selection.diffusion import Diffusion, Variable
from upscale_opt.solver.selection.moves import Hurry
from upscale_opt.solver.selection.pickers import Family, Ints, Part, Picker, Steps
from upscale_opt.solver.selection.setting import Bools, Dropped, Floats, Setting
from upscale_opt.solver.selection.widths import Widths

_BUCKETS = 48
_ROUNDS = 1200
_CALM = 1.07
"""The factor by which prices change between rounds at most: shifts suit the prices before."""

_FALL = 1.25
"""The same for prices that fall, as long as they give no bound at all."""

_WALL = 3.0
"""In place of endless, in losses that are known to be possible: shifts stay within precision."""


def finest_joints(setting: Setting) -> Joints:
    """Segments of one tensor each: what every tensor needs for itself."""
    graph = setting.graph
    structured = [name for name, tensor in graph.tensors.items() if tensor.axis is not None]
    selects = {
        (op.name, operand)
        for op in graph.operations
        if isinstance(op, (Layer, Attention))
        for operand in range(len(op.inputs))
    }
    return Joints({name: name for name in structured}, frozenset(), frozenset(selects))


def size_pickers(setting: Setting, losses: Callable[[Reader], Floats]) -> list[Picker]:
    """Decisions about sizes alone.

    Args:
        setting: the question.
        losses: of a reader, of shape (sizes + 1,): none with so many units dropped loses less.
    """
    known = [losses(place.reader) for place in setting.places]
    steps = [_all_steps(place.reader) for place in setting.places]
    together = {members[0]: members for members in setting.equal}
    tied = {i for members in setting.equal for i in members[1:]}
    pickers = []
    for i, place in enumerate(setting.places):
        if i in tied:
            continue
        members = together.get(i, [i])
        by_width = [
            {
                setting.places[m].width(int(d)): int(d)
                for d in np.flatnonzero(setting.places[m].allowed)
            }
            for m in members
        ]
        widths = sorted(set.intersection(*(set(own) for own in by_width)), reverse=True)
        cuts = np.array([[own[w] for own in by_width] for w in widths], dtype=np.int64)
        total = np.sum([known[m][cuts[:, at]] for at, m in enumerate(members)], axis=0)
        parts = tuple(Part(m, steps[m]) for m in members)
        pickers.append(Picker(place.name, (Family("size", parts, cuts, total),)))
    return pickers


def _all_steps(reader: Reader) -> Steps:
    """Steps that drop everything in the end, whatever they are."""
    steps = list(reader.chains[0].steps)
    gone = {s for step in steps for s in step}
    left = [s for s in reader.slices if s not in gone]
    count = len(left) // reader.unit
    steps += [tuple(left[at::count]) for at in range(count)]
    return tuple(steps)


def floors_of(reader: Reader) -> Floats:
    """The losses that no set of each size is below."""
    return np.array(reader.floors) if reader.floors else np.zeros(reader.sizes + 1)


def _above(ranks: Ints, levels: int) -> Floats:
    """Of shape (levels,): how many ranks are above each level."""
    counts = np.bincount(np.minimum(ranks, levels), minlength=levels + 1)
    return np.asarray(counts.sum() - np.cumsum(counts)[:levels], dtype=np.float64)


@dataclass(frozen=True)
class _Width:
    """A node's width by a variable's size; constant if there is none."""

    variable: int
    values: Floats


class Bound:
    """The relaxation.

    Args:
        setting: the question.
        near: a choice, around which sizes are told apart most finely.
        columns: bound the columns that these pickers can pick, not all masks.
    """

    def __init__(
        self, setting: Setting, near: Dropped, columns: Sequence[Picker] | None = None
    ) -> None:
        self._setting = setting
        self._columns = columns is not None
        self._pickers = columns or size_pickers(setting, floors_of)
        self._widths = Widths(setting, self._pickers, finest_joints(setting), relaxed=True)
        self._most = np.array([limit.most for limit in setting.limits], dtype=np.float64)
        self.valid = True
        self._kept: list[dict[int, Floats]] = []
        self._demanded()
        self._variables: list[Variable] = []
        self._may_die = self._find_mortals()
        self._picker_variables(near)
        self._of_node: dict[int, _Width] = {}
        self._node_variables(near)
        self._costs()
        self._sums()

    # Sizes.

    def _demanded(self) -> None:
        """For every picker, by reader: the channels kept at every level."""
        families = self._widths.families
        self._kept = [{} for _ in self._pickers]
        self._channels: dict[int, set[int]] = {}
        for reader, own in families.items():
            for picker, (until, *_) in own.items():
                ranks = until[until > 0]
                levels = len(self._pickers[picker].families[0].losses)
                kept = (ranks[None, :] > np.arange(levels)[:, None]).sum(axis=1)
                self._channels[reader] = set(np.flatnonzero(until > 0).tolist())
                real, names = self._widths.seen_by(reader)
                if real != reader:  # any others of its channels may be those that it keeps
                    seen = self._channels[real].intersection(names.values())
                    unseen = len(self._channels[real]) - len(seen)
                    kept = np.maximum(self._kept[picker][real] - unseen, 0)
                self._kept[picker][reader] = kept.astype(np.float64)

    def _find_mortals(self) -> dict[int, set[int]]:
        """For pickers whose layers may be left unread: the nodes that those write."""
        widths, graph = self._widths, self._setting.graph
        written: dict[int, set[int]] = defaultdict(set)
        for picker_at, picker in enumerate(self._pickers):
            for part in picker.families[0].parts:
                reader = self._setting.places[part.reader].reader
                for op in graph.operations:
                    if isinstance(op, Layer) and op.weight == reader.parameter and op.inputs:
                        written[picker_at].add(widths.stored_node(op))
        mortal: dict[int, set[int]] = {}
        changed = True
        while changed:
            changed = False
            for picker_at, nodes in written.items():
                if (
                    picker_at not in mortal
                    and nodes
                    and all(self._may_vanish(n, mortal) for n in nodes)
                ):
                    mortal[picker_at] = nodes
                    changed = True
                    if len(self._pickers[picker_at].families[0].parts) > 1:
                        self.valid = False
        return mortal

    def _may_vanish(self, number: int, mortal: dict[int, set[int]]) -> bool:
        node = self._widths.nodes[number]
        if node.fixed.any():
            return False
        return all(p in mortal or self._least_asked(number, p) <= 0 for p in node.ranks)

    def _least_asked(self, number: int, picker: int) -> float:
        return min(float(own[-1]) for own in self._asked(number, picker))

    def _asked(self, number: int, picker: int) -> list[Floats]:
        """By family, of shape (levels,): how many entries of a node a picker asks for at least."""
        node = self._widths.nodes[number]
        if self._columns:
            return [
                _above(rank[~node.fixed], len(family.losses))
                for rank, family in zip(
                    node.ranks[picker], self._pickers[picker].families, strict=True
                )
            ]
        (ranks,) = node.ranks[picker]
        own = set(node.channels[(ranks > 0) & ~node.fixed].tolist())
        best = np.zeros(len(self._pickers[picker].families[0].losses))
        for reader, kept in self._kept[picker].items():
            if reader not in node.readers:
                continue
            channels = self._channels[reader]
            outside = len(channels) - len(channels & own)
            best = np.maximum(best, kept - outside)
        return [np.maximum(best, 0)]

    def _picker_variables(self, near: Dropped) -> None:
        for at, picker in enumerate(self._pickers):
            parts: list[tuple[Ints, Ints, Floats]] = []
            starts: list[Ints] = []
            nearest, size = (np.inf, 0), 0
            for number, family in enumerate(picker.families):
                reader, count = family.parts[0].reader, len(family.losses)
                units = len(near[reader]) // self._setting.places[reader].reader.unit
                away = np.abs(family.cuts[:, 0] - units)
                level = int(away.argmin())
                value = float(away[level]) + float(family.losses[level]) * 1e-9
                nearest = min(nearest, (value, size + level))
                parts.append((np.arange(count), np.full(count, number), family.losses))
                starts.append(size + _buckets(count, level))
                size += count
            dead = at in self._may_die
            if dead:
                zero = np.zeros(1, dtype=np.int64)
                best = min(float(family.losses[0]) for family in picker.families)
                parts.append((zero, zero, np.array([best])))
                starts.append(np.array([size]))
            levels, families, loss = (np.concatenate(own) for own in zip(*parts, strict=True))
            self._variables.append(
                Variable(levels, families, loss, np.concatenate(starts), nearest[1], dead)
            )

    def _node_variables(self, near: Dropped) -> None:
        account = self._setting.account(near)
        self._constraints: list[tuple[int, int, Floats]] = []
        nodes = self._widths.nodes
        named = {0, *self._widths.left.tolist(), *self._widths.right.tolist()}
        in_blocks = {number for number in named if nodes[number].blocks != EACH}
        needed = (named - in_blocks) | {nodes[number].plain for number in in_blocks}
        self._owned: dict[int, int] = {}
        for number in sorted(needed):
            node = nodes[number]
            fixed = float(node.fixed.sum())
            asked = {p: [fixed + own for own in self._asked(number, p)] for p in node.ranks}
            whole = {
                p
                for p in node.ranks
                if self._columns
                or all(
                    self._channels[r] <= set(node.channels.tolist())
                    for r in self._kept[p]
                    if r in node.readers
                )
            }
            if not node.ranks:
                self._of_node[number] = _Width(-1, np.array([float(len(node.channels))]))
            elif len(asked) == 1 and whole:
                (picker,) = asked
                self._of_node[number] = _Width(picker, self._by_size(picker, asked[picker], fixed))
            else:
                self._own_variable(number, asked, whole, fixed, account.written)
        for number in sorted(in_blocks):
            plain = self._of_node[nodes[number].plain]
            counted = self._widths.counted(number)
            at = np.minimum(plain.values.astype(np.int64), len(counted) - 1)
            self._of_node[number] = _Width(plain.variable, counted[at])

    def _by_size(self, picker: int, values: list[Floats], fixed: float) -> Floats:
        variable = self._variables[picker]
        pairs = zip(variable.families.tolist(), variable.levels.tolist(), strict=True)
        found = np.array([values[family][level] for family, level in pairs])
        if variable.dead:
            found[-1] = fixed
        return found

    def _own_variable(
        self,
        number: int,
        asked: dict[int, list[Floats]],
        whole: set[int],
        fixed: float,
        written: dict[str, int],
    ) -> None:
        node = self._widths.nodes[number]
        top = len(node.channels)
        sure = [own for p, own in asked.items() if p not in self._may_die]
        low = int(max([fixed, *(min(float(v[-1]) for v in own) for own in sure)]))
        now = next((written[t] for t in node.tensors if t in written), top)
        place = int(np.clip(now - low, 0, top - low))
        at = len(self._variables)
        sizes = np.arange(low, top + 1)
        nothing = np.zeros(len(sizes))
        starts = _buckets(len(sizes), place)
        self._variables.append(Variable(sizes, sizes, nothing, starts, place))
        self._of_node[number] = _Width(at, sizes.astype(np.float64))
        self._owned[number] = at
        for picker, values in asked.items():
            # For those that read more than this, there are sums.
            if max(own[0] for own in values) > low and picker in whole:
                self._constraints.append((picker, at, self._by_size(picker, values, fixed)))

    # Costs.

    def _costs(self) -> None:
        """Tables of what single sizes and pairs of them take, of every resource."""
        w, resources = self._widths, len(self._most)
        self._single = [np.zeros((resources, len(v.loss))) for v in self._variables]
        self._pairs: dict[tuple[int, int], Floats] = {}
        self._walls: dict[tuple[int, int], Bools] = {}
        self._constant = w.constant.copy()
        for at, (left, right) in enumerate(zip(w.left.tolist(), w.right.tolist(), strict=True)):
            c = w.coefficients[:, at]
            a, b = self._of_node[left], self._of_node[right]
            self._pay(a, b, c)
        for node, launch in w.launches():  # what is never run costs nothing
            width = self._of_node.get(node)
            if width is not None and width.variable >= 0 and (width.values <= 0).any():
                self._constant -= launch
                runs = (width.values > 0).astype(np.float64)
                self._single[width.variable] += launch[:, None] * runs
        for picker, node_variable, values in self._constraints:
            asked = self._variables[picker].least(values)
            variable = self._variables[node_variable]
            highest = variable.most(variable.levels.astype(np.float64))
            self._wall(picker, node_variable, asked[:, None] > highest[None, :])
        for picker, nodes in self._may_die.items():
            for number in nodes:
                width = self._of_node.get(number)
                if width is None or width.variable in (picker, -1):
                    continue
                there = self._variables[width.variable].least(width.values) > 0
                last = np.arange(len(self._variables[picker].starts))
                last = last == len(last) - 1
                self._wall(picker, width.variable, last[:, None] & there[None, :])

    def _wall(self, one: int, other: int, forbidden: Bools) -> None:
        """Exclude pairs of buckets."""
        if one > other:
            one, other, forbidden = other, one, forbidden.T
        key = one, other
        self._pairs.setdefault(key, np.zeros((len(self._most), *forbidden.shape)))
        before = self._walls.get(key)
        self._walls[key] = forbidden if before is None else before | forbidden

    def _pay(self, a: _Width, b: _Width, c: Floats) -> None:
        """Pay for the product of two widths."""
        if a.variable < 0 and b.variable < 0:
            self._constant += c * a.values[0] * b.values[0]
            return
        if a.variable < 0 or b.variable < 0 or a.variable == b.variable:
            variable = max(a.variable, b.variable)
            self._single[variable] += c[:, None] * (a.values * b.values)[None, :]
            return
        if a.variable > b.variable:
            a, b = b, a
        one, other = self._variables[a.variable], self._variables[b.variable]
        first, second = a.values[one.near], b.values[other.near]
        self._single[a.variable] += c[:, None] * (a.values * second)[None, :]
        self._single[b.variable] += c[:, None] * (b.values * first)[None, :]
        self._constant -= c * first * second
        low, high = one.least(a.values - first), one.most(a.values - first)
        left, right = other.least(b.values - second), other.most(b.values - second)
        corners = [np.outer(x, y) for x in (low, high) for y in (left, right)]
        table = c[:, None, None] * np.minimum.reduce(corners)[None]
        key = a.variable, b.variable
        self._pairs[key] = self._pairs[key] + table if key in self._pairs else table

    def _sums(self) -> None:
        """For readers of concatenations: the parts together are as wide as what is read of them."""
        self._rows: list[list[tuple[int, Floats]]] = []
        self._least: list[float] = []
        for picker, own in enumerate([] if self._columns else self._kept):
            for reader, kept in own.items():
                channels = self._channels[reader]
                parts: dict[frozenset[int], list[int]] = defaultdict(list)
                for number in self._owned:
                    node = self._widths.nodes[number]
                    if not node.stored or reader not in node.readers:
                        continue
                    own_channels = frozenset(node.channels[~node.fixed].tolist()) & channels
                    if own_channels and own_channels < channels:
                        parts[own_channels].append(number)
                covered: set[int] = set()
                terms: list[tuple[int, Floats]] = []
                for own_channels in sorted(parts, key=lambda s: (len(s), min(s))):
                    if covered & own_channels:
                        continue
                    covered |= own_channels
                    for number in parts[own_channels]:
                        node = self._widths.nodes[number]
                        variable = self._variables[self._owned[number]]
                        highest = variable.levels.astype(np.float64) - node.fixed.sum()
                        share = 1 / len(parts[own_channels])
                        terms.append((self._owned[number], -highest * share))
                if not terms:
                    continue
                outside = float(len(channels - covered))
                values = self._by_size(picker, [kept - outside], 0.0)
                terms.append((picker, values))
                self._rows.append(terms)
                self._least.append(float(len(channels)))

    # The bound.

    def find(
        self, hurry: Hurry, best: float, price: Floats, told: Callable[[float], None] | None = None
    ) -> float:
        """The best bound that is found in time.

        Args:
            hurry: when to stop.
            best: a loss that is known to be possible.
            price: of shape (resources,): loss per unit, to begin with.
            told: of better bounds.
        """
        if not self.valid:
            return 0.0
        walls: dict[tuple[int, int], Floats] = {
            key: np.asarray(wall * (_WALL * best), dtype=np.float64)
            for key, wall in self._walls.items()
        }
        work = Diffusion(self._variables, self._single, self._pairs, walls)
        prices = np.maximum(price, 1e-12 * best / self._most)
        forces = self._first_forces(prices) if self._rows else np.zeros(0)
        found = 0.0
        step = 1.0
        stale = 0
        for _ in range(_ROUNDS):
            work.set(prices, self._row_costs(forces))
            work.sweep(4 if found > 0 else 2)
            energy, used = work.energy()
            bound = energy + float(prices @ (self._constant - self._most))
            if bound > found * (1 + 1e-4):
                stale = 0
            else:
                stale += 1
                if stale % 12 == 0:
                    step *= 0.6
            if bound > found:
                found = bound
                if told is not None:
                    told(found)
            if hurry.over or found >= best * (1 - 1e-6) or step < 1e-3:
                break
            slope = (used + self._constant - self._most) / self._most
            pull = work.rows(self._rows) / np.array([*self._least]) if self._rows else forces
            pull = np.where((forces <= 0) & (pull < 0), 0, pull)
            norm = float(slope @ slope + pull @ pull)
            if norm <= 0:
                continue
            move = step * max(best - bound, best * 1e-3) / norm
            wished = prices + move * slope / self._most
            highest = prices * _CALM + (_CALM - 1) * 0.1 * best / self._most
            prices = np.clip(wished, prices / (_CALM if found > 0 else _FALL), highest)
            if self._rows:
                forces = np.maximum(forces + move * pull / np.array(self._least), 0)
        return min(found * (1 - 1e-9), best)

    def _row_costs(self, forces: Floats) -> list[Floats]:
        costs = [v.loss.copy() for v in self._variables]
        for force, terms in zip(forces.tolist(), self._rows, strict=True):
            if force > 0:
                for variable, values in terms:
                    costs[variable] += force * values
        return costs

    def _first_forces(self, prices: Floats) -> Floats:
        """About what a channel of each sum costs, shared by all sums that it is in."""
        shares = np.zeros(len(self._variables))
        for terms in self._rows:
            for variable, _ in terms[:-1]:
                shares[variable] += 1
        costs = np.zeros(len(self._variables))
        for (one, other), table in self._pairs.items():
            for at, axis in ((one, 0), (other, 1)):
                if shares[at]:
                    mean = np.tensordot(prices, table, axes=1).mean(axis=1 - axis)
                    span = self._variables[at].levels.max() - self._variables[at].levels.min()
                    costs[at] += (mean.max() - mean.min()) / max(float(span), 1.0)
        return np.array(
            [np.mean([costs[v] / shares[v] for v, _ in terms[:-1]]) for terms in self._rows]
        )


def _buckets(size: int, near: int) -> Ints:
    """The beginnings of the buckets of ``range(size)`` begin: small ones around ``near``."""
    if size <= _BUCKETS:
        return np.arange(size)
    starts = {0, near, min(near + 1, size - 1)}
    for sign in (-1, 1):
        at, step = float(near), 1.0
        grow = _growth(max(near if sign < 0 else size - 1 - near, 1))
        while 0 <= at < size:
            starts.add(round(at))
            at += sign * step
            step *= grow
    return np.array(sorted(start for start in starts if start < size))


def _growth(distance: int) -> float:
    """The factor by which buckets grow to cover a distance."""
    low, high = 1.0, 3.0
    for _ in range(30):
        factor = (low + high) / 2
        covered = (factor ** (_BUCKETS // 2) - 1) / (factor - 1) if factor > 1 else _BUCKETS / 2
        low, high = (factor, high) if covered < distance else (low, factor)
    return high
