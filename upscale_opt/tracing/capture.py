"""Capture a model as a graph of calls: torch.fx first, torch.export where FX gives up."""

from __future__ import annotations

import inspect
import io
import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from upscale_opt.errors import TraceError
from upscale_opt.runtime.required_inputs import Wanted
from upscale_opt.tracing.entering import enter
from upscale_opt.tracing.guards import Check, checks_within
from upscale_opt.tracing.record import as_it_was
from upscale_opt.tracing.rotations import fold_rotations
from upscale_opt.tracing.rules import kept_as_calls
from upscale_opt.tracing.symbolic import (
    Tracer,
    Watch,
    called_of,
    holds_others,
    modes_asked,
    updates_in_place,
)
from upscale_opt.tracing.taking_apart import masks_as_calls
from upscale_opt.tracing.transposed import fold_products
from upscale_opt.tracing.unchanged import (
    Snapshot,
    composed_attention,
    same_random_state,
    unchanged,
)
from upscale_opt.tracing.varying import text

Capture = Literal["fx", "export"]


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
        given: what the arguments were, by the nodes that stand for them.
        wrote: whether the model's code made text of what is computed.
        by_mode: whether it is another in the other mode, train or eval.
        apart: whether calls were written as several, which compute the same up to rounding.
        decided: what numbers and truth values the model's code decided by.
        redirected: the calls that ask another tensor for a size than the model's code does, with
            the call whose result that asks, and the axis.
        leaves: all that the arguments hold, in order.
        notes: what could not be checked of it, or is not kept.
        detached: the calls that the model makes without gradients.
        stored: the attributes in which the model's code has stored what it computes; see
            :meth:`upscale_opt.tracing.validating.Trial.require_no_memory`.
    """

    kind: Capture
    graph: fx.Graph
    modules: dict[str, nn.Module]
    tensors: dict[str, torch.Tensor]
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    given: dict[fx.Node, Any] = field(default_factory=dict)
    apart: bool = False
    wrote: bool = False
    by_mode: bool = False
    decided: dict[fx.Node, Any] = field(default_factory=dict)
    redirected: dict[fx.Node, tuple[fx.Node, int]] = field(default_factory=dict)
    leaves: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    detached: set[fx.Node] = field(default_factory=set)
    stored: list[str] = field(default_factory=list)


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
    _refuse_wrapped(model)
    if "self" in inspect.signature(model.forward).parameters:
        raise TraceError(
            "an argument of the model is called 'self', as the pruned model itself in its program; "
            "call it something else"
        )
    before = _numbers_drawn()
    captured = by_fx(model, args, kwargs) if kind == "fx" else _by_export(model, args, kwargs)
    if before != _numbers_drawn():
        raise TraceError("the model draws random numbers from Python or NumPy, not from PyTorch")
    captured.leaves = pytree.tree_leaves((args, dict(kwargs)))
    return captured


def _numbers_drawn() -> Any:
    """The states of the random numbers of Python and NumPy."""
    arrays: Any = np.random.get_state()
    return random.getstate(), arrays[1].tolist(), arrays[2]


def _refuse_wrapped(model: nn.Module) -> None:
    """Refuse models that run elsewhere, or on other numbers, and say what to trace instead.

    Raises:
        TraceError: naming the module.
    """
    for name, module in model.named_modules():
        kind = type(module).__name__
        where = f"module {name!r}" if name else "the model"
        spread = kind == "DataParallel" and getattr(module, "device_ids", None)
        if spread or kind in ("DistributedDataParallel", "FullyShardedDataParallel"):
            raise TraceError(
                f"{where} is a {kind}, which runs on several devices; give its .module, and wrap "
                "the pruned model instead"
            )
        own = type(module).__module__
        if own.startswith(_QUANTISED) and not f"{own}.{kind}".startswith(_PREPARED):
            raise TraceError(
                f"{where} is quantised ({own}.{kind}); prune the model before quantising it"
            )


_PREPARED = (
    *("torch.ao.quantization.stubs.", "torch.ao.quantization.observer."),
    "torch.ao.nn.quantized.modules.functional_modules.FloatFunctional",
)
"""Modules that watch, do nothing, or add as ever, in a model that is to be quantised."""

_QUANTISED = tuple(
    f"torch.{place}"
    for place in (
        *("ao.nn.quantized", "ao.nn.intrinsic.quantized", "ao.nn.quantizable", "nn.quantized"),
        *("ao.nn.qat", "ao.nn.intrinsic.qat", "ao.quantization"),
    )
)


def by_fx(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, takes_apart: bool = True
) -> Captured:
    """By :mod:`torch.fx`.

    Args:
        model: the model.
        args: the example's positional arguments.
        kwargs: and its keyword arguments.
        takes_apart: write attention that is a single call as several.

    Raises:
        TraceError: if torch.fx cannot capture the model.
    """
    called = called_of(model)
    try:
        tracer = Tracer(called, args, kwargs, takes_apart=takes_apart)
    except TypeError as error:
        raise TraceError(f"{type(model).__name__} does not take these inputs: {error}") from None
    before = set(vars(model))
    watch = Watch(model)
    with unchanged(model) as snapshot, kept_as_calls(), composed_attention(), masks_as_calls():
        try:
            with watch, updates_in_place(model), modes_asked() as asked, torch.enable_grad():
                tracer.asked = asked
                graph = tracer.trace(model)
        except Exception as error:
            raise TraceError(f"torch.fx: {_line(error)}") from error
        # FX itself sets attributes, for constants; the model's code must not set any.
        added = {name: value for name, value in vars(model).items() if name not in before}
        stored = snapshot.holding_proxies()
        if {name for name, _ in model.named_buffers()}.intersection(stored):
            raise StoresResults(stored)
        within = tuple(f"{name}." for name in stored)
        changed = [n for n in snapshot.changed() if n not in stored and not n.startswith(within)]
        _refuse_state(changed, "torch.fx")
    if watch.reason is not None:  # and the model's code went on
        raise TraceError(f"torch.fx: {watch.reason}")
    tracer.tidy()
    names = tuple(str(node.target) for node in tracer.wanted)
    checks = [Check(tuple(tracer.wanted), names, tuple(tracer.wanted.values()), "torch.fx")]
    checks = [*checks_within(graph), *(checks if names else [])]
    kept = tracer.decided.keys() & set(graph.nodes)
    decided = {node: value for node, value in tracer.decided.items() if node in kept}
    for node, value in decided.items():
        checks.append(Check((node,), (text(node),), (value,), "torch.fx"))
    modules, tensors = {}, {}
    for node in graph.nodes:
        target = str(node.target)
        if node.op == "call_module":
            modules[target] = model.get_submodule(target)
            shared = holds_others(modules[target])
            if shared is not None:
                raise TraceError(f"torch.fx: {target}.{shared} is code that holds modules")
        elif node.op == "get_attr":
            value = added[target] if target in added else _attribute(model, target)
            if not isinstance(value, torch.Tensor):
                raise TraceError(f"torch.fx: the model uses its attribute {target!r} in its graph")
            if isinstance(value, FakeTensor):
                raise TraceError("torch.fx: a hook has kept what it was given where it was tried")
            tensors[target] = value
    named = {id(t) for t in (*model.parameters(), *model.buffers())}
    constants = {name: value for name, value in tensors.items() if id(value) not in named}
    captured = Captured(
        "fx", graph, modules, tensors, constants, checks, tracer.given, tracer.apart
    )
    captured.decided, captured.stored = decided, stored
    captured.wrote, captured.detached = tracer.wrote, tracer.detached
    captured.by_mode = bool(asked) and _differs_by_mode(model, args, kwargs, graph)
    fold_rotations(graph, captured.detached)
    fold_products(graph, tensors, captured.detached)
    return captured


def _differs_by_mode(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], graph: fx.Graph
) -> bool:
    """Tell whether torch.fx captures another program in the other mode."""
    tracer = Tracer(called_of(model), args, kwargs)
    drawing = same_random_state(model, args, dict(kwargs))
    with drawing, unchanged(model), kept_as_calls(), composed_attention(), masks_as_calls():
        for module in model.modules():
            module.training = not module.training
        try:
            with updates_in_place(model):
                other = tracer.trace(model)
        except Exception:  # of any kind, as any code may run there
            return True
    tracer.tidy()
    checks_within(other)
    return str(other) != str(graph)


def _by_export(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Captured:
    """By :mod:`torch.export`: for any batch size if possible, and else for this one."""
    dynamic = _dynamic(model, args, kwargs)
    with quiet(), unchanged(model):
        without_hooks(model)
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
    places = [node for node in graph.nodes if node.op == "placeholder"]
    wanted = _wanted({node.name: node.meta.get("val") for node in places}, guarded)
    signature = inspect.signature(model.forward)
    by_place = dict(zip(places, wanted, strict=True))
    given, check = enter(graph, signature, (args, dict(kwargs)), by_place)
    return Captured("export", graph, {}, tensors, constants, [check] if given else [], given)


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
    """The model's code stores what it computes in attributes, and the next call may depend on it.

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


def without_hooks(model: nn.Module) -> None:
    """Forget the hooks of the model itself, which are carried over as they are."""
    for table in ("_forward_hooks", "_forward_pre_hooks"):
        vars(model)[table].clear()


@contextmanager
def quiet() -> Iterator[None]:
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
