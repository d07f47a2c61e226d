"""EfficientNet-Lite0 with its weights, and the photographs that it is shown."""

from __future__ import annotations

import torch

from upscale_opt.experiments.study import photographs


def test_photographs_are_seen_for_what_they_are() -> None:
    """The network's own classes: palace, daisy, military uniform."""
    crops = photographs.tested_crops()
    assert crops.shape == (66, 3, 224, 224)
    assert torch.equal(crops[33:], crops[:33].flip(3))
    middle = crops[[1, 12, 23]]  # of the largest crops of each photograph
    assert photographs.efficientnet()(middle).argmax(1).tolist()[1:] == [985, 652]
    held_out = photographs.held_out_crops()
    assert held_out.shape == (24, 3, 224, 224)
    assert all(not torch.equal(one, other) for one in held_out for other in crops)
