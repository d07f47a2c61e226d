"""Random masks on the weights of any network, in styles that stress different corners."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

Side = Literal["in", "out", "both"]
"""The axes of every weight that are pruned."""

WeightMasks = dict[tuple[str, int], list[int]]
"""(parameter name, axis of the weight tensor) → the kept indices along it, ascending.

Indices stand for channels. The axis on which a grouped weight has one slice per channel *of a
group* counts group after group, ``groups`` times as many as the tensor has slices.
"""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear, nn.MultiheadAttention, nn.Embedding)


@dataclass(frozen=True)
class PrunableWeight:
    """A weight with an axis of output and one of input channels.

    Attributes:
        name: Its name as a parameter of the model.
        parameter: Itself.
        out_axis: Where rows are.
        in_axis: Where columns are.
        groups: How many groups of rows and columns know nothing of each other. Axis 1, whichever
            it is, has the slices of one group.
    """

    name: str
    parameter: nn.Parameter
    out_axis: int
    in_axis: int
    groups: int

    def axes(self, side: Side) -> list[int]:
        """The axes that a side stands for."""
        return {
            "in": [self.in_axis],
            "out": [self.out_axis],
            "both": [self.out_axis, self.in_axis],
        }[side]

    def channels(self, axis: int) -> int:
        """The number of channels along an axis."""
        return self.parameter.shape[axis] * (self.groups if axis == 1 else 1)

    def zero(self, axis: int, removed: Collection[int]) -> None:
        """Zero, in place, some channels along an axis."""
        size = self.parameter.shape[1]
        with torch.no_grad():
            by_group = torch.unflatten(self.parameter, 0, (self.groups, -1))
            for channel in removed:
                if axis == 1:
                    by_group[channel // size, :, channel % size] = 0
                else:
                    self.parameter[channel] = 0


STYLES = ("full", "half", "half", "coin", "coin", "tenth", "run", "one", "empty")
"""The part of a layer that is kept: everything, half, a coin per channel, neighbours, nothing …"""

HARSH = ("full", "one", "empty", "empty")
"""Styles under which whole tensors die."""


def random_weight_masks(
    model: nn.Module,
    rng: random.Random,
    side: Side = "in",
    *,
    styles: Sequence[str] = STYLES,
    per_group: bool = True,
) -> WeightMasks:
    """Draw which channels of every convolution, linear and similar weight are kept.

    Each layer draws its own style: full, empty, one channel, half, a tenth, a run of neighbours,
    or a coin per channel; and if it is grouped, whether groups keep the same places, equally
    many, what each of them likes, or whether some die altogether.

    Args:
        model: Any model. Raw parameters of its own modules count where their name ends in
            "weight" and they have two or more axes; recurrent layers do not.
        rng: Where everything comes from.
        side: The axis to prune: "in", "out" or "both".
        styles: What each layer chooses from.
        per_group: Tell groups apart. Otherwise all groups of a convolution keep the same places
            on the axis that has the slices of one group, and the other is drawn as a whole.
    """
    masks: WeightMasks = {}
    for weight in prunable_weights(model):
        for axis in weight.axes(side):
            channels, groups = weight.channels(axis), weight.groups
            if groups > 1 and (per_group or axis == 1):
                grouping = _draw_groups if per_group else _same_places
                kept = grouping(channels // groups, groups, rng, styles)
            else:
                kept = _draw(channels, rng, styles)
            masks[weight.name, axis] = kept
    return masks


def apply_weight_masks(
    model: nn.Module, masks: Mapping[tuple[str, int], list[int]], *, biases: bool = False
) -> nn.Module:
    """Zero, in place, all slices of the weights that ``masks`` does not keep.

    Args:
        model: The model the masks were drawn for.
        masks: The kept channels.
        biases: Zero the biases of removed output rows as well. Otherwise such a channel is a
            constant, and in general not zero.

    Returns:
        The same model.
    """
    weights = {weight.name: weight for weight in prunable_weights(model)}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for (name, axis), kept in masks.items():
        weight = weights[name]
        removed = sorted(set(range(weight.channels(axis))) - set(kept))
        weight.zero(axis, removed)
        bias = parameters.get(name.removesuffix("weight") + "bias")
        rows = biases and axis == weight.out_axis
        if rows and bias is not None and bias.shape == (weight.channels(axis),):
            with torch.no_grad():
                bias[removed] = 0
    return model


def prunable_weights(model: nn.Module) -> Iterator[PrunableWeight]:
    """Yield all weights that ``random_weight_masks`` draws masks for, each once."""
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        plain = not type(module).__module__.startswith("torch.nn.")
        if not plain and not isinstance(module, _LAYERS):
            continue
        transposed = isinstance(module, (*_TRANSPOSED, nn.Embedding))
        transposed = transposed or bool(getattr(module, "transposed", False))
        for name, parameter in module.named_parameters(module_name, recurse=False):
            if name.endswith("weight") and parameter.dim() >= 2 and id(parameter) not in seen:
                seen.add(id(parameter))
                groups = getattr(module, "groups", 1)
                groups = groups if isinstance(groups, int) else 1
                out_axis, in_axis = (1, 0) if transposed else (0, 1)
                yield PrunableWeight(name, parameter, out_axis, in_axis, groups)


def _draw_groups(size: int, groups: int, rng: random.Random, styles: Sequence[str]) -> list[int]:
    """Draw the kept ones of ``groups`` times ``size`` channels."""
    style = rng.choice(["same", "equal", "equal", "each", "each", "dead", "dead"])
    if style == "same":
        return _same_places(size, groups, rng, styles)
    count = rng.randint(0, size)
    kept: list[int] = []
    for group in range(groups):
        if style == "each":
            places = _draw(size, rng, styles)
        elif style == "dead" and rng.random() < 0.5:
            places = []
        else:
            places = sorted(rng.sample(range(size), count if style == "equal" else size))
        kept += [group * size + place for place in places]
    return kept


def _same_places(size: int, groups: int, rng: random.Random, styles: Sequence[str]) -> list[int]:
    """Draw the kept ones of ``size`` places, the same in every group."""
    places = _draw(size, rng, styles)
    return [group * size + place for group in range(groups) for place in places]


def _draw(size: int, rng: random.Random, styles: Sequence[str]) -> list[int]:
    """Draw the kept ones of ``size`` indices."""
    style = rng.choice(styles)
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
