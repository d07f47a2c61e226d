"""Networks of which some layers read channels that do not lie side by side."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from sample_networks import Net
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.tracing.unchanged import reseed

X = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).double()


def stream(seed: int, readers: int = 5, width: int = 9) -> nn.Module:
    """One tensor that several layers read different channels of; nothing to trim."""
    rng = random.Random(seed)
    layers = {
        f"r{i}": nn.Conv2d(width, rng.randint(2, 5), rng.choice((1, 3)), padding="same")
        for i in range(readers)
    }

    def run(m: Any, x: Tensor) -> list[Tensor]:
        y = torch.relu(m.stem(x))
        return [getattr(m, name)(y) for name in layers]

    with torch.no_grad():
        for layer in layers.values():
            layer.weight[:, rng.sample(range(width), rng.randint(2, width - 3))] = 0
    return Net(run, stem=nn.Conv2d(3, width, 1), **layers).double().eval()


def dense(seed: int) -> nn.Module:
    """A dense block in which norms and activations stand before the layers, masked at random."""
    rng = random.Random(seed)
    widths = (5, 8, 11)

    def run(m: Any, x: Tensor) -> Tensor:
        features = [m.stem(x)]
        for i in range(3):
            joined = torch.cat(features, 1)
            features.append(m.get_submodule(f"c{i}")(torch.relu(m.get_submodule(f"n{i}")(joined))))
        y: Tensor = m.head(torch.cat(features, 1))
        return y

    layers: dict[str, nn.Module] = {f"n{i}": nn.BatchNorm2d(w) for i, w in enumerate(widths)}
    layers |= {f"c{i}": nn.Conv2d(w, 3, 3, padding=1) for i, w in enumerate(widths)}
    layers |= {"stem": nn.Conv2d(3, 5, 1), "head": nn.Conv2d(14, 3, 1)}
    with torch.no_grad():
        for name, layer in layers.items():
            if isinstance(layer, nn.Conv2d) and name != "stem":
                width = layer.in_channels
                layer.weight[:, rng.sample(range(width), width // 2)] = 0
            elif isinstance(layer, nn.BatchNorm2d):
                layer.bias.uniform_(0.1, 0.5)
    return Net(run, **layers).double().eval()


@cache
def posed(
    seed: int, make: Callable[[int], nn.Module]
) -> tuple[nn.Module, uo.ChannelGraph, uo.Masks]:
    with torch.random.fork_rng(devices=[]):
        reseed(seed)
        model = make(seed)
    graph = uo.trace(model, X)
    return model, graph, uo.masks_of(model, graph)
