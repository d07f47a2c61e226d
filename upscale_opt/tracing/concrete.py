"""Answers for code that asks what a proxy is: what it stands for, on tensors without data.

Most models never ask, so nothing is computed until one does.
"""

from __future__ import annotations

import builtins
import functools
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import CellType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx._symbolic_trace import _maybe_revert_all_patches
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from upscale_opt.errors import TraceError
from upscale_opt.runtime.recorded import finfo, iinfo, real, whole
from upscale_opt.tracing.record import without_data

_len, _max, _min, _is = len, max, min, isinstance
_of_jit: Any = torch.jit.isinstance

_TRUSTED = ("torch", "upscale_opt")
"""Packages whose code sees proxies as what they are."""


class Values:
    """The results of the calls of a program that is being recorded.

    Args:
        root: the model.
        graph: its calls so far.
        given: what the arguments are, by the nodes that stand for them.
        asked: gets the modules that are asked for their mode, which ours are not.
    """

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        given: Mapping[fx.Node, Any],
        asked: list[nn.Module],
    ) -> None:
        self._root = root
        self._nodes = iter(graph.nodes)
        self._given = given
        self._asked = asked
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._known: dict[fx.Node, Any] = {}

    def of(self, node: fx.Node) -> Any:
        """The result of a call: numbers, or tensors without data.

        Raises:
            TraceError: if it cannot be found.
        """
        if node not in self._known:
            before = _len(self._asked)
            try:
                with (
                    _maybe_revert_all_patches(),
                    _disable_current_modes(),
                    self._mode,
                    _Quick(),  # type: ignore[no-untyped-call]
                ):
                    while node not in self._known:
                        following = next(self._nodes)
                        self._known[following] = self._run(following)
            except Exception as error:  # whatever such tensors lead to
                raise TraceError(f"asks what {node.name!r} is, which takes data") from error
            finally:
                del self._asked[before:]
        return self._known[node]

    def _run(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return pytree.tree_map_only(torch.Tensor, self._mode.from_tensor, self._given[node])
        target: Any = node.target
        if node.op == "get_attr":
            value: Any = self._root
            for part in str(target).split("."):
                value = getattr(value, part)
            return self._mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), self._known.__getitem__)
        if node.op == "call_module":
            module = self._root.get_submodule(str(target))
            # A batch norm in training mode counts, in whatever tensor it has.
            buffers: dict[str, torch.Tensor]
            buffers = {n: self._mode.from_tensor(b) for n, b in module.named_buffers()}
            if not buffers:
                return module(*args, **kwargs)
            return functional_call(module, buffers, args, kwargs, tie_weights=True)
        if node.op == "call_method":
            return getattr(args[0], str(target))(*args[1:], **kwargs)
        return target(*args, **kwargs)


class _Quick(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.native_batch_norm.default and len(args) == 8:
            args = (*args[:5], False, *args[6:])  # quick there, and of the same shape
        return without_data(func, args, kwargs or {})


_MAKERS = (
    *("arange", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randint"),
    *("randn", "randperm", "tril_indices", "triu_indices", "zeros", "as_tensor", "tensor"),
)
"""Functions of PyTorch that take sizes for plain numbers, and are to take proxies for them."""

_LIMITS = {"finfo": (torch.finfo, finfo), "iinfo": (torch.iinfo, iinfo)}
"""Functions that take a dtype, and what is recorded where it is a proxy."""


@contextmanager
def following(
    length: Callable[[fx.Proxy], Any],
    extreme: Callable[[Any, tuple[Any, ...]], Any],
    kind: Callable[[fx.Proxy], type],
    record: Callable[..., Any],
    places: Iterable[ModuleType],
) -> Iterator[None]:
    """Let functions answer with proxies where they are given any.

    Python and PyTorch ask a proxy for the number that it stands for, and there is no other way to
    follow it.

    Args:
        length: what ``len`` says of a proxy.
        extreme: what ``max`` or ``min`` say of values, a proxy among them.
        kind: the class of what a proxy stands for.
        record: records a call of a function.
        places: the modules in which the model's code is, and where ``int`` and ``float`` follow.
    """

    def len_of(value: Any, /) -> Any:
        return length(value) if isinstance(value, fx.Proxy) else _len(value)

    def either(function: Any) -> Any:
        def call(*values: Any, **options: Any) -> Any:
            if not options and any(isinstance(value, fx.Proxy) for value in values):
                return extreme(function, values)
            return function(*values, **options)

        return call

    def is_instance(value: Any, classes: Any, /) -> bool:
        if _is(value, classes):
            return True
        if not issubclass(type(value), fx.Proxy):
            return False
        asking = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0]
        return asking not in _TRUSTED and issubclass(kind(value), classes)

    def is_scripted(value: Any, classes: Any) -> bool:
        if issubclass(type(value), fx.Proxy) and _is(classes, (type, tuple)):
            return issubclass(kind(value), classes)
        return bool(_of_jit(value, classes))

    def is_tensor(value: Any, /) -> bool:
        return _is(value, torch.Tensor) or (
            issubclass(type(value), fx.Proxy) and issubclass(kind(value), torch.Tensor)
        )

    def made(function: Any, recorded: Any = None) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if any(isinstance(leaf, fx.Proxy) for leaf in pytree.tree_leaves((args, kwargs))):
                return record("call_function", recorded or function, args, kwargs)
            return function(*args, **kwargs)

        return call

    made_of = {name: made(getattr(torch, name)) for name in _MAKERS}
    made_of |= {name: made(*functions) for name, functions in _LIMITS.items()}
    patches: list[tuple[Any, dict[str, Any]]] = [
        (builtins, {"len": len_of, "max": either(_max), "min": either(_min)}),
        (builtins, {"isinstance": is_instance}),
        (torch.jit, {"isinstance": is_scripted}),
        (torch, {"is_tensor": is_tensor, **made_of}),
    ]
    patches += [
        (place, {"int": _Int, "float": _Float})
        for place in places
        if not {"int", "float"} & vars(place).keys()
    ]
    with _patched(patches):
        yield


@contextmanager
def uncached(places: Iterable[type | ModuleType]) -> Iterator[None]:
    """Let functions compute that keep what they have computed; a cache would ask for numbers.

    Args:
        places: the classes and modules in whose functions, and functions around them, to look.
    """
    with ExitStack() as undo:
        for place in places:
            for name, value in list(vars(place).items()):
                if _is(value, _Cached):
                    setattr(place, name, value.__wrapped__)
                    undo.callback(setattr, place, name, value)
                    continue
                if _is(value, (staticmethod, classmethod)):
                    value = value.__func__
                while _is(value, FunctionType):
                    for cell in value.__closure__ or ():
                        held = _held(cell)
                        if _is(held, _Cached):
                            cell.cell_contents = held.__wrapped__
                            undo.callback(setattr, cell, "cell_contents", held)
                    value = getattr(value, "__wrapped__", None)
        yield


_Cached = functools._lru_cache_wrapper


def _held(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was put there yet
        return None


class _Following(type):
    """The class of what stands for `int` and `float` in the code of models."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Follow the number that a proxy stands for, where that is one."""
        plain, recorded = cls._pair  # type: ignore[attr-defined]
        if _len(args) == 1 and issubclass(type(args[0]), fx.Proxy):
            kind = args[0].tracer.kind(args[0])
            if kind is plain:
                return args[0]
            if kind in (int, float):
                return recorded(args[0])
        return plain(*args, **kwargs)

    def __instancecheck__(cls, value: Any) -> bool:
        return _is(value, cls._pair[0])  # type: ignore[attr-defined]

    def __subclasscheck__(cls, other: Any) -> bool:
        return issubclass(other, cls._pair[0])  # type: ignore[attr-defined]

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls._pair[0]  # type: ignore[attr-defined]

    def __hash__(cls) -> int:
        return hash(cls._pair[0])  # type: ignore[attr-defined]


class _Int(int, metaclass=_Following):
    _pair = int, whole


class _Float(float, metaclass=_Following):
    _pair = float, real


@contextmanager
def undrawn() -> Iterator[None]:
    """Let random numbers of Python and NumPy be drawn only by code that does not look at them."""

    def draw(*_: Any, **__: Any) -> Any:
        return _Drawn()

    names = ("random", "uniform", "randint")
    with _patched([(place, dict.fromkeys(names, draw)) for place in (random, np.random)]):
        yield


class _Drawn:
    """A random number that is of no use."""


def _refuse(*_: Any) -> Any:
    raise TraceError("the model draws random numbers from Python or NumPy, not from PyTorch")


for _name in (
    *("bool", "eq", "ne", "lt", "le", "gt", "ge", "hash", "index", "int", "float", "str", "repr"),
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "mod", "pow"),
    *("neg", "abs", "round", "len", "iter", "getitem", "getattr", "format", "array", "call"),
):
    setattr(_Drawn, f"__{_name}__", _refuse)


@contextmanager
def _patched(patches: Sequence[tuple[Any, dict[str, Any]]]) -> Iterator[None]:
    before = [
        (place, {name: vars(place).get(name, _ABSENT) for name in names})
        for place, names in patches
    ]
    try:
        for place, names in patches:
            vars(place).update(names)
        yield
    finally:
        for place, names in before:
            for name, value in names.items():
                if value is _ABSENT:
                    vars(place).pop(name, None)
                else:
                    vars(place)[name] = value


_ABSENT = object()
