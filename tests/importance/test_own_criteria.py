"""What users give as a criterion, and what is none."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from comparing import same_state, state
from importance_reference import UNITS, Small, segments_of, traced, weights_by_channel
from torch import Tensor

import upscale_opt as uo
from upscale_opt.importance import (
    CRITERIA,
    FPGM,
    L1,
    L2,
    LAMP,
    BatchNormScale,
    HRank,
    Importance,
    Magnitude,
    Random,
    Taylor,
    as_importance,
    score_segments,
)
from upscale_opt.importance.choosing import choose_masks


def test_a_function_of_weights() -> None:
    model = Small()
    segments = segments_of(model)
    seen: list[tuple[int, ...]] = []

    def largest(weights: Tensor) -> Tensor:
        seen.append(tuple(weights.shape))
        return weights.abs().amax(dim=1)

    score_segments(segments, largest)
    assert seen == [(4, 36), (4, 3), (7, 5), (5, 24)]
    expected = weights_by_channel(model, UNITS["unconstrained", "input"][0])
    assert segments[0].scores is not None
    assert segments[0].scores.tolist() == [max(map(abs, row)) for row in expected]


def test_a_function_may_change_what_it_is_given() -> None:
    model = Small()
    before = state(model)

    def careless(weights: Tensor) -> Tensor:
        return weights.abs_().sum(dim=1)

    score_segments(segments_of(model, "unconstrained", "both"), careless)
    assert same_state(state(model), before)


def test_a_subclass_as_in_the_seed() -> None:
    class Noise(Importance):
        def forward(self, x: Tensor) -> Tensor:
            return x.var(dim=1)

    segments = segments_of(Small())
    score_segments(segments, Noise())
    scores = [s.scores for s in segments]
    assert all(s is not None and bool((s > 0).all()) for s in scores)
    score_segments(segments, Noise)  # type: ignore[arg-type]  # the class does, too
    for segment, before in zip(segments, scores, strict=True):
        assert before is not None
        assert segment.scores is not None
        assert torch.equal(segment.scores, before)


def test_a_subclass_that_names_an_attribute() -> None:
    class Noted(Importance):
        name = "note"

        def forward(self, x: Tensor) -> Tensor:
            return x.sum(dim=1)

    model = Small()
    noted: Any = model
    noted.head.note = torch.arange(7.0)
    noted.fc.note = torch.arange(20.0).reshape(20, 1)
    body, side, head, fc = segments_of(model)
    score_segments([body, side, head, fc], Noted())
    assert body.scores is None
    assert side.scores is None
    assert head.scores is not None
    assert head.scores.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert fc.scores is not None
    assert fc.scores.tolist() == [6, 22, 38, 54, 70]  # four features each
    stream, beside, last = segments_of(model, "constrained", "input")
    score_segments([stream, beside, last], Noted())
    assert stream.scores is not None
    assert stream.scores.tolist() == [0, 1, 2, 3]
    assert beside.scores is not None
    assert beside.scores.tolist() == [4, 5, 6]

    noted.head.note = torch.arange(5.0)
    with pytest.raises(uo.MaskError, match=r"'note' of layer 'head' .* 7 input channels"):
        score_segments([head], Noted())


def test_a_subclass_with_statistics_of_its_own() -> None:
    class Counted(Importance):
        def prepare(self, segments: Any) -> None:
            self.count = len(segments)

        def score(self, segment: Any) -> Tensor | None:
            if segment.name.startswith("side"):
                return None
            return torch.full((len(segment.channels),), float(self.count))

    model = Small()
    segments = segments_of(model)
    score_segments(segments, Counted())
    assert [s.scores is None for s in segments] == [False, True, False, False]
    assert segments[0].scores is not None
    assert segments[0].scores.tolist() == [4.0] * 4
    masks = choose_masks(model, traced(model), 0.5, criterion=Counted(), is_global=True)
    assert len(masks.kept["side.weight"][1]) == 4  # without a score nothing goes
    assert masks.kept["body.weight"][1] == ()
    assert len(masks.kept["head.weight"][1]) == 3


def test_every_named_criterion_needs_no_data() -> None:
    assert sorted(CRITERIA) == ["batch-norm", "fpgm", "l1", "l2", "lamp", "random"]
    segments = segments_of(Small())
    for make in CRITERIA.values():
        score_segments(segments, make())
        assert all(s.scores is not None for s in segments[:3])


def test_the_default_is_the_l2_norm() -> None:
    assert type(as_importance(None)) is L2
    criterion = FPGM()
    assert as_importance(criterion) is criterion


@pytest.mark.parametrize(
    "criterion", [LAMP(1), FPGM(), Random(5), BatchNormScale(), HRank([torch.zeros(1)])]
)
def test_criteria_are_copied_and_pickled(criterion: Importance) -> None:
    for twin in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert type(twin) is type(criterion)
    if isinstance(criterion, BatchNormScale):
        segments = segments_of(Small())
        score_segments(segments, pickle.loads(pickle.dumps(criterion)))
        assert segments[0].scores is not None


def test_the_seeds_imports() -> None:
    from upscale_opt import importance
    from upscale_opt.managers import importance as original

    for name in importance.__all__:
        assert getattr(original, name) is getattr(importance, name)


def test_every_criterion_cites_its_paper() -> None:
    for kind in (Magnitude, L1, L2, LAMP, FPGM, HRank, Random, BatchNormScale, Taylor):
        text = kind.__doc__ or ""
        assert text.count("*") >= 2
        assert any(f"20{year}" in text for year in range(16, 24)), kind


# Errors.


@pytest.mark.parametrize("p", ["nuclear", -1, None, math.nan, [2]])
def test_no_such_norm(p: Any) -> None:
    for kind in (Magnitude, LAMP):
        with pytest.raises(uo.MaskError, match="order of a norm"):
            kind(p)


def test_what_is_no_criterion() -> None:
    with pytest.raises(uo.MaskError, match="no criterion 'l3'; there are l1, l2, lamp, fpgm, "):
        as_importance("l3")
    with pytest.raises(uo.MaskError, match=r"'taylor'; .* Taylor\(loss, batches\)"):
        as_importance("taylor")
    with pytest.raises(uo.MaskError, match="not 3"):
        as_importance(3)  # type: ignore[arg-type]
    with pytest.raises(uo.MaskError, match="dict is no criterion"):
        as_importance(dict)  # type: ignore[arg-type]
    with pytest.raises(uo.MaskError, match=r"give a Taylor\(...\) instead of the class"):
        as_importance(Taylor)  # type: ignore[arg-type]


def test_scores_that_are_not_one_per_channel() -> None:
    segments = segments_of(Small())

    def total(weights: Tensor) -> Tensor:
        return weights.sum()

    def listed(weights: Tensor) -> Any:
        return weights.sum(dim=1).tolist()

    with pytest.raises(uo.MaskError, match=r"total gave \(\) for segment body.weight \(input\)"):
        score_segments(segments, total)
    with pytest.raises(uo.MaskError, match=r"listed gave list .* shape \(4,\)"):
        score_segments(segments, listed)


def test_a_criterion_that_says_nothing() -> None:
    class Silent(Importance):
        def score(self, segment: object) -> None:
            return None

    with pytest.raises(uo.MaskError, match="Silent has nothing to say"):
        score_segments(segments_of(Small()), Silent())
    score_segments([], Silent())  # but a model without layers to prune is no error


def test_a_criterion_that_was_not_finished() -> None:
    with pytest.raises(uo.MaskError, match="Importance must define forward"):
        score_segments(segments_of(Small()), Importance())


@pytest.mark.parametrize("name", CRITERIA)
def test_criteria_by_name(name: str) -> None:
    model, made = Small(), CRITERIA[name]()
    graph, inputs = traced(model), torch.zeros(2, 3, 6, 6, dtype=torch.float64)
    chosen = choose_masks(model, graph, 0.5, criterion=name)
    assert chosen == choose_masks(model, graph, 0.5, criterion=made)
    named, given = copy.deepcopy(model), copy.deepcopy(model)
    uo.MaskingManager(named, inputs=inputs).importance(name).mask(0.5)
    uo.MaskingManager(given, inputs=inputs).importance(made).mask(0.5)
    assert same_state(state(named), state(given))
