"""Masks whose widths are multiples: ``round_to``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.importance.choosing import round_masks
from upscale_opt.models import catalogue


class Widths(nn.Module):
    """Layers of 20, 24 and 6 channels, and one of four groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 1)
        self.wide = nn.Conv2d(20, 24, 1)
        self.grouped = nn.Conv2d(24, 6, 1)
        self.narrow = nn.Conv2d(6, 32, 1)
        self.groups = nn.Conv2d(32, 8, 3, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.stem, self.wide, self.grouped, self.narrow):
            x = layer(x).relu()
        result: Tensor = self.groups(x)
        return result


@pytest.mark.parametrize(
    ("amount", "round_to", "kept"),
    [
        (0.3, 1, [14, 17, 5, 24]),
        (0.3, 4, [16, 20, 4, 32]),
        (0.0, 8, [16, 24, 6, 32]),
        (0.9, 2, [2, 4, 2, 8]),
        (0.5, 64, [20, 24, 6, 32]),
    ],
)
def test_layers_and_groups_keep_multiples(amount: float, round_to: int, kept: list[int]) -> None:
    torch.manual_seed(0)
    model = Widths().eval()
    graph = uo.trace(model, torch.zeros(2, 3, 5, 5))
    masks = uo.choose_masks(model, graph, amount, round_to=round_to)
    names = ("wide", "grouped", "narrow", "groups")
    assert [len(masks.kept[f"{name}.weight"][1]) for name in names] == kept
    fewer = uo.choose_masks(model, graph, amount)
    for name in names:
        both = (set(one.kept[f"{name}.weight"][1]) for one in (fewer, masks))
        small, large = sorted(both, key=len)
        assert small <= large  # by the same ranking


@pytest.mark.parametrize("options", [{"is_global": True}, {"method": "constrained"}], ids=str)
def test_together_with_other_options(options: dict[str, Any]) -> None:
    name = "topology/residual_stage"
    model, inputs = catalogue.build(name), catalogue.example_inputs(name, 2)
    result = uo.prune(model, inputs, amount=0.4, round_to=4, **options)
    graph = result.graph
    chosen = uo.choose_masks(model, graph, 0.4, round_to=4, **options)
    widths = {len(kept) for by_axis in chosen.kept.values() for kept in by_axis.values()}
    assert any(width % 4 == 0 for width in widths)
    assert all(width % 4 == 0 for width in widths)
    if "method" in options:
        assert result.solution.objective_value == 0


EIGHT = [0, 1, 8, 9, 16, 17, 24, 25]
"""Two of the eight channels of every group."""


@pytest.mark.parametrize("criterion", [None, "l1"])
def test_masks_from_elsewhere_are_rounded_by_scores(criterion: str | None) -> None:
    torch.manual_seed(0)
    model = Widths().eval()
    graph = uo.trace(model, torch.zeros(2, 3, 5, 5))
    given = {"wide.weight": range(2, 13), "grouped.weight": range(5), "groups.weight": EIGHT}
    masks = uo.Masks(kept={name: {1: tuple(kept)} for name, kept in given.items()})
    found = round_masks(model, graph, masks, 4, criterion=criterion).kept
    assert len(found["wide.weight"][1]) == 12
    assert set(found["wide.weight"][1]) > set(given["wide.weight"])
    (back,) = set(found["wide.weight"][1]) - set(given["wide.weight"])
    norms = model.wide.weight.detach().flatten(2).norm(1 if criterion else 2, dim=(0, 2))
    assert norms[back] == max(norms[i] for i in (*range(2), *range(13, 20)))
    assert len(found["grouped.weight"][1]) == 8
    assert len(found["groups.weight"][1]) == 16
    assert set(found["groups.weight"][1]) > set(EIGHT)
    assert "narrow.weight" not in found
    result = uo.prune(model, torch.randn(2, 3, 5, 5), masks=masks, round_to=4, criterion=criterion)
    widths = [len(result.masks.kept[name][1]) for name in given]
    assert widths == [12, 8, 16]


def test_masks_on_which_layers_agree_still_do_when_rounded() -> None:
    name = "topology/residual_stage"
    model, inputs = catalogue.build(name), catalogue.example_inputs(name, 2)
    graph = uo.trace(model, inputs)
    masks = uo.choose_masks(model, graph, 0.4, side="both")
    result = uo.prune(model, inputs, masks=masks, round_to=4, method="constrained")
    assert result.solution.objective_value == 0
    pruned = [
        len(kept)
        for name, by_axis in result.masks.kept.items()
        for axis, kept in by_axis.items()
        if len(kept) < graph.parameters[name][axis]
    ]
    assert all(width % 4 == 0 for width in pruned)


@pytest.mark.parametrize("round_to", [0, -8, 2.5, "8", True])
def test_what_is_no_width_is_refused(round_to: Any) -> None:
    model = Widths().eval()
    with pytest.raises(uo.MaskError, match="round_to"):
        uo.prune(model, torch.zeros(2, 3, 5, 5), amount=0.5, round_to=round_to)
    graph = uo.trace(model, torch.zeros(2, 3, 5, 5))
    with pytest.raises(uo.MaskError, match="round_to"):
        round_masks(model, graph, uo.Masks(kept={}), round_to)
