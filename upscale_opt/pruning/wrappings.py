"""Wrappings of models by other tools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn
from torch.nn.utils import prune


def masked_by_torch(model: nn.Module) -> list[str]:
    """The tensors that :mod:`torch.nn.utils.prune` masks before every call, by name."""
    return [f"{name}.{tensor}".lstrip(".") for name, _, tensor in _masked(model)]


def make_permanent(model: nn.Module) -> None:
    """Let zeros be zeros in the parameters, instead of hooks that make them."""
    for _, module, tensor in list(_masked(model)):
        prune.remove(module, tensor)  # type: ignore[no-untyped-call]


def _masked(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    for name, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, prune.BasePruningMethod):
                yield name, module, hook._tensor_name


def few(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
