"""Watch layers and batch norms at work: the operands of the ATen operations that they run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_NORMS = frozenset(
    {
        *("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "batch_norm"),
        *("_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
        *("_batch_norm_with_update", "_batch_norm_no_update"),
    }
)


@dataclass(frozen=True)
class Convolving:
    """The settings of a convolution.

    Attributes:
        kernel: its size, per spatial axis; as are the others.
        stride: the steps of its windows.
        padding: zeros on both sides.
        dilation: from one tap to the next.
        transposed: it is a transposed one.
        output_padding: of a transposed one.
        groups: into how many groups the channels fall.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class Seen:
    """One layer, or batch norm, at work.

    Attributes:
        name: its weight, or its running mean.
        x: what it reads: of a matrix product, a row per position; else channels on axis 1.
        y: what it writes.
        convolving: of a convolution.
        bias: what was added in the same operation.
        norm: it is a batch norm.
    """

    name: str
    x: Tensor
    y: Tensor
    convolving: Convolving | None = None
    bias: Tensor | None = None
    norm: bool = False


class Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the layers that work with any of the tensors named.

    Attributes:
        seen: what has been seen; to be emptied by who reads it.
    """

    def __init__(self, tensors: Mapping[str, Tensor], wanted: Iterable[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[Seen] = []
        names = set(wanted)
        self._names = {
            (tensor.data_ptr(), tensor.numel()): (name, tuple(tensor.shape))
            for name, tensor in tensors.items()
            if name in names
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and note its operands."""
        result = func(*args, **(kwargs or {}))
        kind = func._schema.name.split("::")[1]
        if kind == "convolution":
            self._convolution(args, result)
        elif kind in ("mm", "bmm", "addmm", "linear"):
            self._product(kind, args, kwargs or {}, result)
        elif kind in _NORMS and len(args) > 3 and isinstance(args[3], Tensor):
            name = self._name(args[3])
            if name is not None:
                y = result if isinstance(result, Tensor) else result[0]
                self.seen.append(Seen(name, args[0], y, norm=True))
        return result

    def _name(self, tensor: Any) -> str | None:
        if not isinstance(tensor, Tensor):
            return None
        found = self._names.get((tensor.data_ptr(), tensor.numel()))
        return None if found is None else found[0]

    def _convolution(self, args: Any, result: Tensor) -> None:
        x, weight, bias, stride, padding, dilation, transposed, extra, groups = args
        name = self._name(weight)
        if name is None:
            return
        kernel = tuple(weight.shape[2:])

        def each(given: Any) -> tuple[int, ...]:
            return tuple(given) * (len(kernel) if len(given) == 1 else 1)

        settings = Convolving(
            kernel=kernel,
            stride=each(stride),
            padding=each(padding),
            dilation=each(dilation),
            transposed=bool(transposed),
            output_padding=each(extra),
            groups=int(groups),
        )
        self.seen.append(Seen(name, x, result, settings, bias))

    def _product(self, kind: str, args: Any, kwargs: Any, result: Tensor) -> None:
        if kind == "linear":
            name = self._name(args[1])
            if name is not None:
                x, y = (t.reshape(-1, t.shape[-1]) for t in (args[0], result))
                bias = args[2] if len(args) > 2 else None
                self.seen.append(Seen(name, x, y, bias=bias))
            return
        if kind == "addmm" and any(value != 1 for value in kwargs.values()):
            return
        bias = args[0] if kind == "addmm" else None
        one, other = args[-2:]
        if kind == "bmm":  # a matrix that was expanded
            if other.stride(0) != 0 and other.shape[0] != 1:
                return
            name = self._name(other[0])
            x, y = one.reshape(-1, one.shape[-1]), result.reshape(-1, result.shape[-1])
        else:
            name, x, y = self._name(other), one, result
        if name is not None:
            self.seen.append(Seen(name, x, y, bias=bias))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by every name that they have."""
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    found.update(model.named_buffers(remove_duplicate=False))
    return found
