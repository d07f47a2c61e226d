"""Record the ATen operations that a call executes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

MOVEMENT = frozenset(
    {
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "permute",
        "transpose",
        "t",
        "numpy_T",
        "unsqueeze",
        "squeeze",
        "expand",
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "unbind",
        "cat",
        "stack",
        "flip",
        "roll",
        "index_select",
        "clone",
        "contiguous",
        "detach",
        "alias",
        "lift_fresh",
        "repeat",
        "narrow",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "native_channel_shuffle",
        "movedim",
        "swapaxes",
        "unflatten",
        "index",
        "tile",
        "chunk",
    }
)
"""Operations that only move data: they are run on labels."""


@dataclass(frozen=True)
class Call:
    """One ATen operation as executed."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    @property
    def name(self) -> str:
        """Its name without namespace and the mark of in-place operations."""
        name: str = self.func._schema.name.split("::")[1]
        return name[:-1] if name.endswith("_") and not name.startswith("__") else name

    @property
    def changed(self) -> list[torch.Tensor]:
        """The arguments that it modifies."""
        return [
            tensor
            for place, argument in enumerate(self.func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
            for tensor in tensors_in(
                self.args[place] if place < len(self.args) else self.kwargs.get(argument.name)
            )
        ]


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every ATen operation executed under it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and keep a record of it."""
        kwargs = kwargs or {}
        result = without_data(func, args, kwargs)
        if func._schema.name.split("::")[0] != "prim":
            self.calls.append(Call(func, tuple(args), kwargs, result))
        return result


def without_data(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an operation; that of a batch norm in eval mode without much ado.

    On tensors without data, PyTorch takes its arithmetic apart, which is most of what a run of a
    convolutional network takes.
    """
    if func is torch.ops.aten.native_batch_norm.default and len(args) == 8 and not args[5]:
        x, *own = args[:5]
        no_data = x.is_meta or isinstance(x, FakeTensor)
        if no_data and x.ndim > 1 and all(t is None or t.shape == x.shape[1:2] for t in own):
            return torch.empty_like(x), x.new_empty(0), x.new_empty(0)
    return func(*args, **kwargs)


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """All tensors in nested tuples, lists and dicts, in order."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, (tuple, list)):
        return [tensor for item in tree for tensor in tensors_in(item)]
    if isinstance(tree, dict):
        return [tensor for item in tree.values() for tensor in tensors_in(item)]
    return []


def as_it_was(source: torch.Tensor, result: torch.Tensor) -> bool:
    """Tell whether ``result``, the same memory with new strides, has every element where it was."""
    strides = zip(source.shape, source.stride(), result.stride(), strict=True)
    return (
        source.shape == result.shape
        and bool(source.storage_offset() == result.storage_offset())
        and all(bool(a == b) for size, a, b in strides if size > 1)
    )
