"""A service in a process of its own, and a Redis server, for tests."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil
import pytest

SERVICE = [sys.executable, "-m", "upscale_opt.cli"]


def eventually(what: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The first true answer, within the time."""
    deadline = time.monotonic() + seconds
    while True:
        answer = what()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def alive(process: psutil.Process) -> bool:
    """Whether it runs; one that has ended may be left in the table of processes for a while."""
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Server:
    """``upscale-opt serve`` as a process.

    Args:
        folder: its data.
        workers: that it starts.
        queue: a Redis URL, or None for SQLite.
        settings: any other.
        arguments: more of the command line.
        prefix: a command to run it by.
    """

    def __init__(
        self,
        folder: Path,
        workers: int = 1,
        queue: str | None = None,
        settings: Mapping[str, object] | None = None,
        arguments: tuple[str, ...] = (),
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        command = [*prefix, *SERVICE, "serve", "--port", "0", "--data", str(folder)]
        command += ["--workers", str(workers), *arguments]
        command += ["--queue", queue] if queue is not None else []
        for name, value in (settings or {}).items():
            command += ["--set", f"{name}={value}"]
        self._command = command
        self.log = folder.parent / f"{folder.name}.log"

    def __enter__(self) -> Server:
        self.start()
        return self

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=log)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().decode().strip()
        assert self.url.startswith("http://"), self.log.read_text()
        self.client = httpx.Client(base_url=self.url, timeout=60)
        self.client.get("/healthz")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.client.close()
        self.process.terminate()
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def kill(self) -> None:
        """SIGKILL."""
        self.client.close()
        self.process.kill()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def children(self, module: str) -> list[psutil.Process]:
        """The processes below it that run a module of the service."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if f"upscale_opt.service.{module}" in child.cmdline():
                    found.append(child)
        return found

    def workers(self) -> list[psutil.Process]:
        """Its workers."""
        return self.children("worker")

    def solvers(self) -> list[psutil.Process]:
        """The processes in which its workers solve."""
        return [c for w in self.workers() for c in w.children()]

    def job(self, id: str) -> dict[str, Any]:
        """What it says of a job."""
        answer = self.client.get(f"/v1/jobs/{id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def submit(self, problem: Mapping[str, Any]) -> str:
        """The id of a new job."""
        answer = self.client.post("/v1/jobs", json=problem)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def state(self, id: str, *states: str, seconds: float = 30.0) -> dict[str, Any]:
        """The job as soon as it is in one of the states."""

        def found() -> Any:
            job = self.job(id)
            return job if job["state"] in states else None

        job: dict[str, Any] = eventually(found, seconds)
        return job


def events_of(client: httpx.Client, id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of a job, to the last one."""
    kind = ""
    with client.stream("GET", f"/v1/jobs/{id}/events") as lines:
        assert lines.status_code == 200
        for line in lines.iter_lines():
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: "):
                yield kind, json.loads(line[6:])


def readers(count: int, channels: int, seed: int = 0) -> dict[str, Any]:
    """A problem: so many layers that read one tensor, each some of its channels by chance.

    With twenty it takes no time; with seventy, nobody finishes it.
    """
    draw = random.Random(seed)

    def tensor(ids: str, number: int) -> dict[str, Any]:
        return {"shape": [1, number, 4, 4], "dtype": "float32", "axis": 1, "channels": ids}

    def layer(name: str, source: str) -> dict[str, Any]:
        ends = {"inputs": [source], "outputs": [name]}
        axes = {"weight": f"{name}.weight", "in_axis": 1, "out_axis": 0}
        return {"kind": "layer", "name": name, **ends, **axes}

    names = [f"reader{number}" for number in range(count)]
    first = 3 + channels
    spaces: list[dict[str, Any]] = [{"channels": "0-2", "fixed": "network input"}]
    spaces.append({"channels": f"3-{first - 1}"})
    spaces += [{"channels": str(first + n), "fixed": "network output"} for n in range(count)]
    example = {"kind": "tensor", "shape": [1, 3, 4, 4], "dtype": "float32"}
    graph = {
        "schema_version": 1,
        "capture": "fx",
        "example": {"kind": "tuple", "items": [example]},
        "parameters": {
            "stem.weight": [channels, 3, 1, 1],
            **{f"{name}.weight": [1, channels, 1, 1] for name in names},
        },
        "spaces": spaces,
        "tensors": {
            "x": tensor("0-2", 3),
            "stem": tensor(f"3-{first - 1}", channels),
            **{name: tensor(str(first + n), 1) for n, name in enumerate(names)},
        },
        "operations": [
            {"kind": "input", "name": "x", "outputs": ["x"]},
            layer("stem", "x"),
            *(layer(name, "stem") for name in names),
            {"kind": "output", "name": "output", "inputs": names},
        ],
    }
    most = min(14, channels)
    kept = {
        f"{name}.weight": {
            "1": ",".join(map(str, sorted(draw.sample(range(channels), draw.randint(2, most)))))
        }
        for name in names
    }
    return {"graph": graph, "masks": {"schema_version": 1, "kept": kept}}


def small(seed: int = 0) -> dict[str, Any]:
    """A problem that takes no time."""
    return readers(3, 8, seed)


def hard(seconds: float, seed: int = 0) -> dict[str, Any]:
    """A problem that takes all the time it may."""
    return {**readers(70, 60, seed), "options": {"time_limit": seconds}}


class Redis:
    """A Redis server that writes an append-only file, on a port of its own."""

    def __init__(self, folder: Path) -> None:
        self._program = shutil.which("redis-server")
        if self._program is None:
            if os.environ.get("UPSCALE_OPT_ALL_TESTS") == "1":
                pytest.fail("redis-server is not installed")
            pytest.skip("redis-server is not installed")
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Redis:
        self.start()
        return self

    def start(self) -> None:
        import redis

        assert self._program is not None
        options = f"--port {self.port} --bind 127.0.0.1 --appendonly yes --save".split()
        self.process = subprocess.Popen(
            [self._program, *options, "", "--dir", str(self._folder)],
            stdout=subprocess.DEVNULL,
        )
        client = redis.Redis(port=self.port)

        def up() -> bool:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

        eventually(up)
        client.close()

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(30)

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.stop()
