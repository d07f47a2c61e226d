"""A model's own noise: what rounding does to its outputs where it computes in low precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from upscale_opt.tracing.examples import dtype_name

MORE = 100.0
"""Orders of summation differ by more than single roundings do, by this factor at most."""


@dataclass
class Lower:
    """The places where a model computes in lower precision than it was cast to.

    Attributes:
        dtype: the lowest precision; ``None`` if there is no lower one.
        places: the modules that do so themselves, by name.
    """

    dtype: torch.dtype | None = None
    places: dict[str, None] = field(default_factory=dict)

    def __str__(self) -> str:
        names = [repr(name) if name else "the model itself" for name in self.places]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return f"computes in {dtype_name(self.dtype or torch.float64)} inside of {shown}"


class Rounding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is open, results in lower precision are rounded at random.

    Args:
        dtype: the precision that the model was cast to.
        every: round results in that precision at random, too.

    Attributes:
        lower: where the model computes in lower precision, as far as it has run.
    """

    def __init__(self, dtype: torch.dtype, every: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.eps = torch.finfo(dtype).eps
        self.every = every
        self.lower = Lower()
        self.seed = 0
        self.stack: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The call's result, disturbed where it is computed in lower precision."""
        result = func(*args, **(kwargs or {}))
        if not any(_is_float(leaf) for leaf in pytree.tree_leaves((args, kwargs))):
            return result  # made of nothing, so exact
        fresh = all(value.alias_info is None for value in func._schema.returns)
        for leaf in pytree.tree_leaves(result):
            if not _is_float(leaf):
                continue
            low = torch.finfo(leaf.dtype).eps > self.eps
            if low:
                self._note(leaf.dtype)
            if fresh and (low or self.every):
                self._disturb(leaf)
        return result

    def _note(self, dtype: torch.dtype) -> None:
        known = self.lower.dtype
        if known is None or torch.finfo(dtype).eps > torch.finfo(known).eps:
            self.lower.dtype = dtype
        self.lower.places[self.stack[-1] if self.stack else ""] = None

    def _disturb(self, tensor: torch.Tensor) -> None:
        self.seed += 1
        source = torch.Generator(tensor.device).manual_seed(self.seed)
        noise = torch.rand(tensor.shape, generator=source, device=tensor.device) * 2 - 1
        eps = torch.finfo(tensor.dtype).eps
        tensor.mul_((1 + eps * noise.to(torch.float64)).to(tensor.dtype))


@contextmanager
def rounding(model: nn.Module, dtype: torch.dtype, every: bool = False) -> Iterator[Rounding]:
    """Have ``model``, a copy to be used up, run with :class:`Rounding`."""
    mode = Rounding(dtype, every)

    def enter(name: str) -> Any:
        return lambda module, args: mode.stack.append(name)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        mode.stack.pop()

    for name, module in model.named_modules():
        if name:
            module.register_forward_pre_hook(enter(name))
            module.register_forward_hook(leave)
    with mode:
        yield mode


def _is_float(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex())
