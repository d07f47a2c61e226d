"""How long `POST /v1/solve` takes, and many small problems at once.

python benchmarks/service_latency.py --page docs/service-tests.md
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pages
import psutil
from service_process import Server, readers
from service_promises import here, same, stopwatch

import upscale_opt as uo
from upscale_opt.models import catalogue

BAR = 1.0
"""Seconds that a solve of ResNet-50's graph may take, by HTTP."""


def network(name: str) -> dict[str, Any]:
    """A problem: a network with half of its input channels dropped."""
    model, inputs = catalogue.build(name), catalogue.example_inputs(name)
    graph = uo.trace(model, inputs)
    masks = uo.choose_masks(model, graph, 0.5)
    texts = {"graph": graph.to_json(), "masks": masks.to_json()}
    return {part: json.loads(text) for part, text in texts.items()}


def timed(ask: Callable[[], httpx.Response]) -> tuple[httpx.Response, float]:
    """An answer, and the seconds that it took."""
    with stopwatch() as seconds:
        answer = ask()
    return answer, seconds()


def used(server: Server) -> float:
    """Seconds that the service's processes have computed for, which others do not disturb."""
    service = psutil.Process(server.process.pid)
    times = [process.cpu_times() for process in [service, *service.children(recursive=True)]]
    return float(sum(time.user + time.system for time in times))


def row(what: str, seconds: list[float], computed: float, bad: int) -> str:
    """A row of the table."""
    ordered = sorted(seconds)
    late = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    middle = statistics.median(ordered)
    values = (ordered[0], middle, late, ordered[-1], computed / len(ordered))
    cells = [f"{value * 1000:,.0f}" for value in values]
    return f"| {what} | {len(ordered)} | {' | '.join(cells)} | {bad} |"


def single(server: Server, name: str, repeats: int) -> tuple[str, list[str]]:
    """One network's problem again and again: a row, and what is wrong."""
    problem = network(name)
    here(problem)
    before = used(server)
    found = [timed(lambda: server.client.post("/v1/solve", json=problem)) for _ in range(repeats)]
    computed = used(server) - before
    bad = sum(a.status_code != 200 or not same(a.content, problem) for a, _ in found)
    seconds = [taken for _, taken in found]
    wrong = [f"{name}: {bad} answers are wrong"] if bad else []
    if name == "resnet50" and statistics.median(seconds) >= BAR:
        wrong.append(f"{name} takes {statistics.median(seconds):.2f} s")
    return row(f"POST /v1/solve, {name}", seconds, computed, bad), wrong


def together(server: Server, number: int) -> tuple[list[str], list[str]]:
    """Small problems at once, as solves and as jobs: rows, and what is wrong."""
    problems = [readers(3 + seed % 9, 8 + seed % 17, seed) for seed in range(number)]

    def solve(problem: dict[str, Any]) -> tuple[bool, float]:
        answer, taken = timed(lambda: server.client.post("/v1/solve", json=problem))
        return answer.status_code == 200 and same(answer.content, problem), taken

    def job(problem: dict[str, Any]) -> tuple[bool, float]:
        with stopwatch() as seconds:
            id = server.submit(problem)
            state = server.state(id, "done", "failed", "cancelled", seconds=120)["state"]
        answer = server.client.get(f"/v1/jobs/{id}/solution")
        return state == "done" and same(answer.content, problem), seconds()

    for problem in problems:
        here(problem)  # so that this does not compete with the service
    rows, wrong = [], []
    for what, ask in (
        (f"{number} × POST /v1/solve at once", solve),
        (f"{number} jobs at once", job),
    ):
        before = used(server)
        with ThreadPoolExecutor(number) as pool:
            found = list(pool.map(ask, problems))
        bad = sum(not right for right, _ in found)
        wrong += [f"{what}: {bad} are wrong"] if bad else []
        taken = [seconds for _, seconds in found]
        rows.append(row(what, taken, used(server) - before, bad))
        pages.say(rows[-1])
    return rows, wrong


def main() -> int:
    """Print a table, and write it to the page; 1 if anything is wrong."""
    parser = pages.parser(__doc__)
    parser.add_argument("networks", nargs="*", default=["resnet50", "densenet121"])
    parser.add_argument("--page", type=Path, help="a page with a section for the table")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--together", type=int, default=100, help="small problems at once")
    options = parser.parse_args()
    rows, wrong = [], []
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "data", 2) as server:
        for name in options.networks:
            found, bad = single(server, name, options.repeats)
            rows.append(found)
            wrong += bad
        several, bad = together(server, options.together)
        wrong += bad
    lines = [
        "| requests | number | fastest, ms | median | 95 % | slowest | computed | wrong |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *rows,
        *several,
        "",
        "Milliseconds as the client sees them; *computed* are those of processor time that the "
        "service's processes take per request. Solves on two processes, jobs on two workers.",
        f"Written by `{pages.command()}` on {os.cpu_count()} cores.",
    ]
    pages.publish(lines, options.out)
    if options.page is not None:
        pages.replace_section(options.page, "latency", lines)
    for what in wrong:
        pages.say(f"error: {what}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
