"""Two outputs side by side: every tensor and number that they hold, at any depth."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import nn

from upscale_opt.errors import VerificationError
from upscale_opt.tracing.examples import dtype_name


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two tensors of one shape to compare, in float64 (or complex128).

    Attributes:
        place: where they are, such as ``"output[0].logits"``.
        want: the masked model's.
        got: the pruned model's.
        same: they are equal bit by bit.
    """

    place: str
    want: torch.Tensor
    got: torch.Tensor
    same: bool


def pairs_of(want: Any, got: Any, place: str = "output") -> list[Pair]:
    """Every tensor and floating-point number of ``want``, with its counterpart.

    Looks into tuples, lists, dicts, sets, dataclasses, and whatever attributes other objects have;
    what a subclass of any of these adds counts, too. Modules are not looked into.

    Raises:
        VerificationError: if the two differ in structure, in the shape or dtype of a tensor, or in
            a value that is no floating-point number.
    """
    walker = _Walker()
    walker.walk(place, want, got)
    return walker.pairs


class _Walker:
    def __init__(self) -> None:
        self.pairs: list[Pair] = []
        self._open: set[tuple[int, int]] = set()

    def walk(self, place: str, want: Any, got: Any) -> None:
        want, got = _as_tensor(want, got), _as_tensor(got, want)
        if isinstance(want, torch.Tensor) and isinstance(got, torch.Tensor):
            self._tensors(place, want, got)
        elif type(want) is not type(got):
            raise VerificationError(
                f"{place} is {_named(got)} where the masked model returns {_named(want)}"
            )
        elif isinstance(want, Iterator):
            self.walk(place, list(want), list(got))
        elif not isinstance(want, (nn.Module, type)) and (id(want), id(got)) not in self._open:
            self._open.add((id(want), id(got)))  # what holds itself is looked into once
            self._values(place, want, got)

    def _values(self, place: str, want: Any, got: Any) -> None:
        held: list[tuple[str, Any]] = [*_attributes(want).items()]
        own = _attributes(got)
        if [name for name, _ in held] != [*own]:
            raise VerificationError(
                f"{place} has the attributes {[*own]} instead of {[name for name, _ in held]}"
            )
        if isinstance(want, Mapping):
            if [*want] != [*got]:
                raise VerificationError(f"{place} has the keys {[*got]} instead of {[*want]}")
            for key in want:
                self.walk(f"{place}[{key!r}]", want[key], got[key])
        elif isinstance(want, AbstractSet):
            self._sets(place, want, got)
        elif isinstance(want, (tuple, list)) or _is_sequence(want):
            if len(want) != len(got):
                raise VerificationError(f"{place} has the length {len(got)} instead of {len(want)}")
            names = getattr(want, "_fields", None)
            for index, (one, other) in enumerate(zip(want, got, strict=True)):
                inside = f"{place}[{index}]" if names is None else f"{place}.{names[index]}"
                self.walk(inside, one, other)
        elif not held and not callable(want) and not _equal(want, got):
            raise VerificationError(f"{place} is {got!r} instead of {want!r}")
        for name, value in held:
            self.walk(f"{place}.{name}", value, own[name])

    def _sets(self, place: str, want: AbstractSet[Any], got: AbstractSet[Any]) -> None:
        """Sets of tensors have no order: each is compared with the one that is closest."""
        if len(want) != len(got):
            raise VerificationError(f"{place} has {len(got)} elements instead of {len(want)}")
        left = [one for one in got if not _equal_in(one, want)]
        for one in want:
            if _equal_in(one, got):
                continue
            best: tuple[float, int, list[Pair]] | None = None
            for index, other in enumerate(left):
                try:
                    found = pairs_of(one, other, f"an element of {place}")
                except VerificationError:
                    continue
                far = sum(float((p.want - p.got).abs().sum()) for p in found)
                if best is None or far < best[0]:
                    best = far, index, found
            if best is None:
                raise VerificationError(f"{place} has no element like {_named(one)}")
            self.pairs += best[2]
            left.pop(best[1])

    def _tensors(self, place: str, want: torch.Tensor, got: torch.Tensor) -> None:
        if want.dtype != got.dtype:
            raise VerificationError(
                f"{place} is {dtype_name(got.dtype)} instead of {dtype_name(want.dtype)}"
            )
        if want.is_nested and got.is_nested:
            self.walk(place, list(want.unbind()), list(got.unbind()))
            return
        if want.shape != got.shape:
            raise VerificationError(
                f"{place} has the shape {tuple(got.shape)} instead of {tuple(want.shape)}"
            )
        want, got = _plain(want), _plain(got)
        same = torch.equal(want, got)
        # The imaginary part counts as much as the real one.
        wide = torch.complex128 if want.is_complex() else torch.float64
        pair = Pair(place, want.to(wide), got.to(device=want.device, dtype=wide), same)
        self.pairs.append(pair)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return tensor.dequantize() if tensor.is_quantized else tensor


def _as_tensor(value: Any, other: Any) -> Any:
    """A floating-point number, or an array, as a tensor, if both are such."""
    if type(value) is not type(other):
        return value
    if type(value) in (float, complex):
        wide = torch.float64 if type(value) is float else torch.complex128
        return torch.tensor(value, dtype=wide)
    if (
        type(value).__module__ == "numpy"
        and hasattr(value, "dtype")
        and value.dtype.kind in "fciub"
    ):
        return torch.as_tensor(value)
    return value


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object, those in slots too."""
    if isinstance(value, torch.Tensor) or callable(value):
        return {}
    found = {}
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                found[name] = getattr(value, name)
    if isinstance(value, Mapping):  # ModelOutputs hold their entries a second time
        found.update({k: v for k, v in _dict(value).items() if k not in value})
    else:
        found.update(_dict(value))
    return found


def _dict(value: Any) -> dict[str, Any]:
    own = getattr(value, "__dict__", {})
    return dict(own) if isinstance(own, dict) else {}


def _is_sequence(value: Any) -> bool:
    """Tell whether it is another collection of things by number, such as a deque."""
    plain = isinstance(value, (str, bytes, bytearray, range, torch.Size))
    return not plain and hasattr(value, "__len__") and hasattr(value, "__iter__")


def _equal(want: Any, got: Any) -> bool:
    try:
        return bool(want == got)
    except Exception:  # it cannot be told
        return True


def _equal_in(value: Any, others: AbstractSet[Any]) -> bool:
    return not isinstance(value, torch.Tensor) and value in others


def _named(value: Any) -> str:
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    size = f" of {len(value)}" if isinstance(value, (tuple, list, dict, set)) else ""
    return f"a {type(value).__name__}{size}"
