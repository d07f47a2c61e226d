"""The bytes that a forward pass moves: those that kernels write which compute nothing."""

from __future__ import annotations

import linecache
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._prims_common import suggest_memory_format
from torch.nn.modules import module as modules
from torch.utils._python_dispatch import TorchDispatchMode

from upscale_opt.shown import Shown
from upscale_opt.tracing.examples import Inputs, as_call, require_model
from upscale_opt.tracing.unchanged import undisturbed


@dataclass(frozen=True)
class Write:
    """One kernel that moved data.

    Attributes:
        op: its name in ATen, such as ``"cat"``; ``"max_pool2d_with_indices input"`` is the copy
            that a kernel makes of an input whose strides it cannot read.
        bytes: what it wrote.
        place: where in the network: the dotted name of the innermost module that was running
            (``""`` is the model itself), and if that is a ``torch.fx.GraphModule``, the name of
            the node behind it.
    """

    op: str
    bytes: int
    place: str = ""


@dataclass(frozen=True, repr=False)
class Movement(Shown):
    """The bytes that one forward pass moved.

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
        return _totals((write.op, write.bytes) for write in self.writes)

    @property
    def by_place(self) -> dict[str, int]:
        """The bytes written at each place in the network, most first."""
        return _totals((write.place, write.bytes) for write in self.writes)

    def __str__(self) -> str:
        parts = ", ".join(f"{op} {written / 1e6:.2f}" for op, written in self.by_op.items())
        return f"{self.total / 1e6:.2f} MB moved" + (f" ({parts})" if parts else "")


def _totals(parts: Iterator[tuple[str, int]]) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for name, written in parts:
        totals[name] += written
    return dict(totals.most_common())


def moved_bytes(model: nn.Module, inputs: Inputs) -> Movement:
    """Run ``model`` and add up what its data movement writes.

    Counted are kernels that only move data: concatenations, gathers, copies into another memory
    format, padding, shuffles, and so on; what is added to, or computed by an elementwise operation
    straight into, a slice of a larger tensor; and the copies that convolutions, matrix products,
    pooling, normalisation and gathers make of inputs that they cannot read as they lie in memory.
    Views cost nothing. Not counted is what a kernel unfolds or repacks for itself, of weights, or
    of inputs it could read. The pass is a real one, in evaluation mode and without gradients; the
    model is left as it was, and so is the random state.

    Args:
        model: any model, on any device.
        inputs: as for :func:`upscale_opt.trace`.

    Raises:
        TraceError: if ``model`` is no model, or ``inputs`` are none of the accepted forms.
    """
    require_model(model, "measure")
    args, kwargs = as_call(inputs)
    places = Places(model)
    counter = _Counter(places)
    with undisturbed(model, args, kwargs), torch.no_grad(), places.followed(), counter:
        model(*args, **kwargs)
    return Movement(tuple(counter.writes))


class Places:
    """The place in a model where its forward pass is.

    It follows by hooks for all modules, not by hooks of the model's own: some modules take other
    ways if they have any.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {module: name for name, module in model.named_modules()}
        self._running: list[nn.Module] = []

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Follow the modules that run meanwhile."""
        with ExitStack() as stack:
            enter = modules.register_module_forward_pre_hook(self._enter)
            stack.callback(enter.remove)
            leave = modules.register_module_forward_hook(self._leave, always_call=True)
            stack.callback(leave.remove)
            yield

    def _enter(self, module: nn.Module, args: Any) -> None:
        if module in self._names:
            self._running.append(module)

    def _leave(self, module: nn.Module, args: Any, result: Any) -> None:
        if module in self._names and self._running:
            self._running.pop()

    @property
    def current(self) -> str:
        """The innermost module's name, and the node's."""
        if not self._running:
            return ""
        name = self._names[self._running[-1]]
        node = _node() if isinstance(self._running[-1], fx.GraphModule) else ""
        return f"{name}.{node}" if name and node else name or node


def _node() -> str:
    """The node that the innermost ``GraphModule`` executes: what its code assigns to, or ``""``."""
    frame = sys._getframe()
    while not frame.f_code.co_filename.startswith("<eval_with_key>"):
        if frame.f_back is None:
            return ""
        frame = frame.f_back
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno, frame.f_globals)
    target = line.partition(" = ")[0].partition(":")[0].strip()
    return target if target.isidentifier() else ""


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every call of an operator that reaches a kernel."""

    def __init__(self, places: Places) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.writes: list[Write] = []
        self._places = places

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        op = func.overloadpacket.__name__
        rules = _rules(func, op, kwargs) if func.namespace == "aten" else {}
        if not rules:
            with self:  # in inference mode, `reshape` arrives as it is, not as what it consists of
                result = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if result is NotImplemented else result
        result = func(*args, **kwargs)
        for name, rule in rules.items():
            if written := rule(args, kwargs, result):
                self.writes.append(Write(name, written, self._places.current))
        return result


def _rules(func: Any, op: str, kwargs: dict[str, Any]) -> dict[str, Rule]:
    """The rules for a call, by the name under which they count."""
    rules = {}
    if op in COPIED_INPUTS:
        rules[f"{op} input"] = COPIED_INPUTS[op]
    if op in MOVES:
        rules[op] = MOVES[op]
    elif "out" in kwargs and torch.Tag.pointwise in func.tags:
        rules[op] = _into_slice
    return rules


# What kernels write. A rule gets a call's arguments, in the sequence of the operator's schema, its
# keyword arguments and its result, and returns bytes.

Rule = Callable[[tuple[Any, ...], dict[str, Any], Any], int]


def _bytes(tensor: Any) -> int:
    return tensor.numel() * tensor.element_size() if isinstance(tensor, Tensor) else 0


def _result(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    return _bytes(result)


def _argument(number: int) -> Rule:
    """The bytes of an argument."""
    return lambda args, kwargs, result: _bytes(args[number])


def _scattered(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """One element for every index."""
    written: int = args[2].numel() * result.element_size()
    return written


def _put(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """As many elements as the indices name, whatever is broadcast to them."""
    return _bytes(args[0][tuple(slice(None) if i is None else i for i in args[1])])


def _after_copying(rule: Rule) -> Rule:
    """The rule of an operator that is not in place: it copies the whole first."""
    return lambda args, kwargs, result: rule(args, kwargs, result) + _bytes(result)


def _filled(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    return _bytes(result.index_select(args[1], args[2]))


def _same_dtype(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """A conversion to another precision is a computation."""
    return _bytes(result) if result.dtype == args[0].dtype else 0


def _into_slice(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """The bytes placed into a part of a tensor by adding; adding to a whole one is a sum."""
    written = _bytes(result)
    return written if written < result.untyped_storage().nbytes() else 0


def _groups(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Kernels without groups run once for each, and what they return is concatenated."""
    return _bytes(result) if args[8] > 1 and _backend(args).name in _WITHOUT_GROUPS else 0


_PLACED: dict[str, Rule] = {
    **dict.fromkeys(("index_add", "index_copy"), _argument(3)),
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce"), _scattered),
    **dict.fromkeys(("index_put", "_index_put_impl"), _put),
    "index_fill": _filled,
}
"""Operators that place elements into a tensor: in place, only these are written."""

MOVES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *("cat", "stack", "clone", "repeat", "flip", "roll", "channel_shuffle"),
            *("native_channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "im2col", "col2im"),
            *("index", "_unsafe_index", "index_select", "gather", "take", "masked_select"),
            *("embedding", "constant_pad_nd", "zeros", "new_zeros", "zeros_like"),
            *("zero_", "fill_", "full", "new_full", "full_like", "narrow_copy", "_reshape_copy"),
            *(f"{view}_copy" for view in ("expand", "permute", "slice", "transpose", "view")),
            *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
        ),
        _result,
    ),
    "_to_copy": _same_dtype,
    "copy_": _argument(0),
    **dict.fromkeys(("add_", "sub_", "addcmul_", "addcdiv_"), _into_slice),
    **{f"{op}_": rule for op, rule in _PLACED.items()},
    **{op: _after_copying(rule) for op, rule in _PLACED.items()},
    "slice_scatter": _after_copying(_argument(1)),
    "select_scatter": _after_copying(_argument(1)),
    "convolution": _groups,
}
"""Operators that move data, by their names in ATen. A new rule is a line here."""


def _unless(contiguous: Callable[[Tensor], bool], on: str = "") -> Rule:
    """The first argument's bytes, unless it lies as it should (on one kind of device only)."""

    def rule(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
        if on and args[0].device.type != on:
            return 0
        return 0 if contiguous(args[0]) else _bytes(args[0])

    return rule


def _as_suggested(tensor: Tensor) -> bool:
    """Tell whether it is contiguous in the memory format that its strides resemble."""
    return tensor.is_contiguous(memory_format=suggest_memory_format(tensor))


def _gathered(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """On CPUs, gathering along the second axis needs the whole input in rows."""
    tensor, dim = args[0], args[1]
    fast = tensor.is_cpu and tensor.dim() > 1 and dim % tensor.dim() == 1 and result.is_contiguous()
    return _bytes(tensor) if fast and result.numel() and not tensor.is_contiguous() else 0


def _convolved(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Convolutions read what is contiguous in the memory format that their backend chooses.

    What oneDNN copies of its results in half precisions, on CPUs with instructions for those, is
    not counted: it does so for any input.
    """
    tensor, weight, groups = args[0], args[1], args[8]
    backend = _backend(args)
    layout = torch.contiguous_format  # of signals, too, which are images of one row from here on
    if weight.dim() > 3:
        layout = torch._C._conv_determine_backend_memory_format(tensor, weight, backend)
    written = 0 if tensor.is_contiguous(memory_format=layout) else _bytes(tensor)
    if groups > 1 and backend.name in _WITHOUT_GROUPS:
        whole = torch.empty(tensor.shape, device="meta").contiguous(memory_format=layout)
        if not whole[:, : tensor.shape[1] // groups].is_contiguous(memory_format=layout):
            written += _bytes(tensor)
    return written


def _backend(args: tuple[Any, ...]) -> Any:
    """The kernel that a convolution runs on."""
    names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
    options = dict(zip(names, args[3:9], strict=True))
    return torch._C._select_conv_backend(args[0], args[1], bias=args[2], **options)


_WITHOUT_GROUPS = frozenset(
    f"Slow{kind}" for kind in ("2d", "Dilated2d", "Dilated3d", "Transpose2d", "Transpose3d")
)


def _multiplied(*numbers: int) -> Rule:
    """Matrix products read rows or columns that lie next to each other."""

    def rule(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
        left, right = (args[number] for number in numbers)
        # On CPUs, small products of batches are computed by a kernel that reads any strides.
        work = left.shape[-2:].numel() * right.shape[-1]
        if left.is_cpu and left.dim() == 3 and work < _SMALL:
            return 0
        return sum(_bytes(matrix) for matrix in (left, right) if not _in_lines(matrix))

    return rule


def _in_lines(matrix: Tensor) -> bool:
    """Tell whether BLAS can read the matrices: one stride is 1, and the other one leaves room."""
    (rows, columns), (down, right) = matrix.shape[-2:], matrix.stride()[-2:]
    return (right == 1 and down >= max(columns, 1)) or (down == 1 and right >= max(rows, 1))


_SMALL = 400

COPIED_INPUTS: dict[str, Rule] = {
    "convolution": _convolved,
    **dict.fromkeys(("mm", "bmm"), _multiplied(0, 1)),
    **dict.fromkeys(("addmm", "baddbmm"), _multiplied(1, 2)),
    **dict.fromkeys(
        (
            *("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d"),
            *("_adaptive_avg_pool2d", "adaptive_max_pool2d", "native_group_norm"),
            *("reflection_pad2d", "replication_pad2d"),
        ),
        _unless(_as_suggested),
    ),
    **dict.fromkeys(
        ("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"),
        _unless(_as_suggested, on="cpu"),
    ),
    **dict.fromkeys(
        (
            *("_softmax", "_log_softmax", "native_layer_norm", "max_pool1d", "avg_pool3d"),
            *("im2col", "col2im"),
        ),
        _unless(Tensor.is_contiguous),
    ),
    "index_select": _gathered,
}
"""Copies of inputs, as PyTorch's profiler shows them (``test_moved_bytes.py`` asks it)."""
