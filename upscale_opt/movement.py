"""What a forward pass moves: the bytes that kernels write which compute nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from upscale_opt.tracing.examples import Inputs, as_call


@dataclass(frozen=True)
class Write:
    """One kernel that moved data.

    Attributes:
        op: its name in ATen, such as ``"cat"``.
        bytes: what it wrote.
    """

    op: str
    bytes: int


@dataclass(frozen=True)
class Movement:
    """What one forward pass moved.

    Attributes:
        writes: in the order of execution.
    """

    writes: tuple[Write, ...]

    @property
    def total(self) -> int:
        """The bytes written altogether."""
        return sum(write.bytes for write in self.writes)

    @property
    def by_op(self) -> dict[str, int]:
        """The bytes written by each kind of kernel, most first."""
        totals: Counter[str] = Counter()
        for write in self.writes:
            totals[write.op] += write.bytes
        return dict(totals.most_common())

    def __str__(self) -> str:
        parts = ", ".join(f"{op} {written / 1e6:.2f}" for op, written in self.by_op.items())
        return f"{self.total / 1e6:.2f} MB moved" + (f" ({parts})" if parts else "")


def moved_bytes(model: nn.Module, inputs: Inputs) -> Movement:
    """Run ``model`` and add up what its data movement writes.

    Counted are kernels that only move data: concatenations, gathers, copies into another memory
    format, padding, shuffles, and so on; and sums that are added to a slice of a larger tensor.
    Views cost nothing. What kernels that compute copy inside themselves is not seen. The pass is a
    real one, in evaluation mode and without gradients; the model is left as it was, and so is the
    random state.

    Args:
        model: any model, on any device.
        inputs: as for :func:`upscale_opt.trace`.

    Raises:
        TraceError: if ``inputs`` is none of the accepted forms.
    """
    args, kwargs = as_call(inputs)
    tensors = [*model.parameters(), *model.buffers(), *pytree.tree_leaves((args, kwargs))]
    devices = {t.device for t in tensors if isinstance(t, Tensor) and t.device.type == "cuda"}
    counter = _Counter()
    with (
        _evaluating(model),
        torch.random.fork_rng(sorted(devices, key=str)),
        torch.no_grad(),
        counter,
    ):
        model(*args, **kwargs)
    return Movement(tuple(counter.writes))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every call of an operator that reaches a kernel."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.writes: list[Write] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        op = func.overloadpacket.__name__
        rule = _RULES.get(op) if func.namespace == "aten" else None
        if rule is None:
            with self:  # in inference mode, `reshape` arrives as it is, not as what it consists of
                result = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if result is NotImplemented else result
        result = func(*args, **kwargs)
        written = rule(args, kwargs, result)
        if written:
            self.writes.append(Write(op, written))
        return result


# What kernels write. A rule gets a call's arguments, in the sequence of the operator's schema, its
# keyword arguments and its result, and returns bytes.

Rule = Callable[[tuple[Any, ...], dict[str, Any], Any], int]


def _bytes(tensor: Any) -> int:
    return tensor.numel() * tensor.element_size() if isinstance(tensor, Tensor) else 0


def _result(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    return _bytes(result)


def _argument(*numbers: int, and_result: bool = False) -> Rule:
    """The bytes of some arguments, and perhaps of the result."""

    def rule(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
        written = sum(_bytes(args[number]) for number in numbers if number < len(args))
        return written + (_bytes(result) if and_result else 0)

    return rule


def _scattered(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """One element for every index."""
    written: int = args[2].numel() * result.element_size()
    return written


def _same_dtype(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """A conversion to another precision is a computation."""
    return _bytes(result) if result.dtype == args[0].dtype else 0


def _slice(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """What is added to a whole tensor is a sum; what is added to a part of one is placed there."""
    written = _bytes(args[0])
    return written if written < args[0].untyped_storage().nbytes() else 0


_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *("cat", "stack", "clone", "repeat", "flip", "roll", "channel_shuffle"),
            *("native_channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "im2col", "col2im"),
            *("index", "_unsafe_index", "index_select", "gather", "take", "masked_select"),
            *("embedding", "constant_pad_nd", "zeros", "new_zeros", "zeros_like"),
            *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
        ),
        _result,
    ),
    "_to_copy": _same_dtype,
    "copy_": _argument(0),
    "add_": _slice,
    # In place, only the new part is written; else the whole is copied first.
    "index_add_": _argument(3),
    "index_copy_": _argument(3),
    "index_put_": _argument(2),
    "scatter_": _scattered,
    "scatter_add_": _scattered,
    "index_add": _argument(3, and_result=True),
    "index_copy": _argument(3, and_result=True),
    "index_put": _argument(2, and_result=True),
    "slice_scatter": _argument(1, and_result=True),
    "select_scatter": _argument(1, and_result=True),
}
"""What moves data, by the operator's name in ATen. A new rule is a line here."""
