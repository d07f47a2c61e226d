"""Problems that clients ask to be solved: graph, masks and options, checked against the limits."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from upscale_opt.errors import UpscaleError
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.service.errors import ServiceError
from upscale_opt.service.guard import read_json
from upscale_opt.service.settings import Settings
from upscale_opt.solver.options import SolveOptions
from upscale_opt.version import VERSION


@dataclass(frozen=True)
class Problem:
    """One problem, ready to be solved."""

    graph: ChannelGraph
    masks: Masks
    options: SolveOptions

    @cached_property
    def request(self) -> bytes:
        """The problem as one line of JSON, however it was written by the client."""
        return json.dumps(
            {
                "graph": self.graph.model_dump(mode="json", exclude_defaults=True),
                "masks": self.masks.model_dump(mode="json", exclude_defaults=True),
                "options": self.options.model_dump(mode="json"),
            },
            separators=(",", ":"),
        ).encode()

    @cached_property
    def id(self) -> str:
        """A hash of all that the answer depends on."""
        version = VERSION.encode()
        return hashlib.sha256(version + b"\n" + self.request).hexdigest()

    @property
    def time_limit(self) -> float:
        """Seconds for the solver."""
        return self.options.time_limit


def read_problem(body: bytes, settings: Settings, *, small: bool) -> Problem:
    """The problem in a request's body.

    Args:
        body: the JSON.
        settings: with the limits.
        small: those for ``/v1/solve``.

    Raises:
        ServiceError: 422, naming the part at fault.
    """
    data = read_json(body, settings)
    if not isinstance(data, dict):
        raise _invalid("the body must be an object with graph and masks", "body")
    for name in data:
        if name not in ("graph", "masks", "options"):
            raise _invalid(f"unknown field {name!r}; there are graph, masks and options", name)
    for name in ("graph", "masks"):
        if not isinstance(data.get(name), dict):
            raise _invalid(f"{name} is missing, or no object", name)
    options = _options(data.get("options", {}), settings, small)
    graph = _document(ChannelGraph, data["graph"], "graph")
    _check_size(graph, settings, small)
    masks = _document(Masks, data["masks"], "masks")
    try:
        masks.check(graph)
    except UpscaleError as error:
        raise _invalid(str(error), "masks") from None
    return Problem(graph, masks, options)


def _options(data: Any, settings: Settings, small: bool) -> SolveOptions:
    if not isinstance(data, dict):
        raise _invalid("the options must be an object", "options")
    try:
        options = SolveOptions(**data)
    except UpscaleError as error:
        raise _invalid(str(error), "options") from None
    if options.cost_model is not None and options.objective != "latency":
        raise _invalid("a cost model is for the objective latency only", "options.cost_model")
    most = settings.solve_time_limit if small else settings.max_time_limit
    limit = options.time_limit
    if "time_limit" not in options.model_fields_set:
        limit = most if small else min(most, limit)
    elif limit > most:
        hint = (
            "; POST it to /v1/jobs for more" if small and limit <= settings.max_time_limit else ""
        )
        raise ServiceError(
            422,
            "time_limit_too_long",
            f"the time limit may be {most:g} s here, not {limit:g} s{hint}",
            "options.time_limit",
        )
    if options.workers > settings.max_threads:
        raise _invalid(
            f"at most {settings.max_threads} threads are allowed, not {options.workers}",
            "options.workers",
        )
    return SolveOptions.of(options, time_limit=limit)


def _document(kind: type[Any], data: Any, where: str) -> Any:
    try:
        return kind.model_validate(data)
    except UpscaleError as error:
        raise _invalid(str(error), where) from None
    except (ValueError, RecursionError, OverflowError) as error:
        raise _invalid(f"not valid {where}: {error}", where) from None


def _check_size(graph: ChannelGraph, settings: Settings, small: bool) -> None:
    channels = len(graph.space_of)
    reads = sum(len(op.inputs) + len(op.whole) + len(op.sizes) for op in graph.operations)
    for what, size, most in (
        ("channels", channels, settings.max_channels),
        ("reads", reads, settings.max_reads),
    ):
        if size > most:
            raise ServiceError(
                422, "too_large", f"{size:,} {what}; at most {most:,} are allowed", "graph"
            )
    for what, size, here in (
        ("channels", channels, settings.solve_max_channels),
        ("reads", reads, settings.solve_max_reads),
    ):
        if small and size > here:
            raise ServiceError(
                413,
                "use_jobs",
                f"{size:,} {what} are too many to wait for (at most {here:,}); "
                "POST the same body to /v1/jobs",
                "graph",
            )


def _invalid(message: str, where: str) -> ServiceError:
    return ServiceError(422, "invalid", message, where)
