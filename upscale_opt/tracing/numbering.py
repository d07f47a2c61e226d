"""Number the values that a run computes: equal numbers, equal computations.

Two runs that execute the same operations on the same values, in whichever tensors, give each result
the same number. So two programs can be compared without computing anything, on tensors that have no
data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from upscale_opt.tracing.record import without_data

_MOST = 2**16
"""Constants of more elements are told apart by where they are, and not by what they hold."""

_SAME = {torch.ops.aten.lift_fresh.default}
"""Operations that return what they are given."""


class Numbers:
    """The numbers of one run's values.

    Args:
        table: what was numbered so far; runs are comparable if they share it.
    """

    def __init__(self, table: dict[Any, int]) -> None:
        self._table = table
        self._numbers: dict[int, int] = {}
        self._groups: dict[int, list[int]] = {}
        self._kept: list[Any] = []
        self._named: dict[Any, tuple[torch.Tensor, int]] = {}
        self._drawn = 0

    def name(self, tensor: torch.Tensor, key: Any) -> None:
        """Say which value ``tensor`` holds."""
        self._kept.append(tensor)
        self._numbers[id(tensor)] = self._number(("named", key))
        self._groups[id(tensor)] = [id(tensor)]
        self._named[key] = tensor, self._numbers[id(tensor)]

    def name_own(
        self,
        pairs: Iterable[tuple[torch.Tensor, torch.Tensor]],
        constants: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> None:
        """Name tensors after what they stand for: what a model registers, or constants."""
        known = {id(tensor) for tensor in constants.values()}
        for real, tensor in pairs:
            self.name(tensor, content(real) if id(real) in known else ("own", id(real)))

    def beginning(self) -> Numbers:
        """Those of another run, before it begins."""
        return Numbers(self._table)

    def copied(self) -> Numbers:
        """Those of the next run, which knows what this one has left, but starts with its inputs."""
        other = Numbers(self._table)
        other._numbers = self._numbers | {id(tensor): n for tensor, n in self._named.values()}
        other._groups = {key: list(group) for key, group in self._groups.items()}
        other._kept, other._named = list(self._kept), dict(self._named)
        return other

    def state(self) -> dict[Any, int]:
        """The present numbers of the named values that were changed."""
        now = {key: (self._numbers[id(t)], first) for key, (t, first) in self._named.items()}
        return {key: number for key, (number, first) in now.items() if number != first}

    def of(self, tensor: torch.Tensor) -> int:
        """The number of what ``tensor`` holds now."""
        found = self._numbers.get(id(tensor))
        if found is None:
            self.name(tensor, content(tensor))
            found = self._numbers[id(tensor)]
        return found

    def event(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """The number of an operation on these values, before it is run."""
        if _is_like(func):
            like, *rest = args
            args = (tuple(like.shape), like.dtype, *rest)
        key: Any = (func, self._key(args), self._key(kwargs))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self._drawn += 1
            key = (key, self._drawn)
        return self._number(key)

    def follow(
        self, event: int, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Number what an operation has computed, and what it has changed."""
        written: set[int] = set()
        sources: list[torch.Tensor] = []
        for place, name, writes in _aliased(func):
            given = args[place] if place < len(args) else kwargs.get(name)
            for tensor in tensors_of(given):
                self.of(tensor)
                sources.append(tensor)
                if writes:
                    self._change(tensor, event, place)
                    written.add(id(tensor))
        for number, tensor in enumerate(tensors_of(result)):
            if id(tensor) in written:
                continue
            self._kept.append(tensor)
            same = func in _SAME and sources
            self._numbers[id(tensor)] = (
                self.of(sources[0]) if same else self._number((event, number))
            )
            group = self._groups[id(sources[0])] if sources else []
            group.append(id(tensor))
            self._groups[id(tensor)] = group

    def _change(self, tensor: torch.Tensor, event: int, place: int) -> None:
        for other in self._groups[id(tensor)]:
            own = None if other == id(tensor) else self._numbers[other]
            self._numbers[other] = self._number(("changed", own, event, place))

    def _key(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self.of(value), "tensor"
        if isinstance(value, (tuple, list)):
            return tuple(map(self._key, value))
        if isinstance(value, dict):
            return tuple((name, self._key(item)) for name, item in value.items())
        if isinstance(value, torch.device):  # runs on other devices are to be comparable
            return "device"
        return type(value), repr(value) if isinstance(value, float) else value

    def _number(self, key: Any) -> int:
        try:
            return self._table.setdefault(key, len(self._table))
        except TypeError:  # it cannot be hashed, and so is like nothing else
            return self._table.setdefault(object(), len(self._table))


class Numbering(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Numbers all that is computed under it."""

    def __init__(self, numbers: Numbers) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._to = numbers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and number its results."""
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        event = self._to.event(func, args, kwargs)
        result = without_data(func, args, kwargs)
        self._to.follow(event, func, args, kwargs, result)
        return result


def content(tensor: torch.Tensor) -> Any:
    """Equal for tensors of equal values, if they are not large, and have any."""
    plain = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized
    if (
        type(tensor) not in (torch.Tensor, torch.nn.Parameter)
        or not plain
        or tensor.numel() > _MOST
    ):
        return id(tensor), tensor._version if not tensor.is_inference() else None
    with torch.no_grad(), _disable_current_modes():
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return str(tensor.dtype), tuple(tensor.shape), data


@cache
def _is_like(func: Any) -> bool:
    """Tell whether an operation makes a tensor like its first argument, whatever that holds."""
    name = str(func._schema.name).split("::")[1]
    return name.startswith("new_") or name.endswith("_like")


@cache
def _aliased(func: Any) -> tuple[tuple[int, str, bool], ...]:
    """The arguments that results are views of, or that are written."""
    return tuple(
        (place, a.name, bool(a.alias_info.is_write))
        for place, a in enumerate(func._schema.arguments)
        if a.alias_info is not None
    )


def tensors_of(tree: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested tuples, lists and dicts, in order."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors_of(item)
    elif isinstance(tree, dict):
        yield from tensors_of(tuple(tree.values()))
