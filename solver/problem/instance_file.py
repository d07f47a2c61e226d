"""Instances as documents: the optimisation problem without a network, and its optimum if known."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator
from typing_extensions import Self

from upscale_opt.errors import SchemaError
from upscale_opt.ir.base import Document, Record, first_problem
from upscale_opt.ir.ids import MAX_LENGTH, Ids
from upscale_opt.solver.problem import instance as problem

Index = Annotated[int, Field(strict=True, ge=0, le=MAX_LENGTH)]
Weight = Annotated[int, Field(strict=True, ge=0)]
View = tuple[Index, ...] | None


class Space(Record):
    """Channels that need an order.

    Attributes:
        channels: the ids, in their original sequence.
        fixed: no other order is allowed.
    """

    channels: Ids
    fixed: bool = False


class Demand(Record):
    """Channels of a space that shall be consecutive, or at its beginning or end.

    Attributes:
        space: the index of the space.
        kind: ``"interval"``: side by side; ``"prefix"``, ``"suffix"``: so, and at an end.
        channels: the ids.
    """

    space: Index
    kind: problem.DemandKind = "interval"
    channels: Ids


class Piece(Record):
    """A share of a read that can be served by itself.

    Attributes:
        weight: what gathering it costs.
        view: the demands (by index) that make it a view, as in :class:`Read`.
    """

    weight: Weight
    view: View


class Part(Record):
    """What a read wants of one space in the memory that it reads.

    Attributes:
        space: the index of the space.
        channels: the ids wanted of it.
    """

    space: Index
    channels: Ids


class Window(Record):
    """The alternative of reading adjacent channels, some of them in vain.

    Attributes:
        price: of each channel that is read in vain.
        allowed: the channels that may be among those read.
    """

    price: Weight
    allowed: Ids


class Read(Record):
    """One read, and what orders make it cost.

    Attributes:
        weight: of one gather, or of one block.
        view: the demands (indices) that together make it a view; ``null`` if it never is one.
        pieces: how it can be served in front of a concatenation.
        max_gathers: how many of the pieces may be gathered.
        parts: the spaces in the memory that it reads, one behind the other.
        window: how it can be served by a window, if its view is one interval.
    """

    weight: Weight
    view: View
    pieces: tuple[Piece, ...] = ()
    max_gathers: Index = 0
    parts: tuple[Part, ...] = ()
    window: Window | None = None


class InstanceFile(Document):
    """An instance (``Instance``) that can be stored and shared.

    Attributes:
        name: to speak of it.
        measure: what orders cost: copies at the reads' weights, or blocks.
        spaces: to be ordered.
        demands: what reads refer to.
        reads: what the orders are for.
        wishes: reads without pieces that decide among orders of least cost.
        optimum: the least cost, if it is known. Wishes are not part of it.
        optimum_by: how it was found: by trying all orders, or proven by a solver.
    """

    what: ClassVar[str] = "instance"

    name: str
    measure: problem.Measure = "copies"
    optimum: Weight | None = None
    optimum_by: Literal["brute force", "cp-sat"] | None = None
    spaces: tuple[Space, ...]
    demands: tuple[Demand, ...] = ()
    reads: tuple[Read, ...] = ()
    wishes: tuple[Read, ...] = ()

    @classmethod
    def from_instance(
        cls,
        instance: problem.Instance,
        name: str,
        *,
        optimum: int | None = None,
        optimum_by: Literal["brute force", "cp-sat"] | None = None,
    ) -> Self:
        """State ``instance`` as a document.

        Raises:
            SchemaError: if it is not consistent (a demand for channels its space does not have...).
        """
        spaces = tuple({"channels": s.channels, "fixed": s.fixed} for s in instance.spaces)
        demands = tuple(
            {"space": d.space, "kind": d.kind, "channels": sorted(d.channels)}
            for d in instance.demands
        )
        try:
            return cls.model_validate(
                {
                    "name": name,
                    "measure": instance.measure,
                    "optimum": optimum,
                    "optimum_by": optimum_by,
                    "spaces": spaces,
                    "demands": demands,
                    "reads": _records(instance.reads),
                    "wishes": _records(instance.wishes),
                }
            )
        except ValidationError as error:
            raise SchemaError(f"not a valid {cls.what}: {first_problem(error)}") from None

    def to_instance(self) -> problem.Instance:
        """The problem that the document states."""
        return problem.Instance(
            spaces=tuple(problem.Space(s.channels, s.fixed) for s in self.spaces),
            demands=tuple(
                problem.Demand(d.space, d.kind, frozenset(d.channels)) for d in self.demands
            ),
            reads=tuple(map(_read, self.reads)),
            measure=self.measure,
            wishes=tuple(map(_read, self.wishes)),
        )

    @model_validator(mode="before")
    @classmethod
    def _of_sane_size(cls, data: Any) -> Any:
        """Refuse short texts that stand for more channels than memory holds, unread."""
        if _count_channels(data) > MAX_LENGTH:
            raise ValueError(f"lists more than {MAX_LENGTH:,} channels altogether")
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        members = [frozenset(space.channels) for space in self.spaces]
        home: dict[int, int] = {}
        for number, space in enumerate(self.spaces):
            for channel in space.channels:
                if channel in home:
                    raise ValueError(
                        f"spaces.{number} lists channel {channel}, which spaces.{home[channel]} "
                        "has listed already"
                    )
                home[channel] = number
        for number, demand in enumerate(self.demands):
            _check_channels(f"demands.{number}", demand, members)
        for kind, reads in (("reads", self.reads), ("wishes", self.wishes)):
            for number, read in enumerate(reads):
                self._check_read(f"{kind}.{number}", read, members)
                if kind == "wishes" and (read.pieces or read.window):
                    raise ValueError(f"wishes.{number} has pieces or a window; only reads may")
        if (self.optimum is None) != (self.optimum_by is None):
            raise ValueError("optimum and optimum_by must be given together")
        return self

    def _check_read(self, name: str, read: Read, members: Sequence[frozenset[int]]) -> None:
        for part, parts in enumerate(read.parts):
            _check_channels(f"{name}.parts.{part}", parts, members)
        if read.window is not None:
            self._check_window(name, read, read.window)
        for view in (read.view, *(piece.view for piece in read.pieces)):
            for demand in view or ():
                if demand >= len(self.demands):
                    raise ValueError(
                        f"{name} refers to demand {demand}; there are {len(self.demands)}"
                    )

    def _check_window(self, name: str, read: Read, window: Window) -> None:
        demands = [self.demands[d] for d in read.view or () if d < len(self.demands)]
        if len(demands) != 1 or demands[0].kind != "interval":
            raise ValueError(f"{name} has a window, but its view is not one interval")
        if self.measure != "copies":
            raise ValueError(f"{name} has a window, which only copies are counted with")
        foreign = set(window.allowed).difference(self.spaces[demands[0].space].channels)
        if foreign:
            raise ValueError(
                f"{name}.window allows channel {min(foreign)}, which space {demands[0].space} does "
                "not have"
            )


def _check_channels(name: str, wanted: Demand | Part, members: Sequence[frozenset[int]]) -> None:
    if wanted.space >= len(members):
        raise ValueError(f"{name} refers to space {wanted.space}; there are {len(members)}")
    distinct = frozenset(wanted.channels)
    if len(distinct) < len(wanted.channels):
        raise ValueError(f"{name} lists a channel twice")
    foreign = distinct - members[wanted.space]
    if foreign:
        raise ValueError(
            f"{name} wants channel {min(foreign)}, which space {wanted.space} does not have"
        )


_LISTS = ("channels", "allowed")
"""What lists channels, perhaps as a text."""

_RUN = re.compile(r"(\d{1,10})-(\d{1,10})")


def _count_channels(data: Any) -> int:
    """How many channels all lists in ``data`` come to, without making the lists."""
    total = 0
    stack = [data]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack.extend(item for key, item in value.items() if key not in _LISTS)
            texts = [value[key] for key in _LISTS if isinstance(value.get(key), str)]
            for text in texts:
                runs = ((int(first), int(last)) for first, last in _RUN.findall(text))
                total += text.count(",") + sum(max(0, last - first) for first, last in runs)
        elif isinstance(value, (list, tuple)):
            stack.extend(value)
    return total


def _records(reads: Sequence[problem.Read]) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "weight": read.weight,
            "view": read.view,
            "pieces": tuple({"weight": p.weight, "view": p.view} for p in read.pieces),
            "max_gathers": read.max_gathers,
            "parts": tuple({"space": p.space, "channels": sorted(p.channels)} for p in read.parts),
            "window": None
            if read.window is None
            else {"price": read.window.price, "allowed": sorted(read.window.allowed)},
        }
        for read in reads
    )


def _read(read: Read) -> problem.Read:
    return problem.Read(
        weight=read.weight,
        view=read.view,
        pieces=tuple(problem.Piece(piece.weight, piece.view) for piece in read.pieces),
        max_gathers=read.max_gathers,
        parts=tuple(problem.Part(part.space, frozenset(part.channels)) for part in read.parts),
        window=None
        if read.window is None
        else problem.Window(read.window.price, frozenset(read.window.allowed)),
    )
