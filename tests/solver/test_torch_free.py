"""Solving needs the JSON and no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import upscale_opt as uo

SOLVE = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, NoTorch())
import json, pathlib
import upscale_opt as uo

folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
graph = uo.ChannelGraph.load(folder / f"{name}.graph.json")
masks = uo.Masks.load(folder / f"{name}.masks.json")
solution = uo.solve(graph, masks)
assert not {"torch", "torchvision"} & set(sys.modules)
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


@pytest.mark.parametrize("name", ["resnet50", "densenet201"])
def test_solve_without_torch(json_folder: Path, name: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SOLVE, str(json_folder), name],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert answer["status"] == "optimal"
    assert answer["bound"] == answer["objective"] > 0
    graph = uo.ChannelGraph.load(json_folder / f"{name}.graph.json")
    masks = uo.Masks.load(json_folder / f"{name}.masks.json")
    assert answer["fingerprint"] == graph.fingerprint
    solution = uo.Solution.load(json_folder / f"{name}.solution.json")
    here = uo.solve(graph, masks)
    assert solution.model_dump(exclude={"times"}) == here.model_dump(exclude={"times"})
