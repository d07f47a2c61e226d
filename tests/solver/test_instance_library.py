"""Every solver on the small instances in `instances/`, whose optima are known."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from solver_outcomes import HEURISTICS, check, is_solved, solvers_for

from upscale_opt.errors import SolverError
from upscale_opt.solver.algorithms.registry import solve_instance
from upscale_opt.solver.brute_force import brute_force
from upscale_opt.solver.problem.instance_file import InstanceFile

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tests" / "solver" / "instances").glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_solvers_on(path: Path) -> None:
    """Exact solvers prove the optimum; no solver does better, or says that nobody can reach it."""
    document = InstanceFile.load(path)
    assert document.name == path.stem
    optimum = document.optimum
    assert optimum is not None
    instance = document.to_instance()
    for solver in solvers_for(instance):
        outcome = solve_instance(instance, solver, time_limit=600)
        check(instance, outcome)
        assert outcome.lower_bound <= optimum <= outcome.objective, solver
        assert solver in HEURISTICS or is_solved(instance, solver, outcome), solver


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_optimum_of(path: Path) -> None:
    """It is brute force's, or there are too many orders to try them all."""
    document = InstanceFile.load(path)
    if document.optimum_by == "brute force":
        assert brute_force(document.to_instance()) == document.optimum
    else:
        with pytest.raises(SolverError, match="too much for brute force"):
            brute_force(document.to_instance())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_json_of(path: Path) -> None:
    """It is written as it was read, by way of the solvers' records, too."""
    document = InstanceFile.load(path)
    assert document.to_json() == path.read_text()
    again = InstanceFile.from_instance(
        document.to_instance(),
        document.name,
        optimum=document.optimum,
        optimum_by=document.optimum_by,
    )
    assert again == document
    assert again.to_json() == path.read_text()


def test_the_library_is_worth_its_name() -> None:
    """Both measures, every feature of instances, and hardly anything that needs no solver."""
    documents = [InstanceFile.load(path) for path in FILES]
    assert 40 <= len(documents) <= 80
    measures = Counter(document.measure for document in documents)
    assert min(measures["copies"], measures["blocks"]) > 15
    instances = [document.to_instance() for document in documents]
    kinds = {demand.kind for instance in instances for demand in instance.demands}
    assert kinds == {"interval", "prefix", "suffix"}
    assert any(read.pieces for instance in instances for read in instance.reads)
    assert any(len(read.parts) > 2 for instance in instances for read in instance.reads)
    assert any(instance.wishes for instance in instances)
    harder = 0
    for document, instance in zip(documents, instances, strict=True):
        greedy = solve_instance(instance, "greedy", time_limit=1)
        harder += greedy.objective > (document.optimum or 0)
    assert harder > 15


def test_the_command_writes_the_same_files(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "instance_library.py")]
    subprocess.run([*command, "--out", str(tmp_path)], check=True, capture_output=True)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in FILES}
