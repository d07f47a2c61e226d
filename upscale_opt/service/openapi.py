"""The OpenAPI document: bodies are read by hand, so they are described by hand."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Path
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import models_json_schema

from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.service.settings import Settings
from upscale_opt.service.views import ErrorView, JobView
from upscale_opt.solver.options import SolveOptions

JOB_ID = Annotated[str, Path(description="The job's id, from POST /v1/jobs.", examples=["0" * 64])]

_SAYINGS = {
    401: "The bearer token is missing or wrong.",
    404: "There is no such job.",
    408: "The body came too slowly.",
    409: "The job has no solution (yet).",
    413: "The body or the problem is too large.",
    415: "The body is not declared to be JSON.",
    422: "The problem is not valid, or beyond the limits.",
    429: "The queue is full; see Retry-After.",
    500: "The solver broke.",
    503: "The storage cannot be reached; see Retry-After.",
}

_ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorView"}}}


class ProblemBody(BaseModel):
    """A problem: a network's channels, what its zeros say, and how to solve.

    Attributes:
        graph: from ``upscale-opt trace`` or ``ChannelGraph.to_json``.
        masks: from ``upscale-opt trace --masks`` or ``Masks.to_json``.
        options: as for ``upscale_opt.solve``; but the time limit of ``/v1/solve`` is the longest
            that the service allows there, if none is given.
    """

    model_config = ConfigDict(extra="forbid")

    graph: ChannelGraph
    masks: Masks
    options: SolveOptions = SolveOptions()


def responses(
    *statuses: int, ok: tuple[str, str] | None = None, status: int = 200
) -> dict[int | str, dict[str, Any]]:
    """The responses of a route."""
    found: dict[int | str, dict[str, Any]] = {
        number: {"description": _SAYINGS[number], "content": _ERROR} for number in statuses
    }
    if ok is not None:
        schema = {"$ref": f"#/components/schemas/{ok[0]}"}
        found[status] = {"description": ok[1], "content": {"application/json": {"schema": schema}}}
    return found


def body_of(path: str) -> dict[str, Any]:
    """The description of a route's body."""
    options = {"solver": "cp-sat", "objective": "copied_channels", "time_limit": 5.0}
    if path == "/v1/jobs":
        options["time_limit"] = 60.0
    value = {"graph": EXAMPLE_GRAPH, "masks": EXAMPLE_MASKS, "options": options}
    content = {
        "schema": {"$ref": "#/components/schemas/ProblemBody"},
        "examples": {"two readers": {"summary": "Two layers read a third", "value": value}},
    }
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def describe(app: FastAPI, settings: Settings) -> None:
    """Have ``app`` describe itself, with the models of bodies and answers."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, settings)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI, settings: Settings) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    _, found = models_json_schema(
        [
            (ProblemBody, "validation"),
            (Solution, "validation"),
            (JobView, "validation"),
            (ErrorView, "validation"),
        ],
        ref_template="#/components/schemas/{model}",
    )
    components = document.setdefault("components", {})
    schemas = {**components.get("schemas", {}), **found["$defs"]}
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    components["schemas"] = schemas
    for path, methods in document["paths"].items():
        for route in methods.values():
            answers = route["responses"]
            if answers.get("422", {}).get("content", {}) != _ERROR:
                answers.pop("422", None)
            if settings.token is not None and path != "/healthz":
                answers["401"] = {"description": _SAYINGS[401], "content": _ERROR}
                route["security"] = [{"token": []}]
    if settings.token is not None:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return document


def _layer(name: str, source: str, target: str) -> dict[str, Any]:
    return {
        "kind": "layer",
        "name": name,
        "inputs": [source],
        "outputs": [target],
        "weight": f"{name}.weight",
        "in_axis": 1,
        "out_axis": 0,
    }


def _tensor(channels: str, count: int) -> dict[str, Any]:
    return {
        "shape": [1, count, 8, 8],
        "dtype": "float32",
        "axis": 1,
        "channels": channels,
    }


EXAMPLE_GRAPH: dict[str, Any] = {
    "schema_version": 1,
    "capture": "fx",
    "example": {
        "kind": "tuple",
        "items": [{"kind": "tensor", "shape": [1, 3, 8, 8], "dtype": "float32"}],
    },
    "parameters": {
        "stem.weight": [8, 3, 1, 1],
        "left.weight": [4, 8, 1, 1],
        "right.weight": [4, 8, 1, 1],
    },
    "spaces": [
        {"channels": "0-2", "fixed": "network input"},
        {"channels": "3-10"},
        {"channels": "11-14", "fixed": "network output"},
        {"channels": "15-18", "fixed": "network output"},
    ],
    "tensors": {
        "x": _tensor("0-2", 3),
        "stem": _tensor("3-10", 8),
        "left": _tensor("11-14", 4),
        "right": _tensor("15-18", 4),
    },
    "operations": [
        {"kind": "input", "name": "x", "outputs": ["x"]},
        _layer("stem", "x", "stem"),
        _layer("left", "stem", "left"),
        _layer("right", "stem", "right"),
        {"kind": "output", "name": "output", "inputs": ["left", "right"]},
    ],
}
"""A graph that is small enough to look at."""

EXAMPLE_MASKS: dict[str, Any] = {
    "schema_version": 1,
    "kept": {"left.weight": {"1": "0,2,4"}, "right.weight": {"1": "1,3,4"}},
}
"""Masks for it."""
