"""The few modules that a pruned model has and its original lacks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

Placement = tuple[int, int] | list[int] | None
"""Where a summand goes: everywhere (``None``), at (start, length), or at listed indices."""


class Gather(nn.Module):
    """Copies the elements ``indices`` along axis ``dim``."""

    indices: torch.Tensor

    def __init__(self, indices: Sequence[int], dim: int, device: torch.device) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("indices", torch.tensor(indices, device=device), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` with only those elements along the axis, in that order."""
        return x.index_select(self.dim, self.indices)

    def extra_repr(self) -> str:
        """The number of elements copied."""
        return f"{len(self.indices)} along dim {self.dim}"


class PlacedSum(nn.Module):
    """Sums tensors of which some cover only a part of the result's channels.

    Args:
        placements: one per summand.
        size: the result's size along ``dim``.
        dim: the channel axis.
        device: where the indices live.
    """

    def __init__(
        self, placements: Sequence[Placement], size: int, dim: int, device: torch.device
    ) -> None:
        super().__init__()
        self.size, self.dim = size, dim
        self.slices = [p if isinstance(p, tuple) else None for p in placements]
        self.whole = [p is None for p in placements]
        for number, placement in enumerate(placements):
            if isinstance(placement, list):
                indices = torch.tensor(placement, device=device)
                self.register_buffer(f"indices_{number}", indices, persistent=False)

    def forward(self, *summands: torch.Tensor) -> torch.Tensor:
        """The sum, with zeros where a summand has no channels."""
        whole = [x for x, everywhere in zip(summands, self.whole, strict=True) if everywhere]
        if whole:
            total = whole[0].clone() if len(whole) == 1 else whole[0] + whole[1]
            for x in whole[2:]:
                total = total + x
        else:
            shape = list(summands[0].shape)
            shape[self.dim] = self.size
            total = summands[0].new_zeros(shape)
        for number, x in enumerate(summands):
            if self.whole[number]:
                continue
            place = self.slices[number]
            if place is not None:
                total.narrow(self.dim, *place).add_(x)
            else:
                total = total.index_add(self.dim, getattr(self, f"indices_{number}"), x)
        return total

    def extra_repr(self) -> str:
        """What is placed where."""
        places = [
            "all" if everywhere else "indices" if place is None else f"{place[0]}+{place[1]}"
            for place, everywhere in zip(self.slices, self.whole, strict=True)
        ]
        return f"{', '.join(places)}; {self.size} along dim {self.dim}"


def fit_sizes(module: nn.Module) -> None:
    """Make a module's size attributes agree with its (sliced) parameters."""
    weight = module._parameters.get("weight")  # never run a parametrization
    if isinstance(module, nn.modules.conv._ConvNd) and isinstance(weight, torch.Tensor):
        if module.groups > 1 and weight.shape[1] == 1 and module.in_channels == module.out_channels:
            module.groups = module.in_channels = module.out_channels = weight.shape[0]
        elif module.groups == 1:
            outputs, inputs = weight.shape[:2]
            if module.transposed:
                outputs, inputs = inputs, outputs
            module.in_channels, module.out_channels = inputs, outputs
    elif isinstance(module, nn.Linear) and weight is not None:
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        for tensor in (module.weight, module.running_mean):
            if isinstance(tensor, torch.Tensor):
                module.num_features = len(tensor)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()
