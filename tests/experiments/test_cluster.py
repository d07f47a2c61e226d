"""Work on a Dask cluster of several processes: the results are those of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster_work import dies, dies_once, fails, sleeps, square
from distributed import LocalCluster

import upscale_opt.experiments.cluster
from upscale_opt.cli import main
from upscale_opt.errors import UpscaleError
from upscale_opt.experiments.coverage.covering import Task, cover
from upscale_opt.experiments.coverage.records import NetworkRecord
from upscale_opt.experiments.running import Place, run_all

CASES = ("topology/dense_block", "topology/residual_stage")


def started(workers: int = 2) -> Any:
    """Worker processes; a task that ends two of them is given up."""
    import dask

    with dask.config.set({"distributed.scheduler.allowed-failures": 1}):
        start: Any = LocalCluster  # untyped
        return start(
            processes=True,
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address=None,
            host="127.0.0.1",
        )


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a cluster."""
    with started() as cluster:
        yield cluster.scheduler_address


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(str(ended.value.code))


def test_several_processes_work(address: str) -> None:
    found = dict(run_all(square, range(40), Place(None, "dask", address)))
    assert {number: value for number, (value, _) in found.items()} == {n: n * n for n in range(40)}
    workers = {process for _, process in found.values()}
    assert len(workers) == 2
    assert os.getpid() not in workers


def test_a_cluster_of_one_thread_does_the_work_itself(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distributed.Client.ncores", lambda client: {"one": 1})
    found = dict(run_all(square, [3, 4], Place(1, "dask", address)))
    assert [found[number][0] for number in (0, 1)] == [9, 16]
    assert os.getpid() not in {process for _, process in found.values()}


def test_compare_finds_the_same(address: str, tmp_path: Path) -> None:
    rows = []
    for name, where in (("here", ()), ("there", ("--backend", "dask", "--scheduler", address))):
        command = ("compare", *CASES, "--solver", "greedy", "cp-sat", *where)
        assert call(*command, "-o", tmp_path / name) == 0
        written = json.loads((tmp_path / name / "compare.json").read_text())["rows"]
        rows.append([{k: v for k, v in row.items() if "seconds" not in k} for row in written])
    assert rows[0] == rows[1]
    assert len(rows[0]) == 4


def test_coverage_finds_the_same(address: str, tmp_path: Path) -> None:
    where = ("--backend", "dask", "--scheduler", address)
    assert call("coverage", CASES[0], *where, "-o", tmp_path) == 0
    (file,) = tmp_path.iterdir()
    records = []
    for record in (NetworkRecord.load(file), cover(Task(CASES[0]))):
        assert record is not None
        assert record.lossless
        times = {"trace": 0.0, "solve": 0.0, "materialize": 0.0}
        sides = tuple(side.model_copy(update=times) for side in record.sides)
        same = {"sides": sides, "seconds": 0.0, "peak_bytes": None}
        records.append(record.model_copy(update=same))
    assert records[0] == records[1]


def test_nothing_is_lost_with_a_worker(address: str, tmp_path: Path) -> None:
    items = ["" for _ in range(8)]
    items[3] = str(tmp_path / "died")
    found = dict(run_all(dies_once, items, Place(None, "dask", address)))
    assert (tmp_path / "died").exists()
    assert found == dict(enumerate(items))


def test_what_ends_every_worker_is_an_error(address: str) -> None:
    with pytest.raises(UpscaleError, match="every worker that tried it was killed"):
        list(run_all(dies, [0], Place(None, "dask", address)))


def test_workers_that_are_starting_are_awaited() -> None:
    with started(workers=0) as cluster:
        cluster.scale(1)
        found = dict(run_all(square, [3, 4], Place(None, "dask", cluster.scheduler_address)))
    assert [found[number][0] for number in (0, 1)] == [9, 16]


def test_no_workers_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upscale_opt.experiments.cluster, "PATIENCE", 0.5)
    with (
        started(workers=0) as cluster,
        pytest.raises(UpscaleError, match="has no workers; start some"),
    ):
        list(run_all(square, [1], Place(None, "dask", cluster.scheduler_address)))


def test_an_error_of_a_task_is_that_error(address: str) -> None:
    with pytest.raises(UpscaleError, match="7 is wrong"):
        list(run_all(fails, [7], Place(None, "dask", address)))


def test_what_is_not_begun_is_cancelled(address: str, tmp_path: Path) -> None:
    markers = [str(tmp_path / str(number)) for number in range(12)]
    running = run_all(sleeps, markers, Place(2, "dask", address))
    next(running)
    running.close()  # type: ignore[attr-defined]
    time.sleep(2)
    assert 1 <= len(list(tmp_path.iterdir())) <= 6


SCHEDULER = """
import sys
from distributed import LocalCluster
with LocalCluster(processes=False, n_workers=int(sys.argv[1]), threads_per_worker=2, protocol="tcp",
                  dashboard_address=None, host="127.0.0.1") as cluster:
    print(cluster.scheduler_address, flush=True)
    input()
"""


@contextmanager
def scheduler(workers: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process of a cluster that can be killed, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCHEDULER, str(workers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def test_a_lost_scheduler_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with scheduler(workers=1) as (process, address):
        items = [str(tmp_path / str(number)) for number in range(200)]
        running = run_all(sleeps, items, Place(None, "dask", address))
        next(running)
        capfd.readouterr()
        process.kill()
        start = time.monotonic()
        with pytest.raises(UpscaleError, match=f"lost.*{address} is gone"):
            list(running)
        assert time.monotonic() - start < 60
        assert capfd.readouterr().err == ""


def test_a_scheduler_lost_before_it_has_workers_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upscale_opt.experiments.cluster, "PATIENCE", 4.0)
    with scheduler(workers=0) as (process, address):
        killer = threading.Timer(1.5, process.kill)
        killer.start()
        with pytest.raises(UpscaleError, match=f"lost.*{address} is gone"):
            list(run_all(square, [1], Place(None, "dask", address)))
        killer.join()


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--backend", "dask", "--scheduler", "tcp://127.0.0.1:1"), 1, "no Dask cluster answers"),
        (("--backend", "dask", "--scheduler", "nonsense://"), 1, "no Dask cluster answers"),
        (("--backend", "dask"), 2, "--scheduler"),
        (("--scheduler", "tcp://127.0.0.1:1"), 2, "--backend"),
        (("--backend", "spark"), 2, "spark"),
    ],
)
def test_wrong_addresses(
    flags: tuple[str, ...],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(upscale_opt.experiments.cluster, "PATIENCE", 1.0)
    assert call("compare", CASES[0], "--solver", "greedy", *flags, "-o", tmp_path) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UpscaleError, match=r'distributed: pip install "\.\[dask\]"'):
        list(run_all(square, [1], Place(None, "dask", "tcp://127.0.0.1:1")))
