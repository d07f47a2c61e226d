"""Interpretations of one call: what is known of its tensors, and what it does to channels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from upscale_opt.ir.graph import PerChannel
from upscale_opt.tracing.channels import Channels
from upscale_opt.tracing.values import Abstract, NotUnderstood


@dataclass(frozen=True)
class LayerFact:
    """A weight read channels of ``source`` (or what has none) and wrote those of ``result``."""

    source: Abstract | None
    result: Abstract
    weight: str
    in_axis: int
    out_axis: int
    bias: str | None
    groups: int = 1


@dataclass(frozen=True)
class CombineFact:
    """Several tensors with the same channels were combined channel by channel."""

    operands: tuple[Abstract, ...]
    whole: tuple[Abstract, ...]
    result: Abstract
    zero_if: Literal["all", "any", "never"]
    additive: bool


@dataclass
class Interpretation:
    """The facts about one call, operation by operation.

    Attributes:
        layers: the weights that read and wrote channels.
        combinations: the operations on several tensors.
        parameters: the per-channel parameters used.
        whole: tensors read as they are, broadcast over all channels.
        lookups: the embeddings.
        mixes: into how many groups channels fall, within which all are needed in any order;
            ``None`` if every channel is treated for itself.
    """

    layers: list[LayerFact] = field(default_factory=list)
    combinations: list[CombineFact] = field(default_factory=list)
    parameters: list[PerChannel] = field(default_factory=list)
    whole: list[Abstract] = field(default_factory=list)
    lookups: list[tuple[str, Abstract]] = field(default_factory=list)
    mixes: int | None = None

    def mix(self, groups: int = 1) -> None:
        """All channels are needed here, in any order within each of ``groups`` runs."""
        if self.mixes not in (None, groups):
            raise NotUnderstood("treats channels in groups of different sizes")
        self.mixes = groups


@dataclass
class Notes:
    """The facts known of one call while its operations are interpreted.

    Attributes:
        channels: the channel identities of the program.
        values: what is known of each tensor, by ``id`` of the fake tensor.
        done: what the operations so far do.
    """

    channels: Channels
    values: dict[int, Abstract]
    done: Interpretation = field(default_factory=Interpretation)

    def value(self, tensor: torch.Tensor) -> Abstract:
        """The facts known of ``tensor``."""
        found = self.values.get(id(tensor))
        if found is None:
            raise NotUnderstood("uses a tensor of unknown origin")
        return found

    def write(self, tensor: torch.Tensor, value: Abstract) -> None:
        """Note what is known of ``tensor``."""
        self.values[id(tensor)] = value

    def parameter_name(self, tensor: torch.Tensor) -> str:
        """The parameter that ``tensor`` is.

        Raises:
            NotUnderstood: if it is none, or not as it is.
        """
        value = self.value(tensor)
        if value.parameter is None:
            raise NotUnderstood("computes its weight instead of reading a parameter")
        if value.shape != value.original:
            raise NotUnderstood("rearranges its weight before using it")
        return value.parameter
