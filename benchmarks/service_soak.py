"""Many mixed requests from many clients: no 5xx, no leak, the solutions of this process.

python benchmarks/service_soak.py --requests 2000 --clients 16 --page docs/service-tests.md
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pages
import psutil
from service_process import Server, events_of, hard, readers
from service_promises import FINAL, happened, same, sound, stopwatch

SETTINGS: dict[str, object] = {"max_body_bytes": 300_000, "solve_max_channels": 1000}
"""Of the service; small enough to be tried often."""

MALFORMED = [
    b"",
    b"{",
    b"[]",
    b'{"graph": 1, "masks": {}}',
    b"[" * 50_000,
    b'{"graph": NaN}',
    b'{"graph": {"schema_version": 1%s}}' % (b"0" * 5000),
    b'{"graph": "\xff"}',
    b'{"graph": {}, "masks": {}, "options": {"solver": "magic"}}',
]

ALLOWED = (0.10, 20 * 2**20)
"""Share and bytes by which memory may grow between the first third and the end."""

SPARE = 10
"""Open files and threads by which a process may differ."""


class Soak:
    """Requests by their number, and what came of them.

    Args:
        server: the service.
        slow: how many of the requests that take long there are, as a share of the usual number.
        seed: of all choices.
    """

    def __init__(self, server: Server, slow: float = 1.0, seed: int = 0) -> None:
        self.server = server
        self.actions: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.solutions: list[tuple[str, dict[str, Any], bool]] = []
        self.jobs: dict[str, str] = {}
        self._seed = seed
        self._lock = threading.Lock()
        self._local = threading.local()
        self._opened: list[httpx.Client] = []
        self._kinds: list[tuple[float, Callable[[httpx.Client, random.Random], None]]] = [
            (30, self._solve),
            (16, self._job),
            (8, self._twice),
            (5 * slow, self._long),
            (7 * slow, self._cancel),
            (14, self._malformed),
            (6, self._oversized),
            (5 * slow, self._reader_leaves),
            (2 * slow, self._client_leaves),
            (7, self._look),
        ]

    def run(self, numbers: range, clients: int) -> None:
        """The requests with these numbers, from so many clients; returns when all is answered."""

        def one(number: int) -> None:
            rng = random.Random(f"{self._seed}:{number}")
            weights = [weight for weight, _ in self._kinds]
            ((_, action),) = rng.choices(self._kinds, weights)
            name = action.__name__.strip("_").replace("_", " ")
            with self._lock:
                self.actions[name] += 1
            try:
                action(self._client(), rng)
            except Exception as error:
                self._complain(f"{name} {number}: {type(error).__name__}: {error}")

        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(one, numbers))
        for client in self._opened:
            client.close()
        self._opened.clear()

    def _client(self) -> httpx.Client:
        client: httpx.Client | None = getattr(self._local, "client", None)
        if client is None or client.is_closed:
            hooks = {"response": [self._note]}
            client = httpx.Client(base_url=self.server.url, timeout=120, event_hooks=hooks)
            self._local.client = client
            with self._lock:
                self._opened.append(client)
        return client

    def _note(self, answer: httpx.Response) -> None:
        with self._lock:
            self.statuses[answer.status_code] += 1

    def _complain(self, what: str) -> None:
        with self._lock:
            self.wrong.append(what[:300])

    def _expect(self, answer: httpx.Response, *statuses: int) -> Any:
        if answer.status_code not in statuses:
            raise AssertionError(f"{answer.request.url}: {answer.status_code} {answer.text[:150]}")
        if answer.headers.get("content-type") != "application/json":
            return None
        body = answer.json()
        if answer.status_code >= 400 and set(body) != {"error"}:
            raise AssertionError(f"an error of another form: {answer.text[:150]}")
        return body

    def _small(self, rng: random.Random) -> dict[str, Any]:
        number = rng.randrange(40)
        problem = readers(3 + number % 9, 8 + number % 17, number)
        solver = rng.choice(["cp-sat", "cp-sat", "greedy", "identity"])
        objective = rng.choice(["copied_channels", "gathers"])
        options = {"solver": solver, "objective": objective, "seed": rng.randrange(6)}
        return {**problem, "options": options}

    def _solved(self, text: str, problem: dict[str, Any], exact: bool = True) -> None:
        with self._lock:
            self.solutions.append((text, problem, exact))

    def _submit(self, client: httpx.Client, problem: dict[str, Any]) -> str:
        id = str(self._expect(client.post("/v1/jobs", json=problem), 202)["id"])
        with self._lock:
            self.jobs.setdefault(id, "")
        return id

    def _end(self, client: httpx.Client, rng: random.Random, id: str) -> dict[str, Any]:
        """The job when it has ended: told by events, or asked for."""
        if rng.random() < 0.5:
            told = [job for kind, job in events_of(client, id) if kind == "end"]
            assert len(told) == 1, f"{len(told)} ends of {id}"
        while True:
            job = self._expect(client.get(f"/v1/jobs/{id}"), 200)
            if job["state"] in FINAL:
                break
            time.sleep(0.2)
        with self._lock:
            before = self.jobs[id] or job["state"]
            self.jobs[id] = job["state"]
        assert before == job["state"], f"{id} was {before}, and is {job['state']}"
        return dict(job)

    def _solve(self, client: httpx.Client, rng: random.Random) -> None:
        problem = self._small(rng)
        answer = client.post("/v1/solve", json=problem)
        self._expect(answer, 200)
        self._solved(answer.text, problem)

    def _job(self, client: httpx.Client, rng: random.Random) -> None:
        problem = self._small(rng)
        id = self._submit(client, problem)
        job = self._end(client, rng, id)
        assert job["state"] == "done", job["error"]
        self._solved(json.dumps(job["result"]), problem)

    def _twice(self, client: httpx.Client, rng: random.Random) -> None:
        problem = self._small(rng)
        first = self._submit(client, problem)
        job = self._end(client, rng, first)
        answer = self._expect(client.post("/v1/jobs", json=problem), 202)
        assert (answer["id"], answer["state"]) == (first, "done"), answer
        assert answer["finished"] == job["finished"], "solved again"

    def _hard(self, rng: random.Random, seconds: float) -> dict[str, Any]:
        problem: dict[str, Any] = hard(seconds, seed=rng.randrange(10**9))
        return problem

    def _long(self, client: httpx.Client, rng: random.Random) -> None:
        problem = self._hard(rng, 1.5)
        job = self._end(client, rng, self._submit(client, problem))
        assert job["state"] == "done", job["error"]
        self._solved(json.dumps(job["result"]), problem, exact=False)

    def _stop(self, client: httpx.Client, rng: random.Random, id: str) -> None:
        answer = client.post(f"/v1/jobs/{id}/cancel")
        assert self._expect(answer, 200)["state"] == "cancelled", answer.text
        assert self._end(client, rng, id)["state"] == "cancelled"

    def _cancel(self, client: httpx.Client, rng: random.Random) -> None:
        id = self._submit(client, self._hard(rng, 60))
        time.sleep(rng.random())
        self._stop(client, rng, id)

    def _malformed(self, client: httpx.Client, rng: random.Random) -> None:
        path = rng.choice(["/v1/solve", "/v1/jobs"])
        body = rng.choice([*MALFORMED, None, b"cut"])
        headers = {"Content-Type": "application/json"}
        if body is None:
            self._expect(client.post(path, content=b"{}", headers={"Content-Type": "x/y"}), 415)
        elif body == b"cut":
            url = httpx.URL(self.server.url)
            with socket.create_connection((url.host, url.port or 80), 20) as line:
                head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                line.sendall(head.encode() + b'Content-Length: 1000\r\n\r\n{"graph":')
        else:
            self._expect(client.post(path, content=body, headers=headers), 422)

    def _oversized(self, client: httpx.Client, rng: random.Random) -> None:
        if rng.random() < 0.5:
            headers = {"Content-Type": "application/json"}
            body = b" " * 300_001
            pieces = (body[i : i + 20_000] for i in range(0, len(body), 20_000))
            content = body if rng.random() < 0.5 else pieces  # without a length
            self._expect(client.post("/v1/jobs", content=content, headers=headers), 413)
            return
        self._expect(client.post("/v1/solve", json=readers(3, 1100)), 413)

    def _reader_leaves(self, client: httpx.Client, rng: random.Random) -> None:
        id = self._submit(client, self._hard(rng, 60))
        with client.stream("GET", f"/v1/jobs/{id}/events") as lines:
            assert lines.status_code == 200
            for line in lines.iter_lines():
                if line.startswith("data"):
                    break
        self._stop(client, rng, id)

    def _client_leaves(self, client: httpx.Client, rng: random.Random) -> None:
        with contextlib.suppress(httpx.ReadTimeout):
            client.post("/v1/solve", json=self._hard(rng, 8), timeout=0.5)

    def _look(self, client: httpx.Client, rng: random.Random) -> None:
        known = rng.choice(sorted(self.jobs) or ["0" * 64])
        paths: list[tuple[str, tuple[int, ...]]] = [
            ("/healthz", (200,)),
            ("/metrics", (200,)),
            ("/v1/solvers", (200,)),
            ("/openapi.json", (200,)),
            (f"/v1/jobs/{'0' * 64}", (404,)),
            ("/v1/jobs/..%2f..%2fetc", (404,)),
            (f"/v1/jobs/{known}/report", (200, 404, 409)),
            (f"/v1/jobs/{known}/solution", (200, 404, 409)),
        ]
        path, statuses = rng.choice(paths)
        self._expect(client.get(path), *statuses)


Sample = dict[str, tuple[int, int, int]]
"""Memory, open files and threads, by process."""


def sample(server: Server) -> Sample:
    """Look at the service and its workers."""
    processes = {"service": psutil.Process(server.process.pid)}
    for number, worker in enumerate(sorted(server.workers(), key=lambda worker: worker.pid), 1):
        processes[f"worker {number} ({worker.pid})"] = worker
    return {
        name: (process.memory_info().rss, process.num_fds(), process.num_threads())
        for name, process in processes.items()
    }


def grown(first: Sample, last: Sample) -> list[str]:
    """What is not flat between two samples."""
    if first.keys() != last.keys():
        return [f"other processes: {', '.join(first)}; {', '.join(last)}"]
    found = []
    for name, (memory, files, threads) in first.items():
        now = last[name]
        if now[0] > memory * (1 + ALLOWED[0]) + ALLOWED[1]:
            found.append(f"{name}: memory grew from {memory >> 20} to {now[0] >> 20} MB")
        if now[1] > files + SPARE or now[2] > threads + SPARE:
            found.append(f"{name}: open files and threads: {files}, {threads}; then {now[1:]}")
    return found


def settled(server: Server) -> Sample:
    """A sample when nobody asks for anything, and all streams and solves have ended."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        health = server.client.get("/healthz").json()
        if not health["queued"] and not health["running"]:
            break
        time.sleep(0.2)
    time.sleep(1.0)
    return sample(server)


def soak(
    folder: Path, requests: int, clients: int, workers: int, slow: float = 1.0
) -> tuple[list[str], list[str]]:
    """The lines of a table, and all that is wrong."""
    with Server(folder / "data", workers=workers, settings=SETTINGS) as server:
        run = Soak(server, slow)
        samples = []
        with stopwatch() as seconds:
            for third in range(3):
                numbers = range(requests * third // 3, requests * (third + 1) // 3)
                run.run(numbers, clients)
                samples.append(settled(server))
                pages.say(f"{numbers.stop} requests after {seconds():.0f} s")
        ends = {state: happened(server.client, state) for state in FINAL}
        crashes = server.log.read_text().count("Traceback")
    wrong = run.wrong + grown(samples[0], samples[-1])
    wrong += [f"{n} times {status}" for status, n in run.statuses.items() if status >= 500]
    states = Counter(run.jobs.values())
    if ends != {state: states[state] for state in FINAL}:
        wrong.append(f"ends counted by the service: {ends}; there are: {dict(states)}")
    wrong += [f"{crashes} tracebacks in the log"] if crashes else []
    differing = sum(
        not (same if exact else sound)(text, problem) for text, problem, exact in run.solutions
    )
    wrong += [f"{differing} solutions are not those of this process"] if differing else []
    return [*_summary(run, seconds(), differing), "", *_memory(samples)], wrong


def _summary(run: Soak, seconds: float, differing: int) -> list[str]:
    def listed(counts: Counter[Any]) -> str:
        return ", ".join(f"{n:,} × {name}" for name, n in sorted(counts.items(), key=str))

    exact = sum(exact for _, _, exact in run.solutions)
    return [
        "| | |",
        "| --- | --- |",
        f"| requests by kind | {listed(run.actions)} |",
        f"| HTTP answers by status | {listed(run.statuses)} |",
        f"| jobs by state | {listed(Counter(run.jobs.values()))} |",
        f"| solutions compared with `solve` in this process | {exact:,} |",
        f"| solutions of hard problems checked | {len(run.solutions) - exact:,} |",
        f"| of both, wrong | {differing} |",
        f"| seconds | {seconds:.0f} |",
    ]


def _memory(samples: list[Sample]) -> list[str]:
    lines = [
        "| process | memory after a third, two thirds, at the end | open files | threads |",
        "| --- | --- | --- | --- |",
    ]
    for name in samples[0]:
        found = [sample.get(name, (0, 0, 0)) for sample in samples]
        memory, files, threads = zip(*found, strict=True)
        megabytes = ", ".join(f"{size / 2**20:.0f}" for size in memory)
        cells = [f"{megabytes} MB", *(", ".join(map(str, row)) for row in (files, threads))]
        lines.append(f"| {name.partition(' (')[0]} | {' | '.join(cells)} |")
    return lines


def main() -> int:
    """Print a table, and write it to the page; 1 if anything is wrong."""
    parser = pages.parser(__doc__)
    parser.add_argument("--page", type=Path, help="a page with a section for the table")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines, wrong = soak(Path(folder), options.requests, options.clients, options.workers)
    lines += ["", f"Wrong: {'; '.join(wrong[:10]) or 'nothing'}.", ""]
    lines += [f"Written by `{pages.command()}` on {os.cpu_count()} cores."]
    pages.publish(lines, options.out)
    if options.page is not None:
        pages.replace_section(options.page, "soak", lines)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
