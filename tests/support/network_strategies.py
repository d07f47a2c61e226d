"""Hypothesis strategies: random networks, and random networks with masks."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from upscale_opt.models.generated.masks import (
    HARSH,
    STYLES,
    Side,
    WeightMasks,
    random_weight_masks,
)
from upscale_opt.models.generated.networks import RandomNetwork, random_network
from upscale_opt.models.generated.programs import Kinds

SEEDS = st.integers(0, 2**20)
"""What a network or masks are drawn from. One integer shrinks better than a stream of draws."""


@st.composite
def networks(draw: st.DrawFn, max_ops: int = 14, kinds: Kinds = "all") -> RandomNetwork:
    """Random networks; the number of steps is drawn first, so it is the first thing to shrink.

    Fewer steps from the same seed are a beginning of the same program.
    """
    ops = draw(st.integers(1, max_ops), label="max_ops")
    rng = random.Random(draw(SEEDS, label="network seed"))
    return random_network(rng, max_ops=ops, kinds=kinds)


@st.composite
def network_and_masks(
    draw: st.DrawFn, max_ops: int = 14, side: Side | None = None, kinds: Kinds = "all"
) -> tuple[RandomNetwork, WeightMasks]:
    """Random networks with masks on their weights; the side is drawn where none is given."""
    network = draw(networks(max_ops, kinds))
    sides: list[Side] = ["in", "out", "both"] if side is None else [side]
    drawn = draw(st.sampled_from(sides), label="side")
    styles = draw(st.sampled_from([STYLES, STYLES, HARSH]), label="styles")
    rng = random.Random(draw(SEEDS, label="masks"))
    return network, random_weight_masks(network, rng, drawn, styles=styles)
