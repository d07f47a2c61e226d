"""Run a user's model and leave no trace: in attributes, caches, tensors, and the random state."""

from __future__ import annotations

import functools
import operator
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Set
from contextlib import ExitStack, contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
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

    And those of Python and NumPy.

    Args:
        things: models, tensors, devices, and collections of such.
    """
    leaves = pytree.tree_leaves(things)
    devices = {leaf for leaf in leaves if isinstance(leaf, torch.device) and leaf.type == "cuda"}
    for leaf in leaves:
        tensors = (*leaf.parameters(), *leaf.buffers()) if isinstance(leaf, nn.Module) else (leaf,)
        devices.update(t.device for t in tensors if isinstance(t, Tensor) and t.is_cuda)
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(sorted(devices, key=str)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


def reseed(seed: int) -> None:
    """Start all of PyTorch's random states from a seed, as ``torch.manual_seed`` does.

    That keeps the caller's whole stack in words for every kind of device that is not there, for as
    long as the process lives: most of the time of a short run.
    """
    if _has_device():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@functools.lru_cache(maxsize=1)
def _has_device() -> bool:
    return torch.accelerator.is_available()


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


CONTAINERS = (dict, list, set, deque)
"""Containers of attributes' values that may be written in place."""

_DEEP = 6
"""Containers within containers, and objects within objects, are followed so far."""


class Snapshot:
    """The contents of every container that a model's attributes hold, and its code.

    That is dicts, lists, sets and deques; in attributes, in attributes of other objects, in
    closures and hooks, and in the namespaces of the modules that define its classes. Tensors, and
    objects of other classes, are kept by reference. Caches of functions there are emptied if they
    have grown.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._saved: list[tuple[str, Any, Any]] = []
        self._seen: set[int] = set()
        self._caches: dict[int, tuple[Any, int]] = {}
        self._owned: list[tuple[type | ModuleType, dict[str, Any]]] = []
        for prefix, module in model.named_modules():
            self._save(module.__dict__, f"{prefix}." if prefix else "")
        for owner in owners(model):
            self._owned.append((owner, dict(vars(owner))))
            for name, value in list(vars(owner).items()):
                if isinstance(value, CONTAINERS) and not name.startswith("__"):
                    self._save(value, f"{name}.", _DEEP)
                elif isinstance(value, functools._lru_cache_wrapper):
                    self._save_held(value, name, _DEEP)

    def _save(self, container: Any, name: str, depth: int = 0) -> None:
        if id(container) in self._seen:
            return
        self._seen.add(id(container))
        items = dict(_raw(container)) if isinstance(container, dict) else list(container)
        self._saved.append((name, container, items))
        if depth < _DEEP:
            for key, value in items.items() if isinstance(items, dict) else enumerate(items):
                if type(value) not in _ATOMS:
                    self._save_held(value, f"{name}{key}", depth + 1)

    def _save_held(self, value: Any, name: str, depth: int) -> None:
        """Save the containers that are reached from an attribute's value."""
        if isinstance(value, CONTAINERS):
            self._save(value, f"{name}.", depth)
        elif isinstance(value, tuple):
            for item in value:
                if type(item) not in _ATOMS:
                    self._save_held(item, name, depth)
        elif isinstance(value, (torch.Tensor, nn.Module, type, ModuleType)):
            return  # modules have their turn
        elif isinstance(value, functools._lru_cache_wrapper):
            self._caches[id(value)] = value, value.cache_info().currsize
        elif isinstance(value, functools.partial):
            self._save_held((value.func, value.args, value.keywords), name, depth)
        elif isinstance(value, MethodType):
            self._save_held(value.__self__, name, depth)
        elif isinstance(value, FunctionType):
            for cell in value.__closure__ or ():
                try:
                    held = cell.cell_contents
                except ValueError:  # nothing was put there yet
                    continue
                if depth < _DEEP and type(held) not in _ATOMS:
                    self._save_held(held, name, depth + 1)
        elif _is_theirs(type(value).__module__) or type(value).__module__ in _HOLDERS:
            own = getattr(value, "__dict__", None)
            if isinstance(own, dict) and depth < _DEEP:
                self._save(own, f"{name}.", depth)

    def holding_proxies(self) -> list[str]:
        """The attributes in which the model's code has stored something symbolic."""
        return [name for name, container in self._attributes() if _holds_proxy(container, _DEEP)]

    def _attributes(self) -> Iterator[tuple[str, Any]]:
        """Every attribute of every module by name, in a list, or the container that it is."""
        for prefix, module in self._model.named_modules():
            for key, value in (*vars(module).items(), *module._buffers.items()):
                if key == "_buffers":
                    continue
                held = value if isinstance(value, CONTAINERS) else [value]
                yield f"{prefix}.{key}".lstrip("."), held

    def changed(self, *, tensors: bool = True) -> list[str]:
        """The attributes whose values the model's code has replaced, or added to.

        What was ``None`` or absent before does not count: that is how caches are filled.

        Args:
            tensors: count tensors that are others now.
        """
        found = [
            f"{owner.__name__}.{key}"
            for owner, saved in self._owned
            for key, value in saved.items()
            if isinstance(value, _PLAIN) and not _same(vars(owner).get(key), value)
        ]
        for name, container, saved in self._saved:
            if isinstance(container, dict):
                now = dict(_raw(container))
                found += [
                    f"{name}{key}"
                    for key, value in saved.items()
                    if value is not None
                    and (tensors or not isinstance(value, torch.Tensor))
                    and not _same(now.get(key), value)
                ]
            elif isinstance(container, set):
                found += [name.rstrip(".")] if container != set(saved) else []
            elif len(container) != len(saved) or not all(map(_same, container, saved)):
                found.append(name.rstrip("."))
        return found

    def touched(self, besides: Set[str] = frozenset()) -> list[str]:
        """The attributes that are not what they were, those that have been added among them.

        Args:
            besides: names that do not count.
        """
        found = [
            f"{owner.__name__}.{key}"
            for owner, saved in self._owned
            for key in _moved(owner, saved)
        ]
        for name, container, saved in self._saved:
            if _untouched(container, saved):
                continue
            if isinstance(container, dict):
                now = dict(_raw(container))
                found += [
                    f"{name}{key}"
                    for key in {**saved, **now}
                    if key not in saved or key not in now or now[key] is not saved[key]
                ]
            else:
                found.append(name.rstrip("."))
        return [name for name in found if name not in besides]

    def restore(self) -> None:
        """Put everything back that is not as it was."""
        for _, container, saved in self._saved:
            if not _untouched(container, saved):
                _refill(container, saved)
        for owner, own in self._owned:
            for key in _moved(owner, own):
                if key in own:
                    setattr(owner, key, own[key])
                else:
                    delattr(owner, key)
        for cache, size in self._caches.values():
            if cache.cache_info().currsize != size:
                cache.cache_clear()


def _moved(owner: type | ModuleType, saved: dict[str, Any]) -> list[str]:
    """The names that a class or module has gained or lost; those of its functions not.

    Those are patched by tracers, which put them back.
    """
    now = vars(owner)
    if len(now) == len(saved) and all(map(operator.is_, now.values(), saved.values())):
        return []
    keys = [k for k in {**saved, **now} if k not in saved or k not in now or now[k] is not saved[k]]
    return [
        k
        for k in keys
        if not k.startswith("__") and not callable(now.get(k)) and not callable(saved.get(k))
    ]


def _untouched(container: Any, saved: Any) -> bool:
    if len(container) != len(saved):
        return False
    if isinstance(container, dict):
        now = dict(_raw(container))
        if now.keys() != saved.keys():
            return False
        return all(map(operator.is_, now.values(), saved.values()))
    return all(map(operator.is_, container, saved))


def _raw(container: dict[Any, Any]) -> Iterable[tuple[Any, Any]]:
    """The items of a dict, and not what its class makes of them when it is asked."""
    if isinstance(container, OrderedDict):
        return OrderedDict.items(container)
    return dict.items(container)


def _refill(container: Any, saved: Any) -> None:
    if isinstance(container, OrderedDict):
        OrderedDict.clear(container)
        for key, value in saved.items():
            OrderedDict.__setitem__(container, key, value)
    elif isinstance(container, dict):
        dict.clear(container)
        dict.update(container, saved)
    else:
        container.clear()
        container.update(saved) if isinstance(container, set) else container.extend(saved)


def owners(model: nn.Module) -> Iterator[type | ModuleType]:
    """The places where a model's code may keep what outlasts a call: classes, and modules."""
    named: dict[str, None] = {}
    for cls in {cls for module in model.modules() for cls in type(module).__mro__}:
        if _is_theirs(cls.__module__):
            named.setdefault(cls.__module__)
            yield cls
    for name in list(named):
        values = list(vars(sys.modules[name]).values()) if name in sys.modules else []
        for value in values:
            own = value.__name__ if isinstance(value, ModuleType) else None
            if isinstance(value, (FunctionType, functools._lru_cache_wrapper)):
                own = value.__module__
            if own is not None and _is_theirs(own):
                named.setdefault(own)
    yield from (sys.modules[name] for name in named if name in sys.modules)


@functools.cache
def _is_theirs(module: str) -> bool:
    """Tell whether a module is none of Python's, PyTorch's and ours."""
    top = module.partition(".")[0]
    return top not in sys.stdlib_module_names and top not in _KNOWN


_KNOWN = {
    *("torch", "torchvision", "torchgen", "functorch", "numpy", "sympy", "upscale_opt"),
    *("pytest", "_pytest", "pydantic"),
}

_HOLDERS = {"argparse", "collections", "types", "weakref"}
"""Modules of Python's that have classes of objects to keep things in."""

_ATOMS = {
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    torch.dtype,
    torch.device,
    nn.Parameter,
}
"""Values that hold nothing."""


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


def _holds_proxy(value: Any, depth: int) -> bool:
    if isinstance(value, (*CONTAINERS, tuple)) and depth:
        return any(_holds_proxy(item, depth - 1) for item in _values(value))
    return isinstance(value, fx.Proxy)


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
