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


def rounded(scores: Tensor, rows: Sequence[int], groups: int, round_to: int) -> list[int]:
    """The channels to drop such that every group keeps a multiple of ``round_to``.

    Kept are as many as with ``rows``, rounded up; rounded down where a group has not so many; and
    all where it has fewer than ``round_to``. Which ones, the scores say.

        >>> rounded(torch.arange(20.0), range(10), 1, 8)
        [0, 1, 2, 3]

    Args:
        scores: of shape (channels,).
        rows: the places of the channels to drop otherwise.
        groups: how many equal runs the channels fall into.
        round_to: at least 1.
    """
    width = len(scores) // groups
    kept = width - len(rows) // groups
    target = -(-kept // round_to) * round_to
    if target > width:
        target = width // round_to * round_to or width
    found = []
    for group, part in enumerate(scores.reshape(groups, width)):
        order = torch.argsort(part.detach().double().cpu(), stable=True)
        found += sorted(group * width + place for place in order[: width - target].tolist())
    return found
