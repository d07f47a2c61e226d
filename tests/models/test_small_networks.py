"""The small networks are what they say, and have what makes pruning hard."""

from __future__ import annotations

import pytest
import torch
from sample_networks import images
from torch import nn

import upscale_opt as uo
from upscale_opt.errors import UpscaleError
from upscale_opt.ir.graph import Layer
from upscale_opt.models.small_networks import SMALL_NETWORKS, build_small
from upscale_opt.solver.network.coupling import groups


def pixels(size: int, batch: int = 2) -> torch.Tensor:
    return images(batch, size)[:, :1]


@pytest.mark.parametrize("size", [8, 28])
@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_they_run_and_nothing_is_opaque(name: str, size: int) -> None:
    model = build_small(name, image=size, classes=7)
    assert not model.training
    assert model(pixels(size)).shape == (2, 7)
    graph = uo.trace(model, pixels(size))
    assert all(op.kind != "opaque" for op in graph.operations)
    ends = {"network input", "network output"}
    assert {group.fixed for group in groups(graph)} == {None, *ends}


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_the_seed_decides_the_weights(name: str) -> None:
    before = torch.random.get_rng_state()
    first, same, other = (build_small(name, image=8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    x = pixels(8)
    assert torch.equal(first(x), same(x))
    assert not torch.equal(first(x), other(x))


def readers(name: str) -> list[int]:
    """How many layers read each tensor's channels together, the most first."""
    graph = uo.trace(build_small(name, image=28), pixels(28))
    return sorted((len(group.consumers) for group in groups(graph)), reverse=True)


def test_streams_have_many_readers() -> None:
    """Three stages of three blocks each: a stream is read by its blocks and what is behind."""
    assert readers("resnet")[:3] == [5, 4, 3]
    assert readers("mobilenet")[:3] == [4, 3, 3]


def test_dense_layers_are_read_by_all_that_follow() -> None:
    counts = readers("densenet")
    assert counts[:4] == [7, 7, 7, 6]


def test_they_are_members_of_their_families() -> None:
    resnet, densenet, mobilenet = (build_small(name, image=28) for name in SMALL_NETWORKS)
    depthwise = [m for m in mobilenet.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert len(depthwise) == 9
    assert all(conv.groups == conv.in_channels for conv in depthwise)
    kinds = [op.kind for op in uo.trace(densenet, pixels(28)).operations]
    assert kinds.count("concat") == 18
    layers = [op for op in uo.trace(resnet, pixels(28)).operations if isinstance(op, Layer)]
    assert len(layers) == 1 + 9 * 2 + 2 + 1
    widths = [m.num_features for m in densenet.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(width % 10 == 0 for width in widths)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UpscaleError, match=r"'vgg'; there are resnet, densenet, mobilenet"):
        build_small("vgg", image=8)
