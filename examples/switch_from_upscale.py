"""UPSCALE's own examples, with nothing changed but the imports and where the tensors live.

    python examples/switch_from_upscale.py

Weights are random here, because nothing is downloaded; take ``weights="DEFAULT"`` for real ones.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn

from upscale_opt import MaskingManager, PruningManager
from upscale_opt.importance import LAMP, HRank

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def quick_start(model: nn.Module, x: Tensor) -> None:
    """Mask half of the input channels by magnitude, and prune what is masked."""
    MaskingManager(model).importance().mask()
    PruningManager(model).compute([x]).prune()


def other_heuristic(model: nn.Module, x: Tensor) -> None:
    """Mask a quarter of them by another heuristic."""
    MaskingManager(model).importance(LAMP()).mask(amount=0.25)
    PruningManager(model).compute([x]).prune()


def own_masks(model: nn.Module, x: Tensor) -> None:
    """Zero out channels by any method you see fit."""
    with torch.no_grad():
        model.get_parameter("layer1.0.conv1.weight")[:, 24] = 0
    PruningManager(model).compute([x]).prune()


def own_loop(model: nn.Module, x: Tensor) -> None:
    """Prune each segment of the network by itself."""
    for segment in MaskingManager(model).segments():
        for layer in segment.layers:
            norms = layer.get_parameter("weight").flatten(2).norm(dim=(0, 2))
            segment.drop(torch.nonzero(norms < norms.mean()).flatten().tolist())
    PruningManager(model).compute([x]).prune()


def feature_maps(model: nn.Module, x: Tensor) -> None:
    """HRank needs to see feature maps: run the model a few times first."""
    heuristic = HRank()
    heuristic.register(model)
    for _ in range(10):
        model(torch.rand_like(x))
    heuristic.deregister(model)
    MaskingManager(model).importance(heuristic).mask()
    PruningManager(model).compute([x]).prune()


def baseline(model: nn.Module, x: Tensor) -> None:
    """Export without reordering, a gather in front of every layer, to compare with."""
    MaskingManager(model).importance().mask()
    PruningManager(model).compute([x]).prune(baseline=True)


def main() -> None:
    """Run them all, the one for HRank on a model that has been pruned before, as UPSCALE does."""
    x = torch.rand((1, 3, 64, 64), device=DEVICE)
    for example in (quick_start, other_heuristic, own_masks, own_loop, baseline):
        model = torchvision.models.get_model("resnet18").to(DEVICE)
        example(model, x)
        print(f"{example.__name__}: {count(model):,} parameters, output {tuple(model(x).shape)}")
        if example is other_heuristic:
            feature_maps(model, x)
            print(f"feature_maps: {count(model):,} parameters, output {tuple(model(x).shape)}")


def count(model: nn.Module) -> int:
    """The number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
