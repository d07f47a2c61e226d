"""Instances as documents: the optimisation problem without a network, and its optimum if known."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, ValidationError, model_validator
from typing_extensions import Self

from upscale_opt.ir.base import Document
from upscale_opt.ir.ids import MAX_LENGTH
from upscale_opt.solver.problem.instance import (
    Demand,
    Instance,
    Measure,
    Part,
    Read,
    Space,
    Weight,
    Window,
)


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

    model_config = ConfigDict(revalidate_instances="always")  # solvers' records, too

    what: ClassVar[str] = "instance"

    name: str
    measure: Measure = "copies"
    optimum: Weight | None = None
    optimum_by: Literal["brute force", "cp-sat"] | None = None
    spaces: tuple[Space, ...]
    demands: tuple[Demand, ...] = ()
    reads: tuple[Read, ...] = ()
    wishes: tuple[Read, ...] = ()

    @classmethod
    def from_instance(
        cls,
        instance: Instance,
        name: str,
        *,
        optimum: int | None = None,
        optimum_by: Literal["brute force", "cp-sat"] | None = None,
    ) -> Self:
        """State ``instance`` as a document.

        Raises:
            SchemaError: if it is not consistent (a demand for channels its space does not have...).
        """
        try:
            return cls(
                name=name,
                measure=instance.measure,
                optimum=optimum,
                optimum_by=optimum_by,
                spaces=instance.spaces,
                demands=instance.demands,
                reads=instance.reads,
                wishes=instance.wishes,
            )
        except ValidationError as error:
            raise cls._invalid(error) from None

    def to_instance(self) -> Instance:
        """The problem that the document states."""
        return Instance(self.spaces, self.demands, self.reads, self.measure, self.wishes)

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
        foreign = window.allowed.difference(self.spaces[demands[0].space].channels)
        if foreign:
            raise ValueError(
                f"{name}.window allows channel {min(foreign)}, which space {demands[0].space} does "
                "not have"
            )


def _check_channels(name: str, wanted: Demand | Part, members: Sequence[frozenset[int]]) -> None:
    if wanted.space >= len(members):
        raise ValueError(f"{name} refers to space {wanted.space}; there are {len(members)}")
    foreign = wanted.channels - members[wanted.space]
    if foreign:
        raise ValueError(
            f"{name} wants channel {min(foreign)}, which space {wanted.space} does not have"
        )


_LISTS = ("channels", "allowed")
"""The fields that list channels, perhaps as a text."""

_RUN = re.compile(r"(\d{1,10})-(\d{1,10})")


def _count_channels(data: Any) -> int:
    """The number of channels that all lists in ``data`` hold, without making the lists."""
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
