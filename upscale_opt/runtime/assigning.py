"""Assignment to a part of a tensor, as a call in a program."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx


def assign(tensor: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    """Run ``tensor[index] = value``, and return the tensor."""
    tensor[index] = value
    return tensor


fx.node.has_side_effect(assign)
