"""The table of layers: what it adds up to is what the models are, and what it says can be read."""

from __future__ import annotations

import pytest
import torch
from sample_networks import built, documents_of
from synthetic_losses import synthetic_losses
from torch import nn

import upscale_opt as uo
from upscale_opt.errors import VerificationError
from upscale_opt.ir.profiles import profile
from upscale_opt.measuring.costs import count_costs
from upscale_opt.models import catalogue
from upscale_opt.solver.layers import REST, layers_of, prices_of
from upscale_opt.solver.network.segments import find_segments
from upscale_opt.solver.selection.accounts import account
from upscale_opt.solver.selection.rates import Rates

NETWORKS = ("resnet18", "mobilenet_v3_small", "topology/dense_block", "topology/unet")


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_add_up_to_the_models(name: str) -> None:
    inputs = catalogue.example_inputs(name)
    model = catalogue.randomize(catalogue.build(name), 0, inputs)
    pruned = uo.prune(model, inputs, amount=0.5, check=False)
    table = pruned.table
    for found, model in ((table.before, pruned.masked), (table.after, pruned.model)):
        costs = count_costs(model, inputs)
        assert found is not None
        assert (found.parameters, found.multiply_adds) == (costs.parameters, costs.multiply_adds)
    assert table.copied == pruned.solution.copied


@pytest.mark.parametrize("name", ["resnet18", "topology/dense_block"])
def test_times_are_those_of_budgets(name: str) -> None:
    """The same rates price a choice. (Other masks' exports may be narrower than the masks.)"""
    documents, prices = documents_of(name, 0.5), profile("cpu")
    graph, rates = documents.graph, Rates(documents.graph, prices)
    masks = uo.constrain(graph, documents.masks)
    table = layers_of(graph, uo.solve(graph, masks), cost_model=prices)
    assert table.after is not None
    assert table.copied == 0
    for size, kept in ((table.before, uo.Masks(kept={})), (table.after, masks)):
        taken = account(graph, *find_segments(graph, kept), rates)
        assert size.nanoseconds == pytest.approx(taken.latency)


def test_widths_are_those_of_the_modules() -> None:
    documents = documents_of("resnet18", 0.5)
    table = layers_of(documents.graph, documents.solution)
    pruned = uo.materialize(documents.model, documents.solution)
    convolutions = 0
    for row in table.rows:
        if row.kind.startswith("conv"):
            layer = pruned.get_submodule(row.name)
            assert isinstance(layer, nn.Conv2d)
            assert row.after is not None
            assert (row.after.reads, row.after.writes) == (layer.in_channels, layer.out_channels)
            convolutions += 1
    assert convolutions == 20
    copied = {row.name: row.copied for row in table.rows if row.copied}
    assert copied
    assert sum(copied.values()) == documents.solution.objective_value
    assert REST not in copied  # each is for a layer


def test_gathers_behind_norms_are_their_layers() -> None:
    """A dense block reads through a norm, for the convolution behind it."""
    inputs = torch.randn(1, 3, 64, 64)
    model = catalogue.build("densenet121", seed=1)
    pruned = uo.prune(model, inputs, amount=0.5, layers="conv", check=False, solver="greedy")
    copied = [row for row in pruned.table.rows if row.copied]
    assert len(copied) > 20
    assert {row.kind for row in copied if row.name != REST} == {"conv 1x1"}


def test_losses_are_the_choices() -> None:
    _, graph = built("resnet18")
    budget = uo.Budget(macs=0.5, latency=1.0, cost_model=profile("gpu"))
    choice = uo.solver.choose(graph, synthetic_losses(graph), budget, solver="constrained")
    solution = uo.solve(graph, choice.masks, solver="greedy")
    assert prices_of(solution, choice) == profile("gpu")
    assert prices_of(solution) == profile("cpu")
    table = layers_of(graph, solution, choice, cost_model=prices_of(solution, choice))
    assert table.loss == pytest.approx(choice.loss)
    assert table.device == profile("gpu").device_name
    text = str(table)
    assert "loss" in text.splitlines()[0]
    assert profile("gpu").device_name in text
    assert len(text.splitlines()) == len(table.rows) + 5


def test_what_is_there_is_shown_and_nothing_else() -> None:
    reader = nn.Conv2d(8, 4, 1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), reader)
    with torch.no_grad():
        reader.weight[:, [0, 5]] = 0
    graph = uo.trace(model, torch.randn(2, 3, 8, 8))
    bare = layers_of(graph)
    assert bare.columns == ("layer", "kind", "reads", "writes", "parameters", "multiply-adds")
    assert bare.after is None
    assert bare.loss is None
    assert [row.name for row in bare.rows] == ["0", "2", REST]
    pruned = uo.prune(model, torch.randn(2, 3, 8, 8))
    first, second, *_ = pruned.table.cells()
    assert first[:5] == ("0", "conv 3x3", "3", "8 → 6", "224 → 168")
    assert second[:4] == ("2", "conv 1x1", "8 → 6", "4")
    assert "of the parameters" in str(pruned)
    shown = pruned._repr_html_()
    assert shown.count("<tr>") == 1 + 3 + 1
    assert "8 → 6" in shown


def test_names_are_escaped() -> None:
    model = nn.Sequential()
    model.add_module("<b>bold</b>", nn.Conv2d(3, 8, 1))
    table = layers_of(uo.trace(model, torch.randn(2, 3, 4, 4)))
    assert table.rows[0].name == "<b>bold</b>"
    assert "<b>" not in table._repr_html_()


def test_a_dead_layer_is_gone() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.one(x) + self.other(x)
            return y

    model = Two()
    with torch.no_grad():
        model.other.weight.zero_()
    (_, other, *_) = uo.prune(model, torch.randn(2, 3, 4, 4)).table.cells()
    assert other[:2] == ("other", "gone")


def test_another_networks_solution_is_refused() -> None:
    solution = documents_of("resnet18", 0.5).solution
    with pytest.raises(VerificationError, match="another graph"):
        layers_of(documents_of("topology/unet", 0.5).graph, solution)
