"""Accepted jobs are neither lost nor answered twice, whatever happens."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from service_process import (
    SERVICE,
    Redis,
    Server,
    alive,
    eventually,
    hard,
    readers,
    small,
)

from upscale_opt.service.errors import CorruptError, ServiceError, StorageError
from upscale_opt.service.jobs import Jobs, Problematic
from upscale_opt.service.problems import read_problem
from upscale_opt.service.settings import Settings
from upscale_opt.service.solving import SolverProcess, StoppedError, deadlines
from upscale_opt.service.tasks import JOBS_FILE, QUEUE_FILE, Queue, open_storage
from upscale_opt.service.worker import Worker

QUICK = {"lease": 1.5, "solve_processes": 1}


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with Redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["sqlite", "redis"])
def storage(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Jobs, Queue, Settings]]:
    """The jobs on either storage."""
    url = request.getfixturevalue("redis").url if request.param == "redis" else None
    name = f"test-{os.getpid()}-{time.monotonic_ns()}"
    settings = Settings(
        data=tmp_path, queue=url, namespace=name, lease=1.0, max_attempts=2, max_queue=3
    )
    store, queue = open_storage(settings)
    yield Jobs(store, settings), queue, settings
    queue.close()
    store.close()


def problem(seed: int = 0) -> Any:
    return read_problem(json.dumps(small(seed)).encode(), Settings(), small=False)


def test_a_job_ends_once(storage: tuple[Jobs, Queue, Settings]) -> None:
    jobs, _, _ = storage
    job, new = jobs.add(problem())
    assert (job.state, new) == ("queued", True)
    assert jobs.add(problem())[1] is False
    assert jobs.request(job.id) == problem().request
    assert jobs.claim(job.id, "a") is not None
    assert jobs.claim(job.id, "b") is None
    assert jobs.holds(job.id, "a")
    assert not jobs.holds(job.id, "b")
    assert not jobs.finish(job.id, "b", seconds=1, result=b"{}")
    assert jobs.renew(job.id, "a", 9, 3)
    assert jobs.known(job.id).gap == pytest.approx(2 / 3)
    assert jobs.finish(job.id, "a", seconds=1, result=b"{}", value=9, bound=9, status="optimal")
    assert not jobs.finish(job.id, "a", seconds=1, result=b"[]")
    assert not jobs.renew(job.id, "a", 1, 1)
    assert jobs.give_back(job.id, "a", "why", counts=True) is None
    assert jobs.cancel(job.id).state == "done"
    assert jobs.result(job.id) == b"{}"
    assert jobs.store.totals()["done"] == 1
    assert jobs.store.counts()["done"] == 1
    assert jobs.add(problem())[0].state == "done"


def test_one_of_many_claims_a_job(storage: tuple[Jobs, Queue, Settings]) -> None:
    jobs, _, _ = storage
    job, _ = jobs.add(problem())
    won: list[str] = []
    barrier = threading.Barrier(8)

    def claim(token: str) -> None:
        barrier.wait()
        if jobs.claim(job.id, token) is not None:
            won.append(token)

    threads = [threading.Thread(target=claim, args=(str(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert jobs.holds(job.id, won[0])


def test_silent_workers_lose_their_jobs(storage: tuple[Jobs, Queue, Settings]) -> None:
    jobs, _, _ = storage
    job, _ = jobs.add(problem())
    assert jobs.claim(job.id, "a") is not None
    assert jobs.expire() == []
    time.sleep(1.1)
    assert jobs.expire() == [job.id]
    assert jobs.expire() == []
    assert not jobs.finish(job.id, "a", seconds=1, result=b"{}")
    again = jobs.claim(job.id, "b")
    assert again is not None
    assert again.attempt == 2
    assert jobs.give_back(job.id, "b", "it crashed", counts=True) == "failed"
    found = jobs.known(job.id)
    assert found.error == Problematic(
        code="worker_lost", message="it crashed; it was begun 2 times"
    )
    anew, new = jobs.add(problem())
    assert (anew.state, anew.attempt, anew.error, new) == ("queued", 0, None, True)


def test_jobs_given_back_keep_their_attempts(storage: tuple[Jobs, Queue, Settings]) -> None:
    jobs, _, _ = storage
    job, _ = jobs.add(problem())
    for _ in range(5):
        assert jobs.claim(job.id, "a") is not None
        assert jobs.give_back(job.id, "a", "stopped", counts=False) == "queued"
    assert jobs.known(job.id).attempt == 0


def test_cancelled_jobs(storage: tuple[Jobs, Queue, Settings]) -> None:
    jobs, _, _ = storage
    job, _ = jobs.add(problem())
    assert jobs.claim(job.id, "a") is not None
    assert jobs.cancel(job.id).state == "cancelled"
    assert not jobs.holds(job.id, "a")
    assert not jobs.finish(job.id, "a", seconds=1, result=b"{}")
    assert jobs.add(problem())[0].state == "queued"
    with pytest.raises(ServiceError, match="no such job"):
        jobs.cancel("0" * 64)


def test_the_queue_is_bounded(storage: tuple[Jobs, Queue, Settings]) -> None:
    jobs, _, _ = storage
    for seed in range(3):
        jobs.add(problem(seed))
    with pytest.raises(ServiceError, match="wait already") as caught:
        jobs.add(problem(3))
    assert caught.value.status == 429


def test_the_queue_is_refilled(
    storage: tuple[Jobs, Queue, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, queue, _ = storage
    first, _ = jobs.add(problem(0))
    second, _ = jobs.add(problem(1))
    queue.put(first.id)
    assert queue.refill(jobs) == 0  # they do not wait for long
    monkeypatch.setattr("upscale_opt.service.jobs.OVERDUE", 0.0)
    time.sleep(0.01)
    assert queue.refill(jobs) == 1
    assert queue.ids() == {first.id, second.id}
    assert queue.length() == 2
    assert {queue.get(), queue.get()} == {first.id, second.id}
    assert queue.get() is None


def test_old_jobs_are_forgotten(storage: tuple[Jobs, Queue, Settings]) -> None:
    jobs, _, settings = storage
    done, _ = jobs.add(problem(0))
    waits, _ = jobs.add(problem(1))
    jobs.claim(done.id, "a")
    jobs.finish(done.id, "a", seconds=1, result=b"{}")
    assert jobs.purge() == 0
    later = Jobs(jobs.store, settings.model_copy(update={"retention": 0.01}))
    time.sleep(0.05)
    assert later.purge() == 1
    with pytest.raises(ServiceError, match="no such job"):
        jobs.known(done.id)
    assert jobs.result(done.id) is None
    assert jobs.request(done.id) is None
    assert jobs.known(waits.id).state == "queued"


def test_messages_are_no_pickles(storage: tuple[Jobs, Queue, Settings]) -> None:
    import pickle

    jobs, queue, _ = storage
    job, _ = jobs.add(problem())
    storage_of_huey = queue._huey.storage

    class Bomb:
        def __reduce__(self) -> Any:
            return os.abort, ()

    storage_of_huey.enqueue(pickle.dumps(Bomb()))
    storage_of_huey.enqueue(b'{"id": 1}')
    queue.put(job.id)
    assert b"pickle" not in b"".join(map(bytes, storage_of_huey.enqueued_items()))
    assert [queue.get() for _ in range(3)] == [None, None, job.id]


def test_a_solver_that_is_stopped(tmp_path: Path) -> None:
    process = SolverProcess(0)
    try:
        asked = read_problem(json.dumps(hard(30)).encode(), Settings(), small=False)
        begin = time.monotonic()
        with pytest.raises(StoppedError):
            process.solve(asked.request, 30, lambda value, bound: value is None)
        assert process.pid is None
        assert time.monotonic() - begin < 25
        answer = process.solve(problem().request, 10, lambda value, bound: True)
        assert answer.status == "optimal"
        pid = process.pid
        assert pid is not None
        assert process.solve(problem(1).request, 10, lambda value, bound: True).solution
        assert process.pid == pid

        def kill(value: int | None, bound: int | None) -> bool:
            os.kill(pid, signal.SIGKILL) if value is not None else None
            return True

        assert process.solve(asked.request, 30, kill).code == "crashed"
        assert process.solve(problem().request, 10, lambda value, bound: True).status == "optimal"
    finally:
        process.stop()


def test_solvers_that_ignore_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is told to take its time is interrupted, and says what it has."""
    process = SolverProcess(0)
    try:
        given = {**readers(70, 60), "options": {"time_limit": 60.0}}
        asked = read_problem(json.dumps(given).encode(), Settings(), small=False).request
        monkeypatch.setattr("upscale_opt.service.solving.deadlines", lambda limit: (2.0, 9.0))
        answer = process.solve(asked, 60, lambda value, bound: True)
        assert answer.status == "feasible"
        assert 1.5 < answer.seconds < 9
        monkeypatch.setattr("upscale_opt.service.solving.deadlines", lambda limit: (99.0, 1.5))
        answer = process.solve(asked, 60, lambda value, bound: True)
        assert (answer.code, answer.solution) == ("time_limit", None)
    finally:
        process.stop()
    for limit in (0.1, 1, 60, 3600):
        soft, hard_one = deadlines(limit)
        assert limit < soft < hard_one < 1.1 * limit + 1


def test_memory_is_limited() -> None:
    process = SolverProcess(300)
    try:
        asked = read_problem(json.dumps(hard(5)).encode(), Settings(), small=False)
        answer = process.solve(asked.request, 5, lambda value, bound: True)
        assert answer.solution is None
        assert answer.code in ("out_of_memory", "crashed", "solver_failed")
    finally:
        process.stop()


def test_the_service_is_killed_and_another_one_stopped(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", workers=1, settings=QUICK)
    server.start()
    running = server.submit(hard(3))
    server.state(running, "running")
    waiting = [server.submit(small(seed)) for seed in range(3)]
    below = [*server.workers(), *server.solvers(), *server.children("child")]
    server.kill()
    eventually(lambda: not any(map(alive, below)), 10)
    (tmp_path / "data" / QUEUE_FILE).write_bytes(b"this is no database" * 1000)
    again = Server(tmp_path / "data", workers=1, settings=QUICK)
    again.start()
    for id in (running, *waiting):
        assert again.state(id, "done", "failed")["state"] == "done"
    assert "no job is lost" in again.log.read_text().lower()
    assert list((tmp_path / "data").glob(f"{QUEUE_FILE}.corrupt-*"))

    last = again.submit(hard(60))
    again.state(last, "running")
    below = [*again.workers(), *again.solvers(), *again.children("child")]
    assert again.stop() == 0
    assert not any(map(alive, below))
    store, queue = open_storage(Settings(data=tmp_path / "data"))
    job = store.read(last)
    assert job is not None
    assert (job.state, job.attempt) == ("queued", 0)
    assert queue.ids() == {last}
    store.close()


def test_jobs_that_are_corrupt(tmp_path: Path) -> None:
    data = tmp_path / JOBS_FILE
    data.write_bytes(b"this is no database" * 1000)
    with pytest.raises(CorruptError):
        Worker(Settings(data=tmp_path))
    run = subprocess.run(
        [*SERVICE, "serve", "--port", "0", "--data", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: ")
    assert str(data) in line
    assert "move" in line
    assert data.read_bytes() == b"this is no database" * 1000


def test_a_queue_that_becomes_corrupt(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    store, queue = open_storage(settings)
    _, other = open_storage(settings)
    other.put("x")
    for suffix in ("-wal", "-shm"):
        (tmp_path / (QUEUE_FILE + suffix)).unlink(missing_ok=True)
    (tmp_path / QUEUE_FILE).write_bytes(b"this is no database" * 1000)

    def put(somewhere: Queue) -> bool:
        try:
            somewhere.put("y")
        except StorageError:
            return False
        return True

    eventually(lambda: put(queue), 5)
    eventually(lambda: other.get() == "y", 5)
    store.close()


def test_a_full_disk(tmp_path: Path) -> None:
    with Server(tmp_path / "data", workers=0, settings=QUICK) as server:
        before = server.submit(small(0))
        number = server.process.pid
        limits = resource.prlimit(number, resource.RLIMIT_FSIZE)
        resource.prlimit(number, resource.RLIMIT_FSIZE, (4096, limits[1]))
        for seed in range(1, 4):
            answer = server.client.post("/v1/jobs", json=readers(40, 60, seed))
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "storage_unavailable"
            assert int(answer.headers["retry-after"]) > 0
        assert server.job(before)["state"] == "queued"
        resource.prlimit(number, resource.RLIMIT_FSIZE, limits)
        after = server.submit(readers(40, 60, 1))
        assert server.job(after)["state"] == "queued"
        with sqlite3.connect(tmp_path / "data" / JOBS_FILE) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert db.execute("SELECT count(*) FROM jobs").fetchone() == (2,)


def test_redis_goes_away(tmp_path: Path) -> None:
    with Redis(tmp_path / "redis") as redis:
        server = Server(tmp_path / "data", workers=0, queue=redis.url, settings=QUICK)
        with server:
            arguments = ["worker", "--queue", redis.url, "--set", "lease=1.5"]
            with open(tmp_path / "worker.log", "wb") as log:
                elsewhere = subprocess.Popen([*SERVICE, *arguments], stderr=log)
            try:
                eventually(lambda: server.client.get("/healthz").json()["workers"] == 1)
                ids = [server.submit(hard(2))]
                server.state(ids[0], "running")
                ids += [server.submit(small(seed)) for seed in range(3)]
                redis.stop(signal.SIGKILL)
                answer = server.client.post("/v1/jobs", json=small(9))
                assert answer.status_code == 503
                assert int(answer.headers["retry-after"]) > 0
                health = server.client.get("/healthz")
                assert health.status_code == 503
                assert health.json()["reachable"] is False
                assert server.client.get(f"/v1/jobs/{ids[0]}").status_code == 503
                assert server.client.post("/v1/solve", json=small()).status_code == 200
                time.sleep(2.5)
                redis.start()
                eventually(lambda: server.client.get("/healthz").status_code == 200)
                for id in ids:
                    assert server.state(id, "done", "failed", seconds=40)["state"] == "done"
                counts = server.client.get("/metrics").text
                assert f'upscale_opt_job_events_total{{event="done"}} {len(ids)}.0' in counts
            finally:
                elsewhere.terminate()
                assert elsewhere.wait(30) == 0


def test_unsound_records(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    store, _ = open_storage(settings)
    job, _ = Jobs(store, settings).add(problem())
    with sqlite3.connect(tmp_path / JOBS_FILE) as db:
        db.execute("UPDATE jobs SET record = '{}'")
    with pytest.raises(CorruptError, match="cannot be read"):
        store.read(job.id)
    store.close()
