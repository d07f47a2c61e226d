"""Whatever Schemathesis makes of the OpenAPI document, the service answers as the document says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from service_process import Server

CONFIG = """
[checks]
# A graph is more than its schema can say: 422 is an honest answer to one that makes no sense.
positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "409", "422", "429"]
"""

RUN = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("contract")
    settings = {"solve_processes": 1, "heartbeat": 1.0, "max_body_bytes": 300_000}
    with Server(folder / "data", workers=1, settings=settings) as server:
        yield server


def schemathesis(server: Server, folder: Path, *options: str, document: str = "") -> str:
    """What it finds by all of its checks: nothing, if all is well.

    Args:
        server: the service.
        folder: to work in.
        options: of its command line.
        document: the OpenAPI document, if it is not the service's own.
    """
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG)
    command = [*RUN, "--config-file", str(config), "run", document or f"{server.url}/openapi.json"]
    command += ["--url", server.url]
    command += ["--seed", "1", "--request-timeout", "30", "--no-color", *options]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=folder, check=False
    )
    assert run.returncode in (0, 1), run.stdout + run.stderr
    assert "Traceback" not in server.log.read_text()
    return "" if run.returncode == 0 else run.stdout


def test_examples_and_random_requests(server: Server, tmp_path: Path) -> None:
    options = ["--phases", "examples,fuzzing", "--max-examples", "4"]
    assert schemathesis(server, tmp_path, *options) == ""


def test_corner_cases_of_parameters(server: Server, tmp_path: Path) -> None:
    options = ["--phases", "coverage", "--include-method", "GET"]
    assert schemathesis(server, tmp_path, *options) == ""


def test_sequences_of_requests(server: Server, tmp_path: Path) -> None:
    options = ["--phases", "stateful", "--max-examples", "3"]
    assert schemathesis(server, tmp_path, *options) == ""


def test_it_would_find_something(server: Server, tmp_path: Path) -> None:
    document = server.client.get("/openapi.json").json()
    path = "/v1/jobs/{id}"
    del document["paths"][path]["get"]["responses"]["404"]
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(document))
    options = ["--phases", "examples", "--include-path", path, "--include-method", "GET"]
    found = schemathesis(server, tmp_path, *options, document=str(file))
    assert "Undocumented" in found


def test_bodies_that_are_too_large_are_answered(server: Server) -> None:
    """Hanging up on a client that still sends would take the answer away from it."""
    headers = {"Content-Type": "application/json"}
    for path in ("/v1/jobs", "/v1/solve"):
        for size in (300_001, 1_000_000) * 5:
            answer = server.client.post(path, content=b" " * size, headers=headers)
            assert answer.status_code == 413
