"""All small topologies by name, and an example input for each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from upscale_opt.models.topologies.layers import LAYERS
from upscale_opt.models.topologies.operations import OPERATIONS
from upscale_opt.models.topologies.orders import ORDERS
from upscale_opt.models.topologies.shapes import SHAPES, DataDependent
from upscale_opt.models.topologies.streams import STREAMS
from upscale_opt.models.topologies.tokens import TOKEN_SHAPES, TOKENS

Inputs = Tensor | dict[str, Tensor]
"""The inputs of a model: one positional tensor, or keyword tensors."""

TOPOLOGIES: dict[str, Callable[[], nn.Module]] = {
    **STREAMS,
    **ORDERS,
    **LAYERS,
    **SHAPES,
    **OPERATIONS,
    **TOKENS,
}
"""Topology name → constructor. All of them can be captured by ``torch.fx``."""

UNTRACEABLE: dict[str, Callable[[], nn.Module]] = {"data_dependent": DataDependent}
"""Topology name → constructor, for networks that no tracer can capture."""

INPUT_SHAPES: dict[str, tuple[int, ...]] = {
    "mlp": (16,),
    "token_norm": (5, 6),
    "attention": (5, 6),
    "conv1d": (3, 8),
    "conv3d": (3, 4, 8, 8),
    **TOKEN_SHAPES,
}
"""The shape of one example, for the topologies that do not take a ``(3, 8, 8)`` image."""

KEYWORD_SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "dict_input": {"image": (3, 8, 8), "guide": (1, 8, 8)},
}
"""The shapes of one example by keyword, for the topologies that take keywords."""


def example_inputs(name: str, batch: int = 1) -> Inputs:
    """Return random inputs for the topology called ``name``, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    if name in KEYWORD_SHAPES:
        shapes = KEYWORD_SHAPES[name]
        return {key: torch.randn(batch, *shapes[key], generator=generator) for key in shapes}
    return torch.randn(batch, *INPUT_SHAPES.get(name, (3, 8, 8)), generator=generator)
