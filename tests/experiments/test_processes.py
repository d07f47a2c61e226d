"""Child processes that work, and where the records of finished work are kept."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
from process_work import (
    dies_at_two,
    fails,
    is_missing,
    is_stubborn,
    leaves,
    sleeps,
    who,
)

from upscale_opt.errors import UpscaleError
from upscale_opt.experiments.processes import Ended, run_in_processes
from upscale_opt.experiments.records import Store
from upscale_opt.experiments.running import Place, run_all
from upscale_opt.ir.base import Document


def nobody(text: str) -> None:
    """Told how work is getting on."""


def test_processes_do_one_item_after_the_other(capfd: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    found = dict(run_in_processes(who, range(9), 2, tell=told.append))
    values: dict[int, Any] = found
    assert {number: value[0] for number, value in values.items()} == {n: n * n for n in range(9)}
    workers = {value[1] for value in values.values()}
    assert 1 <= len(workers) <= 2
    assert os.getpid() not in workers
    assert sorted(told) == [f"at {number}" for number in range(9)]
    out, err = capfd.readouterr()
    assert out == ""
    assert "noise" in err


def test_every_item_can_have_a_quiet_process_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    found: dict[int, Any] = dict(run_in_processes(who, range(3), 2, tell=nobody, apart=True))
    assert len({value[1] for value in found.values()}) == 3
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("apart", [False, True])
def test_a_killed_process_harms_nobody_else(apart: bool) -> None:
    found = dict(run_in_processes(dies_at_two, range(5), 1, tell=nobody, apart=apart))
    assert found == {0: 0, 1: 1, 2: Ended(-9), 3: 3, 4: 4}
    assert "killed by signal 9" in Ended(-9).how


def test_where_results_are_needed_a_killed_process_is_an_error() -> None:
    with pytest.raises(UpscaleError, match=r"worker process was killed by signal 9.*fewer --jobs"):
        list(run_all(dies_alone, [1, 2], Place(2)))


def dies_alone(item: int) -> int:
    return dies_at_two(item, nobody)


def test_a_process_that_leaves_has_an_exit_status() -> None:
    ((_, found),) = run_in_processes(leaves, [3], 1, tell=nobody)
    assert found == Ended(3)
    assert found.how == "failed (exit status 3)"


def test_patience_ends(tmp_path: Path) -> None:
    start = time.monotonic()
    ((_, found),) = run_in_processes(sleeps, [str(tmp_path)], 1, tell=nobody, patience=0.5)
    assert found == Ended(-9, 0.5)
    assert "longer than 0.5 s" in found.how
    assert time.monotonic() - start < 30


def test_an_error_is_that_error_and_says_where_it_happened() -> None:
    with pytest.raises(UpscaleError, match="7 is wrong") as caught:
        list(run_in_processes(fails, [7], 2, tell=nobody))
    assert "process_work.py" in str(caught.value.__cause__)
    with pytest.raises(FileNotFoundError) as missing:
        list(run_in_processes(is_missing, [7], 2, tell=nobody))
    assert missing.value.filename == "file"
    with pytest.raises(RuntimeError, match="StubbornError: stubborn"):
        list(run_in_processes(is_stubborn, [7], 2, tell=nobody))


def test_where_nobody_listens_any_more_all_processes_end(tmp_path: Path) -> None:
    running = run_in_processes(mixed, ["", str(tmp_path), str(tmp_path)], 2, tell=nobody)
    assert next(running) == (0, None)
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.05)
    running.close()  # type: ignore[attr-defined]
    assert not any(psutil.pid_exists(int(path.name)) for path in tmp_path.iterdir())


def mixed(folder: str, tell: Any) -> None:
    if folder:
        sleeps(folder, tell)


class Note(Document):
    """A record."""

    what: ClassVar[str] = "note"

    text: str


def test_a_store_finds_what_was_put(tmp_path: Path) -> None:
    store = Store(tmp_path / "new", Note)
    assert store.find("a/b") is None
    store.put("a/b", Note(text="one"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a--b.json"]
    assert Store(tmp_path / "new", Note).find("a/b") == Note(text="one")
    store.put("a/b", Note(text="two"))
    assert store.find("a/b") == Note(text="two")


@pytest.mark.parametrize("text", ["", '{"text": ', '{"other": 1}', '{"schema_version": 0}'])
def test_what_cannot_be_read_counts_as_not_there(text: str, tmp_path: Path) -> None:
    store = Store(tmp_path, Note)
    store.file("it").write_text(text)
    assert store.find("it") is None
    store.put("it", Note(text="anew"))
    assert store.find("it") == Note(text="anew")
