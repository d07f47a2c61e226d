"""Prune a torchvision network in five lines.

Every convolution of a ResNet-18 drops the half of its input channels that matters least to it,
whatever the other layers drop. `uo.prune` masks a copy of the network, finds the channel orders
that leave the fewest bytes to copy, proves that there are no better ones, and exports a smaller
network that computes what the masked copy computes.

The weights are random here. Take your own trained network in its place; nothing else changes.

    python examples/prune_torchvision.py
"""

from __future__ import annotations

import torch
import torchvision

import upscale_opt as uo


def main() -> None:
    """Prune, and look at what came out."""
    model = torchvision.models.resnet18().eval()
    inputs = torch.randn(1, 3, 64, 64)
    result = uo.prune(model, inputs, amount=0.5, layers="conv")
    smaller = result.model
    print(tuple(smaller(inputs).shape))

    before = sum(parameter.numel() for parameter in model.parameters())
    after = sum(parameter.numel() for parameter in smaller.parameters())
    print(f"parameters: {before:,} before, {after:,} after")

    solution = result.solution
    print(f"reads: {solution.views} views, {solution.gathers} gathers")
    print(f"copied channels: {solution.copied:,} ({solution.status})")
    print(f"no orders copy fewer than {solution.lower_bound:,} bytes")

    assert result.report is not None
    print(f"largest deviation in float64: {result.report.float64_error:.1e}")


if __name__ == "__main__":
    main()
