"""By default models are compared on another batch and on other sizes, too."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.errors import ArgumentError


class Twin(nn.Module):
    """A model, or an export that is wrong elsewhere alone."""

    def __init__(self, wrong: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 4, 3, padding=1)
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        return self.wrong(self.layer(x))


@pytest.mark.parametrize("seed", range(6))
def test_what_holds_for_one_size_alone(seed: int) -> None:
    draw = random.Random(seed)
    batch, height, width = (draw.choice([2, 3, 4, 6, 8, 12]) for _ in range(3))
    x = torch.randn(batch, 3, height, width)
    wrongs: list[Callable[[Tensor], Tensor]] = [
        lambda y: y * (1 + (len(y) != batch)),
        lambda y: y + (y.shape[2] - height),
        lambda y: y.roll(int(y.shape[3] != width), 1),
        lambda y: y / (y.shape[2] * y.shape[3]) * (height * width),
    ]
    for wrong in wrongs:
        uo.verify(Twin(), Twin(wrong), x, elsewhere=False)
        with pytest.raises(uo.VerificationError, match=r"wrong on (another batch|other sizes)"):
            uo.verify(Twin(), Twin(wrong), x)
    report = uo.verify(Twin(), Twin(), x)
    assert [what.split(",")[0] for what in report.also] == ["another batch", "other sizes"]


def test_refusals_and_failures_are_noted() -> None:
    def refuse(y: Tensor) -> Tensor:
        if len(y) != 2:
            raise ArgumentError("input 'x' has size 4")
        return y.view(2, 4, 6, 6)

    report = uo.verify(Twin(), Twin(refuse), torch.randn(2, 3, 6, 6))
    assert not report.also
    assert any("refuses another batch" in n and "'x' has size 4" in n for n in report.notes)
    assert any("fails on other sizes" in note for note in report.notes)


def test_what_is_refused_at_some_sizes_alone() -> None:
    def refuse(y: Tensor) -> Tensor:
        if y.shape[2] < 64:
            raise ArgumentError("input '(x.shape[2] < 64)' is True")
        return y

    report = uo.verify(Twin(), Twin(refuse), torch.randn(2, 3, 64, 66))
    assert report.also == ("another batch, 4 x 3 x 64 x 66", "other sizes, 2 x 3 x 96 x 99")
    (note,) = report.notes
    assert "refuses other sizes, 2 x 3 x 32 x 48: " in note
    assert "(x.shape[2] < 64)" in note
    with pytest.raises(uo.VerificationError, match="wrong on other sizes, 2 x 3 x 96 x 99"):
        uo.verify(Twin(), Twin(lambda y: refuse(y) + y.shape[3] - 66), torch.randn(2, 3, 64, 66))


def test_what_the_masked_model_does_not_take_is_skipped() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3 * 6 * 6, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x.view(2, -1))
            return y

    model = Fixed()
    report = uo.verify(model, model, torch.randn(2, 3, 6, 6))
    assert not report.also
    assert all("takes none that were tried" in note for note in report.notes)
    assert len(report.notes) == 2


def test_lists_of_images_get_longer() -> None:
    class Detector(nn.Module):
        def __init__(self, wrong: int = 0) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Conv2d(3, 4, 3, padding=1)
            self.wrong = wrong

        def forward(self, images: list[Tensor]) -> list[Tensor]:
            return [self.layer(x[None]) * (1 + self.wrong * (len(images) - 1)) for x in images]

    images = [torch.randn(3, 8, 6)]
    report = uo.verify(Detector(), Detector(), (images,))
    assert "another batch, 3 x 8 x 6, 3 x 8 x 6" in report.also
    with pytest.raises(uo.VerificationError, match="wrong on another batch"):
        uo.verify(Detector(), Detector(1), [images])


def test_tokens_and_keywords() -> None:
    class Tokens(nn.Module):
        def __init__(self, wrong: int = 0) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.head = nn.Embedding(10, 8), nn.Linear(8, 3)
            self.wrong = wrong

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            y: Tensor = self.head(self.table(ids) * mask[..., None])
            return y * (1 + self.wrong * (ids.shape[1] != 5))

    given = {"ids": torch.randint(10, (2, 5)), "mask": torch.ones(2, 5, dtype=torch.bool)}
    report = uo.verify(Tokens(), Tokens(), given)
    assert "other sizes, 2 x 10, 2 x 10" in report.also
    with pytest.raises(uo.VerificationError, match="other sizes"):
        uo.verify(Tokens(), Tokens(1), given)
