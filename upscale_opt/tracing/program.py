"""Run a captured model on fake tensors, call by call, and build its channel graph."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from upscale_opt.errors import TraceError
from upscale_opt.ir import graph as ir
from upscale_opt.tracing.capture import Capture, Captured, KeepsState, StoresResults, capture
from upscale_opt.tracing.classify import classify
from upscale_opt.tracing.draft import Draft
from upscale_opt.tracing.examples import describe
from upscale_opt.tracing.heads import HeadsRefused, channel_axes
from upscale_opt.tracing.moving import SPREADS
from upscale_opt.tracing.queries import asked, picked, picks_item, sizes_asked
from upscale_opt.tracing.record import MOVEMENT, Call, Recorder, tensors_in
from upscale_opt.tracing.rules import Rule, find_rule
from upscale_opt.tracing.site import CallSite
from upscale_opt.tracing.unchanged import unchanged
from upscale_opt.tracing.values import Abstract, HeadCall, Traced


class _NotInFX(Exception):  # noqa: N818 - caught here: try the other tracer
    """The program does something that only the functional form of torch.export expresses."""


@dataclass
class Program:
    """A captured model and its channel graph, and how they belong together.

    Attributes:
        captured: the calls.
        graph: the channel graph.
        values: for each call its result, with the names of tensors in the graph as leaves, or
            plain values.
        operations: for each call the names of the operations that it amounts to.
        constants: the parameters that calls treat as tensors of the graph, by tensor name.
        effects: the calls that modify a parameter or buffer.
        mutations: the calls that modify an activation in place.
        fresh: the calls that compute into memory of their own.
        ruled: the calls for which the user gave a rule.
        heads: how to write the calls again that work on attention heads.
        fixed_sizes: the calls that ask how many heads there are, or channels in a head; the answer
            is that of the original.
    """

    captured: Captured
    graph: ir.ChannelGraph
    values: dict[fx.Node, Any]
    operations: dict[fx.Node, list[str]]
    constants: dict[str, str]
    effects: set[fx.Node]
    mutations: set[fx.Node]
    fresh: set[fx.Node]
    ruled: dict[fx.Node, Rule]
    heads: dict[fx.Node, HeadCall]
    fixed_sizes: set[fx.Node]


_DATA_DEPENDENT = ("control flow", "data-dependent", "DataDependent", "DynamicOutputShape")
"""What torch's refusals say of code that depends on data."""

_ON_MEMORY = frozenset(
    {
        "as_strided",
        "as_strided_",
        "set_",
        "storage_offset",
        "data_ptr",
        "storage",
        "untyped_storage",
    }
)
"""Calls that look at memory rather than at values, and memory is not what it was in an export."""


def run(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Program:
    """Trace ``model``: by torch.fx, or by torch.export if that fails.

    Raises:
        TraceError: if neither can capture the model, or it does not run on the inputs.
    """
    reasons: list[str] = []
    kinds: tuple[Capture, ...] = ("fx", "export")
    stored: list[str] = []
    for kind in kinds:
        try:
            with unchanged(model):
                _forget(model, stored)
                program = run_as(model, args, kwargs, kind)
                _check_updates(model, program, stored)
                return program
        except KeepsState as error:
            raise TraceError(f"{type(model).__name__} cannot be traced: {error}") from None
        except (TraceError, _NotInFX) as error:
            stored = error.names if isinstance(error, StoresResults) else []
            reasons.append(str(error))
    message = f"{type(model).__name__} cannot be traced: " + "; ".join(reasons)
    if any(word in message for word in _DATA_DEPENDENT):
        message += (
            ". Control flow that depends on data must be moved out of the model, or its submodules "
            "traced one by one"
        )
    raise TraceError(message)


def _forget(model: nn.Module, names: list[str]) -> None:
    """Delete attributes that are written by the model's code: what reads them first must fail."""
    for name in names:
        prefix, _, key = name.rpartition(".")
        vars(model.get_submodule(prefix)).pop(key, None)  # but never a buffer


def _check_updates(model: nn.Module, program: Program, stored: list[str]) -> None:
    """Refuse a program that does not update the buffers which the model's code assigns.

    Raises:
        TraceError: naming the first of them.
    """
    updated = {
        str(node.args[0].target)
        for node in program.captured.graph.nodes
        if node.target is torch.ops.aten.copy_.default and isinstance(node.args[0], fx.Node)
    }
    for name, _ in model.named_buffers():
        if name in stored and name not in updated:
            raise TraceError(
                f"the model assigns its buffer {name!r}, which would get lost; update it in place"
            )


def run_as(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], kind: Capture
) -> Program:
    """Trace ``model`` by one tracer. The model and the random state are as before afterwards.

    Raises:
        TraceError: if this tracer cannot capture the model, or it does not run on the inputs.
    """
    devices = sorted({t.device.index or 0 for t in model.parameters() if t.device.type == "cuda"})
    try:
        with (
            torch.random.fork_rng(devices),
            torch.inference_mode(False),  # whose tensors cannot be looked into
            torch.no_grad(),
            unchanged(model),
        ):
            captured = capture(model, args, kwargs, kind)
            try:
                return _Run(model, captured).trace(args, kwargs)
            except HeadsRefused:
                captured = capture(model, args, kwargs, kind)
                return _Run(model, captured, understands_heads=False).trace(args, kwargs)
    except _NotInFX as error:
        if kind == "export":
            raise TraceError(str(error)) from None
        raise


@dataclass(frozen=True)
class _Parameter:
    """A parameter, buffer or constant as it appears among a call's arguments."""

    name: str
    fake: torch.Tensor


@dataclass
class _Run:
    model: nn.Module
    captured: Captured
    draft: Draft = field(default_factory=Draft)
    mode: FakeTensorMode = field(default_factory=lambda: FakeTensorMode(allow_non_fake_inputs=True))
    values: dict[fx.Node, Any] = field(default_factory=dict)
    fakes: dict[str, torch.Tensor] = field(default_factory=dict)
    parameters: dict[int, Abstract] = field(default_factory=dict)
    storages: dict[int, list[tuple[fx.Node, Traced]]] = field(default_factory=dict)
    registered: dict[int, str] = field(default_factory=dict)
    order: dict[fx.Node, int] = field(default_factory=dict)
    calls: dict[fx.Node, list[str]] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)
    effects: set[fx.Node] = field(default_factory=set)
    mutations: set[fx.Node] = field(default_factory=set)
    fresh: set[fx.Node] = field(default_factory=set)
    ruled: dict[fx.Node, Rule] = field(default_factory=dict)
    measured: dict[fx.Node, dict[str, None]] = field(default_factory=dict)
    heads: dict[fx.Node, HeadCall] = field(default_factory=dict)
    fixed_sizes: set[fx.Node] = field(default_factory=set)
    understands_heads: bool = True

    def trace(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Program:
        self._fake_parameters()
        given = self._bind(args, kwargs)
        self.order = {node: i for i, node in enumerate(self.captured.graph.nodes)}
        for node in list(self.captured.graph.nodes):
            self._visit(node, given)
            for leaf in pytree.tree_leaves(self.values.get(node)):
                if isinstance(leaf, Traced):
                    self.storages.setdefault(_storage(leaf.fake), []).append((node, leaf))
        graph = self.draft.finish(self.captured.kind, describe(args, kwargs))
        names = pytree.tree_map_only(Traced, lambda t: t.name, self.values)
        return Program(
            captured=self.captured,
            graph=graph,
            values=names,
            operations=self.calls,
            constants=self.constants,
            effects=self.effects,
            mutations=self.mutations,
            fresh=self.fresh,
            ruled=self.ruled,
            heads=self.heads,
            fixed_sizes=self.fixed_sizes,
        )

    # Preparation.

    def _fake_parameters(self) -> None:
        memo: dict[int, str] = {}
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            if is_lazy(tensor):
                raise TraceError(f"{name!r} has no shape yet; run the model once before tracing it")
        own = (
            *self.model.named_parameters(remove_duplicate=False),
            *self.model.named_buffers(remove_duplicate=False),
        )
        for name, tensor in (*own, *self.captured.constants.items()):
            first = memo.setdefault(id(tensor), name)
            if first != name:
                self.fakes[name] = self.fakes[first]
                continue
            like = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            fake = FakeTensor(self.mode, like, tensor.device)
            self.fakes[name] = fake
            self.registered[_storage(fake)] = name
            self.draft.shapes[name] = tuple(tensor.shape)
            shape = tuple(tensor.shape)
            self.parameters[id(fake)] = Abstract(shape, parameter=name, original=shape, zero=None)
        for name in self.captured.constants:
            self.draft.untouchable[name] = "it is a constant of the program, not a parameter"
        for name, tensor in self.captured.tensors.items():
            if id(tensor) in memo:
                self.fakes.setdefault(name, self.fakes[memo[id(tensor)]])

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[fx.Node, Any]:
        """The value of every placeholder; our own defaults become the placeholders'."""
        places = [n for n in self.captured.graph.nodes if n.op == "placeholder"]
        if self.captured.kind == "export":
            flat, _ = pytree.tree_flatten((args, dict(kwargs)))
            if len(flat) != len(places):
                raise TraceError("torch.export: the program takes other inputs than the model")
            return dict(zip(places, flat, strict=True))
        signature = inspect.signature(self.model.forward)
        bound = signature.bind(*args, **kwargs)
        given: dict[fx.Node, Any] = {}
        for place in places:
            target = str(place.target)
            name = target.lstrip("*")
            if name not in signature.parameters and name.rpartition("_")[2].isdigit():
                name = name.rpartition("_")[0]
                place.target = name
            if name in bound.arguments:
                given[place] = bound.arguments[name]
            elif target.startswith("*"):
                given[place] = {} if target.startswith("**") else ()
            else:
                given[place] = signature.parameters[name].default
                place.args = (given[place],)
        return given

    # One call after the other.

    def _visit(self, node: fx.Node, given: dict[fx.Node, Any]) -> None:
        if node.op == "placeholder":
            self.values[node] = self._input(node, given[node])
        elif node.op == "get_attr":
            self.values[node] = _Parameter(self._canonical(str(node.target)), self._fake(node))
        elif node.op == "output":
            needed = self._traced(node, node.args[0])
            for tensor in needed:
                if tensor.ids is not None:
                    self.draft.channels.fix(tensor.ids, "network output")
            for source in node.all_input_nodes:
                value = self.values[source]
                if isinstance(value, _Parameter):
                    self.draft.untouchable.setdefault(value.name, "it is a network output")
            names = tuple(tensor.name for tensor in needed)
            self.draft.enter(ir.Output(name=node.name, inputs=names))
        else:
            self._call(node)

    def _fake(self, node: fx.Node) -> torch.Tensor:
        fake = self.fakes.get(str(node.target))
        if fake is None:
            raise TraceError(f"the program uses {node.target!r}, which the model does not register")
        return fake

    def _canonical(self, name: str) -> str:
        found = self.parameters[id(self.fakes[name])].parameter
        assert found is not None
        return found

    def _input(self, node: fx.Node, value: Any) -> Any:
        counter = iter(range(1 << 30))
        single = isinstance(value, torch.Tensor)

        def enter(tensor: torch.Tensor) -> Traced:
            if tensor.layout != torch.strided:
                raise TraceError(
                    f"input {node.name!r} is a {tensor.layout} tensor; give a dense one"
                )
            name = node.name if single else f"{node.name}.{next(counter)}"
            traced = self.draft.new(name, self.mode.from_tensor(tensor))
            traced.why_fixed = "network input"
            self.draft.enter(ir.Input(name=name, outputs=(name,)))
            return traced

        return pytree.tree_map_only(torch.Tensor, enter, value)

    def _traced(self, node: fx.Node, tree: Any) -> list[Traced]:
        """The distinct tensors among a call's arguments."""
        values = fx.node.map_arg(tree, lambda n: self.values[n])
        leaves = pytree.tree_leaves(values)
        return list({id(leaf): leaf for leaf in leaves if isinstance(leaf, Traced)}.values())

    def _call(self, node: fx.Node) -> None:
        if asked(node) in _ON_MEMORY:
            raise TraceError(f"call {node.name!r} looks at memory, which in an export is another")
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: self.values[n])
        leaves = pytree.tree_leaves((args, kwargs))
        picks = node.target is operator.getitem and not isinstance(args[0], (Traced, _Parameter))
        plain = not any(isinstance(leaf, (Traced, _Parameter)) for leaf in leaves)
        faked = pytree.tree_map_only((Traced, _Parameter), lambda leaf: leaf.fake, (args, kwargs))
        try:
            if picks or (plain and self._is_arithmetic(node)):
                assert callable(node.target)
                self.measured[node] = self._measured_before(node)
                self.values[node] = node.target(*args, **kwargs)
                return
            with self.mode, Recorder() as recorder:
                result = self._execute(node, *faked)
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            raise TraceError(
                f"call {node.name!r} fails on inputs of these shapes: "
                f"{type(error).__name__}: {text}"
            ) from error
        inputs = list({id(v): v for v in leaves if isinstance(v, Traced)}.values())
        self._mutations(node, recorder.calls, tensors_in(result))
        if not tensors_in(result):
            self.values[node] = result
            self.measured[node] = self._measured_before(node)
            self.measured[node].update(dict.fromkeys(tensor.name for tensor in inputs))
            self._measure(node, inputs)
            return
        site = self._site(node, (args, kwargs), inputs, recorder.calls, result)
        read = {_storage(tensor) for tensor in tensors_in(faked)}
        own = read.isdisjoint(_storage(tensor) for tensor in tensors_in(result))
        if own and any(call.name not in MOVEMENT for call in recorder.calls):
            self.fresh.add(node)
        held = [leaf for leaf in leaves if isinstance(leaf, _Parameter)]
        constants = {parameter.name: self._constant(node, parameter) for parameter in held}
        retry = partial(_with_constants, site, constants) if held else None
        rule = find_rule(node.target, site.module)
        if rule is not None:
            self.ruled[node] = rule
        found = classify(site, self.draft.channels, retry, rule, self.understands_heads)
        self._add(found, site, constants)

    @staticmethod
    def _is_arithmetic(node: fx.Node) -> bool:
        return node.op == "call_function" and (
            getattr(node.target, "__module__", "") in ("_operator", "builtins", "math")
        )

    def _site(
        self,
        node: fx.Node,
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
        inputs: list[Traced],
        calls: list[Call],
        result: Any,
    ) -> CallSite:
        changed = {id(tensor) for call in calls for tensor in call.changed}
        known = {id(tensor.fake): tensor for tensor in inputs if id(tensor.fake) not in changed}
        outputs: list[Traced] = []
        single = isinstance(result, torch.Tensor)

        numbers: list[int] = []
        counter = iter(range(1 << 30))
        wanted = picked(node, result)

        def name_result(fake: torch.Tensor) -> Traced | None:
            number = next(counter)
            if wanted is not None and number not in wanted:
                return None
            if id(fake) in known:  # handed through as it is
                return known[id(fake)]
            numbers.append(number)
            outputs.append(self.draft.new(node.name if single else f"{node.name}.{number}", fake))
            return outputs[-1]

        self.values[node] = pytree.tree_map_only(torch.Tensor, name_result, result)
        return CallSite(
            node=node,
            module=self.captured.modules.get(str(node.target))
            if node.op == "call_module"
            else None,
            arguments=arguments,
            inputs=inputs,
            outputs=outputs,
            numbers=numbers,
            calls=calls,
            run=partial(self._execute, node),
            parameters=self.parameters,
            own=self._own(node),
        )

    def _constant(self, node: fx.Node, parameter: _Parameter) -> Traced:
        """A tensor that holds ``parameter``, for a call that treats it like an activation."""
        traced = Traced(f"{node.name}.{parameter.name}", parameter.fake, is_constant=True)
        long = [axis for axis, size in enumerate(traced.shape) if size > 1]
        if len(long) == 1:
            traced.axis = long[0]
            traced.ids = self.draft.channels.fresh(traced.shape[long[0]])
        return traced

    def _own(self, node: fx.Node) -> dict[str, torch.Tensor]:
        if node.op != "call_module":
            return {}
        target = str(node.target)
        module = self.captured.modules[target]
        names = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
        return {name: self.fakes[f"{target}.{name}"] for name in names}

    def _add(
        self, operations: list[ir.Operation], site: CallSite, constants: dict[str, Traced]
    ) -> None:
        operations = [self._with_sizes(operation, site.node) for operation in operations]
        self.calls[site.node] = [operation.name for operation in operations]
        self.draft.tensors.update({tensor.name: tensor for tensor in site.between})
        if site.heads:
            self.heads[site.node] = site.heads[0]
            self.draft.attending.add(site.node.name)
        read = {name for op in operations for name in (*op.inputs, *op.whole)}
        for parameter, traced in constants.items():
            if traced.name in read:
                name = traced.name
                self.draft.tensors[name] = traced
                self.constants[name] = parameter
                constant = ir.Constant(
                    name=name, outputs=(name,), parameter=parameter, axis=traced.axis
                )
                self.draft.enter(constant)
        for operation in operations:
            self.draft.enter(operation)
            if site.node in self.effects:
                for output in site.outputs:
                    if output.ids is not None:
                        self.draft.channels.fix(output.ids, f"{site.node.name}: modifies a buffer")
                self.draft.enter(
                    ir.Opaque(
                        name=f"{operation.name}.effect",
                        inputs=operation.outputs,
                        reason="modifies a parameter or buffer",
                    )
                )
            is_opaque = isinstance(operation, ir.Opaque) and operation.reason != SPREADS
            if is_opaque or site.node in self.ruled:
                target = str(site.node.target)
                own = [] if site.module is None else site.module.state_dict(keep_vars=True)
                names = [self._canonical(f"{target}.{name}") for name in own]
                for name in {*names, *constants}.difference(ir.parameters_of(operation)):
                    self.draft.untouchable.setdefault(name, f"{site.node.name} is not understood")

    def _with_sizes(self, operation: ir.Operation, node: fx.Node) -> ir.Operation:
        """Remember whose sizes the call uses; selections and joins are written without any."""
        if isinstance(operation, (ir.Select, ir.Concat)):
            return operation
        read = {*operation.inputs, *operation.whole}
        sizes = tuple(name for name in self._measured_before(node) if name not in read)
        return operation.model_copy(update={"sizes": sizes}) if sizes else operation

    def _measured_before(self, node: fx.Node) -> dict[str, None]:
        """The tensors whose sizes the numbers among the call's arguments were made from."""
        sources = node.all_input_nodes
        return {name: None for source in sources for name in self.measured.get(source, ())}

    def _measure(self, node: fx.Node, inputs: list[Traced]) -> None:
        """A call that asks a tensor for its sizes and the like, or for its data."""
        name = asked(node)
        tensors = [tensor for tensor in inputs if tensor.ids is not None]
        spread = any(tensor.spread is not None for tensor in inputs)
        if name in ("dim", "ndim", "ndimension", "dtype", "device", "is_floating_point", "is_cuda"):
            return
        if (
            name in ("size", "shape", "sym_size")
            and not spread
            and (
                (len(node.args) > 1 and name != "shape")
                or all(picks_item(user) for user in node.users)
            )
        ):
            return
        if name in ("size", "shape", "sym_size") and len(inputs) == 1 and self.understands_heads:
            known = channel_axes(inputs[0]) if spread else []
            if known and sizes_asked(node, inputs[0].fake.ndim) <= set(known):
                self.fixed_sizes.add(node)
                self.measured[node].pop(inputs[0].name, None)
                return
        for tensor in tensors:
            assert tensor.ids is not None
            self.draft.channels.fix(tensor.ids, f"{node.name}: asks for more than single sizes")
        self.draft.enter(
            ir.Opaque(
                name=node.name,
                inputs=tuple(tensor.name for tensor in inputs),
                reason="asks for more than single sizes",
            )
        )

    def _mutations(self, node: fx.Node, calls: list[Call], results: list[torch.Tensor]) -> None:
        """Let later readers of a tensor modified in place read the result instead."""
        returned = {id(tensor) for tensor in results}
        order = self.order
        for fake in {id(f): f for call in calls for f in call.changed}.values():
            if node.op != "call_module" and _storage(fake) in self.registered:
                self.effects.add(node)
                name = self.registered[_storage(fake)]
                self.draft.untouchable.setdefault(name, f"{node.name} modifies it")
            for earlier, tensor in self.storages.get(_storage(fake), []):
                self.mutations.add(node)
                if any(torch.Tag.inplace_view in call.func.tags for call in calls):
                    raise _NotInFX(f"torch.fx: {node.name!r} changes a shape in place")
                later = [user for user in earlier.users if order[user] > order[node]]
                itself = tensor.fake is fake and self.values[earlier] is tensor
                if later and itself and returned == {id(fake)}:
                    for user in later:
                        user.replace_input_with(earlier, node)
                elif later:
                    raise _NotInFX(
                        f"torch.fx: {node.name!r} modifies {earlier.name!r} in place through a view"
                    )

    def _execute(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node.op == "call_module":
            target = str(node.target)
            module = self.captured.modules[target]
            state = self._own(node)
            if not state:
                return module(*args, **kwargs)
            return functional_call(module, state, args, kwargs, tie_weights=True)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


def _with_constants(site: CallSite, constants: dict[str, Traced]) -> CallSite:
    """The same call with its parameters as tensors of the graph."""

    def swap(leaf: Any) -> Any:
        return constants[leaf.name]

    arguments = pytree.tree_map_only(_Parameter, swap, site.arguments)
    leaves = pytree.tree_leaves(arguments)
    inputs = list({id(v): v for v in leaves if isinstance(v, Traced)}.values())
    return replace(site, arguments=arguments, inputs=inputs)


def _storage(fake: torch.Tensor) -> int:
    return int(fake.untyped_storage()._cdata)
