"""Modules with indices that follow from the plan, so that nothing may change them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn


class Indexed(nn.Module):
    """Has buffers of fixed indices.

    They are in the ``state_dict``, as copies, so that one of another pruning is refused; state
    dicts that lack them are taken. Memory given anew (``to_empty``) is filled with them again.

    Attributes:
        fixed: the indices by the name of their buffer.
    """

    fixed: dict[str, tuple[int, ...]]

    def add_indices(self, name: str, indices: Sequence[int], device: torch.device) -> None:
        """Register indices as a buffer."""
        self.__dict__.setdefault("fixed", {})[name] = tuple(map(int, indices))
        tensor = torch.tensor(indices, dtype=torch.int64, device=device)
        self.register_buffer(name, tensor, persistent=False)

    def _fixed(self) -> dict[str, tuple[int, ...]]:
        """The indices; none in pickles from before there were any."""
        found: dict[str, tuple[int, ...]] = self.__dict__.get("fixed", {})
        return found

    def _refill(self, name: str, device: torch.device) -> None:
        values = self._fixed()[name]
        self._buffers[name] = torch.tensor(values, dtype=torch.int64, device=device)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in self._fixed():
            buffer = self._buffers[name]
            if buffer is not None and buffer is not before[name] and not buffer.is_meta:
                self._refill(name, buffer.device)
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._fixed():
            buffer = self._buffers[name]
            if buffer is not None:  # a copy: averages of weights are written into state dicts
                destination[prefix + name] = buffer.clone()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name, values in self._fixed().items():
            given, own = state_dict.pop(prefix + name, None), self._buffers[name]
            known = isinstance(given, torch.Tensor) and not given.is_meta
            if known and tuple(given.flatten().tolist()) != values:
                error_msgs.append(another_pruning(prefix + name))
            if own is not None and own.is_meta:
                if known:
                    self._refill(name, given.device)
            elif own is not None and tuple(own.tolist()) != values:  # memory of another hand
                self._refill(name, own.device)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def another_pruning(name: str) -> str:
    """The reason why a state dict is refused."""
    return (
        f"{name!r} differs: the state dict is that of another pruning, whose weights belong to "
        "other channels, though their sizes may be the same; use upscale_opt.save and "
        "upscale_opt.load, or prune with the same solution first"
    )
