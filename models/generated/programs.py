"""Random programs: which layers and operations a random network runs, drawn step by step."""

from __future__ import annotations

import random
from typing import Literal

from upscale_opt.models.generated.basics import BASICS, convolution
from upscale_opt.models.generated.builder import Builder, Program
from upscale_opt.models.generated.convolutions import CONVOLUTIONS
from upscale_opt.models.generated.layers import LAYERS
from upscale_opt.models.generated.orders import ORDERS
from upscale_opt.models.generated.tokens import TOKENS

Kinds = Literal["basic", "all"]
"""A vocabulary: plain convolutional networks, or whatever people write."""

_OTHERS = [*LAYERS, *ORDERS, *TOKENS]


def draw_program(rng: random.Random, max_ops: int, kinds: Kinds = "all") -> Program:
    """Draw a program of at most ``max_ops`` steps (at least one).

    Constructors of modules draw from the global random state on the way; the caller guards it.

    Args:
        rng: Where everything comes from.
        max_ops: The most steps.
        kinds: The vocabulary. Each program in "all" uses seven of the kinds that "basic"
            lacks, two of them about convolutions: all at once, none would meet itself or its
            natural neighbours.
    """
    builder = Builder(rng, wide=kinds == "all")
    table = list(BASICS)
    if kinds == "all":
        table += rng.sample(CONVOLUTIONS, 2) + rng.sample(_OTHERS, 5)
    return builder.build(max_ops, convolution, table)
