"""Run a model's code without leaving traces in the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn


@contextmanager
def unchanged(model: nn.Module) -> Iterator[Snapshot]:
    """Restore all attributes of ``model`` and its submodules afterwards."""
    snapshot = Snapshot(model)
    try:
        yield snapshot
    finally:
        snapshot.restore()


class Snapshot:
    """The contents of every dict, list and set that a model's attributes hold.

    Tensors, and objects of other classes, are kept by reference.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._saved: list[tuple[Any, Any]] = []
        self._seen: set[int] = set()
        for module in model.modules():
            self._save(module.__dict__)

    def _save(self, container: Any) -> None:
        if id(container) in self._seen:
            return
        self._seen.add(id(container))
        self._saved.append((container, container.copy()))
        for value in _values(container):
            if isinstance(value, (dict, list, set)):
                self._save(value)

    def holding_proxies(self) -> list[str]:
        """The attributes in which the model's code has stored something symbolic."""
        return [
            name
            for name, container in self._attributes()
            if any(isinstance(value, fx.Proxy) for value in _values(container))
        ]

    def _attributes(self) -> Iterator[tuple[str, Any]]:
        """Every attribute of every module by name, in a list, or the container that it is."""
        for prefix, module in self._model.named_modules():
            for key, value in (*vars(module).items(), *module._buffers.items()):
                if key == "_buffers":
                    continue
                held = value if isinstance(value, (dict, list, set)) else [value]
                yield f"{prefix}.{key}".lstrip("."), held

    def changed(self) -> list[str]:
        """The attributes whose values the model's code has replaced, or added to.

        What was ``None`` or absent before does not count: that is how caches are filled.
        """
        found: list[str] = []
        for container, saved in self._saved:
            if isinstance(container, dict):
                found += [
                    str(key)
                    for key, value in saved.items()
                    if value is not None and not _same(container.get(key), value)
                ]
            elif len(container) != len(saved) or not all(map(_same, container, saved)):
                found.append(f"a {type(container).__name__}")
        return found

    def restore(self) -> None:
        """Put everything back."""
        for container, saved in self._saved:
            container.clear()
            if isinstance(container, list):
                container.extend(saved)
            else:
                container.update(saved)


def _same(value: Any, other: Any) -> bool:
    """Whether an attribute has the value that it had, as far as can be told."""
    if value is other:
        return True
    if isinstance(value, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(value) == len(other) and all(map(_same, value, other))
    if isinstance(other, _PLAIN):
        return type(value) is type(other) and bool(value == other)
    return not isinstance(other, torch.Tensor)


_PLAIN = (bool, int, float, complex, str, bytes)


def _values(container: Any) -> list[Any]:
    return list(container.values() if isinstance(container, dict) else container)
