"""Kernels that a call of PyTorch runs: their kind, the bytes they move, their multiply-adds.

The kinds are those of :data:`upscale_opt.ir.cost_model.KINDS`. Views, and tensors that are made but
not filled, run none. One call may run two: a convolution first copies an input that is not
contiguous.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from upscale_opt.measuring.bytes_moved import COPIED_INPUTS, MOVES, Places


@dataclass(frozen=True)
class Kernel:
    """One kernel of a forward pass.

    Attributes:
        kind: one of :data:`upscale_opt.ir.cost_model.KINDS`.
        op: the operator that runs it, by its name in ATen, such as ``"convolution"``.
        bytes: what it reads and writes.
        macs: its multiply-adds.
        module: the path of the innermost module that called it; empty for the model itself.
        sides: of a convolution, the numbers of channels that its multiply-adds are proportional to.
    """

    kind: str
    op: str
    bytes: int
    macs: int = 0
    module: str = ""
    sides: tuple[int, ...] = ()


def kernels_of(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, module: str = ""
) -> list[Kernel]:
    """The kernels that one call of an operator runs; none for a view.

    Args:
        func: the operator's overload.
        args: its positional arguments.
        kwargs: its keyword arguments.
        result: what it returned; only shapes are looked at, so fake tensors do.
        module: the path of the module that called it.
    """
    op = func.overloadpacket.__name__
    if op in _FREE or func.is_view or torch.Tag.inplace_view in func.tags:
        return []
    kind = _kind(op, func, args, result)
    moved, macs = _moved(op, args, kwargs, result), _macs(func, args, kwargs, result)
    kernels = [Kernel(kind, op, moved, macs, module, _sides(kind, args, result))]
    copies = COPIED_INPUTS.get(op) if kind != "gather" else None
    if copies is not None and (copied := copies(args, kwargs, result)):
        kernels.insert(0, Kernel("view_copy", op, 2 * copied, 0, module))
    return kernels


def _convolution_kind(args: tuple[Any, ...]) -> str:
    image, weight = args[0], args[1]
    transposed, groups = bool(args[6]), int(args[8])
    if transposed:
        return "transposed"
    if groups == 1:
        return "conv1x1" if all(size == 1 for size in weight.shape[2:]) else "conv"
    return "depthwise" if weight.shape[1] == 1 and groups == image.shape[1] else "grouped"


def _sides(kind: str, args: tuple[Any, ...], result: Any) -> tuple[int, ...]:
    """Grouped ones are left out: what counts is the width of a group."""
    if kind in ("conv", "conv1x1", "transposed"):
        return int(args[0].shape[1]), int(result.shape[1])
    return (int(result.shape[1]),) if kind == "depthwise" else ()


def _kind(op: str, func: Any, args: tuple[Any, ...], result: Any) -> str:
    name = op.rstrip("_")
    if op in _CONVOLUTIONS:
        return _convolution_kind(args)
    if name in ("bmm", "baddbmm") and _one_weight(args):
        return "strided1x1"
    if name in _KINDS:
        return _KINDS[name]
    if op == "_to_copy" and result.dtype != args[0].dtype:
        return "elementwise"
    if torch.Tag.pointwise in func.tags:
        return "elementwise"
    return "copy" if op in MOVES else "other"


def _one_weight(args: tuple[Any, ...]) -> bool:
    """Tell whether a product of batches of matrices has one matrix for all of one operand."""
    operands = [a for a in args if isinstance(a, Tensor) and a.dim() == 3]
    return any(operand.stride(0) == 0 for operand in operands[-2:])


def _moved(op: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """The bytes of all operands and of the result; what is only written to is not read."""
    read = args[1:] if op in _OVERWRITE else args
    tensors = [t for t in pytree.tree_leaves((read, kwargs, result)) if isinstance(t, Tensor)]
    if op in _GATHERS:  # reads as much as it writes, not its whole operand
        return 2 * _bytes(result)
    return sum(map(_bytes, tensors))


def _bytes(tensor: Tensor) -> int:
    """The bytes of ``tensor`` in memory: an expanded dimension is there once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride or not size else 1
    return count * tensor.element_size()


def _macs(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    count = flop_registry.get(func.overloadpacket)
    return int(count(*args, **kwargs, out_val=result)) // 2 if count else 0


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every call of an operator that reaches a kernel.

    Args:
        model: whose modules calls are attributed to.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._places = Places(model)

    def seen(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], module: str) -> Any:
        """Run a call and return its result; for subclasses to look at."""
        raise NotImplementedError

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what is called in the body, and by which module."""
        with self._places.followed(), self:
            yield

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace != "aten":
            return func(*args, **kwargs)
        with self:  # in inference mode, `reshape` arrives as it is, not as what it consists of
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        return self.seen(func, args, kwargs, self._places.current)


_CONVOLUTIONS = frozenset(("convolution", "_convolution"))

_GATHERS = frozenset(("index_select", "index", "_unsafe_index", "gather", "embedding", "take"))

_OVERWRITE = frozenset(("copy_", "fill_", "zero_"))
"""Operators that write their first operand without reading it."""

_FREE = frozenset(
    (
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
        *("_unsafe_view", "_reshape_alias", "lift_fresh", "resize_", "sym_size", "sym_numel"),
        *("is_same_size", "_local_scalar_dense", "set_", "_assert_async"),
    )
)
"""Operators that run no kernel, and are no views to PyTorch."""

_KINDS = {
    **dict.fromkeys(("addmm", "mm", "addmv", "mv", "linear"), "linear"),
    **dict.fromkeys(
        (
            *("bmm", "baddbmm", "_scaled_dot_product_flash_attention_for_cpu"),
            *("_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"),
            "_scaled_dot_product_cudnn_attention",
        ),
        "matmul",
    ),
    **dict.fromkeys(
        (
            *("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"),
            *("_native_batch_norm_legit", "native_layer_norm", "native_group_norm"),
            *("miopen_batch_norm", "batch_norm_elemt", "_fused_rms_norm"),
        ),
        "norm",
    ),
    **dict.fromkeys(
        (
            *(f"max_pool{n}d_with_indices" for n in (2, 3)),
            *(f"avg_pool{n}d" for n in (2, 3)),
            *(f"_adaptive_avg_pool{n}d" for n in (2, 3)),
            *(f"adaptive_max_pool{n}d" for n in (2, 3)),
        ),
        "pool",
    ),
    **dict.fromkeys(
        ("mean", "sum", "amax", "amin", "max", "min", "argmax", "var", "var_mean", "std", "prod"),
        "reduce",
    ),
    **dict.fromkeys(("_softmax", "_log_softmax"), "softmax"),
    **dict.fromkeys(_GATHERS, "gather"),
    **dict.fromkeys(("hardswish", "prelu", "_prelu_kernel", "gelu"), "elementwise"),
}
"""Kinds by operator; in-place ones without their underscore."""
