"""The examples run as they stand; what says that it needs no PyTorch, in a Python of its own."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from comparing import size
from hasty import make_haste
from torch import nn

import upscale_opt as uo
from upscale_opt.experiments.study import words
from upscale_opt.ir.choice import Choice

EXAMPLES = Path(__file__).parent.parent / "examples"

Output = pytest.CaptureFixture[str]


def run(name: str, capsys: Output) -> str:
    """What the example prints."""
    with uo.rules.local_rules():
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_prune_torchvision(capsys: Output) -> None:
    printed = run("prune_torchvision.py", capsys)
    assert "copied channels: 256 (optimal)" in printed


def test_own_model_own_masks(capsys: Output) -> None:
    printed = run("own_model_own_masks.py", capsys)
    assert "cp-sat: 0 copied channels (optimal)" in printed
    assert "identity: 10 copied channels" in printed
    assert printed.count("gather  ") == 2


def test_solve_without_torch(tmp_path: Path) -> None:
    reader = nn.Conv2d(8, 4, 1)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), reader)
    with torch.no_grad():
        reader.weight[:, ::2] = 0
    graph = uo.trace(model, torch.zeros(1, 3, 4, 4))
    graph.save(tmp_path / "graph.json")
    uo.masks_of(model, graph).save(tmp_path / "masks.json")
    files = (tmp_path / "graph.json", tmp_path / "masks.json")
    command = [sys.executable, str(EXAMPLES / "solve_without_torch.py"), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    assert "optimal: 0 copied channels" in printed
    assert "PyTorch was not needed" in printed


def test_switch_from_upscale(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """On half of ResNet-18's blocks."""

    def small(name: str = "resnet18") -> nn.Module:
        block = torchvision.models.resnet.BasicBlock
        model: nn.Module = torchvision.models.ResNet(block, [1, 1, 1, 1])
        return model

    monkeypatch.setattr(torchvision.models, "get_model", small)
    lines = run("switch_from_upscale.py", capsys).splitlines()
    assert len(lines) == 6
    assert all("output (1, 1000)" in line for line in lines)
    left = {line.split(":")[0]: int(line.split()[1].replace(",", "")) for line in lines}
    assert left["feature_maps"] < left["other_heuristic"] < left["own_masks"] < size(small())


def test_teach_a_rule(capsys: Output) -> None:
    printed = run("teach_a_rule.py", capsys)
    assert "without a rule: 2,088 parameters; opaque: cummax: aten.cummax" in printed
    assert "a wrong rule: the rule for Companding, at call '_1': fails with 21 channels" in printed
    assert "with the rule: 1,624 parameters; opaque: nothing" in printed


def test_faster_reader(tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``make run`` runs, with fewer and narrower pictures and without the clock."""
    for name, value in {"WIDTH": 64, "_TESTED": 8, "_HELD_OUT": 4}.items():
        monkeypatch.setattr(words, name, value)
    make_haste(monkeypatch)
    options = ["--no-measure", "--latency", "0.7", "--time-limit", "2"]
    monkeypatch.setattr(sys, "argv", ["faster_reader.py", *options, "--out", str(tmp_path)])
    printed = run("faster_reader.py", capsys)
    for said in ("words read correctly", "ms in onnxruntime", "Proof: ", "Where to look next"):
        assert said in printed
    assert "FeatureExtraction.ConvNet.14" in printed
    assert (tmp_path / "pruned.onnx").stat().st_size < (tmp_path / "reader.onnx").stat().st_size
    choice = Choice.load(tmp_path / "choice.json")
    assert choice.resources[0].used <= choice.resources[0].limit
    assert uo.Solution.load(tmp_path / "solution.json").status == "optimal"


def test_every_example_is_tested() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested
