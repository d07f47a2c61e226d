"""Models pruned in place: other methods than `forward`, and attributes set later."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hazard_networks import Around, drawn, images
from hazards import difference, hazard
from torch import Tensor

import upscale_opt as uo


class Settled(Around):
    """A method besides `forward`, and a temperature."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng, lambda m, x, y: y)
        self.temp = 1.0

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.enter(x))

    def predict(self, x: Tensor) -> Any:
        return self(x).argmax(1)

    def counted(self) -> int:
        return sum(p.numel() for p in self.reader.parameters())

    def forward(self, x: Tensor) -> Any:
        return self.leave(self.features(x)) / self.temp


def _in_place(seed: int) -> tuple[Any, Any, Tensor]:
    """A model, and one pruned in place, both masked alike."""
    rng = random.Random(seed)
    x = images(rng)
    make = drawn(Settled, rng)
    masked, pruned = make().double().eval(), make().double().eval()
    pruned.load_state_dict(masked.state_dict())
    gone = [("reader.weight", channel) for channel in range(0, masked.width, 2)]
    uo.PruningManager(pruned).compute([x], pruned_inputs=gone).prune()
    with torch.no_grad():
        masked.reader.weight[:, ::2] = 0
    return masked, pruned, x


@pytest.mark.parametrize("seed", range(3))
@hazard("Q", "another method")
def test_other_methods_after_pruning_in_place(seed: int) -> None:
    masked, pruned, x = _in_place(seed)
    assert not difference(masked(x), pruned(x), 1e-10)
    assert torch.equal(masked.predict(x), pruned.predict(x))
    assert pruned.counted() < masked.counted()
    with torch.no_grad():
        y = masked.features(x)
        for want, other in ((masked.leave(y), pruned.leave), (y, pruned.features)):
            try:
                got = other(y if want is not y else x)
            except uo.UpscaleError:
                continue
            assert not difference(want, got, 1e-10)
    assert not difference(masked(x), pruned(x), 1e-10)


@pytest.mark.parametrize("seed", range(3))
@hazard("Q", "an attribute")
def test_attributes_set_after_pruning_in_place(seed: int) -> None:
    masked, pruned, x = _in_place(seed)
    masked.temp = 5.0
    try:
        pruned.temp = 5.0
        got = pruned(x)
    except (uo.UpscaleError, AttributeError):
        return
    assert not difference(masked(x), got, 1e-10)
