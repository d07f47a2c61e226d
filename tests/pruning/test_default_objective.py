"""What is minimised where nothing is said: bytes, wherever a smaller model is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import call
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.measuring.bytes_moved import moved_bytes
from upscale_opt.pruning.rounds import prune_in_rounds
from upscale_opt.solver.options import SolveOptions

SIZE = 8
"""Pixels of the inputs' sides; one of the readers reads a mean over all of them."""


class Readers(nn.Module):
    """Three readers of one tensor that cannot all be views; the widest reads the fewest bytes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 1)
        self.first = nn.Conv2d(8, 4, 1)
        self.second = nn.Conv2d(8, 4, 1)
        self.pooled = nn.Conv2d(8, 4, 1)
        for layer, kept in (
            (self.first, (0, 1, 2, 3)),
            (self.second, (0, 1, 4, 5)),
            (self.pooled, (0, 2, 4, 6, 7)),
        ):
            gone = [channel for channel in range(8) if channel not in kept]
            layer.weight.data[:, gone] = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        gate = self.pooled(y.mean((2, 3), keepdim=True))
        return torch.mul(self.first(y) * self.second(y), gate)


class Around(nn.Module):
    """Calls them as a part."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Readers()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.part(x)
        return found


X = torch.ones(1, 3, SIZE, SIZE)
BYTES, CHANNELS = 5 * 4, 4


def of(solution: uo.Solution) -> tuple[str, int, int]:
    assert solution.status == "optimal"
    return solution.objective, solution.objective_value, solution.copied


def test_models_copy_the_fewest_bytes() -> None:
    want = ("copied_bytes", BYTES, 5)
    pruned = uo.prune(Readers(), X)
    assert of(pruned.solution) == want
    assert moved_bytes(pruned.model, X).total == BYTES
    assert "1 gathers of 5 channels" in str(pruned.solution)
    manager = uo.PruningManager(Readers()).compute([X])
    assert manager.solution is not None
    assert of(manager.solution) == want
    (part,) = uo.prune_submodules(Around(), X, ["part"]).pruned
    assert of(part.solution) == want
    rounds = prune_in_rounds(Readers(), X, budget=uo.Budget(macs=1.0), rounds=1)
    assert rounds.last is not None
    assert of(rounds.last.solution) == want


def test_orders_are_compared_by_channels() -> None:
    model = Readers()
    graph = uo.trace(model, X)
    masks = uo.masks_of(model, graph)
    assert of(uo.solve(graph, masks)) == ("copied_channels", CHANNELS, 4)
    (row,) = uo.solver.compare(graph, masks, ["cp-sat"])
    assert (row.objective, row.objective_value) == ("copied_channels", CHANNELS)


@pytest.mark.parametrize("objective", ["copied_channels", "gathers"])
def test_what_is_asked_for_goes_before(objective: str) -> None:
    asked = SolveOptions(objective=objective)
    assert uo.prune(Readers(), X, options=asked).solution.objective == objective
    assert uo.prune(Readers(), X, objective=objective).solution.objective == objective
    manager = uo.PruningManager(Readers()).compute([X], objective=objective)
    assert manager.solution is not None
    assert manager.solution.objective == objective


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, out = "topology/unet", tmp_path / "solution.json"
    assert call("run", name, "--out", tmp_path) == 0
    solution = uo.Solution.load(out)
    assert solution.objective == "copied_bytes"
    printed = capsys.readouterr().out
    assert f"{solution.objective_value:,}" in printed
    assert f"{solution.copied:,} of " in printed
    files = (tmp_path / "graph.json", tmp_path / "masks.json", "-o", out)
    assert call("solve", *files, "--objective", "copied_bytes") == 0
    assert f"copied bytes ({solution.copied:,} of " in capsys.readouterr().out
    assert call("solve", *files) == 0
    assert uo.Solution.load(out).objective == "copied_channels"
