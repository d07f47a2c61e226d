"""Capture a model by :mod:`torch.fx`: run its code on proxies, which record all that is done."""

from __future__ import annotations

import dataclasses
import dis
import functools
import inspect
import math
import operator
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from upscale_opt.errors import TraceError
from upscale_opt.runtime.recorded import assign
from upscale_opt.tracing.concrete import Values, following, uncached, undrawn
from upscale_opt.tracing.guards import MANY, stand_in, wanted_of
from upscale_opt.tracing.rules import find_rule
from upscale_opt.tracing.taking_apart import multihead, pads, shifted_windows, some_outputs
from upscale_opt.tracing.unchanged import owners

_OF_TORCH = (
    *(nn.Transformer, nn.TransformerEncoder, nn.TransformerEncoderLayer),
    *(nn.TransformerDecoder, nn.TransformerDecoderLayer),
)
"""Modules of torch that are looked into, where attention is taken apart."""

_STOCHASTIC = ("StochasticDepth", "DropPath", "DropBlock2d", "DropBlock3d")
"""Leaves by class name: their behaviour depends on the training mode at run time."""


class _Text(str):
    """A computed value as text: to be shown, but not to decide anything."""

    __slots__ = ()

    def __hash__(self) -> int:
        raise TraceError("looks up in a dict or set what is computed")

    def __eq__(self, other: object) -> bool:
        raise TraceError("compares what is computed as text")


class _Questions:
    """Questions of Python code about a value that a proxy alone cannot answer."""

    def __hash__(self: Any) -> int:
        found: int = self.tracer.hashed(self)
        return found

    def __setitem__(self: Any, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", assign, (self, index, value), {})

    def __index__(self: Any) -> int:
        return operator.index(self.tracer.decided_by(self))

    def __int__(self: Any) -> int:
        return int(self.tracer.decided_by(self))

    def __float__(self: Any) -> float:
        return float(self.tracer.decided_by(self))

    def __array_ufunc__(self: Any, function: Any, method: str, *values: Any, **options: Any) -> Any:
        plain = _UFUNCS.get(function.__name__)
        if plain is None or method != "__call__" or options:
            return NotImplemented
        return self.tracer.create_proxy("call_function", plain, values, {})

    def __array__(self: Any, dtype: Any = None, copy: Any = None) -> Any:
        if dtype in (None, object):
            return self.tracer.as_array(self)
        return np.asarray(self.tracer.decided_by(self), dtype)

    def __len__(self: Any) -> int:
        return operator.index(self.tracer.length(self))

    def __add__(self: Any, other: Any) -> Any:
        if isinstance(other, (tuple, list)):
            own: Any = type(other)(self)
            return own + other
        return self.tracer.create_proxy("call_function", operator.add, (self, other), {})

    def __radd__(self: Any, other: Any) -> Any:
        if isinstance(other, (tuple, list)):
            own: Any = type(other)(self)
            return other + own
        return self.tracer.create_proxy("call_function", operator.add, (other, self), {})

    def __mul__(self: Any, other: Any) -> Any:
        if isinstance(other, (tuple, list)):
            return other * operator.index(self)
        return self.tracer.create_proxy("call_function", operator.mul, (self, other), {})

    def __rmul__(self: Any, other: Any) -> Any:
        if isinstance(other, (tuple, list)):
            return other * operator.index(self)
        return self.tracer.create_proxy("call_function", operator.mul, (other, self), {})

    def __round__(self: Any, *digits: Any) -> Any:
        return self.tracer.create_proxy("call_function", round, (self, *digits), {})

    def __ceil__(self: Any) -> Any:
        return self.tracer.create_proxy("call_function", math.ceil, (self,), {})

    def __floor__(self: Any) -> Any:
        return self.tracer.create_proxy("call_function", math.floor, (self,), {})

    def __str__(self: Any) -> str:
        self.tracer.wrote = True
        return _Text(repr(self))  # for messages

    def __format__(self, spec: str) -> str:
        return str(self)

    def __copy__(self: Any) -> Any:
        return self.tracer.create_proxy("call_function", torch.ops.aten.alias.default, (self,), {})

    def __getattr__(self: Any, name: str) -> Any:
        if not hasattr(torch.Tensor, name) and not self.tracer.has(self, name):
            raise AttributeError(f"{self.tracer.kind(self).__name__!r} has no attribute {name!r}")
        if self.tracer.in_arrays and name in _OF_ONE and self.tracer.kind(self) in (int, float):
            # as NumPy calls what arrays of objects hold
            return lambda: self.tracer.create_proxy("call_function", _OF_ONE[name], (self,), {})
        return _Attribute(self, name)


class _Own(_Questions, fx.Proxy):
    """A parameter or buffer, whose sizes are those of the original."""

    __hash__ = _Questions.__hash__

    def __init__(self, node: fx.Node, tracer: Any, tensor: torch.Tensor) -> None:
        super().__init__(node, tracer)
        self._tensor = tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tensor, name) if name in _SIZES else super().__getattr__(name)


_OF_ONE = {
    name: getattr(math, name) for name in ("sqrt", "exp", "log", "log2", "log10", "ceil", "floor")
}
_UFUNCS: dict[str, Any] = {
    **_OF_ONE,
    **{name: getattr(operator, short) for name, short in {"add": "add", "subtract": "sub"}.items()},
    "multiply": operator.mul,
    "divide": operator.truediv,
    "power": operator.pow,
}
"""Functions of NumPy, by name, and what does the same to plain numbers."""

_SIZES = {"shape", "size", "numel", "nelement", "dim", "ndim", "ndimension"}


class _Proxy(_Questions, fx.Proxy):
    """Records ``x += y`` as what it is; FX alone would record ``x = x + y``."""

    __hash__ = _Questions.__hash__


class _Attribute(_Questions, fx.proxy.Attribute):
    """``x.shape``, say, or a method that is about to be called."""

    __hash__ = _Questions.__hash__


def _in_place(function: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: fx.Proxy, other: Any) -> Any:
        if _stores_back(sys._getframe(1)):  # `x[index] += other`
            return self.tracer.create_proxy("call_function", plain, (self, other), {})
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


_CUTS = {
    **{"split": ("split_size", "dim"), "split_with_sizes": ("split_sizes", "dim")},
    **{"chunk": ("chunks", "dim"), "unbind": ("dim",)},
}
"""Calls that cut tensors into pieces, and their arguments besides the tensor."""

_ASSIGNING = [
    *("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"),
    *("iand", "ior", "ixor", "ilshift", "irshift"),
]
for _name in _ASSIGNING:
    for _class in (_Proxy, _Own):
        _pair = getattr(operator, _name), getattr(operator, f"__{_name[1:]}__")
        setattr(_class, f"__{_name}__", _in_place(*_pair))


@functools.cache
def _stores(code: CodeType) -> set[int]:
    """The places in a function's code of the operations of ``x[index] += y``."""
    found: set[int] = set()
    last = 0
    for instruction in dis.get_instructions(code):
        if instruction.opname == "STORE_SUBSCR":
            found.add(last)
        if not instruction.opname.startswith(("SWAP", "ROT_", "CACHE")):
            last = instruction.offset
    return found


def _stores_back(frame: FrameType) -> bool:
    return frame.f_lasti in _stores(frame.f_code)


_IN_PLACE = {name for name in _ASSIGNING if hasattr(torch.Tensor, f"__{name}__")}
"""The operators ``x += y`` and so on that modify tensors, where others make new ones."""


class Tracer(fx.Tracer):
    """Keeps as leaves: torch's modules, hooked ones, those with rules or that ask for the mode.

    Attributes:
        given: for every argument of the model what it was given, by the node that stands for it.
        wanted: what it must be.
    """

    proxy_buffer_attributes = True  # else code that updates a buffer would run on the real one

    def __init__(
        self,
        called: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        takes_apart: bool = True,
    ) -> None:
        super().__init__()
        self.takes_apart = takes_apart
        self.wrote = False
        """True if the code made text of what is computed, which may decide what it does."""
        self.apart = False
        """True if a call was written as several."""
        self.autocast = _autocast()
        """The state of autocast outside of the model, on the CPU and on GPUs."""
        self.optional: list[fx.Node] = []
        """The calls that are not needed if nothing uses their results."""
        self.detached: set[fx.Node] = set()
        """The calls that the model makes without gradients."""
        self.given: dict[fx.Node, Any] = {}
        self.decided: dict[fx.Node, Any] = {}
        """The numbers and truth values that the code has decided by."""
        self.in_arrays = False
        """True if an array of NumPy holds proxies."""
        self.asked: list[nn.Module] = []
        """The modules that were asked for their mode."""
        self._values: Values | None = None
        self._counted: set[fx.Node] = set()
        self._hooked: set[nn.Module] = set()
        self.wanted: dict[fx.Node, Any] = {}
        self._called = called
        self._signature = inspect.signature(called)
        self._bound = self._signature.bind(*args, **kwargs)
        self._positional = len(args)

    # Arguments.

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Tensors and numbers are proxies; everything else is as it was given, and guarded.

        FX alone has a proxy for each argument, and so cannot ask how long a list is.
        """
        positional: list[Any] = []
        named: dict[str, Any] = {}
        parameters = self._signature.parameters
        nodes = {
            name: self.create_node("placeholder", *stand_in(name, parameter), {})
            for name, parameter in parameters.items()
        }
        for number, (name, parameter) in enumerate(parameters.items()):
            value = self._enter(name, nodes[name], parameter)
            if parameter.kind is parameter.VAR_KEYWORD:
                named.update(value)
            elif parameter.kind is parameter.VAR_POSITIONAL:
                positional.extend(value)
            elif name not in self._bound.arguments:
                continue  # decorators may tell what was left out
            elif number < self._positional:
                positional.append(value)
            else:
                named[name] = value

        def call(*_: Any) -> Any:
            return self._called(*positional, **named)

        return call, [self.root]

    def _enter(self, name: str, node: fx.Node, parameter: inspect.Parameter) -> Any:
        """The arguments of a call of the model."""
        many = MANY.get(parameter.kind.name)
        left_out = name not in self._bound.arguments and many is None
        if left_out:
            value = node.args[0]
        else:
            value = self._bound.arguments.get(name, () if many == "*" else {})
        self.given[node], self.wanted[node] = value, wanted_of(value)
        if left_out:
            return None
        return self._proxied(self.proxy(node), value, self.wanted, node)

    def _proxied(self, proxy: Any, value: Any, place: Any, key: Any) -> Any:
        """Proxies for what ``value`` holds; ``place[key]`` is what is wanted of it."""
        if isinstance(value, torch.Tensor):
            return proxy
        if type(value) in (int, float, complex):
            place[key] = ...  # what depends on it is found, and guarded, later
            return proxy
        if isinstance(value, Mapping):
            items = {
                name: self._proxied(proxy[name], item, place[key], name)
                for name, item in value.items()
            }
            return items if type(value) is dict else type(value)(items)  # type: ignore[call-arg]
        if isinstance(value, (tuple, list)):
            listed = [
                self._proxied(proxy[number], item, place[key], number)
                for number, item in enumerate(value)
            ]
            if hasattr(value, "_fields"):
                return type(value)(*listed)
            return type(value)(listed)
        return value

    # Answers.

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        """Record what the model does; ``len`` and the like follow what they are asked about."""
        self._hooked = {module for module in root.modules() if hooked(module)}
        places = list(owners(root))
        modules = [place for place in places if isinstance(place, ModuleType)]
        answers = following(self.length, self._extreme, self.kind, self.create_proxy, modules)
        with answers, undrawn(), uncached(places):
            return super().trace(root, concrete_args)

    def value_of(self, proxy: fx.Proxy) -> Any:
        """The value that a proxy stands for: a number, or a tensor without data, say.

        Raises:
            TraceError: if that cannot be told.
        """
        if self._values is None:
            self._values = Values(self.root, self.graph, self.given, self.asked)
        return self._values.of(proxy.node)

    def decided_by(self, proxy: fx.Proxy) -> Any:
        """A number, several, a truth value or a dtype, which is to be the same in later calls.

        Raises:
            TraceError: if it is none, but depends on data, say.
        """
        value = self.value_of(proxy)
        if isinstance(value, (tuple, list)) and _is_number(value):
            parts: Any = proxy
            return tuple(self.decided_by(parts[number]) for number in range(len(value)))
        if type(value) not in (bool, int, float, str, torch.dtype) or _asks_memory(proxy.node):
            raise TraceError("decides by what is computed")
        self.decided[proxy.node] = value
        return value

    def as_array(self, proxy: Any) -> Any:
        """Several numbers as an array of NumPy that holds proxies; what it decides by is asked.

        Raises:
            TraceError: if what a proxy stands for cannot be told.
        """
        value = self.value_of(proxy)
        sizes = value if isinstance(value, (tuple, list)) else [value]
        if not all(type(size) is int for size in sizes):
            return np.asarray(self.decided_by(proxy))
        self.in_arrays = True
        array = np.empty(len(sizes), dtype=object)
        for number in range(len(sizes)):
            array[number] = proxy if sizes is not value else proxy[number]
        return array if sizes is value else array.reshape(())

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Tell how code decides."""
        value = self.value_of(obj)
        if value is None or (isinstance(value, (tuple, list)) and _is_number(value)):
            return bool(value)  # where there is another rank, inputs have one
        return bool(self.decided_by(obj))

    def kind(self, proxy: fx.Proxy) -> type:
        """The class of what a proxy stands for; the proxy's own if that cannot be told."""
        try:
            value = self.value_of(proxy)
        except TraceError:
            return type(proxy)
        return torch.Tensor if isinstance(value, FakeTensor) else type(value)

    def has(self, proxy: fx.Proxy, name: str) -> bool:
        """Tell whether what a proxy stands for has an attribute; true if that cannot be told."""
        try:
            return hasattr(self.value_of(proxy), name)
        except TraceError:
            return True

    def hashed(self, proxy: Any) -> int:
        """The ``hash`` of what a proxy stands for: tensors are what they are, and not equal."""
        value = self.value_of(proxy)
        if isinstance(value, torch.Tensor):
            return id(proxy)
        if isinstance(value, torch.device):  # which in validation is another
            return hash(value)
        return hash(self.decided_by(proxy))

    def iter(self, obj: Any) -> Iterator[Any]:
        """Take sizes one by one; how many there are depends on ranks, which are guarded.

        And so is how many pieces a tensor was cut into.
        """
        value = self.value_of(obj)
        if isinstance(value, torch.Tensor) and value.ndim:
            return self.iter(obj.unbind(0))
        if not isinstance(value, (tuple, list)):
            raise TraceError("loops over what is computed")
        if not _is_number(value):
            self._require_number(obj, len(value))
        return iter([obj[number] for number in range(len(value))])

    def _require_number(self, proxy: Any, number: int) -> None:
        """Let a call give as many results as in the example."""
        if proxy.node in self._counted:
            return
        self._counted.add(proxy.node)
        counted = self._pieces(proxy.node)
        if counted is None:
            return
        if not isinstance(counted, fx.Proxy) or self.value_of(counted) != number:
            counted = self.create_proxy("call_function", len, (proxy,), {})
        self.decided_by(counted)

    def _pieces(self, node: fx.Node) -> Any:
        """The number of pieces that a call cuts a tensor into; ``None`` if it is the same always.

        By sizes, as ``len`` alone would ask for the pieces themselves, which pruning may reorder.
        """
        name = str(getattr(node.target, "__name__", node.target))
        if node.op not in ("call_function", "call_method") or name not in _CUTS:
            return ... if node.op == "call_module" else None
        names = _CUTS[name]
        given = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
        by: Any = given.get(names[0]) if len(names) > 1 else 1
        axis = given.get("dim", 0)
        if isinstance(by, (tuple, list)):
            return None
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or not isinstance(axis, int):
            return ...
        of: Any = self.proxy(source)
        size = of.shape[axis]
        by = self.proxy(by) if isinstance(by, fx.Node) else by
        step = (size + by - 1) // by if name == "chunk" else by
        return size if len(names) == 1 else (size + step - 1) // step

    def length(self, proxy: Any) -> Any:
        """The ``len`` of a tensor is a size, and that of sizes a rank."""
        if isinstance(proxy, _Own):
            return len(proxy._tensor)
        value = self.value_of(proxy)
        if isinstance(value, torch.Tensor) and value.ndim:
            return proxy.shape[0]
        if isinstance(value, (tuple, list)):
            if not _is_number(value):
                self._require_number(proxy, len(value))
            return len(value)
        raise TraceError("asks how long what is computed is")

    def _extreme(self, function: Any, values: tuple[Any, ...]) -> Any:
        """The ``max`` or ``min`` of numbers."""
        known = [self.value_of(v) if isinstance(v, fx.Proxy) else v for v in values]
        if not _is_number(known):
            raise TraceError("compares what is computed")
        return self.create_proxy("call_function", function, values, {})

    # Calls.

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """FX alone would leave out that some calls are to run in another precision."""
        if _autocast() != self.autocast:
            raise TraceError("the model switches autocast on or off while it runs")
        node = super().create_node(*args, **kwargs)
        picked = node.target is operator.getitem and node.args[0] in self.detached
        if picked or (node.op.startswith("call_") and not torch.is_grad_enabled()):
            if writes_to(node) and modified(node) is None:
                raise TraceError("the model modifies activations in place without gradients")
            self.detached.add(node)
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """One of ours."""
        if node.op == "get_attr":
            tensor = self._own(str(node.target))
            if tensor is not None:
                return _Own(node, self, tensor)
        return _Proxy(node, self)

    def _own(self, target: str) -> torch.Tensor | None:
        """A parameter or buffer of the model."""
        prefix, _, name = target.rpartition(".")
        module = self.root.get_submodule(prefix)
        tensor = module._parameters.get(name, module._buffers.get(name))
        return None if tensor is None or is_lazy(tensor) else tensor

    def create_arg(self, a: Any) -> Any:
        """FX alone would make a plain dict of an ordered one, or of any other."""
        if isinstance(a, fx.Proxy):
            return a.node
        if dataclasses.is_dataclass(a) and not isinstance(a, type):  # a dict, too, perhaps
            own = {f.name: self.create_arg(getattr(a, f.name)) for f in _given(a)}
            return self.create_node("call_function", type(a), (), own)
        if isinstance(a, np.generic):
            return a.item()  # code could not spell it
        if type(a) is OrderedDict:
            pairs = [(key, value) for key, value in a.items()]
            return self.create_node("call_function", OrderedDict, (super().create_arg(pairs),), {})
        return super().create_arg(a)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell whether a call of the module is recorded as one."""
        if m is self.root:
            return False
        patched = any("forward" in vars(module) for module in m.modules())
        if m in self._hooked:  # and not by the code that is running, whose hooks run now
            if patched:
                raise TraceError(
                    f"{module_qualified_name!r} has hooks, and a forward of its own instead of its "
                    "class's"
                )
            return True
        if patched and not isinstance(m, torch.jit.ScriptModule):
            return False  # a copy would run the code, and with it the weights, of the original
        own = type(m) in _OF_TORCH and self.takes_apart
        return (
            (super().is_leaf_module(m, module_qualified_name) and not own)
            or find_rule(None, m) is not None
            or isinstance(m, torch.jit.ScriptModule)
            or type(m).__name__ in _STOCHASTIC
        )

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Attention is written as several calls; wrapped functions in place of forward are one."""
        own = vars(m).get("forward")
        if is_wrapped(own) and not hooked(m):
            return self.create_proxy("call_function", own, args, kwargs)
        if pads(m, args, kwargs) and not hooked(m):
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
        apart = None if hooked(m) or not self.takes_apart else multihead(m, args, kwargs)
        if apart is None:
            self.apart = self.apart or (type(m) in _OF_TORCH and self.takes_apart)
            return super().call_module(m, forward, args, kwargs)
        self.apart = True
        before = len(self.graph.nodes)
        result = apart()
        if isinstance(result[1], fx.Proxy):  # the weights, which may not be used
            self.optional.extend(list(self.graph.nodes)[before:])
        return result

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any
    ) -> Any:
        """And so is that of Swin."""
        if str(getattr(target, "__name__", target)) in _FILLING:
            args, kwargs = pytree.tree_map_only(torch.Tensor, _as_number, (args, kwargs))
        if kind == "call_function" and self.takes_apart:
            apart: Callable[[], Any] | None
            apart = shifted_windows(target, args, kwargs, self._shape_of)
            if apart is None and not kwargs:
                apart = some_outputs(target, args)
                taken = [] if apart is None else [arg.node for arg in args[1:] if arg is not None]
                self.optional.extend(taken)
            if apart is not None:
                self.apart = True
                return apart()
        return super().create_proxy(kind, target, args, kwargs, *more, **named)

    def _shape_of(self, value: Any) -> torch.Size | None:
        """The shape of a parameter of the model."""
        if not isinstance(value, fx.Proxy) or value.node.op != "get_attr":
            return None
        tensor = dict(self.root.named_parameters()).get(str(value.node.target))
        return None if tensor is None else tensor.shape

    def tidy(self) -> None:
        """Forget the calls whose results nothing uses, as far as it was us who made them."""
        for node in reversed(self.optional):
            if not node.users:
                self.graph.erase_node(node)
        unpacked = set(self.given)
        for node in self.graph.nodes:
            if node.target is operator.getitem and node.args[0] in unpacked:
                unpacked.add(node)
        for node in reversed(self.graph.nodes):
            if node in unpacked and node.op != "placeholder" and not node.users:
                self.graph.erase_node(node)


@contextmanager
def modes_asked() -> Iterator[list[nn.Module]]:
    """The modules whose mode, train or eval, is asked for."""
    asked: list[nn.Module] = []

    def get(module: nn.Module) -> bool:
        asked.append(module)
        return bool(vars(module)["training"])

    def set_to(module: nn.Module, mode: bool) -> None:
        vars(module)["training"] = mode

    nn.Module.training = property(get, set_to)  # type: ignore[assignment]
    try:
        yield asked
    finally:
        del nn.Module.training


@contextmanager
def updates_in_place(model: nn.Module) -> Iterator[None]:
    """Let code say ``self.count += 1`` of a buffer, which assigns what was modified in place."""
    names = {id(module): name for name, module in model.named_modules()}
    assign: Any = nn.Module.__setattr__

    def assigned(module: nn.Module, name: str, value: Any) -> None:
        if isinstance(value, fx.Proxy) and name in module._buffers and id(module) in names:
            own = f"{names[id(module)]}.{name}".lstrip(".")
            if modified(value.node) == own:
                return
        assign(module, name, value)

    nn.Module.__setattr__ = assigned  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.__setattr__ = assign  # type: ignore[method-assign]


def modified(node: fx.Node) -> str | None:
    """The attribute that a call returns, modified in place; ``None`` if it is something new."""
    while node.op in ("call_function", "call_method"):
        if not writes_to(node) or not isinstance(node.args[0], fx.Node):
            return None
        node = node.args[0]
    return str(node.target) if node.op == "get_attr" else None


def writes_to(node: fx.Node) -> bool:
    """Tell whether a call modifies its first argument in place, and returns that."""
    name = str(getattr(node.target, "__name__", node.target))
    if node.target is assign:
        return True
    if node.op == "call_function":
        return node.target is getattr(operator, name, None) and name in _IN_PLACE
    return node.op == "call_method" and name.endswith("_") and not name.endswith("__")


def is_wrapped(function: object) -> bool:
    """Tell whether a function was given to :func:`torch.fx.wrap`, to be recorded as one call."""
    if not isinstance(function, FunctionType):
        return False
    return (id(function.__globals__), function.__name__) in _WRAPPED


_WRAPPED: Any = getattr(fx._symbolic_trace, "_wrapped_fns_to_patch", {})


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what is computed while proxies run through a model: constants of the program.

    Such must not depend on parameters, which may change, nor on chance, and nothing may be written.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._own = {
            tensor.untyped_storage()._cdata: name
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
            if tensor.layout == torch.strided and not is_lazy(tensor)
        }
        self._made: dict[int, Any] = {}
        self.reason: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, unless it must not be run once and for all."""
        kwargs = kwargs or {}
        used = [t for t in _tensors((args, kwargs)) if t.layout == torch.strided]
        names = [self._own.get(t.untyped_storage()._cdata) for t in used]
        name = next((name for name in names if name is not None), None)
        if name is not None and func not in _HARMLESS:
            self._refuse(f"computes with {name!r} where torch.fx does not see it")
        if torch.Tag.nondeterministic_seeded in func.tags:
            self._refuse("draws random numbers whose number is fixed")
        if func._schema.is_mutable:
            made = [t for t in used if t.untyped_storage()._cdata not in self._made]
            if made and func not in _HARMLESS:
                self._refuse("writes into a tensor that it did not make")
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            if tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                self._made[storage._cdata] = storage
        return result

    def _refuse(self, what: str) -> None:
        self.reason = self.reason or f"the model {what}"
        raise TraceError(self.reason)


_FILLING = ("full", "full_like", "new_full", "fill_")
"""Calls that take a number, and take it from a tensor if they are given one."""


def _given(record: Any) -> list[dataclasses.Field[Any]]:
    """The fields that a dataclass was made with, but for those that are as they are by default.

    Raises:
        TraceError: if it is made in another way.
    """
    fields = [f for f in dataclasses.fields(record) if getattr(record, f.name) is not f.default]
    if not all(f.init for f in fields):
        raise TraceError(f"makes a {type(record).__name__}, some fields of which are not arguments")
    return fields


def _as_number(tensor: torch.Tensor) -> Any:
    """The number that a constant holds, for what would ask it for that."""
    single = tensor.ndim == 0 and not isinstance(tensor, nn.Parameter) and not tensor.is_meta
    return tensor.item() if single else tensor


def _asks_memory(node: fx.Node) -> bool:
    """Tell whether a number says how a tensor lies in memory, which in an export is otherwise."""
    if node.op == "call_method" and node.target in ("is_contiguous", "stride"):
        return True
    plain = node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator"
    return plain and any(map(_asks_memory, node.all_input_nodes))


def _is_number(value: Any) -> bool:
    """Tell whether ``value`` is a number, or consists of numbers."""
    if isinstance(value, (tuple, list)):
        return all(map(_is_number, value))
    return isinstance(value, (int, float)) and not isinstance(value, torch.SymInt)


_HARMLESS = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from _tensors(item)
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))


def called_of(model: nn.Module) -> Callable[..., Any]:
    """Find what a call of ``model`` runs: its ``forward``, or its own ``__call__``.

    Raises:
        TraceError: if that cannot be told from its hooks, which are carried over.
    """
    if type(model).__call__ is nn.Module.__call__ or isinstance(model, fx.GraphModule):
        forward: Callable[..., Any] = model.forward
        return forward
    if hooked(model):
        raise TraceError("the model has hooks, and a __call__ of its own")
    return functools.partial(type(model).__call__, model)


def hooked(module: nn.Module) -> bool:
    """Tell whether calling the module runs code besides its ``forward``.

    Hooks that only collect what their model returns do not count: proxies run through them.
    """
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(getattr(hook, "__module__", None) not in _COLLECTING for hook in hooks)


_COLLECTING = ("transformers.utils.output_capturing",)
"""Modules whose hooks put results where the code of the model that installed them finds them."""


def holds_others(module: nn.Module) -> str | None:
    """An attribute whose code refers to modules or tensors, which a copy would share."""
    for part in module.modules():
        for name, value in vars(part).items():
            if isinstance(value, functools.partial):
                value = value.func
            cells = (value.__closure__ or ()) if isinstance(value, FunctionType) else ()
            for cell in cells:
                try:
                    held = cell.cell_contents
                except ValueError:  # nothing was put there yet
                    continue
                if isinstance(getattr(held, "__self__", held), (nn.Module, torch.Tensor)):
                    return name
    return None


def _autocast() -> tuple[bool, bool]:
    return torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
