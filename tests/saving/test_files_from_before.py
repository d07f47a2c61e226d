"""Documents and models that an earlier version wrote: they load, and compute what they did.

The files in ``tests/fixtures/before`` were written before the folders of this package got their
present names, those called "gathered" before a plan without views was a plan like others. They are
never written anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import call
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import upscale_opt as uo
from upscale_opt.models import catalogue
from upscale_opt.solver.comparing import Comparison

FOLDER = Path(__file__).parents[1] / "fixtures" / "before"
EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
EXPORTED = "exported"  # captured by torch.export


class Exported(nn.Module):
    """The definition of the network that torch.export captured."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 0:
            x = torch.relu(self.a(x))
        y: Tensor = self.b(x)
        return y


@pytest.mark.parametrize("label", EXPECTED)
def test_pruned_models_load(label: str, tmp_path: Path) -> None:
    network = EXPECTED[label]["network"]
    if network == EXPORTED:
        model: nn.Module = Exported().eval()
        torch.manual_seed(3)
        Exported()
        inputs: Any = torch.rand(2, 3, 6, 6)
    else:
        model = catalogue.build(network, seed=7)
        inputs = catalogue.example_inputs(network, 2)
    loaded = uo.load(model, FOLDER / f"{label}.safetensors")
    if label.startswith("gathered"):  # such a file may be saved and loaded again
        uo.save(loaded, tmp_path / "again.safetensors")
        loaded = uo.load(model, tmp_path / "again.safetensors")
    outputs = pytree.tree_leaves(call(loaded, inputs))
    wanted = EXPECTED[label]["outputs"]
    assert len(outputs) == len(wanted)
    for output, want in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(
            output.flatten()[:8], torch.tensor(want), rtol=1e-4, atol=1e-5, check_dtype=False
        )


@pytest.mark.parametrize(
    ("document", "name"),
    [
        (uo.ChannelGraph, "graph"),
        (uo.Masks, "masks"),
        (uo.Solution, "solution"),
        (uo.CostModel, "cost-model"),
        (Comparison, "comparison"),
    ],
)
def test_documents_load_and_are_written_as_before(
    document: type[uo.Masks], name: str, tmp_path: Path
) -> None:
    before = FOLDER / f"{name}.json"
    document.load(before).save(tmp_path / "now.json")
    assert (tmp_path / "now.json").read_bytes() == before.read_bytes()


def test_the_solution_from_before_fits_its_graph() -> None:
    graph = uo.ChannelGraph.load(FOLDER / "graph.json")
    masks = uo.Masks.load(FOLDER / "masks.json")
    solution = uo.Solution.load(FOLDER / "solution.json")
    assert solution.graph_fingerprint == graph.fingerprint
    again = uo.solve(graph, masks)
    assert again.objective_value == solution.objective_value
    assert again.orders == solution.orders
