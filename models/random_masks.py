"""Random masks on the weights of any network, in styles that stress different corners."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import nn

Side = Literal["in", "out", "both"]
"""Which axis of every weight is pruned."""

WeightMasks = dict[tuple[str, int], list[int]]
"""(parameter name, axis of the weight tensor) → the kept indices along it, ascending."""

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def random_weight_masks(model: nn.Module, rng: random.Random, side: Side = "in") -> WeightMasks:
    """Draw which indices of every convolution and linear weight are kept.

    Each layer draws its own style: full, empty, one channel, half, a tenth, a run of neighbours,
    or a coin per channel. The indices are those of the weight tensor, so along the input axis of
    a grouped convolution an index stands for one channel of every group.

    Args:
        model: Any model. Raw parameters of its own modules count where their name ends in
            "weight" and they have two or more axes; embeddings and recurrent layers do not.
        rng: Where everything comes from.
        side: The axis to prune: "in", "out" or "both".
    """
    masks: WeightMasks = {}
    for name, weight, (out_axis, in_axis) in prunable_weights(model):
        axes = {"in": [in_axis], "out": [out_axis], "both": [out_axis, in_axis]}[side]
        for axis in axes:
            masks[name, axis] = _draw(weight.shape[axis], rng)
    return masks


def apply_weight_masks(
    model: nn.Module, masks: Mapping[tuple[str, int], list[int]], *, biases: bool = False
) -> nn.Module:
    """Zero, in place, all slices of the weights that `masks` does not keep.

    Args:
        model: The model the masks were drawn for.
        masks: The kept indices.
        biases: Zero the biases of removed output rows as well. Otherwise such a channel is a
            constant, and in general not zero.

    Returns:
        The same model.
    """
    axes = {name: pair[0] for name, _, pair in prunable_weights(model)}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for (name, axis), kept in masks.items():
            weight = parameters[name]
            size = weight.shape[axis]
            removed = torch.tensor(sorted(set(range(size)) - set(kept)), dtype=torch.long)
            weight.index_fill_(axis, removed.to(weight.device), 0.0)
            bias = parameters.get(name.removesuffix("weight") + "bias")
            # A grouped transposed convolution writes one index of its axis in every group.
            if biases and bias is not None and axis == axes[name] and bias.numel() % size == 0:
                bias.view(-1, size).index_fill_(1, removed.to(bias.device), 0.0)
    return model


def prunable_weights(
    model: nn.Module,
) -> Iterator[tuple[str, nn.Parameter, tuple[int, int]]]:
    """Yield (parameter name, parameter, (output axis, input axis)), each parameter once."""
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        plain = not type(module).__module__.startswith("torch.nn.")
        for name, parameter in module.named_parameters(module_name, recurse=False):
            known = isinstance(module, _LAYERS + _TRANSPOSED) or plain
            matrix = name.endswith("weight") and parameter.dim() >= 2
            if known and matrix and id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter, ((1, 0) if isinstance(module, _TRANSPOSED) else (0, 1))


def _draw(size: int, rng: random.Random) -> list[int]:
    """Draw the kept ones of `size` indices."""
    style = rng.choice(["full", "half", "half", "coin", "coin", "tenth", "run", "one", "empty"])
    if style == "full":
        return list(range(size))
    if style == "empty":
        return []
    if style == "coin":
        return [index for index in range(size) if rng.random() < 0.6]
    if style == "run":
        start = rng.randint(0, size - 1)
        return list(range(start, rng.randint(start + 1, size)))
    count = {"half": (size + 1) // 2, "tenth": (size + 9) // 10, "one": 1}[style]
    return sorted(rng.sample(range(size), count))
