"""Losses without a model: chains in random orders, whose losses grow by more and more."""

from __future__ import annotations

import random

import numpy as np

from upscale_opt.ir.graph import ChannelGraph, Layer, slices_of
from upscale_opt.ir.losses import Chain, Losses, Reader


def synthetic_losses(
    graph: ChannelGraph, seed: int = 0, origins: tuple[str, ...] = ("own", "space")
) -> Losses:
    """Losses of every layer that does not read the network's input.

    The chain ``"space"`` follows one random order per channel id; others are random.
    """
    rng = random.Random(seed)
    makers = {name: op for op in graph.operations for name in op.outputs}
    scores: dict[int, float] = {}
    readers = []
    seen: set[str] = set()
    for op in graph.operations:
        if not isinstance(op, Layer) or not op.inputs or makers[op.inputs[0]].kind == "input":
            continue
        tensor = graph.tensors[op.inputs[0]]
        size = slices_of(graph, op.weight, op.in_axis)
        if len(set(tensor.channels)) < len(tensor.channels) or op.weight in seen:
            continue
        seen.add(op.weight)
        weight = rng.uniform(0.2, 2)
        chains = []
        for origin in origins:
            steps = _steps(origin, tensor.channels, tensor.features, op.groups, scores, rng)
            done = np.linspace(0, 1, len(steps) + 1)
            losses = weight * rng.uniform(1, 1.3) * done ** rng.uniform(1.5, 3) * (1 + 2 * done**6)
            chains.append(Chain(origin=origin, steps=steps, losses=tuple(losses.tolist())))
        floors = np.min([chain.losses for chain in chains], axis=0) * 0.9
        readers.append(
            Reader(
                operation=op.name,
                parameter=op.weight,
                axis=op.in_axis,
                slices=tuple(range(size)),
                unit=tensor.features * op.groups,
                chains=tuple(chains),
                floors=tuple(floors.tolist()),
            )
        )
    return Losses(
        graph_fingerprint=graph.masks_fingerprint, weighting="synthetic", readers=tuple(readers)
    )


def _steps(
    origin: str,
    channels: tuple[int, ...],
    features: int,
    groups: int,
    scores: dict[int, float],
    rng: random.Random,
) -> tuple[tuple[int, ...], ...]:
    size = len(channels) // groups
    orders = []
    for group in range(groups):
        entries = list(range(group * size, (group + 1) * size))
        if origin == "space":
            entries.sort(key=lambda entry: scores.setdefault(channels[entry], rng.random()))
        else:
            rng.shuffle(entries)
        orders.append(entries)
    return tuple(
        tuple(sorted(entry * features + f for entry in step for f in range(features)))
        for step in zip(*orders, strict=True)
    )
