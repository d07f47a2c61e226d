"""Losses from few positions, or from positions that resemble each other, against many others."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.reconstruction.effects import halved
from upscale_opt.reconstruction.elimination import Quadratic, shrink
from upscale_opt.reconstruction.grams import Gram
from upscale_opt.reconstruction.losses import losses_of

COLUMNS, OUTPUTS = 24, 8


def drawn(rows: int, seed: int) -> Tensor:
    """Correlated positions, of shape (rows, columns), always of the same distribution."""
    mix = torch.randn(
        COLUMNS, COLUMNS, generator=torch.Generator().manual_seed(99), dtype=torch.float64
    )
    own = torch.Generator().manual_seed(seed)
    return torch.randn(rows, COLUMNS, generator=own, dtype=torch.float64) @ (
        mix + 3 * torch.eye(COLUMNS, dtype=torch.float64)
    )


def weights() -> Tensor:
    own = torch.Generator().manual_seed(5)
    return torch.randn(COLUMNS, OUTPUTS, generator=own, dtype=torch.float64)


def elsewhere(x: Tensor, kept: list[int], refitted: bool) -> float:
    """The loss of a position that was not seen, if the kept columns are refitted to ``x``."""
    kernel, others = weights(), drawn(4000, 1234)
    found = kernel[kept]
    if refitted:
        found = torch.linalg.lstsq(x[:, kept], x @ kernel).solution
    return float((others @ kernel - others[:, kept] @ found).square().sum()) / len(others)


@pytest.mark.parametrize("rows", [40, 80, 300])
def test_losses_are_those_of_positions_that_were_not_seen(rows: int) -> None:
    """In the mean over samples; those that were seen promise too much."""
    order = torch.arange(COLUMNS)[None, None]
    ratios, promises = [], []
    for seed in range(20):
        x = drawn(rows, seed)
        quadratic = Quadratic((x.T @ x)[None], weights()[None], 1, 1, rows)
        dropped = COLUMNS // 2
        truth = elsewhere(x, list(range(dropped, COLUMNS)), refitted=True)
        ratios.append(float(quadratic.losses(order)[dropped]) / rows / truth)
        seen = replace(quadratic, rows=math.inf).losses(order)
        promises.append(float(seen[dropped]) / rows / truth)
    mean = sum(ratios) / len(ratios)
    assert mean == pytest.approx(1, abs=0.15)
    assert abs(mean - 1) < abs(sum(promises) / len(promises) - 1)


def test_fewer_positions_than_columns_make_nothing_good() -> None:
    """They could be met exactly: by the Gram matrix alone nothing would be lost."""
    x = drawn(10, 3)
    gram = (x.T @ x)[None]
    shrink(gram, 10, 1e-6)
    quadratic = Quadratic(gram, weights()[None], 1, 1, 10)
    order = torch.arange(COLUMNS)[None, None]
    losses, dropped = quadratic.losses(order), 12
    plain = (gram[0, :dropped, :dropped] @ weights()[:dropped] * weights()[:dropped]).sum()
    assert float(losses[dropped]) == pytest.approx(float(plain))
    seen = replace(quadratic, rows=math.inf).losses(order)
    assert float(losses[dropped]) > 100 * float(seen[dropped])
    assert quadratic.loss(order[0, :, :dropped]) == pytest.approx(float(losses[dropped]))
    change = halved(quadratic, gram, weights()[None], torch.ones(COLUMNS, dtype=torch.bool), None)
    assert change is not None
    assert int((change.weights != 0).any(2).sum()) == COLUMNS // 2  # the rest is as it was


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("repeated", "batches"), [(1, 8), (1, 1), (6, 8), (6, 2)])
def test_positions_that_resemble_each_other_count_less(
    groups: int, repeated: int, batches: int
) -> None:
    gram = Gram(torch.zeros(groups, COLUMNS, COLUMNS).double(), torch.zeros(groups, COLUMNS))
    for seed in range(batches):
        x = drawn(240 // repeated, seed).repeat_interleave(repeated, dim=0)
        gram.add(x.expand(groups, -1, -1), -(-8 // batches))
    whole = torch.cat(
        [drawn(240 // repeated, s).repeat_interleave(repeated, 0) for s in range(batches)]
    )
    torch.testing.assert_close(gram.products[0], whole.T @ whole)
    assert gram.rows == len(whole)
    assert gram.independent == pytest.approx(len(whole) / repeated**0.5, rel=0.25)


@pytest.mark.parametrize("images", [1, 2, 12])
def test_a_classifier_behind_a_mean_is_not_emptied_for_few_images(images: int) -> None:
    """A dozen images determine its 64 inputs by twelve numbers; others would not be met."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    ).eval()
    x = torch.randn(images, 3, 12, 12)
    graph = uo.trace(network, x[:1])
    (reader,) = losses_of(network, graph, [x], weighting="variance").readers
    assert reader.parameter == "4.weight"
    own = reader.chains[0]
    assert own.losses[32] > 0.1
