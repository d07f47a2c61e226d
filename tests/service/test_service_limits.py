"""What the service refuses, and how: limits, malformed requests, the token."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from service_process import readers, small

from upscale_opt.errors import UpscaleError
from upscale_opt.service.app import create_app
from upscale_opt.service.errors import LONGEST
from upscale_opt.service.guard import depth
from upscale_opt.service.jobs import Jobs
from upscale_opt.service.settings import Settings

JSON = {"Content-Type": "application/json"}


def settings(folder: Path, **given: Any) -> Settings:
    limits = {"max_body_bytes": 200_000, "solve_max_channels": 100, "max_channels": 1000}
    return Settings(data=folder, workers=0, solve_processes=1, max_reads=500, **{**limits, **given})


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("limits")
    with TestClient(create_app(settings(folder)), raise_server_exceptions=False) as client:
        yield client


def error(answer: Any, status: int, code: str = "") -> str:
    """The message of an error of the right shape."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "where"}
    assert body["error"]["code"] == code or not code
    message = str(body["error"]["message"])
    assert message
    assert "\n" not in message
    assert len(message) <= LONGEST
    return message


def changed(**parts: Any) -> dict[str, Any]:
    return {**small(), **parts}


def options(**given: Any) -> dict[str, Any]:
    return changed(options=given)


def masks(**kept: Any) -> dict[str, Any]:
    return changed(masks={"schema_version": 1, "kept": kept})


BODIES = {
    "empty": b"",
    "no JSON": b"{",
    "no UTF-8": b'{"graph": "\xff"}',
    "UTF-16": '{"graph": {}}'.encode("utf-16"),
    "half a surrogate": b'{"graph": {"\\ud800": 1}, "masks": {}}',
    "NUL": b'{"graph": {"a\\u0000": 1}, "masks": {}}',
    "list": b"[]",
    "number": b"1",
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 30_000 + b"1" + b"}" * 30_000,
    "deep and quoted": b'{"graph": {"\\"": ' + b"[" * 90_000 + b"]" * 90_000 + b"}}",
    "many digits": b'{"graph": {"schema_version": ' + b"9" * 150_000 + b"}}",
    "many decimals": b'{"graph": {"schema_version": 1.' + b"9" * 150_000 + b"}}",
    "huge exponent": b'{"graph": {"schema_version": 1e999}}',
    "NaN": b'{"graph": NaN}',
    "infinity": b'{"graph": -Infinity}',
    "runs to fill memory": b'{"a": [' + b",".join([b'"0-3999999"'] * 10_000) + b"]}",
    "escaped runs": b'{"a": ["' + b'0-\\u0039999999","' * 20 + b'0"]}',
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", ["/v1/solve", "/v1/jobs"])
def test_malformed_bodies(client: TestClient, path: str, name: str) -> None:
    error(client.post(path, content=BODIES[name], headers=JSON), 422)


PROBLEMS = {
    "no graph": ({"masks": small()["masks"]}, "graph"),
    "no masks": ({"graph": small()["graph"]}, "masks"),
    "null": (changed(graph=None), "graph"),
    "unknown field": (changed(path="x"), "path"),
    "options that are none": (changed(options=None), "options"),
    "unknown option": (options(file="/etc/passwd"), "options"),
    "unknown solver": (options(solver="magic"), "options"),
    "a path as cost model": (options(objective="latency", cost_model="/etc/passwd"), "options"),
    "a cost model for nothing": (options(cost_model="cpu"), "options.cost_model"),
    "windows for blocks": (options(objective="blocks", max_extra_macs=0.1), "options"),
    "no time": (options(time_limit=0), "options"),
    "negative seed": (options(seed=-1), "options"),
    "too many threads": (options(workers=1000), "options.workers"),
    "far too much time": (options(time_limit=1e6), "options.time_limit"),
    "other masks": (masks(other={"1": "0"}), "masks"),
    "index out of range": (masks(**{"reader0.weight": {"1": "99"}}), "masks"),
    "newer version": (changed(graph={**small()["graph"], "schema_version": 9}), "graph"),
    "graph of masks": (changed(graph=small()["masks"]), "graph"),
    "far too many channels": (readers(3, 1100), "graph"),
    "far too many reads": (readers(260, 8), "graph"),
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("path", ["/v1/solve", "/v1/jobs"])
def test_invalid_problems(client: TestClient, path: str, name: str) -> None:
    problem, where = PROBLEMS[name]
    answer = client.post(path, json=problem)
    error(answer, 422)
    assert answer.json()["error"]["where"] == where


def test_weights_of_no_read(client: TestClient) -> None:
    message = error(client.post("/v1/solve", json=options(weights={"nothing": 3})), 422, "invalid")
    assert "nothing" in message


def test_too_large_to_wait_for(client: TestClient) -> None:
    message = error(client.post("/v1/solve", json=readers(3, 120)), 413, "use_jobs")
    assert "/v1/jobs" in message
    assert client.post("/v1/jobs", json=readers(3, 120)).status_code == 202


def test_too_long_to_wait_for(client: TestClient) -> None:
    message = error(client.post("/v1/solve", json=options(time_limit=100)), 422)
    assert "/v1/jobs" in message


def test_bodies_that_are_too_large(client: TestClient) -> None:
    large = b" " * 200_001
    assert "200,000" in error(client.post("/v1/jobs", content=large, headers=JSON), 413)

    def parts() -> Iterator[bytes]:
        for _ in range(1000):
            yield b" " * 1000

    error(client.post("/v1/jobs", content=parts(), headers=JSON), 413, "too_large")
    lying = {**JSON, "Content-Length": "9" * 30}
    error(client.post("/v1/jobs", content=b"{}", headers=lying), 413)


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_other_kinds_of_bodies(client: TestClient, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    body = json.dumps(small()).encode()
    error(client.post("/v1/jobs", content=body, headers=headers), 415)


@pytest.mark.parametrize("id", ["x", "0" * 64, "%00", "..%2f..%2fetc", "é" * 64, "'; DROP TABLE"])
@pytest.mark.parametrize("rest", ["", "/events", "/solution", "/report"])
def test_unknown_jobs(client: TestClient, id: str, rest: str) -> None:
    error(client.get(f"/v1/jobs/{id}{rest}"), 404)


def test_unknown_paths_and_methods(client: TestClient) -> None:
    error(client.get("/nothing"), 404, "not_found")
    answer = client.put("/v1/jobs")
    error(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    assert client.put(f"/v1/jobs/{'0' * 64}").headers["allow"] == "GET"


def test_a_full_queue(tmp_path: Path) -> None:
    with TestClient(create_app(settings(tmp_path, max_queue=2))) as client:
        for seed in range(2):
            assert client.post("/v1/jobs", json=small(seed)).status_code == 202
        answer = client.post("/v1/jobs", json=small(2))
        error(answer, 429, "queue_full")
        assert int(answer.headers["retry-after"]) > 0
        assert client.post("/v1/jobs", json=small(1)).status_code == 202  # it waits already
        assert client.post(f"/v1/jobs/{client.post('/v1/jobs', json=small(1)).json()['id']}/cancel")
        assert client.post("/v1/jobs", json=small(2)).status_code == 202


@pytest.mark.parametrize("waiting", [0, 1])
def test_a_busy_service(tmp_path: Path, waiting: int) -> None:
    """No process is free: nobody may wait for one, or one request for a moment."""
    app = create_app(settings(tmp_path, solve_waiting=waiting, solve_patience=0.2))
    with TestClient(app) as client:
        app.state.service.pool._slots = asyncio.Semaphore(0)
        answer = client.post("/v1/solve", json=small())
        assert "/v1/jobs" in error(answer, 429, "busy")
        assert int(answer.headers["retry-after"]) > 0
        app.state.service.pool._slots = asyncio.Semaphore(1)
        assert client.post("/v1/solve", json=small()).status_code == 200


def test_too_many_streams(tmp_path: Path) -> None:
    app = create_app(settings(tmp_path, max_streams=1))
    with TestClient(app) as client:
        id = client.post("/v1/jobs", json=small()).json()["id"]
        app.state.service.streams = 1
        error(client.get(f"/v1/jobs/{id}/events"), 429, "busy")


def test_the_token(tmp_path: Path) -> None:
    app = create_app(settings(tmp_path, token="sesame"))
    with TestClient(app) as client:
        assert client.get("/healthz").status_code == 200
        for headers in (
            {},
            {"Authorization": "Bearer other"},
            {"Authorization": "sesame"},
            {"Authorization": "Bearer sesame2"},
        ):
            for path in ("/v1/solvers", "/metrics", "/openapi.json", "/nothing"):
                answer = client.get(path, headers=headers)
                error(answer, 401, "unauthorized")
                assert answer.headers["www-authenticate"] == "Bearer"
        right = {"Authorization": "Bearer sesame"}
        assert client.post("/v1/jobs", json=small(), headers=right).status_code == 202
        document = client.get("/openapi.json", headers=right).json()
        assert document["paths"]["/v1/jobs"]["post"]["responses"]["401"]
    assert "sesame" not in repr(app.state.service.settings)
    assert "sesame" not in json.dumps(app.state.service.settings.for_workers())


def test_errors_of_the_service_itself(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Jobs, id: str) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(Jobs, "known", broken)
    with caplog.at_level(logging.CRITICAL):
        message = error(client.get("/v1/jobs/" + "0" * 64), 500, "internal")
    assert "secret" not in message


def test_settings_from_the_environment(tmp_path: Path) -> None:
    environment = {
        "UPSCALE_OPT_MAX_QUEUE": "7",
        "UPSCALE_OPT_QUEUE": "redis://there",
        "UPSCALE_OPT_TOKEN": "",
    }
    found = Settings.read({"data": tmp_path, "workers": None}, environment)
    assert (found.max_queue, found.queue, found.token) == (7, "redis://there", None)
    assert Settings.read({"max_queue": "8"}, environment).max_queue == 8
    for wrong in ({"queue": "http://there"}, {"max_queue": "0"}, {"nothing": 1}, {"token": "\n"}):
        with pytest.raises(UpscaleError, match="not a valid setting"):
            Settings.read(wrong, {})


JSONS = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSONS)
def test_depth(data: Any) -> None:
    def real(value: Any) -> int:
        if isinstance(value, dict):
            return 1 + max(map(real, value.values()), default=0)
        return 1 + max(map(real, value), default=0) if isinstance(value, list) else 0

    for ascii_only in (True, False):
        assert depth(
            json.dumps(data, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        ) == real(data)
