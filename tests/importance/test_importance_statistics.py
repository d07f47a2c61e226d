"""Criteria that run the model: Taylor against differences of the loss, and a model left alone."""

from __future__ import annotations

import copy
import itertools
import statistics
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from comparing import same_state, state
from importance_reference import (
    DATA,
    UNITS,
    WAYS,
    Small,
    assert_chooses,
    by_channel,
    loss,
    scores_of,
    segments_of,
)
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.importance import BatchNormScale, HRank, Importance, Taylor, score_segments
from upscale_opt.masking.segments import Method, Side, find_segments


def changes(model: nn.Module, unit: Any, batch: Tensor) -> list[float]:
    """How the loss changes when all weights of a channel grow together, by differences."""
    step = 1e-5
    slopes = []
    for channel in range(len(unit[0].slices)):
        losses = []
        for factor in (1 + step, 1 - step):
            other = copy.deepcopy(model)
            with torch.no_grad():
                for part in unit:
                    weight = other.get_parameter(part.weight)
                    for index in part.slices[channel]:
                        weight.select(part.axis, index).mul_(factor)
                losses.append(float(loss(other, batch)))
        slopes.append((losses[0] - losses[1]) / (2 * step))
    return slopes


@pytest.mark.parametrize("side", ["input", "output"])
def test_taylor_is_the_squared_slope_of_the_loss(side: Side) -> None:
    model = Small()
    segments = segments_of(model, "unconstrained", side)
    score_segments(segments, Taylor(loss, DATA))
    for segment, unit in zip(segments, UNITS["unconstrained", side], strict=True):
        assert segment.scores is not None
        slopes = [changes(model, unit, batch) for batch in DATA]
        expected = [statistics.fmean(s**2 for s in own) for own in zip(*slopes, strict=True)]
        scale = max(expected)
        assert segment.scores.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6 * scale)


def taylor_by_hand(model: nn.Module, unit: Any, batches: list[Tensor]) -> list[float]:
    """Gradient x weight, summed in loops."""
    squares: list[list[float]] = []
    for batch in batches:
        other = copy.deepcopy(model)
        torch.autograd.backward(loss(other, batch))
        products = {
            name: (p * p.grad).detach()
            for name, p in other.named_parameters()
            if p.grad is not None
        }
        squares.append([sum(row) ** 2 for row in by_channel(products, unit)])
    return [statistics.fmean(own) for own in zip(*squares, strict=True)]


@pytest.mark.parametrize(("method", "side"), WAYS)
@pytest.mark.parametrize("together", [False, True])
def test_taylor_chooses_masks_per_layer_and_globally(
    method: Method, side: Side, together: bool
) -> None:
    model, units = Small(), UNITS[method, side]
    scores = [taylor_by_hand(model, unit, DATA) for unit in units]
    criterion = Taylor(loss, DATA)
    segments = segments_of(model, method, side)
    found = list(scores_of(segments, criterion).values())
    if method == "unconstrained":
        assert found == [pytest.approx(own, rel=1e-9) for own in scores]
    assert_chooses(criterion, model, scores, method, side, together)


def test_taylor_takes_whatever_batches_the_loss_takes() -> None:
    model = Small()
    labels = [torch.zeros(len(batch), dtype=torch.long) for batch in DATA]

    def supervised(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    pairs = list(zip(DATA, labels, strict=True))
    expected = scores_of(segments_of(model), Taylor(supervised, pairs))
    assert expected == scores_of(segments_of(model), Taylor(supervised, iter(pairs)))
    one = scores_of(segments_of(model), Taylor(loss, DATA[0]))  # a tensor is one batch
    assert one == scores_of(segments_of(model), Taylor(loss, [DATA[0]]))


def test_weights_that_the_loss_does_not_reach_score_zero() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)
            self.main, self.extra = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.stem(x)
            return self.main(x), self.extra(x)

    def first(model: nn.Module, batch: Tensor) -> Tensor:
        out: Tensor = model(batch)[0].sum()
        return out

    model = Heads().double()
    found = scores_of(segments_of(model), Taylor(first, DATA))
    assert found["extra.weight (input)"] == [0, 0, 0, 0]
    assert min(found["main.weight (input)"] or [0]) > 0

    def neither(model: nn.Module, batch: Tensor) -> Tensor:
        out: Tensor = model.get_submodule("stem")(batch).sum()
        return out

    with pytest.raises(uo.MaskError, match="depends on none of the layers"):
        score_segments(segments_of(model), Taylor(neither, DATA))


def test_taylor_with_frozen_weights_and_without_gradients() -> None:
    model = Small()
    expected = scores_of(segments_of(model), Taylor(loss, DATA))
    model.requires_grad_(False)
    with torch.no_grad():
        assert scores_of(segments_of(model), Taylor(loss, DATA)) == expected
    assert not any(p.requires_grad for p in model.parameters())


def test_taylor_in_half_precision() -> None:
    model = Small().bfloat16()
    batches = [batch.bfloat16() for batch in DATA]
    graph = uo.trace(model, batches[0])
    found = scores_of(find_segments(model, graph), Taylor(loss, batches))
    exact = scores_of(segments_of(Small()), Taylor(loss, DATA))
    for name, scores in exact.items():
        assert found[name] == pytest.approx(scores, rel=0.5, abs=0.05 * max(scores or [0]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda model, batch: model(batch), r"has the shape \(2, 6\)"),
        (lambda model, batch: model(batch).sum().item(), "returned a float"),
        (lambda model, batch: model(batch).argmax().float(), "does not depend on the model's"),
        (lambda model, batch: model(batch).detach().sum(), "does not depend on the model's"),
        (lambda model, batch: _backward(loss(model, batch)), r"without calling backward\(\)"),
    ],
)
def test_losses_that_are_none(wrong: Any, message: str) -> None:
    model = Small()
    torch.autograd.backward(loss(model, DATA[0]))
    before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    with pytest.raises(uo.MaskError, match=message):
        score_segments(segments_of(model), Taylor(wrong, DATA))
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        assert parameter.grad is not None
        assert gradient is not None
        assert torch.equal(parameter.grad, gradient)


def _backward(value: Tensor) -> Tensor:
    torch.autograd.backward(value)
    return value


def test_taylor_without_a_loss_or_batches() -> None:
    with pytest.raises(uo.MaskError, match=r"function of \(model, batch\)"):
        Taylor(DATA, loss)  # type: ignore[arg-type]
    with pytest.raises(uo.MaskError, match="no batches"):
        score_segments(segments_of(Small()), Taylor(loss, []))


def test_a_segment_may_be_scored_by_itself() -> None:
    model = Small()
    segments = segments_of(model)
    for criterion in (Taylor(loss, DATA), BatchNormScale()):
        expected = scores_of(segments, criterion)
        twin = copy.deepcopy(criterion)
        alone = twin.score(segments[0])
        assert alone is not None
        assert alone.tolist() == expected[segments[0].name]


# Whatever is run, the model stays as it was.


class Restless(nn.Module):
    """Everything that a forward pass can change: statistics, buffers, attributes, randomness."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.second = nn.Conv2d(4, 2, 1)
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0
        self.fail = False
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is Tensor and not x.is_meta:  # and not while it is traced
            self.calls += 1
            self.seen += 1
            torch.rand(3)
        if self.fail:
            raise RuntimeError("no more")
        out: Tensor = self.second(self.drop(self.norm(self.first(x)).relu()))
        return out


def restless_loss(model: nn.Module, batch: Tensor) -> Tensor:
    model.train()  # even this is undone
    return loss(model, batch)


@pytest.mark.parametrize(
    "criterion", [HRank(DATA), Taylor(loss, DATA), Taylor(restless_loss, DATA)], ids=str
)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_stays_as_it_was(criterion: Importance, training: bool, fails: bool) -> None:
    model = Restless()
    segments = segments_of(model, "unconstrained", "both")
    model.train(training)
    model.norm.eval()  # a mode of its own
    model.first.weight.requires_grad_(False)
    heard = itertools.count()  # a list would be as before, too

    def hear(*_: Any) -> None:
        next(heard)

    handle = model.second.register_forward_hook(hear)
    torch.autograd.backward(model.second(torch.ones(1, 4, 2, 2, dtype=torch.float64)).sum())
    model.fail = fails
    assert model.second.weight.grad is not None
    gradient = model.second.weight.grad
    known = gradient.clone()
    before = state(model), torch.get_rng_state(), [m.training for m in model.modules()]
    hooks = [dict(m._forward_hooks) for m in model.modules()]
    calls, identities = model.calls, {n: id(t) for n, t in model.state_dict(keep_vars=True).items()}
    if fails:
        with pytest.raises(RuntimeError, match="no more"):
            score_segments(segments, criterion)
    else:
        score_segments(segments, criterion)
        assert next(heard) == 1 + len(DATA)  # the user's own hooks do run
        assert all(segment.scores is not None for segment in segments)
    assert same_state(state(model), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    assert [m.training for m in model.modules()] == before[2]
    assert [dict(m._forward_hooks) for m in model.modules()] == hooks
    assert model.calls == calls
    assert {n: id(t) for n, t in model.state_dict(keep_vars=True).items()} == identities
    assert model.second.weight.grad is gradient
    assert torch.equal(gradient, known)
    assert model.norm.weight.grad is None
    assert not model.first.weight.requires_grad
    assert model.second.weight.requires_grad
    handle.remove()


def test_statistics_are_taken_in_eval_mode() -> None:
    model = Restless().train()
    segments = segments_of(model, "unconstrained", "both")
    for criterion in (HRank(DATA), Taylor(loss, DATA)):
        in_training = scores_of(segments, criterion)
        assert scores_of(segments, criterion) == in_training  # no dropout
        model.eval()
        assert scores_of(segments, criterion) == in_training
        model.train()


def test_statistics_follow_the_weights() -> None:
    model = Small()
    segments = segments_of(model, "unconstrained", "both")
    for criterion in (HRank(DATA), Taylor(loss, DATA), BatchNormScale()):
        before = scores_of(segments, criterion)
        kept = state(model)
        with torch.no_grad():
            model.norm.weight.mul_(torch.tensor([0.0, 2, 1, 1]))
        assert scores_of(segments, criterion) != before
        model.load_state_dict(kept)
        assert scores_of(segments, criterion) == before


@pytest.mark.parametrize("criterion", [Taylor(loss, DATA), BatchNormScale()], ids=str)
def test_scores_of_an_earlier_call_are_not_kept(criterion: Importance) -> None:
    model = Small()
    segments = segments_of(model)
    before = scores_of(segments, criterion)
    with torch.no_grad():
        model.norm.weight.mul_(2)
    criterion.prepare(segments[1:])
    fresh = criterion.score(segments[0])
    assert fresh is not None
    assert fresh.tolist() != before[segments[0].name]


def test_a_generator_of_batches_can_draw_random_numbers() -> None:
    def drawn() -> Iterator[Tensor]:
        for _ in range(2):
            yield torch.randn(2, 3, 6, 6, dtype=torch.float64)

    before = torch.get_rng_state()
    score_segments(segments_of(Small()), HRank(drawn()))
    segments = segments_of(Small())
    torch.set_rng_state(before)
    score_segments(segments, Taylor(loss, drawn()))
    assert torch.equal(torch.get_rng_state(), before)
