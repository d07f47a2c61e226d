"""Models that do not run in float64, run in it all the same: casts to less are left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_DOUBLE = {
    **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64),
    torch.complex64: torch.complex128,
}


class _Exactly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The call in float64."""

        def wide(value: Any) -> Any:
            if isinstance(value, torch.dtype):
                return _DOUBLE.get(value, value)
            if isinstance(value, torch.Tensor) and value.dtype in _DOUBLE:
                return value.to(_DOUBLE[value.dtype])
            return value

        written = {a.name for a in func._schema.arguments if a.alias_info is not None}
        if not written:
            args, kwargs = pytree.tree_map(wide, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextmanager
def exactly() -> Iterator[None]:
    """While this is open, all numbers are float64, whatever code asks for."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Exactly():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.set_default_dtype(default)


class _Watch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.outside = _state()
        self.switched = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.switched = self.switched or _state() != self.outside
        return func(*args, **(kwargs or {}))


@contextmanager
def autocast_watched() -> Iterator[_Watch]:
    """While this is open, notice whether code switches autocast: ``.switched`` says so."""
    with _Watch() as watch:
        yield watch


def _state() -> tuple[Any, ...]:
    kinds = ("cpu", "cuda")
    return tuple((torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in kinds)
