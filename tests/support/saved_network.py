"""A small network that is pruned and saved, and files of it that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from comparing import call, complaint
from sample_networks import images, keep
from torch import Tensor, nn

import upscale_opt as uo


class Net(nn.Module):
    """Small, with views, gathers and a placed sum; its arguments change more or less."""

    def __init__(
        self, act: type[nn.Module] = nn.ReLU, p: float = 0.5, factor: float = 0.5, width: int = 12
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 1)
        self.norm = nn.BatchNorm2d(width)
        self.act = act()
        self.readers = nn.ModuleList(nn.Conv2d(width, 8, 1, bias=False) for _ in range(3))
        self.drop = nn.Dropout(p)
        self.head = nn.Conv2d(8, 4, 1)
        self.factor = factor

    def forward(self, x: Tensor) -> Any:
        x = self.act(self.norm(self.stem(x)))
        y = self.readers[0](x) + self.readers[1](x) + self.readers[2](x)
        return self.head(self.drop(y)) * self.factor


def build() -> Any:
    """A pruned network."""
    torch.manual_seed(1)
    model = Net().eval()
    for reader, kept in enumerate(([0, 1, 2, 3, 4], [4, 5, 6], [0, 5, 7])):
        keep(model.get_parameter(f"readers.{reader}.weight"), 1, kept)
    keep(model.get_parameter("readers.2.weight"), 0, [1, 3])
    graph = uo.trace(model, images(1, 4))
    return uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))


def call_(model: nn.Module) -> Tensor:
    result = call(model, images(2, 5))
    assert isinstance(result, Tensor)
    return result


def refused(path: Path, data: bytes) -> str:
    """Why a file with these contents is refused; the message names it."""
    path.write_bytes(data)
    message = complaint(uo.SchemaError, lambda: uo.load(Net(), path))
    assert message.startswith(f"{path}: ")
    return message
