"""What tests and benchmarks of a troubled service share: its promises, and what came of them."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil
from service_process import Server

import upscale_opt as uo

FINAL = ("done", "failed", "cancelled")


@functools.cache
def _solved(problem: str) -> dict[str, Any]:
    asked = json.loads(problem)
    options = {"solver": "cp-sat", "objective": "copied_channels", **asked.get("options", {})}
    solution = uo.solve(
        uo.ChannelGraph.model_validate(asked["graph"]),
        uo.Masks.model_validate(asked["masks"]),
        **options,
    )
    return solution.model_dump(exclude={"times"})


def here(problem: Mapping[str, Any]) -> dict[str, Any]:
    """The solution that solving in this process gives, without the times."""
    return _solved(json.dumps(problem, sort_keys=True))


def same(text: str | bytes, problem: Mapping[str, Any]) -> bool:
    """Whether the JSON is the solution that solving in this process gives."""
    there = uo.Solution.from_json(text)
    return there.model_dump(exclude={"times"}) == here(problem)


def sound(text: str | bytes, problem: Mapping[str, Any]) -> bool:
    """Whether the JSON is a solution that is right, if not the same: time ran out."""
    graph = uo.ChannelGraph.model_validate(problem["graph"])
    with contextlib.suppress(uo.VerificationError):
        uo.check(uo.Solution.from_json(text), graph, uo.Masks.model_validate(problem["masks"]))
        return True
    return False


def happened(client: httpx.Client, event: str) -> int:
    """How often something happened to jobs, as the metrics say."""
    name = f'upscale_opt_job_events_total{{event="{event}"}}'
    found = re.search(f"^{re.escape(name)} (.*)$", client.get("/metrics").text, re.MULTILINE)
    return int(float(found[1])) if found else 0


class _Watch(threading.Thread):
    """Reads the events of a job to the last one; when the line breaks, reads on."""

    def __init__(self, server: Server, id: str) -> None:
        super().__init__(daemon=True)
        self._server, self._id = server, id
        self.given_up = threading.Event()
        self.ends: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self.start()

    def run(self) -> None:
        while not self.ends and not self.given_up.is_set():
            with contextlib.suppress(httpx.TransportError):
                self._read()
            time.sleep(0.1)

    def _read(self) -> None:
        kind = ""
        path = f"{self._server.url}/v1/jobs/{self._id}/events"
        with httpx.stream("GET", path, timeout=20) as lines:
            if lines.status_code not in (200, 503):
                self.errors.append(f"status {lines.status_code}")
            for line in lines.iter_lines() if lines.status_code == 200 else ():
                if line.startswith("event: "):
                    kind = line[7:]
                elif line.startswith("data: ") and kind == "end":
                    self.ends.append(json.loads(line[6:]))
                elif line.startswith("data: ") and kind == "error":
                    self.errors.append(line)


class Promises:
    """Every job that a service accepted; somebody reads the events of each.

    Args:
        server: the service; it may be killed and started again.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self._jobs: dict[str, tuple[Mapping[str, Any], _Watch, bool]] = {}

    def submit(self, problem: Mapping[str, Any], *, exact: bool = True) -> str:
        """The id of a new job; ``exact`` if its solution does not depend on the time it has."""
        id = self.server.submit(problem)
        self._jobs[id] = (problem, _Watch(self.server, id), exact)
        return id

    def __len__(self) -> int:
        return len(self._jobs)

    def broken(self, seconds: float = 60.0, *, done: int | None = None) -> list[str]:
        """Wait until all jobs have ended, and name everything that is not as promised.

        Args:
            seconds: to wait, all in all.
            done: how many of the jobs have to be done; all if not given.
        """
        found = []
        deadline = time.monotonic() + seconds
        for _, watch, _ in self._jobs.values():
            watch.join(max(0.0, deadline - time.monotonic()))
            watch.given_up.set()
        states = dict.fromkeys(FINAL, 0)
        failed = []
        for id, (problem, watch, exact) in self._jobs.items():
            name = id[:8]
            job = self.server.job(id)
            found += [f"{name}: {error}" for error in watch.errors]
            if job["state"] not in FINAL:
                found.append(f"{name}: {job['state']} after {seconds} s")
                continue
            states[job["state"]] += 1
            told = [(end["state"], end["finished"]) for end in watch.ends]
            if told != [(job["state"], job["finished"])]:
                found.append(f"{name}: told as {told}, but is {job['state']}, {job['finished']}")
            if job["state"] == "failed":
                failed.append(f"{problem.get('options')}: {job.get('error')}")
            if job["state"] == "done":
                text = self.server.client.get(job["links"]["solution"]).text
                if not (same if exact else sound)(text, problem):
                    found.append(f"{name}: another solution than in this process")
        counted = {state: happened(self.server.client, state) for state in FINAL}
        if counted != states:
            found.append(f"ends counted by the service: {counted}; there are: {states}")
        if states["done"] != (len(self) if done is None else done):
            found.append(f"not all done: {states}; {'; '.join(failed)}")
        return found


class SmallDisk:
    """A folder on a disk that can be made full.

    Root gets a disk in memory of one megabyte. For others no file may grow beyond a kilobyte, by a
    limit of the service's processes.

    Args:
        folder: where; made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"
        self._limited: list[psutil.Process] = []

    def __enter__(self) -> SmallDisk:
        self.folder.mkdir(parents=True)
        mount = shutil.which("mount")
        command = [str(mount), "-t", "tmpfs", "-o", "size=1m", "none", str(self.folder)]
        self.real = bool(mount) and not subprocess.run(command, capture_output=True).returncode
        return self

    def __exit__(self, *error: object) -> None:
        if self.real:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def fill(self, server: Server) -> None:
        """From now on, the service can write nothing."""
        if self.real:
            with contextlib.suppress(OSError), open(self._filler, "wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            return
        self._limited = [psutil.Process(server.process.pid), *server.workers()]
        for process in self._limited:
            process.rlimit(psutil.RLIMIT_FSIZE, (1024, psutil.RLIM_INFINITY))

    def free(self) -> None:
        """There is room again."""
        if self.real:
            self._filler.unlink()
        for process in self._limited:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))


@contextlib.contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Seconds since the beginning, and when it is over, to its end."""
    start = time.monotonic()
    end: list[float] = []
    yield lambda: (end[0] if end else time.monotonic()) - start
    end.append(time.monotonic())
