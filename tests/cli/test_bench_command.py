"""The command ``upscale-opt bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import call

from upscale_opt.cli.options import spread
from upscale_opt.experiments.bench.benching import Task
from upscale_opt.experiments.bench.records import BenchRecord
from upscale_opt.experiments.records import Store

SMALL = "topology/residual_stage"


def test_the_command_resumes_and_writes_its_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, out = tmp_path / "docs" / "performance.md", tmp_path / "records"
    arguments = [SMALL, "--rounds", "2", "--variants", "unpruned", "copies", "floor"]
    arguments += ["--out", str(out), "--page", str(page)]
    assert call("bench", *arguments) == 0
    captured = capsys.readouterr()
    assert "copies / unpruned" in captured.out
    assert f"{SMALL} (1 of 1): batch 1 contiguous eager: unpruned" in captured.err
    assert "### Times: batch 1, contiguous, op by op" in page.read_text()
    assert (tmp_path / "docs" / "performance" / "over-unpruned.png").exists()
    store = Store(out, BenchRecord)
    record = BenchRecord.load(store.file(SMALL))
    assert record.settings.variants == ("unpruned", "copies", "floor")
    store.put(SMALL, record.model_copy(update={"seconds": 4711.0}))
    assert call("bench", *arguments) == 0
    assert "1 of 1 are timed already" in capsys.readouterr().err
    assert BenchRecord.load(store.file(SMALL)).seconds == 4711.0


def test_the_command_fails_if_a_network_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sweep(tasks: list[Task], *_: object) -> Any:
        for task in tasks:
            problem = "no trace" if task.name == SMALL else ""
            yield task, BenchRecord(name=task.name, settings=task.settings, problem=problem)

    monkeypatch.setattr("upscale_opt.experiments.bench.sweeping.sweep", sweep)
    assert call("bench", SMALL, "topology/unet", "--out", str(tmp_path)) == 1
    error = capsys.readouterr().err
    assert "1 of 2 networks could not be timed: topology/residual_stage" in error


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "--group"),
        (("resnet5",), 1, "resnet50"),
        ((SMALL, "--batch", "0"), 2, "at least 1 image"),
        ((SMALL, "--batch", "many"), 2, "Invalid value for '--batch'"),
        ((SMALL, "--format", "nhwc"), 2, "'nhwc' is not one of contiguous, channels-last"),
        ((SMALL, "--variants", "best"), 2, "'best' is not one of unpruned"),
        ((SMALL, "--device", "abacus"), 1, "--device cpu always can"),
        ((SMALL, "--cuda-graphs"), 1, "no CUDA graphs on device 'cpu'"),
        ((SMALL, "--cost-model", "none.json"), 1, "cannot read cost model none.json"),
    ],
)
def test_wrong_arguments(
    arguments: tuple[str, ...],
    code: int,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call("bench", *arguments, "--out", str(tmp_path)) == code
    error = capsys.readouterr().err
    assert words in error
    assert error.splitlines()[-1].startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_a_page_without_markers_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("mine")
    assert call("bench", SMALL, "--out", str(tmp_path / "out"), "--page", str(page)) == 1
    assert "no place for the tables" in capsys.readouterr().err
    assert page.read_text() == "mine"
    assert not list((tmp_path / "out").iterdir())


def test_flags_take_several_values() -> None:
    given = ["--batch", "1", "8", "resnet18", "--format", "contiguous", "channels-last", "--force"]
    assert spread(given) == [
        *("--batch", "1", "--batch", "8", "resnet18"),
        *("--format", "contiguous", "--format", "channels-last", "--force"),
    ]
