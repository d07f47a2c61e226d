"""The choice of the channels that go: those with the lowest scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from upscale_opt.errors import MaskError


def least(scores: Sequence[Tensor], amount: float) -> list[list[int]]:
    """The lowest ``amount`` of all channels, ranked together; of equals, the first goes first.

    Args:
        scores: per segment, a tensor of shape (channels,).
        amount: the share to drop, in [0, 1); the number of channels is ``int(amount * n)``.

    Returns:
        Per segment, the places of the channels to drop, ascending.

    Raises:
        MaskError: if ``amount`` is out of range, or a score is not a number.
    """
    if not isinstance(amount, (int, float)) or not 0 <= amount < 1:
        raise MaskError(f"amount must be at least 0 and less than 1, not {amount!r}")
    sizes = [len(one) for one in scores]
    if not sizes:
        return []
    together = torch.cat([one.detach().double().cpu() for one in scores])
    if bool(together.isnan().any()):
        raise MaskError(
            "an importance score is not a number; look for NaN in the weights or statistics"
        )
    order = torch.argsort(together, stable=True)
    goes = torch.zeros(len(together), dtype=torch.bool)
    goes[order[: int(amount * len(together))]] = True
    parts = torch.split(goes, sizes)
    return [torch.nonzero(part).flatten().tolist() for part in parts]


def least_by_group(scores: Tensor, amount: float, groups: int = 1) -> list[int]:
    """The lowest ``amount`` of the channels of every one of ``groups`` equal runs.

    Args:
        scores: of shape (channels,).
        amount: as for :func:`least`; of each group.
        groups: how many there are.

    Raises:
        MaskError: as :func:`least`.
    """
    width = len(scores) // groups
    found = [least([part], amount)[0] for part in scores.reshape(groups, width)]
    return [group * width + place for group, places in enumerate(found) for place in places]
