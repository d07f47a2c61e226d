"""Settings of modules, besides their tensors: class and plain attributes, to be compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import fx, nn

from upscale_opt.ir.base import Record
from upscale_opt.runtime.modules import OURS


class Settings(Record):
    """The settings that modules of one class have in common, apart from their tensors.

    Attributes:
        kind: the class.
        values: their plain attributes, as ``repr`` writes them.
        modules: their names.
    """

    kind: str
    values: dict[str, str]
    modules: tuple[str, ...]


def settings_of(pruned: fx.GraphModule) -> tuple[Settings, ...]:
    """The settings of all modules that the model calls, apart from those that pruning made."""
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}
    for name, module in _called(pruned):
        values = tuple(sorted(_plain_attributes(module).items()))
        groups.setdefault((type(module).__name__, values), []).append(name)
    return tuple(
        Settings(kind=kind, values=dict(values), modules=tuple(names))
        for (kind, values), names in groups.items()
    )


def difference(pruned: fx.GraphModule, settings: Iterable[Settings]) -> str | None:
    """The first module that is not set as ``settings`` say, and how; ``None`` if all are.

    Attributes that only one side has are let pass: they come and go with versions of PyTorch.
    """
    own = dict(_called(pruned))
    for group in settings:
        for name in group.modules:
            module = own.pop(name, None)
            if module is None:
                return f"there is no module {name!r} (a {group.kind})"
            if type(module).__name__ != group.kind:
                return f"module {name!r} is a {type(module).__name__} instead of a {group.kind}"
            values = _plain_attributes(module)
            for key in sorted(values.keys() & group.values.keys()):
                if values[key] != group.values[key]:
                    return f"{name}.{key} is {values[key]} instead of {group.values[key]}"
    return next((f"there is a module {name!r}" for name in own), None)


def _called(pruned: fx.GraphModule) -> Iterator[tuple[str, nn.Module]]:
    targets = {str(node.target): None for node in pruned.graph.nodes if node.op == "call_module"}
    for target in targets:
        for name, module in pruned.get_submodule(target).named_modules(prefix=target):
            if not isinstance(module, OURS):
                yield name, module


_SIZES = {
    *("in_channels", "out_channels", "in_features", "out_features"),
    *("num_features", "num_parameters"),
}
"""Attributes that follow from the tensors."""


def _plain_attributes(module: nn.Module) -> dict[str, str]:
    return {
        name: repr(value)
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in {"training", *_SIZES} and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    return value is None or type(value) in (bool, int, float, str)
