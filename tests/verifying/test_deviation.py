"""How far two outputs are apart."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from upscale_opt.errors import VerificationError
from upscale_opt.verifying.deviation import deviation

ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("want", "got", "apart"),
    [
        (ONES, ONES, 0.0),
        (4 * ONES, 3 * ONES, 0.25),
        ({"a": ONES, "b": [2 * ONES]}, {"a": ONES, "b": [ONES]}, 0.5),
        (torch.zeros(2), torch.full((2,), 0.1, dtype=torch.float32), 0.1),
        (torch.tensor([4, 8]), torch.tensor([4, 6]), 0.25),
        (torch.tensor([2 + 0j]), torch.tensor([2 + 1j]), 0.5),
        (ONES[:0], ONES[:0], 0.0),
        ((ONES, 2.0, "mean", None), (ONES, 1.0, "mean", None), 0.5),
    ],
)
def test_it_is_relative_to_the_largest_magnitude(want: Any, got: Any, apart: float) -> None:
    assert deviation(want, got) == pytest.approx(apart)


def test_what_is_not_a_number_is_not_hidden_by_what_is_right() -> None:
    bad = ONES.clone()
    bad[0, 0] = math.nan
    assert math.isnan(deviation((ONES, ONES), (bad, ONES)))
    assert math.isnan(deviation((ONES, ONES), (ONES, bad)))


@pytest.mark.parametrize(
    ("want", "got", "reason"),
    [
        (ONES, [ONES], "returns"),
        (ONES, ONES.double(), "output is float64 instead of float32"),
        (ONES, ONES[:1], r"output has the shape \(1, 3\) instead of \(2, 3\)"),
        ((ONES, 1), (ONES, 2), r"output\[1\] is 2 instead of 1"),
        ((ONES, 1), (ONES, True), r"output\[1\] is True where the masked model returns 1"),
        (ONES / 0, ONES, "not finite"),
    ],
)
def test_what_cannot_be_compared(want: Any, got: Any, reason: str) -> None:
    with pytest.raises(VerificationError, match=reason):
        deviation(want, got)
