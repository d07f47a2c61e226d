"""Solving needs the JSON, and nothing that is large or that a single command needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import upscale_opt as uo

BLOCKED = ("torch", "torchvision", "matplotlib", "joblib", "pulp", "highspy")

BLOCK = f"""
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED}:
            raise ImportError(f"{{name}} is not to be imported")

sys.meta_path.insert(0, Nothing())
"""

SOLVE = """
import json, pathlib
import upscale_opt as uo

folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
graph = uo.ChannelGraph.load(folder / f"{name}.graph.json")
masks = uo.Masks.load(folder / f"{name}.masks.json")
solution = uo.solve(graph, masks)
solution.save(folder / f"{name}.solution.json")
try:
    uo.trace
except ImportError as error:
    assert "torch" in str(error)
else:
    raise AssertionError("traced without torch")
print(json.dumps({"status": solution.status, "objective": solution.objective_value,
                  "bound": solution.lower_bound, "fingerprint": solution.graph_fingerprint}))
"""

COMMAND = "from upscale_opt.cli import main; main()"


def run(program: str, *arguments: object) -> str:
    """What a program prints where the packages cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "COLUMNS": "100", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_solve_without_torch(json_folder: Path) -> None:
    name = "resnet50"
    answer = json.loads(run(SOLVE, json_folder, name))
    assert answer["status"] == "optimal"
    assert answer["bound"] == answer["objective"] > 0
    graph = uo.ChannelGraph.load(json_folder / f"{name}.graph.json")
    masks = uo.Masks.load(json_folder / f"{name}.masks.json")
    assert answer["fingerprint"] == graph.fingerprint
    solution = uo.Solution.load(json_folder / f"{name}.solution.json")
    here = uo.solve(graph, masks)
    assert solution.model_dump(exclude={"times"}) == here.model_dump(exclude={"times"})


def test_the_commands_about_documents(json_folder: Path, tmp_path: Path) -> None:
    documents = [json_folder / f"resnet50.{kind}.json" for kind in ("graph", "masks")]
    solution = tmp_path / "solution.json"
    assert "optimal" in run(COMMAND, "solve", *documents, "--out", solution)
    assert "is the optimum: proven" in run(COMMAND, "check", *documents, solution)
    assert "it copies nothing" in run(COMMAND, "explain", solution, "layer1_0_conv1")
    given = ("--graph", documents[0], "--masks", documents[1], "--solver", "greedy")
    assert "greedy" in run(COMMAND, "compare", *given, "-o", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"compare.csv", "compare.json"}
    assert "solve" in run(COMMAND, "--help")


def test_missing_extras_are_named(json_folder: Path, tmp_path: Path) -> None:
    """Where a clone can get them, too, and before any work."""
    documents = [json_folder / f"resnet50.{kind}.json" for kind in ("graph", "masks")]
    given = ("compare", "--graph", documents[0], "--masks", documents[1], "-o", tmp_path / "out")
    for arguments, extra in (
        ((*given, "--picture", "png"), "plots"),
        (("pareto", "topology/mlp", "--plot", tmp_path / "front.svg"), "plots"),
    ):
        with pytest.raises(AssertionError, match=rf'error: .*: pip install "\.\[{extra}\]"'):
            run(COMMAND, *arguments)
    assert not list(tmp_path.iterdir())
