"""Capture a model as a graph of calls: torch.fx first, torch.export where FX gives up."""

from __future__ import annotations

import inspect
import io
import logging
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor

from upscale_opt.errors import TraceError
from upscale_opt.runtime.required_inputs import Wanted, require_inputs
from upscale_opt.tracing.record import as_it_was
from upscale_opt.tracing.rules import find_rule, kept_as_calls
from upscale_opt.tracing.taking_apart import multihead, shifted_windows
from upscale_opt.tracing.unchanged import Snapshot, composed_attention, unchanged

Capture = Literal["fx", "export"]

_STOCHASTIC = ("StochasticDepth", "DropPath", "DropBlock2d", "DropBlock3d")
"""Leaves by class name: their behaviour depends on the training mode at run time."""


_CHECKS = {torch._assert, fx._symbolic_trace._assert_is_none}


@dataclass(frozen=True)
class Check:
    """The demands on inputs; see :func:`upscale_opt.runtime.required_inputs.require_inputs`.

    Attributes:
        inputs: the inputs; in a model that is traced again, perhaps activations.
        names: what to call them.
        wanted: sizes or values.
    """

    inputs: tuple[fx.Node, ...]
    names: tuple[str, ...]
    wanted: tuple[Wanted, ...]


@dataclass
class Captured:
    """A model as a graph of calls.

    Attributes:
        kind: which tracer made it.
        graph: the calls. Ours to edit.
        modules: the modules that ``call_module`` nodes name.
        tensors: the parameters, buffers and constants that ``get_attr`` nodes name.
        constants: those of ``tensors`` that are neither parameters nor buffers of the model.
        checks: which inputs the program was captured for, and so takes no others.
    """

    kind: Capture
    graph: fx.Graph
    modules: dict[str, nn.Module]
    tensors: dict[str, torch.Tensor]
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)


class _Proxy(fx.Proxy):
    """Records ``x += y`` as what it is; FX alone would record ``x = x + y``."""


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: fx.Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in [
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
]:
    setattr(_Proxy, f"__i{_name}__", _in_place(getattr(operator, f"i{_name}")))


class _Tracer(fx.Tracer):
    """Keeps as leaves: torch's modules, hooked ones, those with rules or that ask for the mode."""

    proxy_buffer_attributes = True  # else code that updates a buffer would run on the real one

    def __init__(self) -> None:
        super().__init__()
        self.autocast = _autocast()
        """The state of autocast outside of the model, on the CPU and on GPUs."""
        self.optional: list[fx.Node] = []
        """The calls that are not needed if nothing uses their results."""

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """FX alone would leave out that some calls are to run in another precision."""
        if _autocast() != self.autocast:
            raise TraceError("torch.fx: the model switches autocast on or off while it runs")
        return super().create_node(*args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """FX alone would make a plain dict of an ordered one."""
        if type(a) is OrderedDict:
            pairs = [(key, value) for key, value in a.items()]
            return self.create_node("call_function", OrderedDict, (super().create_arg(pairs),), {})
        return super().create_arg(a)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            super().is_leaf_module(m, module_qualified_name)
            or hooked(m)
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
        apart = None if hooked(m) else multihead(m, args, kwargs)
        if apart is None:
            return super().call_module(m, forward, args, kwargs)
        before = len(self.graph.nodes)
        result = apart()
        if isinstance(result[1], fx.Proxy):  # the weights, which may not be used
            self.optional.extend(list(self.graph.nodes)[before:])
        return result

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any
    ) -> Any:
        if kind == "call_function":
            apart = shifted_windows(target, args, kwargs, self._shape_of)
            if apart is not None:
                return apart()
        return super().create_proxy(kind, target, args, kwargs, *more, **named)

    def _shape_of(self, value: Any) -> torch.Size | None:
        """The shape of a parameter of the model."""
        if not isinstance(value, fx.Proxy) or value.node.op != "get_attr":
            return None
        tensor = dict(self.root.named_parameters()).get(str(value.node.target))
        return None if tensor is None else tensor.shape


def _autocast() -> tuple[bool, bool]:
    return torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def hooked(module: nn.Module) -> bool:
    """Tell whether calling the module runs code besides its ``forward``."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def capture(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], kind: Capture
) -> Captured:
    """Capture ``model`` by one tracer; the model is as before afterwards.

    Raises:
        TraceError: if this tracer cannot capture the model.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError(
            "a TorchScript model cannot be traced; trace the Python model that it was made from"
        )
    return _by_fx(model, args, kwargs) if kind == "fx" else _by_export(model, args, kwargs)


def _by_fx(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Captured:
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TraceError(f"{type(model).__name__} does not take these inputs: {error}") from None
    left_out = {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if name not in bound.arguments and parameter.default is not inspect.Parameter.empty
    }
    before = set(vars(model))
    with unchanged(model) as snapshot, kept_as_calls(), composed_attention():
        try:
            tracer = _Tracer()
            graph = tracer.trace(model, concrete_args=left_out or None)
        except Exception as error:
            raise TraceError(f"torch.fx: {_line(error)}") from error
        # FX itself sets attributes, for constants; the model's code must not set any.
        added = {name: value for name, value in vars(model).items() if name not in before}
        stored = snapshot.holding_proxies()
        if stored:
            raise StoresResults(stored)
        _refuse_state(snapshot.changed(), "torch.fx")
    for node in reversed(tracer.optional):
        if not node.users:
            graph.erase_node(node)
    for node in reversed(graph.nodes):  # the checks FX writes for arguments at their defaults
        if node.op == "call_function" and node.target in _CHECKS:
            graph.erase_node(node)
    checks = _checks_within(graph)
    modules, tensors = {}, {}
    for node in graph.nodes:
        target = str(node.target)
        if node.op == "call_module":
            modules[target] = model.get_submodule(target)
        elif node.op == "get_attr":
            value = added[target] if target in added else _attribute(model, target)
            if not isinstance(value, torch.Tensor):
                raise TraceError(f"torch.fx: the model uses its attribute {target!r} in its graph")
            tensors[target] = value
    named = {id(t) for t in (*model.parameters(), *model.buffers())}
    constants = {name: value for name, value in tensors.items() if id(value) not in named}
    return Captured("fx", graph, modules, tensors, constants, checks)


def _checks_within(graph: fx.Graph) -> list[Check]:
    """Take what pruned models require of inputs out of a program."""
    checks: list[Check] = []
    for node in list(graph.nodes):
        if node.target is require_inputs:
            entries = [
                entry for entry in zip(*node.args, strict=True) if isinstance(entry[0], fx.Node)
            ]
            inputs, names, wanted = zip(*entries, strict=True)
            checks.append(Check(inputs, names, wanted))
            graph.erase_node(node)
    return checks


def _by_export(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Captured:
    """By :mod:`torch.export`: for any batch size if possible, and else for this one."""
    dynamic = _dynamic(model, args, kwargs)
    with _quiet(), unchanged(model):
        for table in ("_forward_hooks", "_forward_pre_hooks"):  # they are carried over as they are
            vars(model)[table].clear()
        snapshot = Snapshot(model)
        try:
            program = torch.export.export(
                model, args, dict(kwargs), dynamic_shapes=dynamic, strict=False
            )
        except Exception:
            try:
                program = torch.export.export(model, args, dict(kwargs), strict=False)
            except Exception as error:
                raise TraceError(f"torch.export: {_line(error)}") from error
        _refuse_state(snapshot.changed(), "torch.export")
    guarded = _guarded(program)
    try:
        program = program.run_decompositions({})
        options = {"check_guards": False}
        accepted = inspect.signature(program.module).parameters
        module = program.module(**{k: v for k, v in options.items() if k in accepted})
    except Exception as error:
        raise TraceError(f"torch.export: {_line(error)}") from error
    assert isinstance(module, fx.GraphModule)
    graph = module.graph
    for node in list(graph.nodes):  # what pooling says of the memory of its result
        if node.target is torch.ops.aten.as_strided.default:
            source = node.args[0]
            if as_it_was(source.meta["val"], node.meta["val"]):
                node.replace_all_uses_with(source)
                graph.erase_node(node)
    tensors = {
        str(node.target): _attribute(module, str(node.target))
        for node in graph.nodes
        if node.op == "get_attr"
    }
    if any(not isinstance(value, torch.Tensor) for value in tensors.values()):
        raise TraceError("torch.export: the program uses attributes that are not tensors")
    named = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    constants = {name: value for name, value in tensors.items() if name not in named}
    places = tuple(node for node in graph.nodes if node.op == "placeholder")
    wanted = _wanted({node.name: node.meta.get("val") for node in places}, guarded)
    checks = [Check(places, tuple(node.name for node in places), wanted)] if places else []
    return Captured("export", graph, {}, tensors, constants, checks)


def _guarded(program: torch.export.ExportedProgram) -> set[str]:
    """The sizes that were left open, but of which the program supposes more than it says.

    The code asked whether a size is more than four, say, or odd, and the program has the answer for
    the example. That two sizes are equal is none of this: it says so.
    """
    environments = {
        id(value.fake_mode.shape_env): value.fake_mode.shape_env
        for value in (node.meta.get("val") for node in program.graph.nodes)
        if isinstance(value, FakeTensor) and value.fake_mode.shape_env is not None
    }
    found: set[str] = set()
    for environment in environments.values():
        for guard in environment.guards:
            rest = guard.expr.xreplace(environment.replacements)
            found.update(map(str, getattr(rest, "free_symbols", ())))
    return found


def _wanted(inputs: Mapping[str, Any], guarded: set[str]) -> tuple[Wanted, ...]:
    """The inputs that the program by :mod:`torch.export` takes."""
    open_sizes: dict[str, list[str]] = {}
    for name, value in inputs.items():
        for axis, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            if _is_open(size, guarded):
                open_sizes.setdefault(str(size), []).append(f"{name}[{axis}]")

    def wanted(value: Any) -> Wanted:
        if not isinstance(value, torch.Tensor):
            assert value is None or isinstance(value, (bool, int, float, str))
            return value
        sizes: list[int | str | None] = []
        for size in value.shape:
            if _is_open(size, guarded):
                places = open_sizes[str(size)]
                sizes.append(places[0] if len(places) > 1 else None)
            else:
                sizes.append(size.node.hint if isinstance(size, torch.SymInt) else size)
        return tuple(sizes)

    return tuple(map(wanted, inputs.values()))


def _is_open(size: int | torch.SymInt, guarded: set[str]) -> bool:
    """Tell whether the program takes any size here."""
    if not isinstance(size, torch.SymInt) or size.node.maybe_as_int() is not None:
        return False
    return guarded.isdisjoint(map(str, size.node.expr.free_symbols))


class StoresResults(TraceError):  # noqa: N818 - caught by `run`
    """The model's code stores what it computes in attributes: FX cannot tell what for.

    Attributes:
        names: these attributes.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__("torch.fx: the model stores what it computes in its attributes")
        self.names = names


class KeepsState(TraceError):  # noqa: N818 - caught by `run`
    """A call of the model depends on earlier calls by more than buffers; no tracer can help."""


def _refuse_state(changed: list[str], tracer: str) -> None:
    """Refuse models whose calls depend on earlier calls by more than buffers.

    Raises:
        KeepsState: naming the first attribute that the model's code has changed.
    """
    if changed:
        raise KeepsState(
            f"{tracer}: the model changes its attribute {changed[0]!r} while it runs, which an "
            "export could not; keep what lasts from call to call in buffers"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch prints and logs while it fails: the reason is in the exception, too."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _dynamic(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The axes to leave open, by the names of the arguments of ``forward``."""

    def free(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            # The batch alone: with all axes free, shape arithmetic takes minutes in some networks.
            return {0: torch.export.Dim.AUTO} if value.ndim and len(value) > 1 else None
        if isinstance(value, (tuple, list)):
            return type(value)(free(v) for v in value)
        if isinstance(value, dict):
            return {k: free(v) for k, v in value.items()}
        return None

    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*args, **kwargs).arguments
    except TypeError:  # which torch.export says better
        return None
    named = {name: free(value) for name, value in bound.items()}
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD and name in named:
            named.update(named.pop(name))
    return named


def _attribute(root: nn.Module, target: str) -> Any:
    value: Any = root
    for part in target.split("."):
        value = getattr(value, part)
    return value


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}{'…' if len(text) > 200 else ''}"
