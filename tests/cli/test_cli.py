"""The command line: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import Output, Refuses, call, one_line_error
from rich.console import Console

import upscale_opt as uo
from upscale_opt.cli import networks, options, progress
from upscale_opt.importance import CRITERIA
from upscale_opt.ir.profiles import profile
from upscale_opt.models import catalogue
from upscale_opt.solver.progress import Progress

NO_TORCH = "import sys; sys.modules['torch'] = None; from upscale_opt.cli import main; main()"


def call_without_torch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a Python that cannot import torch."""
    command = [sys.executable, "-c", NO_TORCH, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with graph.json and masks.json of a ResNet-18."""
    folder = tmp_path_factory.mktemp("traced")
    files = ("-o", folder / "graph.json", "--masks", folder / "masks.json")
    assert call("trace", "resnet18", *files) == 0
    return folder


def test_run_prints_the_report_and_writes_what_it_says(tmp_path: Path, capsys: Output) -> None:
    name = "topology/unet"
    assert call("run", name, "--out", tmp_path, "--seed", 3) == 0
    printed = capsys.readouterr()
    for text in (
        *("parameters", "multiply-adds", "no reordering", "greedy", "optimum"),
        *("copied channels", "lower bound", "verify", "float64", "upscale_opt.load("),
    ):
        assert text in printed.out
    assert "verify ..." in printed.err

    graph = uo.ChannelGraph.load(tmp_path / "graph.json")
    masks = uo.Masks.load(tmp_path / "masks.json")
    solution = uo.Solution.load(tmp_path / "solution.json")
    inputs = catalogue.example_inputs(name)
    model = catalogue.randomize(catalogue.build(name, seed=3), 3, inputs)
    assert uo.trace(model, inputs) == graph
    masks.check(graph)
    assert solution.status == "optimal"
    assert solution.graph_fingerprint == graph.fingerprint
    again = uo.solve(graph, masks, objective="copied_bytes", seed=3)
    assert again.model_copy(update={"times": solution.times}) == solution

    uo.apply_masks(model, graph, masks)
    pruned = uo.load(catalogue.build(name), tmp_path / "pruned.safetensors")
    uo.verify(model, pruned, inputs)
    expected = uo.materialize(model, solution)(inputs)
    assert torch.equal(pruned(inputs), expected)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("graph.json", "masks.json", "solution.json", "pruned.safetensors")
    }


@pytest.mark.parametrize("name", ["topology/mlp", "squeezenet1_1"])
def test_run_says_how_to_load_what_it_wrote(name: str, tmp_path: Path, capsys: Output) -> None:
    """What it prints can be pasted into Python."""
    assert call("run", name, "--out", tmp_path / "it's", "--solver", "identity") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("Load it in Python: import ")
    program = line.removeprefix("Load it in Python: ")
    more = "print(type(pruned).__name__, pruned.solution.solver, pruned.training)"
    command = [sys.executable, "-c", f"{program}; {more}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    kind = type(catalogue.build(name)).__name__
    assert done.stdout.split() == [kind, "identity", "False"], done.stderr


@pytest.mark.parametrize("solver", ["identity", "greedy"])
@pytest.mark.parametrize("side", ["output", "both"])
def test_run_with_other_options(tmp_path: Path, capsys: Output, solver: str, side: str) -> None:
    options = ("--solver", solver, "--side", side, "--amount", 0.9, "--layers", "conv")
    more = ("--batch", 2, "--time-limit", 5, "--out", tmp_path)
    assert call("run", "topology/dict_input", *options, *more) == 0
    assert uo.Solution.load(tmp_path / "solution.json").solver == solver
    assert "optimum" not in capsys.readouterr().out


def test_run_writes_to_out_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("run", "topology/mlp") == 0
    assert (tmp_path / "out/topology/mlp/pruned.safetensors").is_file()
    assert "out/topology/mlp" in capsys.readouterr().out


def test_trace_writes_what_run_writes(tmp_path: Path, capsys: Output) -> None:
    name = "topology/unet"
    options = ("--amount", 0.3, "--side", "both", "--seed", 1)
    files = ("-o", tmp_path / "sub/graph.json", "--masks", tmp_path / "sub/masks.json")
    assert call("trace", name, *files, *options) == 0
    assert call("run", name, "--out", tmp_path / "run", *options) == 0
    for file in ("graph.json", "masks.json"):
        assert (tmp_path / "sub" / file).read_bytes() == (tmp_path / "run" / file).read_bytes()


def test_trace_lists_what_is_opaque(tmp_path: Path, capsys: Output) -> None:
    assert call("trace", "topology/attention", "-o", tmp_path / "graph.json") == 0
    graph = uo.ChannelGraph.load(tmp_path / "graph.json")
    reasons = {op.reason for op in graph.operations if op.kind == "opaque"}
    printed = capsys.readouterr().out
    assert all(reason in printed for reason in reasons)
    assert not (tmp_path / "masks.json").exists()


def test_solve_needs_no_torch(traced: Path, tmp_path: Path) -> None:
    out = tmp_path / "solution.json"
    done = call_without_torch("solve", traced / "graph.json", traced / "masks.json", "-o", out)
    assert done.returncode == 0, done.stderr
    solution = uo.Solution.load(out)
    assert solution.status == "optimal"
    assert f"{solution.objective_value:,} of" in done.stdout
    assert f"lower bound {solution.lower_bound:,}" in done.stdout


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_need_no_torch(option: str) -> None:
    done = call_without_torch(option)
    assert done.returncode == 0, done.stderr
    assert ("materialize" if option == "--version" else uo.__version__) not in done.stdout
    assert (uo.__version__ if option == "--version" else "solve") in done.stdout


@pytest.mark.parametrize("command", ["run", "trace", "solve", "compare", "pareto", "models"])
def test_every_command_has_help(command: str, capsys: Output) -> None:
    assert call(command, "--help") == 0
    assert "Usage" in capsys.readouterr().out


def test_no_arguments_is_help(capsys: Output) -> None:
    assert call() == 0
    assert "Usage" in capsys.readouterr().out


def test_solver_options(traced: Path, tmp_path: Path, capsys: Output) -> None:
    out = tmp_path / "solution.json"
    files = (traced / "graph.json", traced / "masks.json", "-o", out)
    options = ("--solver", "greedy", "--objective", "copied_channels", "--workers", 2)
    assert call("solve", *files, *options, "--seed", 7, "--time-limit", 9) == 0
    solution = uo.Solution.load(out)
    assert (solution.solver, solution.seed) == ("greedy", 7)
    assert "greedy:" in capsys.readouterr().out


def test_model_and_objective(traced: Path, tmp_path: Path, capsys: Output) -> None:
    out = tmp_path / "solution.json"
    files = (traced / "graph.json", traced / "masks.json", "-o", out)
    assert call("solve", *files, "--selection", "segment", "--objective", "gathers") == 0
    solution = uo.Solution.load(out)
    assert (solution.selection, solution.objective) == ("segment", "gathers")
    assert solution.objective_value == solution.gathers
    assert f"{solution.gathers:,} gathers, lower bound" in capsys.readouterr().out
    assert call("run", "topology/unet", "--selection", "segment", "--out", tmp_path) == 0
    assert uo.Solution.load(out).selection == "segment"


def test_windows(traced: Path, tmp_path: Path, capsys: Output) -> None:
    out = tmp_path / "solution.json"
    files = (traced / "graph.json", traced / "masks.json", "-o", out)
    assert call("solve", *files, "--max-extra-macs", 0.2, "--solver", "greedy") == 0
    solution = uo.Solution.load(out)
    assert solution.max_extra_macs == 0.2
    assert 0 < solution.extra_macs <= 0.2 * solution.macs
    printed = capsys.readouterr().out
    assert f"{solution.windows} windows, {solution.gathers} gathers" in printed
    assert f"{solution.windows} windows add {solution.extra_macs:,} multiply-adds" in printed


def test_latency(traced: Path, tmp_path: Path, capsys: Output) -> None:
    files = (traced / "graph.json", traced / "masks.json")
    options = ("--objective", "latency", "--time-limit", 3, "--solver", "greedy")
    found = {}
    profile("gpu").save(tmp_path / "mine.json")
    for name in ("cpu-channels-last", "gpu", str(tmp_path / "mine.json")):
        assert call("solve", *files, *options, "--cost-model", name, "-o", tmp_path / "s.json") == 0
        found[name] = uo.Solution.load(tmp_path / "s.json")
        assert f"{found[name].objective_value:,} nanoseconds" in capsys.readouterr().out
    first, second, third = found.values()
    assert (first.objective, first.selection) == ("latency", "arena")
    assert first.cost_model == profile("cpu-channels-last")
    assert second.cost_model == third.cost_model == profile("gpu")
    assert first.objective_value != second.objective_value == third.objective_value


def test_run_for_latency(tmp_path: Path, capsys: Output) -> None:
    options = ("--objective", "latency", "--time-limit", 3, "--out", tmp_path)
    assert call("run", "topology/residual_stage", *options) == 0
    solution = uo.Solution.load(tmp_path / "solution.json")
    assert (solution.selection, solution.cost_model) == ("arena", profile("cpu"))
    printed = capsys.readouterr().out
    assert "nanoseconds" in printed
    assert "copied channels" not in printed


def test_run_with_windows(tmp_path: Path, capsys: Output) -> None:
    options = ("--max-extra-macs", 1, "--time-limit", 3, "--out", tmp_path)
    assert call("run", "topology/residual_stage", *options) == 0
    solution = uo.Solution.load(tmp_path / "solution.json")
    assert solution.windows
    printed = capsys.readouterr().out
    assert "windows" in printed
    assert f"add {solution.extra_macs:,} multiply-adds" in printed


def test_run_with_arenas(tmp_path: Path, capsys: Output) -> None:
    assert call("run", "topology/dense_block", "--selection", "arena", "--out", tmp_path) == 0
    solution = uo.Solution.load(tmp_path / "solution.json")
    assert solution.selection == "arena"
    assert f"{len(solution.arenas)} arena" in capsys.readouterr().out


def test_prune_takes_what_solve_takes() -> None:
    model, inputs = networks.build(
        "topology/residual_stage", seed=0, batch=1, device=torch.device("cpu")
    )
    pruned = uo.prune(model, inputs, amount=0.5, max_extra_macs=1.0, time_limit=3)
    assert pruned.solution.windows
    pruned = uo.prune(
        model,
        inputs,
        amount=0.5,
        objective="latency",
        selection="tensor",
        cost_model=profile("gpu"),
        time_limit=3,
    )
    assert (pruned.solution.selection, pruned.solution.cost_model) == ("tensor", profile("gpu"))
    done = uo.prune_submodules(model, inputs, [""], amount=0.5, max_extra_macs=1.0, time_limit=3)
    assert done.pruned[0].solution.max_extra_macs == 1.0

    model, inputs = networks.build(
        "topology/residual_stage", seed=0, batch=1, device=torch.device("cpu")
    )
    manager = uo.PruningManager(model)
    channels = [("blocks.0.conv1.weight", 5)]
    first = manager.compute(inputs, pruned_inputs=channels).solution
    second = manager.compute(inputs, pruned_inputs=channels, selection="arena").solution
    assert first is not None
    assert second is not None
    assert (first.selection, second.selection) == ("tensor", "arena")


def test_solve_gives_what_there_is_when_time_runs_out(
    hard: tuple[Path, Path], tmp_path: Path, capsys: Output
) -> None:
    assert call("solve", *hard, "-o", tmp_path / "s.json", "--time-limit", 2) == 0
    solution = uo.Solution.load(tmp_path / "s.json")
    assert solution.status == "feasible"
    assert solution.lower_bound < solution.objective_value
    printed = capsys.readouterr().out
    assert "best found" in printed
    assert "--time-limit" in printed


def test_solve_gives_what_there_is_on_interrupt(hard: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "solution.json"
    command = [sys.executable, "-c", NO_TORCH, "solve", *map(str, hard), "-o", str(out)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:
            if line.startswith("solve: "):
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert "best found" in process.stdout.read()
    assert uo.Solution.load(out).status == "feasible"


def test_models(capsys: Output) -> None:
    assert call("models") == 0
    assert capsys.readouterr().out.split() == catalogue.names()
    assert call("models", "resnet1*") == 0
    assert capsys.readouterr().out.split() == ["resnet101", "resnet152", "resnet18"]
    assert call("models", "unet") == 0
    assert "topology/unet" in capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "topology/mlp", "--amount", "1.5"], 2, ["--amount", "less than 1", "1.5"]),
        (["run", "topology/mlp", "--amount", "-0.1"], 2, ["--amount", "-0.1"]),
        (["run", "topology/mlp", "--amount", "nan"], 2, ["--amount"]),
        (["run", "topology/mlp", "--amount", "half"], 2, ["--amount"]),
        (["run", "topology/mlp", "--amount", "0.5", "0.7"], 2, ["0.7"]),
        (["run", "topology/mlp", "--side", "left"], 2, ["--side", "left", "both"]),
        (["run", "topology/mlp", "--layers", "none"], 2, ["--layers", "none", "conv"]),
        (["run", "topology/mlp", "--solver", "magic"], 2, ["--solver", "magic", "cp-sat"]),
        (["run", "topology/mlp", "--selection", "whole"], 2, ["--selection", "whole", "segment"]),
        (["run", "topology/mlp", "--objective", "speed"], 2, ["--objective", "speed", "latency"]),
        (["run", "topology/mlp", "--max-extra-macs", "-1"], 2, ["--max-extra-macs", "share"]),
        (["run", "topology/mlp", "--max-extra-macs", "nan"], 2, ["--max-extra-macs", "share"]),
        (["run", "topology/mlp", "--cost-model", "gpu"], 2, ["--cost-model", "latency only"]),
        (
            ["run", "topology/mlp", "--objective", "latency", "--cost-model", "tpu"],
            2,
            ["--cost-model tpu", "no such file", "cpu-channels-last"],
        ),
        (
            ["run", "topology/mlp", "--objective", "latency", "--max-extra-macs", "0.1"],
            2,
            ["--max-extra-macs", "--objective latency"],
        ),
        (
            ["compare", "topology/mlp", "--objective", "blocks", "--max-extra-macs", "0.1"],
            2,
            ["--max-extra-macs", "--objective blocks"],
        ),
        (["run", "topology/mlp", "--time-limit", "0"], 2, ["--time-limit", "more than 0"]),
        (["run", "topology/mlp", "--batch", "0"], 2, ["--batch"]),
        (["run", "topology/mlp", "--batch", "90000000000000"], 1, ["memory", "--batch"]),
        (["run", "topology/mlp", "--seed", "-1"], 2, ["--seed"]),
        (["trace", "topology/mlp", "--seed", "99999999999"], 2, ["--seed"]),
        (["run", "topology/mlp", "--device", "toaster"], 1, ["toaster", "--device cpu"]),
        (["run", "topology/mlp", "--device", "meta"], 1, ["meta", "--device cpu"]),
        (["run", "resnet81"], 1, ["resnet81", "did you mean"]),
        (["run", "unet"], 1, ["topology/unet"]),
        (["trace", "resnet81"], 1, ["resnet81", "did you mean"]),
        (["models", "resnext-of-kin"], 1, ["resnext-of-kin", "lists them all"]),
        (["run"], 2, ["upscale-opt run --help"]),
        (["shrink"], 2, ["shrink", "upscale-opt --help"]),
        (["models", "--frobnicate"], 2, ["--frobnicate"]),
    ],
    ids=str,
)
def test_bad_arguments(arguments: list[str], code: int, words: list[str], refuses: Refuses) -> None:
    refuses(*arguments, code=code, words=words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(tmp_path: Path, capsys: Output) -> None:
    assert call("run", "topology/mlp", "--device", "cuda", "--out", tmp_path) == 1
    assert "cuda" in one_line_error(capsys)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu(tmp_path: Path) -> None:
    assert call("run", "topology/unet", "--device", "cuda", "--out", tmp_path) == 0
    pruned = uo.load(catalogue.build("topology/unet").cuda(), tmp_path / "pruned.safetensors")
    assert all(parameter.is_cuda for parameter in pruned.parameters())


@pytest.mark.parametrize("command", ["run", "trace", "solve"])
def test_unwritable_folder(command: str, traced: Path, tmp_path: Path, capsys: Output) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    arguments = {
        "run": ["topology/mlp", "--out", blocked],
        "trace": ["topology/mlp", "--out", blocked / "graph.json"],
        "solve": [traced / "graph.json", traced / "masks.json", "--out", blocked / "s.json"],
    }
    assert call(command, *arguments[command]) == 1
    error = one_line_error(capsys)
    assert str(blocked) in error
    assert "--out" in error


def test_output_is_a_folder(traced: Path, tmp_path: Path, capsys: Output) -> None:
    assert call("solve", traced / "graph.json", traced / "masks.json", "-o", tmp_path) == 1
    assert f"{tmp_path} is a folder" in one_line_error(capsys)
    (tmp_path / "pruned.safetensors").mkdir()
    assert call("run", "topology/mlp", "-o", tmp_path) == 1
    assert str(tmp_path / "pruned.safetensors") in one_line_error(capsys)


def test_bad_files(traced: Path, tmp_path: Path, capsys: Output) -> None:
    graph, masks = traced / "graph.json", traced / "masks.json"
    out = ("-o", tmp_path / "solution.json")
    assert call("solve", tmp_path / "nowhere.json", masks, *out) == 1
    assert "nowhere.json" in one_line_error(capsys)

    truncated = tmp_path / "truncated.json"
    truncated.write_bytes(graph.read_bytes()[:1000])
    assert call("solve", truncated, masks, *out) == 1
    assert "truncated.json: not a valid channel graph" in one_line_error(capsys)

    assert call("solve", masks, graph, *out) == 1
    assert "masks.json" in one_line_error(capsys)

    newer = tmp_path / "newer.json"
    newer.write_text(json.dumps({"schema_version": 99, "kept": {}}))
    assert call("solve", graph, newer, *out) == 1
    assert "99" in one_line_error(capsys)

    foreign = tmp_path / "foreign.json"
    uo.Masks(kept={"stem.weight": {0: (1,)}}).save(foreign)
    assert call("solve", graph, foreign, *out) == 1
    assert "'stem.weight'" in one_line_error(capsys)

    uo.Masks(kept={"conv1.weight": {0: (64,)}}).save(foreign)
    assert call("solve", graph, foreign, *out) == 1
    assert "64" in one_line_error(capsys)
    assert not (tmp_path / "solution.json").exists()


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    def interrupt() -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(catalogue, "names", interrupt)
    assert call("models") == 130
    assert "interrupted" in one_line_error(capsys)


def test_steps_on_a_terminal() -> None:
    written = io.StringIO()
    steps = progress.Steps(Console(file=written, force_terminal=True, width=80))
    for _ in range(2):
        with steps.step("solve") as tell:
            progress.solver_progress(tell)(Progress("solve", 1234, 567))
            time.sleep(0.15)
    assert steps.seconds["solve"] >= 0.3
    assert "solve: 1,234 copied channels, lower bound 567" in written.getvalue()


def test_steps_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    written = io.StringIO()
    with progress.Steps(Console(file=written)).step("solve") as tell:
        progress.solver_progress(tell)(Progress("solve", 1234, 567))
    assert written.getvalue().splitlines() == [
        "solve ...",
        "solve: 1,234 copied channels, lower bound 567",
    ]


def test_every_criterion_that_needs_no_data_can_be_named() -> None:
    assert set(options.DATA_FREE) == set(CRITERIA)


@pytest.mark.parametrize("timed", [True, False])
def test_the_clock_can_be_left_out(
    timed: bool, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = "on one thread, by nobody's clock"
    monkeypatch.setattr("upscale_opt.in_runtimes.judge", lambda *models: verdict)
    options = ("--export", "onnx", "--out", tmp_path, *(() if timed else ("--no-time",)))
    for command in (
        ("run", "topology/residual_stage"),
        ("prune", "topology/residual_stage", "--macs", 0.9, "--no-measure", "--time-limit", 0.3),
    ):
        (tmp_path / "pruned.onnx").unlink(missing_ok=True)
        assert call(*command, *options) == 0
        assert (f"Time: {verdict}" in " ".join(capsys.readouterr().out.split())) == timed
        assert (tmp_path / "pruned.onnx").is_file()
