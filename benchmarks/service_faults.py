"""Kill workers and services, fill disks, spoil files, stop Redis: no accepted job may be lost.

python benchmarks/service_faults.py --page docs/service-tests.md
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pages
import psutil
from service_process import SERVICE, Redis, Server, alive, eventually, hard, readers, small
from service_promises import Promises, SmallDisk, stopwatch


@dataclass(frozen=True)
class Pace:
    """How long things take.

    Attributes:
        outage: seconds that Redis is gone.
        limits: time limits to be kept.
        slack: seconds to be forgiven where seconds are measured.
        settings: of the service.
    """

    outage: float = 60.0
    limits: tuple[float, ...] = (1.0, 3.0, 10.0)
    slack: float = 0.0
    settings: dict[str, object] = field(default_factory=dict)


@dataclass
class Outcome:
    """What came of a fault: how many jobs there were, what was seen, and what is wrong."""

    jobs: int
    seen: str
    wrong: list[str]


def long(seed: int = 1) -> dict[str, Any]:
    """A problem of some seconds, whose optimum is found in any case."""
    return {**readers(30, 60, seed), "options": {"time_limit": 300.0, "seed": seed}}


def serve(folder: Path, pace: Pace, **given: Any) -> Server:
    """A service with one worker."""
    settings = {"solve_processes": 1, "heartbeat": 1.0, **pace.settings}
    return Server(folder / "data", **{"workers": 1, "settings": settings, **given})


def begun(server: Server, id: str) -> dict[str, Any]:
    """The job, as soon as its solver has worked on it for a moment."""
    job = server.state(id, "running", "done", "failed", seconds=60)
    time.sleep(0.3)
    return job


def worker_killed(folder: Path, pace: Pace) -> Outcome:
    """`kill -9` of the worker in the middle of a solve, then of the process that solves for it."""
    with serve(folder, pace) as server:
        jobs = Promises(server)
        id = jobs.submit(long())
        begun(server, id)
        for seed in range(3):
            jobs.submit(small(seed))
        solvers = server.solvers()
        server.workers()[0].kill()
        with stopwatch() as seconds:
            eventually(lambda: not any(map(alive, solvers)), 10)
        eventually(lambda: server.job(id)["attempt"] == 2 and server.solvers(), 60)
        begun(server, id)
        server.solvers()[0].kill()
        wrong = jobs.broken(120)
        attempts = server.job(id)["attempt"]
        wrong += [f"{attempts} attempts, not 3"] if attempts != 3 else []
    return Outcome(len(jobs), f"its solver gone after {seconds():.1f} s; 3 attempts", wrong)


def service_killed(folder: Path, pace: Pace) -> Outcome:
    """`kill -9` of the service with a job running and others queued; then SIGTERM; both started."""
    with serve(folder, pace) as server:
        jobs = Promises(server)
        id = jobs.submit(long())
        first = begun(server, id)["started"]
        for seed in range(4):
            jobs.submit(small(seed))
        below = psutil.Process(server.process.pid).children(recursive=True)
        server.kill()
        with stopwatch() as seconds:
            eventually(lambda: not any(map(alive, below)), 10)
        server.start()
        eventually(lambda: (server.job(id)["started"] or first) > first, 60)
        begun(server, id)
        code = server.stop()
        server.start()
        wrong = jobs.broken(120)
    wrong += [f"exit code {code} after SIGTERM"] if code else []
    return Outcome(len(jobs), f"its processes gone after {seconds():.1f} s", wrong)


def disk_full(folder: Path, pace: Pace) -> Outcome:
    """No room on the disk while a job runs and ends, and others are handed in."""
    with SmallDisk(folder / "disk") as disk, serve(disk.folder, pace) as server:
        jobs = Promises(server)
        id = jobs.submit(long())
        begun(server, id)
        for seed in range(2):
            jobs.submit(small(seed))
        disk.fill(server)
        wrong = []
        answers = [server.client.post("/v1/jobs", json=readers(40, 60, n)) for n in range(5)]
        for answer in answers:
            if answer.status_code != 503 or "retry-after" not in answer.headers:
                wrong.append(f"with a full disk: {answer.status_code}, {answer.text[:100]}")
        answer = server.client.post("/v1/solve", json=small())
        wrong += [] if answer.status_code == 200 else [f"POST /v1/solve: {answer.text[:100]}"]
        state = server.job(id)["state"]
        time.sleep(4)  # the solver is done, and nobody can be told
        disk.free()
        jobs.submit(small(7))
        wrong += jobs.broken(120)
    kind = "tmpfs of 1 MB" if disk.real else "limit of file sizes"
    return Outcome(len(jobs), f"{kind}; 5 jobs refused (503); {state} meanwhile", wrong)


def queue_spoilt(folder: Path, pace: Pace) -> Outcome:
    """Rubbish in the queue's file, under a running service, and again while it is down."""
    with serve(folder, pace) as server:
        path = server.folder / "queue.sqlite3"

        def spoil() -> None:
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            path.write_bytes(b"this is no database" * 1000)

        jobs = Promises(server)
        begun(server, jobs.submit(long()))
        for seed in range(3):
            jobs.submit(small(seed))
        spoil()
        for seed in range(3, 5):
            jobs.submit(small(seed))
        server.kill()
        spoil()
        server.start()
        wrong = jobs.broken(120)
    aside = len(list(server.folder.glob(f"{path.name}.corrupt-*")))
    wrong += ["no file was put aside"] if not aside else []
    return Outcome(len(jobs), f"{aside} files put aside", wrong)


def redis_gone(folder: Path, pace: Pace) -> Outcome:
    """Redis killed while jobs run and wait, on a worker here and one elsewhere."""
    with Redis(folder / "redis") as redis, serve(folder, pace, queue=redis.url) as server:
        options = [f"{name}={value}" for name, value in pace.settings.items()]
        command = [*SERVICE, "worker", "--queue", redis.url]
        command += [word for option in options for word in ("--set", option)]
        with open(folder / "worker.log", "wb") as log:
            elsewhere = subprocess.Popen(command, stderr=log)
        try:
            eventually(lambda: server.client.get("/healthz").json()["workers"] == 2)
            jobs = Promises(server)
            for id in [jobs.submit(long(seed)) for seed in (1, 3)]:
                begun(server, id)
            for seed in range(3):
                jobs.submit(small(seed))
            redis.stop(signal.SIGKILL)
            wrong = []
            with stopwatch() as seconds:
                while seconds() < pace.outage:
                    for path, status in (("/healthz", 503), ("/v1/jobs", 503), ("/v1/solve", 200)):
                        client = server.client
                        if path.startswith("/v1"):
                            answer = client.post(path, json=small(9))
                        else:
                            answer = client.get(path)
                        if answer.status_code != status:
                            wrong.append(f"{path} without Redis: {answer.status_code}")
                    time.sleep(0.5)
            redis.start()
            with stopwatch() as back:
                eventually(lambda: server.client.get("/healthz").status_code == 200, 30)
            jobs.submit(small(9))
            wrong += jobs.broken(120)
        finally:
            elsewhere.terminate()
            code = elsewhere.wait(30)
        wrong += [f"exit code {code} of the worker elsewhere"] if code else []
    return Outcome(len(jobs), f"gone for {seconds():.0f} s; well {back():.1f} s after", wrong)


def cancelled(folder: Path, pace: Pace) -> Outcome:
    """Cancelling a running solve and a waiting job; the next job is solved."""
    with serve(folder, pace) as server:
        jobs = Promises(server)
        id = jobs.submit(hard(60))
        eventually(lambda: server.job(id)["value"] is not None)
        waits = jobs.submit(hard(60, seed=1))
        solvers = server.solvers()
        wrong = [] if solvers else ["nobody solves"]
        with stopwatch() as seconds:
            for number in (waits, id):
                state = server.client.post(f"/v1/jobs/{number}/cancel").json()["state"]
                wrong += [f"{state} after cancelling"] if state != "cancelled" else []
            while any(map(alive, solvers)) and seconds() < 30:
                time.sleep(0.01)
        jobs.submit(small())
        wrong += jobs.broken(done=1)
        wrong += ["the waiting job was begun"] if server.job(waits)["attempt"] else []
    wrong += [f"stopped after {seconds():.1f} s"] if seconds() > 1 + pace.slack else []
    return Outcome(len(jobs), f"process gone after {seconds():.2f} s (1 s allowed)", wrong)


def time_limits(folder: Path, pace: Pace) -> Outcome:
    """Problems that nobody finishes: all come back in time, and with a sound solution."""
    wrong, worst = [], 0.0
    with serve(folder, pace) as server:
        jobs = Promises(server)
        for limit in pace.limits:
            for solver in ("cp-sat", "pulp", "local-search"):
                options = {"time_limit": limit, "solver": solver}
                problem = {**hard(limit, seed=2), "options": options}
                job = server.state(jobs.submit(problem, exact=False), "done", "failed")
                over = job["finished"] - job["started"] - limit
                worst = max(worst, over)
                if over > 0.1 * limit + 1 + pace.slack:
                    wrong.append(f"{solver}, {limit} s: {over:.2f} s too long")
        with stopwatch() as seconds:
            limit = pace.limits[0]
            answer = server.client.post("/v1/solve", json=hard(limit, seed=3))
        wrong += [] if answer.status_code == 200 else [f"POST /v1/solve: {answer.text[:200]}"]
        wrong += ["POST /v1/solve was late"] if seconds() > 1.1 * limit + 1 + pace.slack else []
        wrong += jobs.broken()
    seen = f"limits of {', '.join(f'{limit:g}' for limit in pace.limits)} s, three solvers: "
    return Outcome(len(jobs), f"{seen}at most {worst:.2f} s over (10 % + 1 s allowed)", wrong)


FAULTS: dict[str, Callable[[Path, Pace], Outcome]] = {
    "worker killed": worker_killed,
    "service killed": service_killed,
    "disk full": disk_full,
    "queue's file spoilt": queue_spoilt,
    "Redis gone": redis_gone,
    "cancelled": cancelled,
    "time limits": time_limits,
}


def main() -> int:
    """Print a table, and write it to the page; 1 if anything is wrong."""
    parser = pages.parser(__doc__)
    parser.add_argument("--page", type=Path, help="a page with a section for the table")
    parser.add_argument("--outage", type=float, default=60.0, help="seconds without Redis")
    parser.add_argument("--only", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    options = parser.parse_args()
    pace = Pace(outage=options.outage)
    rows, failures = [], []
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder, stopwatch() as seconds:
            outcome = FAULTS[name](Path(folder), pace)
        verdict = "; ".join(outcome.wrong) or "kept"
        failures += outcome.wrong
        rows.append(f"| {name} | {outcome.jobs} | {outcome.seen} | {seconds():.0f} | {verdict} |")
        pages.say(rows[-1])
    lines = [
        "| fault | jobs | seen | seconds | promises |",
        "| --- | --- | --- | --- | --- |",
        *rows,
        "",
        f"Written by `{pages.command()}` on {os.cpu_count()} cores.",
    ]
    pages.publish(lines, options.out)
    if options.page is not None:
        pages.replace_section(options.page, "faults", lines)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
