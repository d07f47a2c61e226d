"""The clients' views of jobs, and the schemas of everything they send and get."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from upscale_opt.ir.cost_model import CostModel
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.profiles import PROFILES
from upscale_opt.ir.solution import Solution
from upscale_opt.service.jobs import Job, Problematic, State
from upscale_opt.solver.algorithms.registry import HEURISTICS, SOLVERS
from upscale_opt.solver.network.objectives import OBJECTIVES, UNITS
from upscale_opt.solver.network.segments import SELECTIONS
from upscale_opt.solver.options import SolveOptions


class Links(BaseModel):
    """The addresses to go on to from a job."""

    self: str
    events: str
    cancel: str
    solution: str
    report: str


class JobView(BaseModel):
    """A job; ``value`` is that of the best solution so far, and ``gap`` its share to be gained."""

    id: str
    state: State
    attempt: int
    created: float
    started: float | None
    finished: float | None
    solver: str
    objective: str
    unit: str
    time_limit: float
    status: str | None
    value: int | None
    bound: int | None
    gap: float | None
    error: Problematic | None
    links: Links
    result: dict[str, Any] | None = None


class ErrorDetail(BaseModel):
    """An error, as clients see it."""

    code: str
    message: str
    where: str


class ErrorView(BaseModel):
    """The body of every error."""

    error: ErrorDetail


class SolverView(BaseModel):
    """A solver."""

    name: str
    exact: bool
    doc: str


class SolversView(BaseModel):
    """The solvers and options there are to choose from."""

    solvers: list[SolverView]
    objectives: dict[str, str]
    selections: list[str]
    cost_models: list[str]


class HealthView(BaseModel):
    """The service's health: whether it can do its work."""

    status: str
    version: str
    storage: str
    reachable: bool
    workers: int
    queued: int | None
    running: int | None


def job_view(job: Job) -> dict[str, Any]:
    """A job as JSON, without its result."""
    here = f"/v1/jobs/{job.id}"
    links = {name: f"{here}/{name}" for name in ("events", "cancel", "solution", "report")}
    data = job.model_dump(mode="json", exclude={"token", "due"})
    return {**data, "gap": job.gap, "links": {"self": here, **links}, "result": None}


_DOCS = {
    "cp-sat": "exact: conflicts found by PQ-trees, a CP-SAT master, a proof that can be checked",
    "cp-sat-direct": "exact, for small problems: an independent check",
    "pulp": "exact: the same as cp-sat, by PuLP and HiGHS",
    "pulp-cbc": "exact: the same as cp-sat, by PuLP and CBC",
    "local-search": "improves any orders",
    "greedy": "UPSCALE's heuristic",
    "identity": "no reordering",
}


def solvers_view() -> dict[str, Any]:
    """The solvers and options there are to choose from."""
    inexact = (*HEURISTICS, "local-search")
    return {
        "solvers": [
            {"name": name, "exact": name not in inexact, "doc": _DOCS[name]} for name in SOLVERS
        ],
        "objectives": {name: UNITS[name] for name in OBJECTIVES},
        "selections": list(SELECTIONS),
        "cost_models": list(PROFILES),
    }


def schemas() -> dict[str, Any]:
    """The JSON schemas of all that is sent and answered."""
    models: dict[str, type[BaseModel]] = {
        "graph": ChannelGraph,
        "masks": Masks,
        "options": SolveOptions,
        "cost_model": CostModel,
        "solution": Solution,
        "job": JobView,
        "error": ErrorView,
    }
    return {name: model.model_json_schema() for name, model in models.items()}
