"""Run a user's model and leave no trace: in its attributes, its tensors, and the random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree


@contextmanager
def undisturbed(model: nn.Module, *inputs: Any) -> Iterator[None]:
    """The model in eval mode; afterwards it and the random state are as before, come what may.

    That is: the modes, hooks and other attributes of its modules, its buffers, and its parameters'
    gradients and ``requires_grad``. Only the parameters' values are not watched. Inside, there are
    no gradients at first.

    Args:
        model: any model.
        inputs: what it will be called with, as random numbers may be drawn on their devices, too.
    """
    tensors = [*model.parameters(), *model.buffers()]
    buffers = [buffer for buffer in model.buffers() if not buffer.is_meta]
    with ExitStack() as stack:
        stack.enter_context(same_random_state(model, *inputs))
        stack.enter_context(unchanged(model))
        stack.callback(_restore_modes, [(module, module.training) for module in model.modules()])
        stack.callback(_restore_values, [(b, b.detach().clone()) for b in buffers])
        stack.callback(_restore_gradients, [(t, t.grad, t.requires_grad) for t in tensors])
        for tensor in tensors:
            tensor.grad = None
        evaluate(model)
        yield


def evaluate(model: nn.Module) -> None:
    """Put a model into eval mode; not by its method, which exported programs refuse."""
    for module in model.modules():
        module.training = False


@contextmanager
def same_random_state(*things: Any) -> Iterator[None]:
    """Restore the random state afterwards: on the CPU, and on the GPUs of models and tensors.

    Args:
        things: models, tensors, devices, and collections of such.
    """
    leaves = pytree.tree_leaves(things)
    devices = {leaf for leaf in leaves if isinstance(leaf, torch.device) and leaf.type == "cuda"}
    for leaf in leaves:
        tensors = (*leaf.parameters(), *leaf.buffers()) if isinstance(leaf, nn.Module) else (leaf,)
        devices.update(t.device for t in tensors if isinstance(t, Tensor) and t.is_cuda)
    with torch.random.fork_rng(sorted(devices, key=str)):
        yield


@contextmanager
def composed_attention() -> Iterator[None]:
    """Have attention computed by products, not by the one fused call of its fast path."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


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
    """Tell whether an attribute has the value that it had, as far as can be told."""
    if value is other:
        return True
    if isinstance(value, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(value) == len(other) and all(map(_same, value, other))
    if isinstance(other, _PLAIN):
        return type(value) is type(other) and bool(value == other)
    return not isinstance(other, Tensor)


_PLAIN = (bool, int, float, complex, str, bytes)


def _values(container: Any) -> list[Any]:
    return list(container.values() if isinstance(container, dict) else container)


def _restore_modes(saved: list[tuple[nn.Module, bool]]) -> None:
    for module, training in saved:
        module.training = training


def _restore_values(saved: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for buffer, value in saved:
            if not torch.equal(buffer, value):
                buffer.copy_(value)


def _restore_gradients(saved: list[tuple[Tensor, Tensor | None, bool]]) -> None:
    for tensor, gradient, requires_grad in saved:
        tensor.grad = gradient
        if tensor.requires_grad != requires_grad:
            tensor.requires_grad_(requires_grad)
