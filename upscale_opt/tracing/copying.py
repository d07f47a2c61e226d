"""Deep copies of models, also of those that hold what they computed."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

T = TypeVar("T")


def copied(thing: T, memo: dict[int, Any] | None = None) -> T:
    """A deep copy of a model, or of a part of one.

    PyTorch alone refuses to copy computed tensors. Masks by ``torch.nn.utils.prune`` and the old
    weight norm leave some in attributes, and so do hooks; they are copied as numbers.

    Args:
        thing: the model.
        memo: copies to use, as for :func:`copy.deepcopy`.
    """
    with _Computed():
        return copy.deepcopy(thing, memo)


class _Computed(TorchFunctionMode):
    """Copies computed tensors, too."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.__deepcopy__:
            tensor, memo = args
            if not tensor.is_leaf:
                return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))
