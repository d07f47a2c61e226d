"""A network whose layers read parts of one tensor, in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Stream(nn.Module):
    """Three readers of 32 channels, each of another half of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.readers = nn.ModuleList(nn.Conv2d(32, 16, 3, padding=1) for _ in range(3))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for layer in self.readers:
                assert isinstance(layer, nn.Conv2d)
                layer.weight[:, torch.randperm(32, generator=generator)[:16]] = 0

    def forward(self, x: Tensor) -> Tensor:
        """Of shape (N, 48, H, W)."""
        y = torch.relu(self.stem(x))
        return torch.cat([layer(y) for layer in self.readers], 1)


def stream() -> tuple[nn.Module, Tensor]:
    """It, and an image."""
    torch.manual_seed(0)
    return Stream().eval(), torch.randn(1, 3, 24, 24)
