"""The commands that sweep and scale the solvers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from comparing import BENCHMARKS, benchmark

from upscale_opt.models.instances.from_sets import one_space
from upscale_opt.solver.algorithms import registry
from upscale_opt.solver.algorithms.identity import solve_identity
from upscale_opt.solver.problem.instance import Group, Instance, Outcome, Proof
from upscale_opt.solver.problem.instance_file import InstanceFile

CASE = one_space(5, [{0, 2}, {1, 3}, {0, 4}, {2, 4}])
"""Of the first, third and fourth set two can be met; in the original order, none is."""


def test_sweep(tmp_path: Path) -> None:
    """In processes of its own, as a user runs it."""
    sweep = str(BENCHMARKS / "solver_sweep.py")
    run = subprocess.run(
        [sys.executable, sweep, "--count", "12", "--jobs", "2", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "copies, cp-sat: 12 of 12 optimal" in run.stdout
    assert "blocks, cp-sat: 12 of 12 optimal" in run.stdout
    assert list(tmp_path.iterdir()) == []


def cheat(change: dict[str, Any]) -> Any:
    """A solver that claims something wrong."""

    def solver(instance: Instance, **options: Any) -> Outcome:
        outcome = solve_identity(instance)
        claims = {
            "orders": outcome.orders,
            "objective": outcome.objective,
            "lower_bound": outcome.objective,
        }
        return Outcome(**{**claims, **change})

    return solver


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({}, "the bound is 8, the optimum 2"),
        ({"lower_bound": 0}, "only proves 0 of 8; optimum 2"),
        ({"objective": 5}, "costs 8, not 5"),
        ({"orders": ((0, 0, 1, 2, 3),)}, "space 0 is not ordered"),
        ({"orders": ()}, "ValueError"),
    ],
)
def test_sweep_finds_wrong_solvers(
    change: dict[str, Any],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And keeps the instance, so that it can be looked at."""
    module = benchmark("solver_sweep")
    monkeypatch.setitem(registry.SOLVERS, "cheat", cheat(change))
    monkeypatch.setattr(module, "random_instance", lambda rng: CASE)
    arguments = ["--count", "1", "--solver", "cheat", "--measure", "copies"]
    assert module.main([*arguments, "--out", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert "copies, cheat:" in captured.out
    assert "1 failed" in captured.out
    saved = InstanceFile.load(tmp_path / "copies-0.json")
    assert saved.to_instance() == CASE
    assert (saved.optimum, saved.optimum_by) == (2, "brute force")


def test_sweep_finds_false_conflicts() -> None:
    """Those of an outcome that is right apart from them."""
    module = benchmark("solver_sweep")
    outcome = registry.solve_instance(CASE, "cp-sat", time_limit=60)
    assert module.wrong(CASE, "cp-sat", outcome, 2) is None
    false = Outcome(outcome.orders, 2, 2, Proof((Group((0, 1), 1),)))
    assert module.wrong(CASE, "cp-sat", false, 2) == ("says that demands (0, 1) exclude each other")


def test_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page, with one small case instead of its own."""
    module = benchmark("solver_scaling")
    monkeypatch.setattr(module, "CASES", {"four sets": lambda rng: CASE})
    page = tmp_path / "scaling.md"
    monkeypatch.setattr(
        sys, "argv", ["solver_scaling.py", "--solver", "cp-sat", "--out", str(page)]
    )
    assert module.main() == 0
    text = page.read_text()
    assert "Written by `python solver_scaling.py --solver cp-sat" in text
    assert "| four sets | 4 | cp-sat | 2 | 2 | optimal |" in text
    assert "| 64 | 8,192 | 124,318 | 64 |" in text


def test_scaling_takes_the_third_block_of_densenet201() -> None:
    """48 layers, each of which reads half of 256, 288, ... 1,760 channels."""
    module = benchmark("solver_scaling")
    weights = [read.weight for read in module.densenet201().reads]
    expected = {(256 + 32 * layer) // 2 for layer in range(48)}
    assert expected <= set(weights)
