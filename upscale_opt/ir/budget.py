"""Budgets: what a pruned network may cost, and what must be left alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from typing_extensions import Self

from upscale_opt.errors import BudgetError
from upscale_opt.ir.base import Record, first_problem
from upscale_opt.ir.cost_model import CostModel
from upscale_opt.ir.profiles import profile

Resource = Literal["macs", "parameters", "latency"]
"""A thing to save: multiply-adds, parameters, or nanoseconds by a cost model."""

RESOURCES: tuple[Resource, ...] = ("macs", "parameters", "latency")


class Budget(Record):
    """The most that a pruned network may cost, and what a person wants besides.

        >>> Budget(macs=0.5, round_to=8, keep=("fc",))
        Budget(macs=0.5, round_to=8, keep=('fc',))

    Several limits hold together. Patterns name layers as in the shell (``"layer4.*"``), by the name
    of their module or of their weight.

    Attributes:
        macs: the share of the multiply-adds that may remain, in (0, 1].
        parameters: the share of the parameters.
        latency: the share of the time, by the cost model.
        milliseconds: the time itself, by the cost model.
        cost_model: for ``latency`` and ``milliseconds``: a calibrated cost model, or the name of
            one that is built in; by default a CPU's.
        round_to: widths (and those of groups) are multiples of it wherever they may be.
        keep: layers that lose no input channel.
        shares: for layers, the share of the input channels that stays: a number, or the least and
            the most.
        at_least: channels that every layer keeps (of each group, or head).
        equal: layers that keep equally many input channels: each entry is a pattern whose layers
            all do.

    Raises:
        BudgetError: naming the field that makes no sense.
    """

    macs: float | None = None
    parameters: float | None = None
    latency: float | None = None
    milliseconds: float | None = None
    cost_model: str | CostModel | None = None
    round_to: int = Field(default=1, ge=1)
    keep: tuple[str, ...] = ()
    shares: Mapping[str, float | tuple[float, float]] = Field(default_factory=dict)
    at_least: int = Field(default=1, ge=1)
    equal: tuple[str, ...] = ()

    if not TYPE_CHECKING:  # which knows the fields better

        def __init__(self, /, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                cause = error.errors(include_url=False)[0].get("ctx", {}).get("error")
                if isinstance(cause, BudgetError):
                    raise cause from None
                raise BudgetError(f"not a valid budget: {first_problem(error)}") from None

        # Else Pydantic would call it for what it validates itself.
        __init__.__pydantic_base_init__ = True

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """The least and the most that stays, by pattern."""
        return {
            pattern: (share, share) if isinstance(share, (int, float)) else share
            for pattern, share in self.shares.items()
        }

    @property
    def limits_time(self) -> bool:
        """There is a limit for latency."""
        return self.latency is not None or self.milliseconds is not None

    @property
    def prices(self) -> CostModel | None:
        """The cost model, if there is one."""
        return profile(self.cost_model) if isinstance(self.cost_model, str) else self.cost_model

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value != field.get_default(call_default_factory=True):
                yield name, value

    @field_validator("macs", "parameters", "latency", mode="before")
    @classmethod
    def _is_share(cls, value: Any) -> float | None:
        if value is None:
            return None
        if not _is_number(value) or not 0 < value <= 1:
            raise BudgetError(
                f"a budget is the share that may remain, more than 0 and at most 1, not {value!r}"
            )
        return float(value)

    @field_validator("milliseconds", mode="before")
    @classmethod
    def _is_time(cls, value: Any) -> float | None:
        if value is not None and not (_is_number(value) and 0 < value < math.inf):
            raise BudgetError(f"milliseconds must be more than 0, not {value!r}")
        return value if value is None else float(value)

    @field_validator("keep", "equal", mode="before")
    @classmethod
    def _patterns(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("shares", mode="before")
    @classmethod
    def _bounds(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        found = {}
        for pattern, bounds in value.items():
            both = (bounds, bounds) if _is_number(bounds) else bounds
            pair = isinstance(both, (tuple, list)) and len(both) == 2
            if not (pair and all(map(_is_number, both)) and 0 <= both[0] <= both[1] <= 1):
                raise BudgetError(
                    f"the share of {pattern!r} must be a number from 0 to 1, or the least and the "
                    f"most, not {bounds!r}"
                )
            found[pattern] = tuple(both)
        return found

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.macs is self.parameters is self.latency is self.milliseconds is None:
            raise BudgetError(
                "a budget needs a limit: macs=0.5, parameters=0.5, latency=0.6 or milliseconds=12"
            )
        if self.cost_model is not None and not self.limits_time:
            raise BudgetError("a cost model prices latency: give latency or milliseconds, too")
        return self


def matches(pattern: str, parameter: str) -> bool:
    """Tell if a pattern names a layer: by its weight's name, or by its module's."""
    module = parameter.rpartition(".")[0]
    return fnmatchcase(parameter, pattern) or (bool(module) and fnmatchcase(module, pattern))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
