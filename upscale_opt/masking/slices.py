"""Slices of parameters along channel axes; along the short axis of grouped convolutions, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch


def sliced(
    tensor: torch.Tensor, kept: Mapping[int, Sequence[int]], groups: int = 1
) -> torch.Tensor:
    """The slices of ``tensor`` that are ``kept``, in that order.

    Args:
        tensor: a parameter.
        kept: per axis, indices. If there are groups, those on axis 1 count channels, group after
            group (:class:`upscale_opt.ir.graph.Layer`), equally many for every group that axis 0
            keeps anything of.
        groups: into how many groups the first axis falls.
    """
    if groups > 1 and 1 in kept:
        return _grouped(tensor, kept, groups)
    for axis, indices in kept.items():
        tensor = tensor.index_select(axis, torch.tensor(indices, device=tensor.device))
    return tensor


def _grouped(tensor: torch.Tensor, kept: Mapping[int, Sequence[int]], groups: int) -> torch.Tensor:
    rows, width = tensor.shape[:2]
    chosen: dict[int, list[int]] = {}
    for index in kept[1]:
        chosen.setdefault(index // width, []).append(index % width)
    listed = list(kept.get(0, range(rows)))
    columns = [chosen[row * groups // rows] for row in listed]
    row_index = torch.tensor(listed, device=tensor.device).unsqueeze(1)
    return tensor[row_index, torch.tensor(columns, device=tensor.device)]


def zero_slices(tensor: torch.Tensor, axis: int, indices: Sequence[int], groups: int = 1) -> None:
    """Make slices of a parameter zero, in place; ``indices`` as for :func:`sliced`."""
    if groups == 1 or axis == 0:
        tensor.index_fill_(axis, torch.tensor(indices, device=tensor.device), 0)
        return
    width = tensor.shape[1]
    by_group = tensor.view(groups, -1, *tensor.shape[1:])
    for index in indices:
        by_group[index // width, :, index % width] = 0


def nonzero_slices(tensor: torch.Tensor, axis: int, groups: int = 1) -> tuple[int, ...]:
    """The slices of a parameter along ``axis`` that are not zero throughout."""
    nonzero = tensor != 0
    if groups > 1 and axis == 1:
        by_group = nonzero.reshape(groups, -1, *nonzero.shape[1:])
        nonzero = by_group.transpose(1, 2).flatten(0, 1)
        axis = 0
    others = [a for a in range(nonzero.ndim) if a != axis]
    alive = nonzero.any(dim=others) if others else nonzero
    return tuple(torch.nonzero(alive).flatten().tolist())


def channel_rows(tensor: torch.Tensor, axis: int, groups: int = 1) -> torch.Tensor:
    """The values in every slice of a parameter along ``axis``, of shape (slices, values).

    With groups, the slices along axis 1 are channels, group after group.
    """
    if groups > 1 and axis == 1:
        by_group = tensor.reshape(groups, -1, *tensor.shape[1:])
        return by_group.transpose(1, 2).flatten(0, 1).flatten(1)
    return tensor.movedim(axis, 0).flatten(1)
