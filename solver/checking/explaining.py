"""Reasons why a read is no view: a few reads that cannot all be views, and the witnesses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from upscale_opt.errors import SolverError, VerificationError
from upscale_opt.ir.base import Record
from upscale_opt.ir.ids import Ids, format_ids
from upscale_opt.ir.solution import Demand, Read, Solution
from upscale_opt.solver.problem import instance
from upscale_opt.solver.problem.conflicts import Family
from upscale_opt.solver.problem.pqtree import End, PQTree
from upscale_opt.solver.problem.reduction import CoreDemand, demand_mask

_AT_ODDS = "it wants channels of one space at both of its ends, or in two places at once"

_MANY = 12
"""At most so many names are listed in an error message."""


class Member(Record):
    """One of the demands that cannot hold together.

    Attributes:
        reads: the reads that make it, as ``"operation[operand]"``.
        kind: ``"interval"``, or at the beginning (``"prefix"``) or end (``"suffix"``) of the space.
        size: how many channels it wants side by side.
        witnesses: those of the witness channels that it wants.
    """

    reads: tuple[str, ...]
    kind: Literal["interval", "prefix", "suffix"]
    size: int
    witnesses: Ids


class Explanation(Record):
    """The reason why one read is a gather.

    Attributes:
        read: the read, as ``"operation[operand]"``.
        tensor: what it reads.
        copied: the channels that it copies.
        unwanted: the channels that it reads in vain, if it is a window.
        reason: ``"conflict"``: it cannot be a view together with others, which are;
            ``"hindrance"``: no order makes it a view; ``"choice"``: nothing forbids it, the solver
            did not find it; ``"view"``: it is a view; ``"window"``: it copies nothing, but reads
            more than is wanted.
        hindrance: what no order can change.
        space: the space whose order is in question.
        members: demands of which any but one can hold together, the read's own (one, or two) first.
        witnesses: channels of the space that show it: even of these alone, no order has the
            members' shares side by side, and without any one of them some order has.
    """

    read: str
    tensor: str
    copied: int
    unwanted: int = 0
    reason: Literal["conflict", "hindrance", "choice", "view", "window"]
    hindrance: str | None = None
    space: int | None = None
    members: tuple[Member, ...] = ()
    witnesses: Ids = ()

    def __str__(self) -> str:
        if self.reason == "view":
            return f"{self.read} reads a view of {self.tensor}: it copies nothing"
        if self.reason == "window":
            return (
                f"{self.read} reads a window of {self.tensor}: it copies nothing, but reads "
                f"{self.unwanted:,} channels more than it wants, with zero columns"
            )
        lines = [f"{self.read} gathers {self.copied:,} channels of {self.tensor}"]
        if self.reason == "hindrance":
            lines.append(f"  under every order: {self.hindrance}")
        elif self.reason == "choice":
            lines.append("  but need not: it could be a view together with all reads that are")
        else:
            others = [m for m in self.members if self.read not in m.reads]
            names = "; ".join(" = ".join(member.reads) for member in others)
            lines.append(f"  it cannot be a view together with {names}")
            lines.append(
                f"  channels {format_ids(self.witnesses)} of space {self.space} show it; "
                "side by side are wanted"
            )
            for member in self.members:
                place = {"prefix": ", first", "suffix": ", last", "interval": ""}[member.kind]
                wanted = format_ids(member.witnesses) or "none"
                lines.append(f"    by {member.reads[0]} ({member.size:,}{place}): {wanted}")
        return "\n".join(lines)


def explain(solution: Solution, read: str | None = None) -> tuple[Explanation, ...]:
    """Reasons why reads are gathers or windows.

    Args:
        solution: the solution; nothing else is needed.
        read: one read only, as ``"operation"``, ``"operation[operand]"`` or ``"tensor ->
            operation"``; all gathers and windows by default.

    Raises:
        SolverError: if there is no such read.
        VerificationError: if the solution is damaged.
        SchemaError: if it is no solution.
    """
    Solution.require(solution)
    for number, demand in enumerate(solution.demands):
        exists = 0 <= demand.space < len(solution.orders)
        if not exists or not set(demand.channels) <= set(solution.orders[demand.space]):
            raise VerificationError(
                f"the solution is damaged: demand {number} is for channels that space "
                f"{demand.space} does not have; solve again"
            )
    reads = [r for r in solution.reads if not r.optional]
    if read is None:
        chosen = [r for r in reads if r.plan != "view"]
    else:
        chosen = [r for r in reads if read in (r.op, _name(r), r.name)]
        if not chosen:
            gathers = list(dict.fromkeys(_name(r) for r in reads if r.plan == "gather"))
            more = f" and {len(gathers) - _MANY} more" if len(gathers) > _MANY else ""
            known = ", ".join(gathers[:_MANY]) + more or "none"
            raise SolverError(f"no read is called {read!r}; the gathers are: {known}")
    views = {_name(r) for r in reads if r.plan == "view"}
    explainer = _Explainer(solution, views)
    return tuple(explainer.explain(r) for r in chosen)


def _name(read: Read) -> str:
    return f"{read.op}[{read.operand}]"


class _Explainer:
    def __init__(self, solution: Solution, views: Iterable[str]) -> None:
        self.solution = solution
        self.views = frozenset(views)
        self.places = [{c: i for i, c in enumerate(order)} for order in solution.orders]
        self.holds = [self._holds(demand) for demand in solution.demands]
        self.own: dict[str, list[int]] = {}
        for index, demand in enumerate(solution.demands):
            for name in demand.reads:
                self.own.setdefault(name, []).append(index)

    def _holds(self, demand: Demand) -> bool:
        wanted = instance.Demand(demand.space, demand.kind, frozenset(demand.channels))
        position = self.places[demand.space]
        return instance.holds(wanted, position, len(position))

    def explain(self, read: Read) -> Explanation:
        name = _name(read)
        if read.plan == "view":
            return Explanation(read=name, tensor=read.tensor, copied=0, reason="view")
        if read.plan == "window":
            wanted = sum(len(self.solution.demands[d].channels) for d in self.own.get(name, ()))
            unwanted = len(read.channels) - wanted
            return Explanation(
                read=name, tensor=read.tensor, copied=0, unwanted=unwanted, reason="window"
            )
        hindrance = self.solution.hindrances.get(name)
        if hindrance is not None:
            return self._explanation(read, "hindrance", hindrance=hindrance)
        own = self.own.get(name, [])
        for space in dict.fromkeys(self.solution.demands[d].space for d in own):
            here = [d for d in own if self.solution.demands[d].space == space]
            if all(self.holds[demand] for demand in here):
                continue
            if self._conflict(here, ()) is not None:
                return self._explanation(read, "hindrance", hindrance=_AT_ODDS)
            conflict = self._conflict(here, self._rivals(space))
            if conflict is not None:
                return self._by_conflict(read, here, conflict)
        return self._explanation(read, "choice")

    def _explanation(
        self,
        read: Read,
        reason: Literal["conflict", "hindrance", "choice"],
        hindrance: str | None = None,
    ) -> Explanation:
        return Explanation(
            read=_name(read),
            tensor=read.tensor,
            copied=read.copied,
            reason=reason,
            hindrance=hindrance,
        )

    def _rivals(self, space: int) -> list[int]:
        """The demands of the views on this space that hold."""
        return [
            index
            for index, other in enumerate(self.solution.demands)
            if other.space == space and self.holds[index] and not self.views.isdisjoint(other.reads)
        ]

    def _conflict(self, own: Sequence[int], rivals: Sequence[int]) -> tuple[int, ...] | None:
        """A minimal conflict between a read's demands and others, if there is one."""
        space = self.solution.demands[own[0]].space
        tree = PQTree(sorted(self.places[space]), ends=True)
        masks = {i: self._mask(tree, self.solution.demands[i]) for i in (*own, *rivals)}
        family = Family(len(self.places[space]), tree, masks)
        return family.conflict([*own, *(rival for rival in rivals if rival not in own)])

    def _mask(self, tree: PQTree, demand: Demand) -> CoreDemand:
        wanted = instance.Demand(demand.space, demand.kind, frozenset(demand.channels))
        return CoreDemand(demand.space, demand_mask(tree, wanted), demand.kind != "interval")

    def _by_conflict(
        self, read: Read, own: Sequence[int], conflict: tuple[int, ...]
    ) -> Explanation:
        first = [demand for demand in own if demand in conflict]
        numbers = (*first, *(demand for demand in conflict if demand not in first))
        demands = [self.solution.demands[number] for number in numbers]
        space = demands[0].space
        witnesses = _witnesses(sorted(self.places[space]), demands)
        members = tuple(
            Member(
                reads=d.reads,
                kind=d.kind,
                size=len(d.channels),
                witnesses=tuple(c for c in witnesses if c in frozenset(d.channels)),
            )
            for d in demands
        )
        return self._explanation(read, "conflict").model_copy(
            update={"space": space, "members": members, "witnesses": witnesses}
        )


def _witnesses(channels: Sequence[int], demands: Sequence[Demand]) -> tuple[int, ...]:
    """A minimal set of channels such that, even among these alone, the demands are in conflict.

    What is left is one of Tucker's obstructions (1972), or one with a sentinel as a column.
    """
    sets = [frozenset(demand.channels) for demand in demands]
    atoms: dict[tuple[bool, ...], int] = {}
    for channel in channels:
        atoms.setdefault(tuple(channel in members for members in sets), channel)
    witnesses = list(atoms.values())
    for channel in list(witnesses):
        rest = [other for other in witnesses if other != channel]
        if _in_conflict(rest, demands):
            witnesses = rest
    return tuple(sorted(witnesses))


def _in_conflict(channels: Sequence[int], demands: Sequence[Demand]) -> bool:
    tree = PQTree(channels, ends=True)
    here = frozenset(channels)
    ends: Mapping[str, list[int | End]] = {
        "interval": [],
        "prefix": [End.LEFT],
        "suffix": [End.RIGHT],
    }
    return not all(
        tree.reduce([*ends[demand.kind], *sorted(here.intersection(demand.channels))])
        for demand in demands
    )
