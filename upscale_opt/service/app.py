"""The web application: what is asked by HTTP, and what is answered."""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from upscale_opt.errors import UpscaleError
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.service.errors import ServiceError, StorageError, error_body
from upscale_opt.service.events import events
from upscale_opt.service.jobs import Jobs
from upscale_opt.service.metrics import Measure, Metrics
from upscale_opt.service.openapi import JOB_ID, body_of, describe, responses
from upscale_opt.service.pool import Pool
from upscale_opt.service.problems import Problem, read_problem
from upscale_opt.service.settings import Settings
from upscale_opt.service.supervisor import Supervisor
from upscale_opt.service.tasks import open_storage
from upscale_opt.service.views import (
    HealthView,
    JobView,
    SolversView,
    job_view,
    schemas,
    solvers_view,
)
from upscale_opt.service.worker import ALIVE, Keeper
from upscale_opt.version import VERSION

log = logging.getLogger("upscale_opt.service")

_LAST_SECONDS = 3.0
"""Seconds that problems have to be solved when the service ends."""

_THROWN_AWAY_SECONDS = 2.0
_THROWN_AWAY_BYTES = 1 << 26
"""The bytes of a body that is too large which are read, for its sender to see the answer."""

_READERS = 4
"""Bodies that are read (as JSON), and reports that are drawn, at a time."""


class Service:
    """The state that the routes share.

    Args:
        settings: the settings.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store, self.queue = open_storage(settings)
        self.jobs = Jobs(self.store, settings)
        self.metrics = Metrics(self.store, self.queue)
        self.supervisor = Supervisor(settings, Keeper(self.jobs, self.queue))
        self.streams = 0
        self.ending = threading.Event()
        self.pool: Pool | None = None
        self.readers: CapacityLimiter | None = None

    def end(self) -> None:
        """Let streams end at once, and solves be given up soon."""
        self.ending.set()
        if self.pool is not None:
            timer = threading.Timer(_LAST_SECONDS, self.pool.end)
            timer.daemon = True
            timer.start()

    @contextlib.asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Start and stop processes with the application."""
        self.pool = Pool(self.settings)
        self.readers = CapacityLimiter(_READERS)
        self.pool.start()
        self.supervisor.start()
        try:
            yield
        finally:
            self.end()
            await to_thread.run_sync(self.supervisor.stop)
            await to_thread.run_sync(self.pool.close)
            self.queue.close()
            self.store.close()

    async def problem(self, request: Request, *, small: bool) -> Problem:
        """The problem in the body, read within the limits."""
        body = await _body(request, self.settings)
        return await to_thread.run_sync(
            lambda: read_problem(body, self.settings, small=small), limiter=self.readers
        )


def create_app(settings: Settings) -> FastAPI:
    """The application; ``app.state.service`` is what its routes share.

    Raises:
        StorageError: if the storage cannot be opened.
    """
    service = Service(settings)
    app = FastAPI(
        title="upscale-opt",
        version=VERSION,
        description="Channel orders for pruned networks, proven optimal. See docs/service.md.",
        docs_url=None,
        redoc_url=None,
        lifespan=service.running,
    )
    app.state.service = service
    _add_errors(app)
    _add_solving(app, service)
    _add_jobs(app, service)
    _add_answers(app, service)
    _add_information(app, service)
    describe(app, settings)
    if settings.token is not None:
        app.add_middleware(Bearer, token=settings.token.get_secret_value())
    app.add_middleware(Measure, metrics=service.metrics)
    return app


async def _body(request: Request, settings: Settings) -> bytes:
    """The request's body, while it is not too large, nor too slow."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ServiceError(
            415, "not_json", "send JSON, with the header Content-Type: application/json", "body"
        )
    most = settings.max_body_bytes
    large = ServiceError(413, "too_large", f"the body may have {most:,} bytes", "body")
    announced = request.headers.get("content-length", "")
    stream = request.stream()
    if announced.isdecimal() and (len(announced) > 15 or int(announced) > most):
        if "expect" not in request.headers:  # who waits for leave to send is not to get it
            await _throw_away(stream)
        raise large
    parts: list[bytes] = []
    size = 0
    try:
        with anyio.fail_after(settings.body_seconds):
            async for part in stream:
                size += len(part)
                if size > most:
                    break
                parts.append(part)
            else:
                return b"".join(parts)
    except TimeoutError:
        raise ServiceError(408, "too_slow", "the body did not come in time", "body") from None
    await _throw_away(stream)
    raise large


async def _throw_away(stream: AsyncIterator[bytes]) -> None:
    """Read on for a while: hanging up on who still sends takes the answer away from him."""
    size = 0
    with anyio.move_on_after(_THROWN_AWAY_SECONDS):
        async for part in stream:
            size += len(part)
            if size > _THROWN_AWAY_BYTES:
                return


def _add_solving(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/solve",
        summary="Solve a small problem, and wait for it",
        response_model=None,
        responses=responses(408, 413, 415, 422, 429, 500, 503, ok=("Solution", "The solution.")),
        openapi_extra=body_of("/v1/solve"),
    )
    async def solve(request: Request) -> Response:
        problem = await service.problem(request, small=True)
        assert service.pool is not None
        answer = await service.pool.solve(problem, request.is_disconnected)
        service.metrics.solving.labels(problem.options.solver).observe(answer.seconds)
        if answer.solution is not None:
            return Response(answer.solution, media_type="application/json")
        if answer.code in ("crashed", "solver_failed"):
            log.error("a solve failed: %s", answer.message)
            raise ServiceError(500, answer.code, answer.message)
        raise ServiceError(422, answer.code, answer.message)


def _add_jobs(app: FastAPI, service: Service) -> None:
    jobs = service.jobs

    def accept(problem: Problem) -> Response:
        job, new = jobs.add(problem)
        if new:
            try:
                service.queue.put(job.id)
            except StorageError as error:  # it is stored, and goes into the queue by itself, later
                log.warning("%s; job %s waits", error, job.id[:12])
        location = {"Location": f"/v1/jobs/{job.id}"}
        return JSONResponse(job_view(job), 202, headers=location)

    @app.post(
        "/v1/jobs",
        summary="Hand in a problem; ask for the answer later",
        status_code=202,
        response_model=None,
        responses=responses(408, 413, 415, 422, 429, 503, ok=("JobView", "The job."), status=202),
        openapi_extra=body_of("/v1/jobs"),
    )
    async def submit(request: Request) -> Response:
        problem = await service.problem(request, small=False)
        return await to_thread.run_sync(accept, problem)

    @app.get(
        "/v1/jobs/{id}",
        summary="How a job gets on; with its result, if it has one",
        response_model=JobView,
        responses=responses(404, 503),
    )
    def look(id: JOB_ID) -> Response:
        job = jobs.known(id)
        view = job_view(job)
        if job.state != "done":
            return JSONResponse(view)
        result = jobs.result(id)
        if result is None:
            return JSONResponse(job_view(jobs.known(id)))
        del view["result"]
        text = JSONResponse(view).body
        return Response(bytes(text)[:-1] + b',"result":' + result + b"}", media_type=_JSON)

    @app.post(
        "/v1/jobs/{id}/cancel",
        summary="End a job that has not ended",
        response_model=JobView,
        responses=responses(404, 503),
    )
    def cancel(id: JOB_ID) -> Response:
        return JSONResponse(job_view(jobs.cancel(id)))


_JSON = "application/json"


def _add_answers(app: FastAPI, service: Service) -> None:
    jobs = service.jobs

    def result(id: str) -> bytes:
        job = jobs.known(id)
        found = jobs.result(id) if job.state == "done" else None
        if found is None:
            why = f": {job.error.message}" if job.error is not None else ""
            raise ServiceError(409, "no_solution", f"the job is {job.state}{why}", "id")
        return found

    @app.get(
        "/v1/jobs/{id}/solution",
        summary="A job's solution",
        response_model=None,
        responses=responses(404, 409, 503, ok=("Solution", "The solution.")),
    )
    def solution(id: JOB_ID) -> Response:
        return Response(result(id), media_type=_JSON)

    @app.get(
        "/v1/jobs/{id}/report",
        summary="A job's solution as a page",
        response_class=HTMLResponse,
        responses=responses(404, 409, 503),
    )
    async def report(id: JOB_ID) -> Response:
        return await to_thread.run_sync(lambda: drawn(id), limiter=service.readers)

    def drawn(id: str) -> Response:
        from upscale_opt.report import page

        found, asked = result(id), jobs.request(id)
        if asked is None:
            raise ServiceError(404, "unknown_job", "the job was just forgotten", "id")
        problem = json.loads(asked)
        graph = ChannelGraph.model_validate(problem["graph"])
        masks = Masks.model_validate(problem["masks"])
        html = page(Solution.from_json(found), graph=graph, masks=masks)
        return HTMLResponse(html, headers=_PAGE_HEADERS)

    @app.get(
        "/v1/jobs/{id}/events",
        summary="How a job gets on, as server-sent events",
        response_class=Response,
        responses={
            **responses(404, 429, 503),
            200: {
                "description": "Events `state`, `progress`, and at last one `end`.",
                "content": {"text/event-stream": {}},
            },
        },
    )
    async def stream(id: JOB_ID, request: Request) -> Response:
        await to_thread.run_sync(jobs.known, id)
        if service.streams >= service.settings.max_streams:
            raise ServiceError(
                429, "busy", "too many event streams are open; ask for the job", retry_after=5
            )

        async def counted() -> AsyncIterator[bytes]:
            service.streams += 1
            service.metrics.streams.set(service.streams)
            try:
                async for event in events(jobs, id, request.is_disconnected, service.ending.is_set):
                    yield event
            finally:
                service.streams -= 1
                service.metrics.streams.set(service.streams)

        return StreamingResponse(
            counted(), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )


_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; img-src data:; font-src data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
"""A report needs nothing from anywhere."""


def _add_information(app: FastAPI, service: Service) -> None:
    @app.get("/v1/solvers", summary="Solvers and options", response_model=SolversView)
    def solvers() -> Response:
        return JSONResponse(solvers_view())

    @app.get("/v1/schema", summary="The JSON schemas of all that is sent and answered")
    def schema() -> dict[str, Any]:
        return schemas()

    @app.get(
        "/healthz",
        summary="Whether the service can do its work",
        response_model=HealthView,
        responses={503: {"model": HealthView, "description": "The storage cannot be reached."}},
    )
    def health() -> Response:
        kind = "sqlite" if service.settings.queue is None else "redis"
        view: dict[str, Any] = {"version": VERSION, "storage": kind}
        try:
            service.store.check()
            counts, workers = service.store.counts(), service.store.workers(ALIVE)
            service.queue.length()
        except StorageError:
            view |= {"status": "unavailable", "reachable": False, "workers": 0}
            return JSONResponse({**view, "queued": None, "running": None}, 503)
        view |= {"status": "ok" if workers else "no workers", "reachable": True}
        view |= {"workers": workers, "queued": counts["queued"], "running": counts["running"]}
        return JSONResponse(view)

    @app.get(
        "/metrics",
        summary="Figures for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ServiceError)
    async def refused(request: Request, error: ServiceError) -> Response:
        headers = dict(error.headers)
        if error.status in (408, 413):
            headers["Connection"] = "close"  # the rest of the body is not read
        return JSONResponse(error.body(), error.status, headers=headers)

    @app.exception_handler(StorageError)
    async def unavailable(request: Request, error: StorageError) -> Response:
        log.warning("%s", error)
        body = error_body("storage_unavailable", f"{error}; nothing was accepted, try again later")
        return JSONResponse(body, 503, headers={"Retry-After": "5"})

    @app.exception_handler(UpscaleError)
    async def invalid(request: Request, error: UpscaleError) -> Response:
        return JSONResponse(error_body("invalid", str(error)), 422)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        codes = {404: "not_found", 405: "method_not_allowed"}
        code = codes.get(error.status_code, "http_error")
        body = error_body(code, str(error.detail), request.url.path)
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_methods(request))
        return JSONResponse(body, error.status_code, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def unfit(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse(error_body("invalid", str(first["msg"]), where), 422)

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> Response:
        return JSONResponse(error_body("gone", "the client has left"), 400)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return JSONResponse(error_body("internal", "an error of the service; see its log"), 500)


def _methods(request: Request) -> list[str]:
    """The methods that the request's path takes, by all routes together."""
    found: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return sorted(found)


class Bearer:
    """Refuses requests without the token, except for ``/healthz``; an ASGI middleware.

    Args:
        app: what answers the others.
        token: what has to be sent.
    """

    def __init__(self, app: Any, token: str) -> None:
        self._app = app
        self._token = f"Bearer {token}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer, or pass on."""
        if scope["type"] == "http" and scope["path"] != "/healthz":
            given = [value for name, value in scope["headers"] if name == b"authorization"]
            # Compared in constant time: how much of it is right cannot be measured.
            if len(given) != 1 or not hmac.compare_digest(given[0], self._token):
                body = error_body(
                    "unauthorized", "send the header Authorization: Bearer TOKEN", "authorization"
                )
                answer = JSONResponse(body, 401, headers={"WWW-Authenticate": "Bearer"})
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)
