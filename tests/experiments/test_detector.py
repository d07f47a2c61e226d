"""Pages that are drawn, and the network that finds their words."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from upscale_opt.experiments.study.detector import Box, boxes, detector
from upscale_opt.experiments.study.sheets import f1, sheets_to_calibrate, sheets_to_read


def a_box(draw: random.Random) -> Box:
    left, top = draw.uniform(0, 6), draw.uniform(0, 6)
    return left, top, left + draw.uniform(1, 5), top + draw.uniform(1, 5)


def near(box: Box, draw: random.Random) -> Box:
    left, top, right, bottom = (edge + draw.uniform(-0.5, 0.5) for edge in box)
    return left, top, max(right, left + 0.5), max(bottom, top + 0.5)


def common(a: Box, b: Box) -> float:
    """The share of the union, counted on a grid."""
    steps = [0.025 + 0.05 * number for number in range(240)]
    across = {p: sum(p[0] <= x < p[2] for x in steps) for p in (a, b)}
    down = {p: sum(p[1] <= y < p[3] for y in steps) for p in (a, b)}
    wide = sum(a[0] <= x < a[2] and b[0] <= x < b[2] for x in steps)
    high = sum(a[1] <= y < a[3] and b[1] <= y < b[3] for y in steps)
    return wide * high / (across[a] * down[a] + across[b] * down[b] - wide * high)


@pytest.mark.parametrize("seed", range(20))
def test_pairs_are_as_many_as_can_be(seed: int) -> None:
    """Boxes that share more than half have one partner each, so that greedy pairing is best."""
    draw = random.Random(seed)
    shares = {(0, 0): 0.5}
    while any(abs(share - 0.5) < 0.02 for share in shares.values()):  # for it is counted on a grid
        wanted = [a_box(draw) for _ in range(3)]
        found = [near(box, draw) for box in wanted[:2]] + [a_box(draw)]
        shares = {(i, j): common(a, b) for i, a in enumerate(found) for j, b in enumerate(wanted)}
    best = max(
        sum(shares[i, j] >= 0.5 for i, j in enumerate(order))
        for order in itertools.permutations(range(3))
    )
    assert f1([found], [wanted]) == pytest.approx(2 * best / 6)


def test_f1_of_nothing_and_of_everything() -> None:
    word = (0.0, 0.0, 4.0, 2.0)
    assert f1([[]], [[]]) == 1
    assert f1([[]], [[word]]) == 0
    assert f1([[word, (5.0, 5.0, 6.0, 6.0)]], [[word]]) == pytest.approx(2 / 3)
    assert f1([[word], []], [[], [word]]) == 0  # on another page


def test_boxes_of_scores() -> None:
    scores = torch.zeros(1, 2, 20, 40)
    scores[0, 0, 5:9, 4:10] = scores[0, 0, 5:9, 12:18] = 0.9  # two characters
    scores[0, 1, 5:9, 9:13] = 0.8  # and a gap within their word
    scores[0, 0, 5:9, 24:30] = 0.6  # unsure
    scores[0, 0, 15:17, 30:34] = 0.9  # small
    ((box,),) = boxes(scores)
    left, top, right, bottom = box
    air = (48 / (14 * 4) * 4) ** 0.5
    assert box == pytest.approx((8 - air, 10 - air, 36 + air, 18 + air))
    assert right - left > bottom - top


def test_pages_are_the_same_at_every_call_and_others_to_calibrate() -> None:
    sheets = sheets_to_calibrate()
    assert sheets.pixels.shape == (12, 3, 320, 320)
    assert len(sheets) == 12
    assert not torch.equal(sheets_to_calibrate(1).pixels, sheets.pixels)
    again = sheets.pixels.clone()
    sheets_to_calibrate.__globals__["_drawn"].cache_clear()
    assert torch.equal(sheets_to_calibrate().pixels, again)
    for page, words in zip(sheets.pixels, sheets.boxes, strict=True):
        grey = page.mean(0)
        paper = grey.flatten().median()
        for left, top, right, bottom in words:
            assert 0 <= left < right <= 320
            assert 0 <= top < bottom <= 320
            inside = grey[int(top) : int(bottom), int(left) : int(right)]
            assert float(inside.min()) < float(paper) - 0.5  # there is ink
        for a, b in itertools.combinations(words, 2):
            assert f1([[a]], [[b]]) == 0  # words do not cover each other


def test_it_finds_the_words() -> None:
    sheets = sheets_to_read()
    with torch.no_grad():
        found = boxes(detector()(sheets.pixels[:2]))
    assert f1(found, sheets.boxes[:2]) > 0.9
