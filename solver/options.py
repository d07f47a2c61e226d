"""The options of a solve, in one record: made once, checked, and handed through."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from numbers import Integral
from typing import TYPE_CHECKING, Annotated, Any, SupportsFloat

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from typing_extensions import Self, TypedDict, Unpack

from upscale_opt.errors import SolverError, UpscaleError
from upscale_opt.ir.base import Record, first_problem
from upscale_opt.ir.cost_model import CostModel
from upscale_opt.ir.profiles import PROFILES, profile
from upscale_opt.solver.algorithms.registry import SOLVERS
from upscale_opt.solver.network.objectives import FOR_EXPORTS, OBJECTIVES
from upscale_opt.solver.network.segments import SELECTIONS, Selection

_NAMES: dict[str, Collection[str]] = {
    "solver": SOLVERS,
    "objective": OBJECTIVES,
    "selection": SELECTIONS,
}
_MOST = 2**31
"""The limit below which solvers take seeds and numbers of threads."""

_WHOLE = {"seed": ("seed", 0), "workers": ("number of workers", 1)}


class SolveFields(TypedDict, total=False):
    """The fields of :class:`SolveOptions`, for functions that take them one by one, too."""

    solver: str
    objective: str
    selection: Selection | None
    weights: Mapping[str, int] | None
    max_extra_macs: float
    cost_model: str | CostModel | None
    time_limit: float
    seed: int
    workers: int


class SolveOptions(Record):
    """The options of solving.

    Every function that solves takes such a record as ``options``, and its fields by name, which
    go before those of the record:

        >>> options = SolveOptions(objective="gathers", time_limit=10)
        >>> SolveOptions.of(options, seed=3)
        SolveOptions(objective='gathers', time_limit=10.0, seed=3)

    Attributes:
        solver: ``"cp-sat"`` (exact), ``"pulp"`` or ``"pulp-cbc"`` (exact, by mixed-integer
            programming with HiGHS or CBC), ``"cp-sat-direct"`` (exact, for small problems),
            ``"local-search"``, ``"greedy"`` (UPSCALE's heuristic) or ``"identity"`` (no
            reordering).
        objective: what to minimise: ``"copied_channels"``, ``"copied_bytes"``, ``"gathers"`` or
            ``"blocks"``, the contiguous runs that all reads fall into; or ``"latency"``, the
            nanoseconds that gathers, and windows where they are cheaper, cost beyond views. By
            default channels, in which orders are compared; where a smaller model is asked for
            (``prune`` and its like), bytes.
        selection: where channels are selected: ``"tensor"``, wherever that is best for each tensor;
            ``"segment"``, as UPSCALE does, with one channel set for a whole segment; or
            ``"arena"``, as ``"tensor"``, with concatenations that share buffers, in which the
            channels of what is joined may lie between each other. By default ``"tensor"``; for
            latency both ``"arena"`` and ``"tensor"`` are tried, in half of the time each, and the
            answer (with its bound) is that which the cost model says is faster.
        weights: whole factors for the cost of some reads, by the name of the reading operation
            (or ``"operation[operand]"``); 0 makes a read not matter.
        max_extra_macs: let reads be windows where that spares gathers: adjacent channels, for some
            of which a layer keeps zero columns. At most this share of the multiply-adds that the
            export has without; 0 for no windows. Not for latency, which prices them, nor blocks.
        cost_model: what kernels cost on the device, for latency: a calibrated
            :class:`~upscale_opt.ir.cost_model.CostModel`, or the name of one that is built in; by
            default a CPU's. The graph's sizes count: trace with the batch that matters.
        time_limit: seconds for the solver; when they run out it returns its best solution and
            bound.
        seed: seed of the solver; the same seed gives the same answer, unless time runs out.
        workers: parallel workers of the solver.

    Raises:
        SolverError: for an unknown solver, objective or selection, an option that makes no sense,
            such as a time limit that is not positive, or one that does not exist.
    """

    solver: str = Field(default="cp-sat", json_schema_extra={"enum": list(SOLVERS)})
    objective: str = Field(default="copied_channels", json_schema_extra={"enum": list(OBJECTIVES)})
    selection: Selection | None = None
    weights: Mapping[str, Annotated[int, Field(ge=0)]] | None = None
    max_extra_macs: float = Field(default=0.0, ge=0)
    cost_model: (
        Annotated[str, Field(json_schema_extra={"enum": list(PROFILES)})] | CostModel | None
    ) = None
    time_limit: float = Field(default=60.0, gt=0)
    seed: int = Field(default=0, ge=0, lt=_MOST)
    workers: int = Field(default=1, ge=1, lt=_MOST)

    if not TYPE_CHECKING:  # which knows the fields better

        def __init__(self, /, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise _refusal(error) from None

        # Else Pydantic would call it for what it validates itself.
        __init__.__pydantic_base_init__ = True

    @classmethod
    def of(cls, options: SolveOptions | None = None, **fields: Unpack[SolveFields]) -> SolveOptions:
        """Make one record of another, or of none, and of fields that go before its own.

        Raises:
            SolverError: if it is no record, or a field makes no sense.
        """
        if options is None:
            return cls(**fields)
        if not isinstance(options, SolveOptions):
            raise SolverError(
                f"options must be SolveOptions, not an object of class {type(options).__name__}; "
                "give its fields by name, such as time_limit=10"
            )
        known = {name: getattr(options, name) for name in options.model_fields_set}
        return cls(**{**known, **fields}) if fields else options

    def for_export(self) -> SolveOptions:
        """The same for an export: with the fewest bytes copied, if no objective was named.

        >>> SolveOptions(seed=3).for_export()
        SolveOptions(objective='copied_bytes', seed=3)
        """
        if "objective" in self.model_fields_set:
            return self
        return SolveOptions.of(self, objective=FOR_EXPORTS)

    @property
    def prices(self) -> CostModel | None:
        """The cost model, if there is one."""
        return profile(self.cost_model) if isinstance(self.cost_model, str) else self.cost_model

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value != field.default:
                yield name, value

    @field_validator("solver", "objective", "selection", mode="before")
    @classmethod
    def _known(cls, value: Any, info: ValidationInfo) -> str | None:
        assert info.field_name is not None
        names = _NAMES[info.field_name]
        if value is None and info.field_name == "selection":
            return None
        if not isinstance(value, str) or value not in names:
            raise SolverError(f"unknown {info.field_name} {value!r}; there are {', '.join(names)}")
        return next(name for name in names if name == value)  # a plain string

    @field_validator("weights", mode="before")
    @classmethod
    def _factors(cls, value: Any) -> dict[str, int] | None:
        if value is not None and not isinstance(value, Mapping):
            raise SolverError(
                "weights must be a dict from operations to whole numbers, "
                f"not an object of class {type(value).__name__}"
            )
        for name, factor in (value or {}).items():
            if not isinstance(name, str):
                raise SolverError(f"weights name operations, such as 'conv1', not {name!r}")
            if not _is_whole(factor) or factor < 0:
                raise SolverError(
                    f"the weight of {name!r} must be a whole number that is not negative, "
                    f"not {factor!r}"
                )
        return {name: int(factor) for name, factor in value.items()} if value else None

    @field_validator("max_extra_macs", mode="before")
    @classmethod
    def _share(cls, value: Any) -> float:
        share = _number(value)
        if share is None or not 0 <= share < math.inf:
            raise SolverError(
                f"max_extra_macs is a share of the multiply-adds, such as 0.05, not {value!r}"
            )
        return share

    @field_validator("cost_model", mode="before")
    @classmethod
    def _prices(cls, value: Any) -> CostModel | str | None:
        if value is None or isinstance(value, CostModel):
            return value
        if isinstance(value, str):
            profile(value)
            return value
        if isinstance(value, dict):
            return CostModel.model_validate(value)
        raise SolverError(
            f"cost_model is a CostModel, or the name of a built-in one ({', '.join(PROFILES)}), "
            f"not an object of class {type(value).__name__}"
        )

    @field_validator("time_limit", mode="before")
    @classmethod
    def _positive(cls, value: Any) -> float:
        seconds = _number(value)
        if seconds is None or not seconds > 0:
            given = repr(value) if seconds is None else f"{seconds:g}"
            raise SolverError(f"the time limit must be more than 0 seconds, not {given}")
        return seconds

    @field_validator("seed", "workers", mode="before")
    @classmethod
    def _whole(cls, value: Any, info: ValidationInfo) -> int:
        assert info.field_name is not None
        what, least = _WHOLE[info.field_name]
        if not _is_whole(value) or not least <= value < _MOST:
            raise SolverError(
                f"the {what} must be a whole number from {least} to {_MOST - 1}, not {value!r}"
            )
        return int(value)

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.max_extra_macs and self.objective in ("latency", "blocks"):
            raise SolverError(
                f"the objective {self.objective!r} knows no max_extra_macs; leave it out"
            )
        return self


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _number(value: object) -> float | None:
    """The value as a number, if it is one; text is none, nor are truth values."""
    if not isinstance(value, SupportsFloat) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return None


def _refusal(error: ValidationError) -> UpscaleError:
    """The first of Pydantic's complaints as an error of ours."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UpscaleError):
        return cause
    if first["type"] == "extra_forbidden":
        known = ", ".join(SolveOptions.model_fields)
        return SolverError(f"unknown option {first['loc'][0]!r}; there are {known}")
    return SolverError(f"not valid options: {first_problem(error)}")
