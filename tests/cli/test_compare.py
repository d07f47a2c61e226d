"""Solvers side by side: the rows, what the command prints and writes, and how it stops."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from command_line import Output, Refuses, call
from PIL import Image
from sample_networks import Documents
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt import tracing
from upscale_opt.cli.options import spread
from upscale_opt.cli.pictures import draw
from upscale_opt.errors import MaskError, SolverError
from upscale_opt.solver.algorithms.identity import solve_identity
from upscale_opt.solver.algorithms.registry import SOLVERS
from upscale_opt.solver.api import instance_of
from upscale_opt.solver.comparing import USUAL_SOLVERS, with_gaps
from upscale_opt.solver.problem.instance import Instance, Outcome
from upscale_opt.solver.problem.instance_file import InstanceFile

SOME = ("identity", "greedy", "cp-sat")


def written(folder: Path) -> tuple[uo.solver.ComparisonRow, ...]:
    """The rows of compare.json."""
    return uo.solver.Comparison.load(folder / "compare.json").rows


def untimed(rows: tuple[uo.solver.ComparisonRow, ...]) -> list[uo.solver.ComparisonRow]:
    return [row.model_copy(update={"seconds": 0.0}) for row in rows]


def test_rows_say_what_solve_finds(resnet18_documents: Documents) -> None:
    graph, masks = resnet18_documents.graph, resnet18_documents.masks
    rows = uo.solver.compare(graph, masks, SOME, seed=3, label="resnet18")
    assert [row.solver for row in rows] == list(SOME)
    for row in rows:
        solution = uo.solve(graph, masks, solver=row.solver, seed=3)
        assert (row.objective_value, row.status) == (solution.objective_value, solution.status)
        assert (row.views, row.reads) == (solution.views, solution.views + solution.gathers)
        assert (row.label, row.objective, row.selection) == (
            "resnet18",
            "copied_channels",
            "tensor",
        )
        assert row.seconds >= 0
    exact = rows[-1]
    assert (exact.status, exact.lower_bound, exact.gap) == ("optimal", exact.objective_value, 0)


def test_the_usual_solvers_and_other_options(resnet18_documents: Documents) -> None:
    graph, masks = resnet18_documents.graph, resnet18_documents.masks
    told: set[str] = set()
    rows = uo.solver.compare(
        graph,
        masks,
        objective="gathers",
        selection="segment",
        weights={"fc": 7},
        progress=lambda event: told.add(event.step),
    )
    assert tuple(row.solver for row in rows) == USUAL_SOLVERS
    assert {"greedy", "cp-sat"} <= told
    optimum = uo.solve(graph, masks, objective="gathers", selection="segment", weights={"fc": 7})
    assert rows[-1].objective_value == optimum.objective_value
    assert {(row.objective, row.selection) for row in rows} == {("gathers", "segment")}


def test_instances_compare_as_networks_do(resnet18_documents: Documents) -> None:
    graph, masks = resnet18_documents.graph, resnet18_documents.masks
    bare = uo.solver.compare_instance(instance_of(graph, masks), SOME, label="bare")
    for left, right in zip(bare, uo.solver.compare(graph, masks, SOME), strict=True):
        assert left.objective_value == right.objective_value
        assert left.lower_bound == right.lower_bound
        assert left.gap == right.gap
        assert (left.objective, left.selection, left.label) == ("copies", None, "bare")
        assert left.views is not None
        assert left.reads == len(instance_of(graph, masks).reads)


def row(
    solver: str, value: int | None, bound: int | None, label: str = ""
) -> uo.solver.ComparisonRow:
    return uo.solver.ComparisonRow(
        label=label,
        solver=solver,
        objective="copied_channels",
        status="failed" if value is None else "feasible",
        objective_value=value,
        lower_bound=bound,
        seconds=0.0,
    )


def test_gaps_are_to_the_best_bound_of_the_problem() -> None:
    rows = [
        row("a", 100, None),
        row("b", 80, 50),
        row("c", 75, 60),
        row("d", None, None),
        row("a", 7, None, "other"),
        row("b", 0, 0, "another"),
    ]
    assert [found.gap for found in with_gaps(rows)] == [0.4, 0.25, 0.2, None, None, 0.0]


def failing(instance: Instance, **options: object) -> Outcome:
    raise SolverError("not for\nthis problem")


def crashing(instance: Instance, **options: object) -> Outcome:
    raise ZeroDivisionError("by zero")


def test_a_solver_that_fails_has_a_row(
    resnet18_documents: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOLVERS, "failing", failing)
    monkeypatch.setitem(SOLVERS, "crashing", crashing)
    graph, masks = resnet18_documents.graph, resnet18_documents.masks
    names = ("failing", "identity", "crashing")
    for rows in (
        uo.solver.compare(graph, masks, names),
        uo.solver.compare_instance(instance_of(graph, masks), names),
    ):
        assert [found.status for found in rows] == ["failed", "feasible", "failed"]
        assert rows[0].reason == "not for this problem"
        assert rows[2].reason == "ZeroDivisionError: by zero"
        assert rows[0].objective_value is rows[0].views is rows[0].lower_bound is None
        assert rows[1].objective_value is not None


def test_what_no_solver_understands_is_refused(resnet18_documents: Documents) -> None:
    graph, masks = resnet18_documents.graph, resnet18_documents.masks
    with pytest.raises(SolverError, match=r"unknown solver 'magic'; there are .*cp-sat"):
        uo.solver.compare(graph, masks, ["greedy", "magic"])
    with pytest.raises(SolverError, match="unknown objective 'joules'"):
        uo.solver.compare(graph, masks, objective="joules")
    with pytest.raises(SolverError, match="unknown selection 'whole'"):
        uo.solver.compare(graph, masks, selection="whole")  # type: ignore[arg-type]
    with pytest.raises(SolverError, match="time limit"):
        uo.solver.compare(graph, masks, time_limit=0)
    with pytest.raises(SolverError, match="nobody"):
        uo.solver.compare(graph, masks, weights={"nobody": 2})
    with pytest.raises(SolverError, match="magic"):
        uo.solver.compare_instance(Instance((), (), ()), ["magic"])
    with pytest.raises(MaskError, match="stem"):
        uo.solver.compare(graph, uo.Masks(kept={"stem.weight": {0: (1,)}}))


def test_several_values_behind_one_flag() -> None:
    given = "compare a --amount 0.3 5e-1 -0.7 b --seed 1 2 --solver=greedy cp-sat x --solver y z"
    assert " ".join(spread(given.split())) == (
        "compare a --amount 0.3 --amount 5e-1 --amount -0.7 b --seed 1 2 "
        "--solver=greedy --solver cp-sat x --solver y z"
    )
    files = ["--instance", "a.json", "--instance", "b.json"]
    assert spread(["--instance", "a.json", "b.json", "c"]) == [*files, "c"]
    for untouched in ([], ["--amount"], ["run", "resnet18", "--amount", "0.5", "--side", "both"]):
        assert spread(untouched) == untouched


def test_compare_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    traced: list[nn.Module] = []
    original = tracing.trace

    def trace(model: nn.Module, inputs: Tensor) -> uo.ChannelGraph:
        traced.append(model)
        return original(model, inputs)

    monkeypatch.setattr(tracing, "trace", trace)
    names = ("topology/unet", "topology/three_consumers")
    flags = ("--amount", 0.5, 0.2, "--side", "both", "--layers", "conv", "--seed", 5)
    out = tmp_path / "sub" / "folder"
    solvers = ("--solver", *SOME, "--solver", "greedy")
    assert call("compare", *names, *flags, *solvers, "-o", out) == 0
    assert len(traced) == len(names)

    rows = written(out)
    assert [(found.label, found.amount, found.solver) for found in rows] == [
        (name, amount, solver) for name in names for amount in (0.5, 0.2) for solver in SOME
    ]
    for name, amount in {(found.label, found.amount) for found in rows}:
        assert amount is not None
        options = ("--amount", amount, "--side", "both", "--layers", "conv", "--seed", 5)
        objective = ("--objective", "copied_channels")
        assert call("run", name, *options, *objective, "--out", tmp_path / "run") == 0
        solution = uo.Solution.load(tmp_path / "run" / "solution.json")
        (mine,) = (
            found
            for found in rows
            if (found.label, found.amount, found.solver) == (name, amount, "cp-sat")
        )
        assert mine.objective_value == mine.lower_bound == solution.objective_value
        assert (mine.views, mine.side, mine.status) == (solution.views, "both", "optimal")
    printed = capsys.readouterr()
    for found in rows:
        assert found.label in printed.out
        assert f"{found.objective_value:,}" in printed.out
        assert f"{found.views:,} of {found.reads:,}" in printed.out
    assert "topology/unet 20%, cp-sat" in printed.err
    for word in ("20% of the input and output channels", "copied channels", "gap", "lower bound"):
        assert word in printed.out


def test_the_files_say_the_same(tmp_path: Path, capsys: Output) -> None:
    arguments = ("topology/unet", "--amount", 0.3, 0.7, "--solver", *SOME, "-o", tmp_path)
    assert call("compare", *arguments) == 0
    rows = written(tmp_path)
    with (tmp_path / "compare.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert table == [
        {name: "" if value is None else str(value) for name, value in found.model_dump().items()}
        for found in rows
    ]
    root = ElementTree.parse(tmp_path / "compare.svg").getroot()
    texts = {(element.text or "").strip() for element in root.iter()}
    assert {*SOME, "topology/unet", "30 %", "70 %", "copied channels", "lower bound"} <= texts
    assert {path.name for path in tmp_path.iterdir()} == {
        *("compare.csv", "compare.json", "compare.svg")
    }
    assert call("compare", *arguments, "--picture", "png") == 0
    with Image.open(tmp_path / "compare.png") as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 3


def test_pictures_show_failures_and_zeros_and_are_the_same_again() -> None:
    rows = with_gaps(
        [row("identity", 9, None), row("greedy", 0, 0), row("cp-sat", None, None)]
        + [row("identity", 1, 1, f"network {number}") for number in range(6)]
    )
    picture = draw(rows, "svg")
    assert picture == draw(rows, "svg")
    texts = [(element.text or "").strip() for element in ElementTree.fromstring(picture).iter()]
    assert "×" in texts
    assert {f"network {number}" for number in range(6)} <= set(texts)
    assert draw(rows, "png") == draw(rows, "png")
    assert draw(rows[2:3], "png").startswith(b"\x89PNG")


def test_jobs_change_nothing_but_the_time(tmp_path: Path, capsys: Output) -> None:
    arguments = ("topology/unet", "--amount", 0.3, 0.7, "--solver", *SOME, "--objective", "gathers")
    for jobs in (1, 2):
        assert call("compare", *arguments, "--jobs", jobs, "-o", tmp_path / str(jobs)) == 0
    assert untimed(written(tmp_path / "1")) == untimed(written(tmp_path / "2"))


@pytest.fixture(scope="module")
def instances(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two instance files, of one name."""
    from upscale_opt.models.instances.random import random_instance

    folder = tmp_path_factory.mktemp("instances")
    files = [folder / "first.json", folder / "second.json"]
    for number, file in enumerate(files):
        InstanceFile.from_instance(random_instance(random.Random(number)), "twin").save(file)
    return files


def test_compare_instances(instances: list[Path], tmp_path: Path, capsys: Output) -> None:
    assert call("compare", "--instance", *instances, "--solver", *SOME, "-o", tmp_path) == 0
    rows = written(tmp_path)
    assert [found.label for found in rows] == [str(file) for file in instances for _ in SOME]
    for file, exact in zip(instances, rows[2::3], strict=True):
        (same,) = uo.solver.compare_instance(InstanceFile.load(file).to_instance(), ["cp-sat"])
        assert exact.objective_value == same.objective_value
    assert call("compare", "--instance", instances[0], "--solver", "greedy", "-o", tmp_path) == 0
    assert [found.label for found in written(tmp_path)] == ["twin"]


@pytest.fixture
def without_torch(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python that cannot import torch, its worker processes included."""
    for name in ("torch", "torchvision"):
        package = tmp_path / "blocked" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise ImportError('there is no torch here')\n")
    return {**os.environ, "PYTHONPATH": str(tmp_path / "blocked")}


RUN = "from upscale_opt.cli import main; main()"


def start(environment: dict[str, str], *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN, "compare", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.parametrize("jobs", [2])
def test_files_need_no_torch(
    jobs: int,
    json_folder: Path,
    instances: list[Path],
    without_torch: dict[str, str],
    tmp_path: Path,
) -> None:
    graph, masks = (json_folder / f"resnet50.{kind}.json" for kind in ("graph", "masks"))
    files = ("--graph", graph, "--masks", masks, "--instance", instances[0])
    options = ("--solver", *SOME, "--jobs", jobs, "-o", tmp_path / "out")
    with start(without_torch, *files, *options) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    rows = written(tmp_path / "out")
    assert [found.label for found in rows] == ["resnet50.graph"] * 3 + ["twin"] * 3
    assert rows[2].status == "optimal"
    assert "resnet50.graph" in out
    with start(without_torch, "resnet18", "--solver", "greedy", "-o", tmp_path / "more") as process:
        assert "no torch here" in process.communicate(timeout=120)[1]
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_interrupted_with_what_is_finished(
    jobs: int, hard: tuple[Path, Path], without_torch: dict[str, str], tmp_path: Path
) -> None:
    files = ("--graph", hard[0], "--masks", hard[1], "-o", tmp_path / "out")
    solvers = ("--solver", "identity", "cp-sat", "greedy", "--time-limit", 600)
    with start(without_torch, *files, *solvers, "--jobs", jobs) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "identity: " in line:
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.splitlines()[-1].startswith("error: interrupted")
    rows = written(tmp_path / "out")
    names = [found.solver for found in rows]
    assert names[0] == "identity"
    assert set(names) <= ({"identity", "cp-sat"} if jobs == 1 else {"identity", "greedy"})
    assert all(found.status == "feasible" and found.solver in out for found in rows)
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".csv", ".json", ".svg"}


def test_a_solver_that_takes_the_interrupt_for_itself_is_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def interrupted(instance: Instance, **options: object) -> Outcome:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            return solve_identity(instance)
        raise AssertionError("nothing happened")

    monkeypatch.setitem(SOLVERS, "interrupted", interrupted)
    before = signal.getsignal(signal.SIGINT)
    solvers = ("--solver", "greedy", "interrupted", "identity")
    assert call("compare", "topology/mlp", *solvers, "-o", tmp_path) == 130
    assert [found.solver for found in written(tmp_path)] == ["greedy", "interrupted"]
    assert "error: interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_failures_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setitem(SOLVERS, "failing", failing)
    out = ("-o", tmp_path)
    assert call("compare", "topology/mlp", "--solver", "failing", "greedy", *out) == 0
    assert "failing: not for this problem" in capsys.readouterr().out
    assert written(tmp_path)[0].status == "failed"
    assert call("compare", "topology/mlp", "--solver", "failing", *out) == 1
    assert "error: every solver failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, ["networks", "--graph", "--instance", "compare --help"]),
        (["--graph", "g.json"], 2, ["--graph", "--masks", "together"]),
        (["topology/mlp", "--masks", "m.json"], 2, ["--graph", "--masks", "together"]),
        (["--graph", "g.json", "--masks", "m.json"], 1, ["g.json"]),
        (["--instance", "i.json"], 1, ["i.json"]),
        (["topology/mlp", "resnet81"], 1, ["resnet81", "did you mean"]),
        (["topology/mlp", "--amount", "0.5", "1.5"], 2, ["--amount", "less than 1", "1.5"]),
        (["topology/mlp", "--amount", "0.5", "-0.5"], 2, ["--amount", "-0.5"]),
        (["topology/mlp", "--amount", "nan"], 2, ["--amount", "nan"]),
        (["topology/mlp", "--solver", "magic"], 2, ["--solver", "magic", "cp-sat"]),
        (["topology/mlp", "--objective", "joules"], 2, ["--objective", "joules", "gathers"]),
        (["topology/mlp", "--selection", "whole"], 2, ["--selection", "whole", "segment"]),
        (["topology/mlp", "--time-limit", "-1"], 2, ["--time-limit", "more than 0"]),
        (["topology/mlp", "--jobs", "0"], 2, ["--jobs"]),
        (["topology/mlp", "--picture", "gif"], 2, ["--picture", "gif", "svg"]),
    ],
    ids=str,
)
def test_bad_arguments(arguments: list[str], code: int, words: list[str], refuses: Refuses) -> None:
    refuses("compare", *arguments, code=code, words=words)


def test_unwritable_folder(tmp_path: Path, capsys: Output) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    assert call("compare", "topology/mlp", "-o", blocked / "sub") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert str(blocked) in error
    assert "--out" in error
