"""Criteria that look at weights, against loops in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from importance_reference import (
    UNITS,
    WAYS,
    Small,
    assert_chooses,
    fpgm,
    lamp,
    masked,
    norm,
    segments_of,
    traced,
    weights_by_channel,
)
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.importance import FPGM, L1, L2, LAMP, Importance, Magnitude, Random, score_segments
from upscale_opt.importance.choosing import choose_masks
from upscale_opt.managers.masking import MaskingManager
from upscale_opt.masking.segments import Method, Side

Reference = Callable[[list[list[float]]], list[float]]

WEIGHT_CRITERIA: list[tuple[Importance, Reference]] = [
    (L1(), lambda rows: [norm(row, 1) for row in rows]),
    (L2(), lambda rows: [norm(row, 2) for row in rows]),
    (Magnitude(), lambda rows: [norm(row, 2) for row in rows]),
    (Magnitude(3), lambda rows: [norm(row, 3) for row in rows]),
    (Magnitude(p=math.inf), lambda rows: [norm(row, math.inf) for row in rows]),
    (LAMP(), lambda rows: lamp([norm(row, 2) ** 2 for row in rows])),
    (LAMP(squared=False), lambda rows: lamp([norm(row, 2) for row in rows])),
    (LAMP(1), lambda rows: lamp([norm(row, 1) ** 2 for row in rows])),
    (FPGM(), fpgm),
]
IDS = ["l1", "l2", "fro", "l3", "max", "lamp", "lamp-norms", "lamp-l1", "fpgm"]

# Against loops.


@pytest.mark.parametrize(("criterion", "reference"), WEIGHT_CRITERIA, ids=IDS)
@pytest.mark.parametrize(("method", "side"), WAYS)
def test_scores_are_those_of_plain_loops(
    criterion: Importance, reference: Reference, method: Method, side: Side
) -> None:
    model = Small()
    segments = segments_of(model, method, side)
    score_segments(segments, criterion)
    for segment, unit in zip(segments, UNITS[method, side], strict=True):
        assert segment.scores is not None
        expected = reference(weights_by_channel(model, unit))
        assert segment.scores.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("criterion", "reference"), WEIGHT_CRITERIA, ids=IDS)
@pytest.mark.parametrize(("method", "side"), WAYS)
@pytest.mark.parametrize("together", [False, True])
def test_the_least_go_per_layer_and_globally(
    criterion: Importance, reference: Reference, method: Method, side: Side, together: bool
) -> None:
    model, units = Small(), UNITS[method, side]
    scores = [reference(weights_by_channel(model, unit)) for unit in units]
    assert_chooses(criterion, model, scores, method, side, together)


@pytest.mark.parametrize(("criterion", "reference"), WEIGHT_CRITERIA, ids=IDS)
@pytest.mark.parametrize("together", [False, True])
def test_the_manager_zeroes_the_least(
    criterion: Importance, reference: Reference, together: bool
) -> None:
    model, units = Small(), UNITS["unconstrained", "input"]
    scores = [reference(weights_by_channel(model, unit)) for unit in units]
    example = torch.zeros(2, 3, 6, 6, dtype=torch.float64)
    manager = MaskingManager(model, is_global=together, inputs=example, layers="all")
    manager.importance(criterion).mask(0.4)
    found = uo.masks_of(model, manager.graph)
    for (weight, axis), kept in masked(units, scores, 0.4, together).items():
        assert set(found.kept[weight][axis]) == kept, (weight, axis)


MATRICES = st.integers(1, 7).flatmap(
    lambda width: st.lists(
        st.lists(st.integers(-3, 3).map(float), min_size=width, max_size=width),
        min_size=1,
        max_size=9,
    )
)


@pytest.mark.parametrize(("criterion", "reference"), WEIGHT_CRITERIA, ids=IDS)
@given(rows=MATRICES)
@settings(max_examples=20, deadline=None)
def test_equal_and_zero_channels(
    criterion: Importance, reference: Reference, rows: list[list[float]]
) -> None:
    scores = criterion(torch.tensor(rows, dtype=torch.float64))
    # Where norms tie but for their last digits, LAMP may break the tie either way.
    if isinstance(criterion, LAMP):
        assert sorted(scores.tolist()) == pytest.approx(sorted(reference(rows)), abs=1e-12)
    else:
        assert scores.tolist() == pytest.approx(reference(rows), abs=1e-12)


@pytest.mark.parametrize("criterion", [criterion for criterion, _ in WEIGHT_CRITERIA], ids=IDS)
def test_single_precision_weights(criterion: Importance) -> None:
    values = torch.randn(6, 10)
    assert torch.allclose(criterion(values).double(), criterion(values.double()), rtol=1e-5)


# LAMP.


def test_of_equal_channels_the_first_ranks_lowest() -> None:
    ones = torch.ones(4, 1, dtype=torch.float64)
    assert LAMP()(ones).tolist() == pytest.approx([1 / 4, 1 / 3, 1 / 2, 1])
    steps = torch.tensor([[1.0], [2], [3], [4]], dtype=torch.float64)
    assert LAMP(squared=False)(steps).tolist() == pytest.approx([1 / 10, 2 / 9, 3 / 7, 1])
    assert LAMP()(steps).tolist() == pytest.approx([1 / 30, 4 / 29, 9 / 25, 1])
    shuffled = steps[[2, 0, 3, 1]]
    assert LAMP()(shuffled).tolist() == pytest.approx([9 / 25, 1 / 30, 1, 4 / 29])


def test_lamp_of_nothing_but_zeros_is_zero() -> None:
    assert LAMP()(torch.zeros(3, 2, dtype=torch.float64)).tolist() == [0, 0, 0]
    some = torch.tensor([[0.0], [2], [0], [2]], dtype=torch.float64)
    assert LAMP()(some).tolist() == [0, 0.5, 0, 1]


def test_lamp_leaves_every_layer_its_best_channel() -> None:
    model = Small()
    with torch.no_grad():
        model.body.weight.mul_(1e-3)  # by magnitude alone, all of it would go first
    graph = traced(model)
    sizes = [4, 4, 7, 5]
    amount = (sum(sizes) - len(sizes)) / sum(sizes)
    masks = choose_masks(model, graph, amount, criterion=LAMP(), is_global=True)
    assert [len(masks.kept[f"{n}.weight"][1]) for n in ("body", "side", "head")] == [1, 1, 1]
    by_norm = choose_masks(model, graph, amount, criterion=L2(), is_global=True)
    assert by_norm.kept["body.weight"][1] == ()


# FPGM.


def test_distances_of_nearly_equal_channels_are_not_lost() -> None:
    # |x|^2 + |y|^2 - 2xy, at 1e6 in float64, knows squared distances to 1e-4 only.
    places = [0.0, 1e-4, 3e-4]
    rows = torch.tensor([[1e6 + place, 1e6] for place in places], dtype=torch.float64)
    exact = [[float(v) for v in row] for row in rows]
    assert FPGM()(rows).tolist() == pytest.approx(fpgm(exact), rel=1e-12)
    assert FPGM()(rows).tolist() == pytest.approx([4e-4, 3e-4, 5e-4], rel=1e-5)


def test_the_median_channel_goes_first() -> None:
    corners = [[0.0, 0], [2, 0], [0, 2], [2, 2]]
    scores = FPGM()(torch.tensor([*corners, [1.0, 1]]))
    assert int(scores.argmin()) == 4
    assert FPGM()(torch.ones(1, 3)).tolist() == [0]


# Chance.


def test_random_scores_depend_on_seed_and_segment_only() -> None:
    def scores(seed: int, side: Side = "both") -> dict[str, list[float]]:
        segments = segments_of(Small(), "unconstrained", side)
        before = torch.get_rng_state()
        score_segments(segments, Random(seed))
        assert torch.equal(torch.get_rng_state(), before)
        return {s.name: s.scores.tolist() for s in segments if s.scores is not None}

    first, second = scores(0), scores(1)
    assert first == scores(0)
    assert len(first) == 8
    assert all(first[name] != second[name] for name in first)
    # Neither the other segments nor their order matter, and no two layers draw alike.
    assert all(first[name] == own for name, own in scores(0, "input").items())
    fours = [tuple(own) for own in first.values() if len(own) == 4]
    assert len(set(fours)) == len(fours) == 4
    assert all(0 <= value < 1 for own in first.values() for value in own)


def test_random_scores_of_two_groups_of_one_layer_differ() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
            self.reader = nn.Conv2d(16, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.reader(torch.cat([self.left(x), self.right(x)], dim=1))
            return out

    left, right = segments_of(Halves().double(), "constrained", "input")
    assert left.name == right.name
    score_segments([left, right], Random())
    assert left.scores is not None
    assert right.scores is not None
    assert not torch.equal(left.scores, right.scores)


def test_random_scores_are_uniform() -> None:
    draws = Random(3)(torch.zeros(20_000, 1))
    counts = torch.histc(draws, bins=10, min=0, max=1)
    assert counts.min() > 1_850
    assert counts.max() < 2_150


# The seed's own examples.


class TwoReaders(nn.Module):
    """Two layers with one weight per channel that read the same four channels."""

    def __init__(self, first: list[float], second: list[float]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.first = nn.Conv2d(4, 1, 1)
        self.second = nn.Conv2d(4, 1, 1)
        for layer, weights in ((self.first, first), (self.second, second)):
            layer.weight.data.copy_(torch.tensor(weights).reshape(1, 4, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return self.first(x), self.second(x)

    def weights(self) -> tuple[list[float], list[float]]:
        first, second = self.first.weight, self.second.weight
        return first.flatten().tolist(), second.flatten().tolist()


RISING, FALLING, HIGHER, ONES = [1.0, 2, 3, 4], [100.0, 99, 98, 97], [5.0, 6, 7, 8], [1.0] * 4
LAMPS = (LAMP(), LAMP(squared=False))
NORMS = (L1(), L2())


def keeping(values: list[float], kept: set[int]) -> list[float]:
    return [value if place in kept else 0.0 for place, value in enumerate(values)]


@pytest.mark.parametrize(
    ("criteria", "first", "second", "kept"),
    [
        ((L2(), *LAMPS), RISING, FALLING, {0, 1}),  # the second layer dominates
        ((*NORMS, *LAMPS), RISING, HIGHER, {2, 3}),
        ((*NORMS, *LAMPS), ONES, RISING, {2, 3}),
        ((FPGM(),), RISING, FALLING, {0, 3}),
        ((FPGM(),), RISING, HIGHER, {0, 3}),
        ((FPGM(),), ONES, RISING, {0, 3}),
    ],
)
def test_seed_one_segment_of_two_layers(
    criteria: tuple[Importance, ...], first: list[float], second: list[float], kept: set[int]
) -> None:
    for criterion in criteria:
        model = TwoReaders(first, second)
        MaskingManager(model, method="constrained").importance(criterion).mask()
        assert model.weights() == (keeping(first, kept), keeping(second, kept))


@pytest.mark.parametrize(
    ("criteria", "first", "second", "kept"),
    [
        ((*NORMS, *LAMPS), RISING, FALLING, ({2, 3}, {0, 1})),
        ((*NORMS, *LAMPS), RISING, HIGHER, ({2, 3}, {2, 3})),
        ((FPGM(),), RISING, FALLING, ({0, 3}, {0, 3})),
        ((FPGM(),), RISING, HIGHER, ({0, 3}, {0, 3})),
    ],
)
def test_seed_two_segments(
    criteria: tuple[Importance, ...],
    first: list[float],
    second: list[float],
    kept: tuple[set[int], set[int]],
) -> None:
    for criterion in criteria:
        model = TwoReaders(first, second)
        MaskingManager(model).importance(criterion).mask()
        assert model.weights() == (keeping(first, kept[0]), keeping(second, kept[1]))


@pytest.mark.parametrize(
    ("criteria", "first", "second", "kept"),
    [
        (NORMS, RISING, HIGHER, (set(), {0, 1, 2, 3})),
        (NORMS, RISING, FALLING, (set(), {0, 1, 2, 3})),
        # .1 .22 .43 1 and .19 .29 .47 1
        (LAMPS, RISING, HIGHER, ({2, 3}, {2, 3})),
        # .1 .22 .43 1 and 1 .50 .33 .25
        (LAMPS, RISING, FALLING, ({2, 3}, {0, 1})),
        # .25 .33 .5 1 and .1 .22 .43 1: the numbers in the seed's docstring
        (LAMPS, ONES, RISING, ({2, 3}, {2, 3})),
        ((FPGM(),), RISING, HIGHER, ({0, 3}, {0, 3})),
        ((FPGM(),), ONES, RISING, (set(), {0, 1, 2, 3})),
    ],
)
def test_seed_two_segments_globally(
    criteria: tuple[Importance, ...],
    first: list[float],
    second: list[float],
    kept: tuple[set[int], set[int]],
) -> None:
    for criterion in criteria:
        model = TwoReaders(first, second)
        MaskingManager(model, is_global=True).importance(criterion).mask()
        assert model.weights() == (keeping(first, kept[0]), keeping(second, kept[1]))


def test_seed_siblings_go_along_but_do_not_count() -> None:
    """The seed masks a layer's batch norm with it; only the layer's weights say which channels."""
    layer, norm = nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4)
    model = nn.Sequential(layer, norm, nn.Conv2d(4, 1, 1)).eval()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(RISING).reshape(4, 1, 1, 1))
        norm.weight.copy_(torch.tensor(FALLING))
    MaskingManager(model, side="output").importance().mask()
    assert layer.weight.flatten().tolist() == [0, 0, 3, 4]
    assert norm.weight.tolist() == [0, 0, 98, 97]


def test_half_goes_where_all_scores_are_equal() -> None:
    # The seed drops what is less than the median, so it drops nothing at all here.
    model = TwoReaders(RISING, FALLING)
    MaskingManager(model, method="constrained").importance(L1()).mask()
    assert model.weights() == (keeping(RISING, {2, 3}), keeping(FALLING, {2, 3}))
