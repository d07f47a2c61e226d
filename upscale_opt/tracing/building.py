"""Run a captured model on fake tensors, call by call, and build its channel graph."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from upscale_opt.errors import TraceError
from upscale_opt.ir import graph as ir
from upscale_opt.runtime import recorded
from upscale_opt.runtime.recorded import assign
from upscale_opt.tracing.asking import SIZES, ask_others, ask_singly
from upscale_opt.tracing.capture import Captured, quiet
from upscale_opt.tracing.channels import Array, Channels, units
from upscale_opt.tracing.classify import classify, opaque
from upscale_opt.tracing.draft import Draft
from upscale_opt.tracing.examples import describe
from upscale_opt.tracing.fakes import Fakes, Parameter, memory
from upscale_opt.tracing.heads import HeadsRefused
from upscale_opt.tracing.moving import SPREADS, only_moves
from upscale_opt.tracing.numbering import Numbers
from upscale_opt.tracing.program import Program
from upscale_opt.tracing.queries import asked, axes_squeezed, picked, squeezes_all
from upscale_opt.tracing.record import MOVEMENT, Call, Recorder, tensors_in
from upscale_opt.tracing.resize import takes_sizes
from upscale_opt.tracing.rules import Rule, find_rule
from upscale_opt.tracing.site import CallSite
from upscale_opt.tracing.sizes import Sizes
from upscale_opt.tracing.values import HeadCall, Traced
from upscale_opt.tracing.varying import (
    Overlay,
    counts,
    is_foreign,
    others,
    resized_fake,
    same_calls,
    same_channels,
    same_operations,
    weakest,
)


class NotInFX(TraceError):  # noqa: N818 - caught in tracing: try the other tracer
    """The program does something that only the functional form of torch.export expresses."""


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

_OF_KIND = {"dtype", "device", "is_floating_point", "is_cuda"}
"""Questions whose answers are the same for whatever is rearranged."""

_PLAIN = ("_operator", "builtins", "math", recorded.__name__)
"""Modules of functions of numbers."""

_COUNTS = "does not do the same to any number of channels"

_EFFECT = "modifies a parameter or buffer"


class Builder:
    """Builds the channel graph of one captured model.

    Args:
        model: the model.
        captured: its calls.
        understands_heads: whether attention is looked for.
        numbers: gets the number of everything that is computed.
        shapes: other shapes for inputs, by ``id``.
        weak: operations of which nothing is to be supposed that zeros do.

    Attributes:
        fakes: the tensors without data that it is run on.
        guarded: numbers on which more depends than zeros, and what they were.
        unsettled: whether the graph may be another one at other sizes.
    """

    def __init__(
        self,
        model: nn.Module,
        captured: Captured,
        understands_heads: bool = True,
        numbers: Numbers | None = None,
        shapes: Mapping[int, Sequence[int]] = MappingProxyType({}),
        weak: Collection[str] = (),
    ) -> None:
        self._captured = captured
        self._numbers = numbers
        self._understands_heads = understands_heads
        self._shapes = shapes
        self._weak = weak
        self.fakes = Fakes(model, captured)
        if numbers is not None:
            numbers.name_own(self.fakes.real.values(), captured.constants)
        self._draft = Draft(shapes=self.fakes.shapes)
        for name in captured.constants:
            self._draft.untouchable[name] = "it is a constant of the program, not a parameter"
        self._sizes = Sizes(self._draft, understands_heads)
        self._order = {node: i for i, node in enumerate(captured.graph.nodes)}
        self._values: dict[fx.Node, Any] = {}
        self._holders: dict[int, list[tuple[fx.Node, Traced]]] = {}
        self._operations: dict[fx.Node, list[str]] = {}
        self._constants: dict[str, str] = {}
        self._effects: set[fx.Node] = set()
        self._mutations: set[fx.Node] = set()
        self._made: dict[int, fx.Node] = {}
        self._fresh: set[fx.Node] = set()
        self._ruled: dict[fx.Node, Rule] = {}
        self._heads: dict[fx.Node, HeadCall] = {}
        self._inputs: dict[str, torch.Tensor] = {}
        self.guarded: dict[fx.Node, Any] = {}
        self._loose: dict[str, set[fx.Node]] = {}
        self._rigid: set[fx.Node] = set()
        self.unsettled = False

    def build(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Program:
        """Run the model on fake inputs.

        Raises:
            TraceError: if it does not run, or does what no graph can hold.
            NotInFX: if the other tracer may be able to.
            HeadsRefused: if attention cannot be expressed.
        """
        given = self._captured.given
        for node in list(self._captured.graph.nodes):
            self._visit(node, given)
            for leaf in pytree.tree_leaves(self._values.get(node)):
                if isinstance(leaf, Traced):
                    self._holders.setdefault(memory(leaf.fake), []).append((node, leaf))
            value = self._values.get(node)
            if isinstance(value, Traced):
                self._made.setdefault(id(value), node)
        return Program(
            captured=self._captured,
            graph=self._draft.finish(self._captured.kind, describe(args, kwargs)),
            values=pytree.tree_map_only(Traced, lambda t: t.name, self._values),
            operations=self._operations,
            constants=self._constants,
            effects=self._effects,
            mutations=self._mutations,
            fresh=self._fresh,
            ruled=self._ruled,
            heads=self._heads,
            fixed_sizes=self._sizes.fixed,
            sizes=self._sizes.axes,
            loose=frozenset(name for name, by in self._loose.items() if by - self._rigid),
        )

    @property
    def settled(self) -> set[fx.Node]:
        """The calls that give numbers of channels, or what is made of these alone."""
        return self._sizes.settled

    def result(self) -> Any:
        """The results of the program, in fake tensors."""
        found = [
            fx.node.map_arg(node.args[0], lambda n: self._values[n])
            for node in self._captured.graph.nodes
            if node.op == "output"
        ]
        return pytree.tree_map_only((Traced, Parameter), lambda leaf: leaf.fake, found[0])

    def broadcast(self) -> dict[int, set[int]]:
        """The axes of inputs whose sizes say how they are broadcast, by the tensors' ``id``.

        Along channels, what is of size one at first, and for all channels alike, is to stay so.
        """
        if len(self._inputs) < 2:
            return {}
        above: dict[str, set[str]] = {name: {name} for name in self._inputs}
        combined: set[str] = set()
        for op in self._draft.operations:
            found = {n for name in (*op.inputs, *op.whole) for n in above.get(name, ())}
            for name in op.outputs:
                above.setdefault(name, found)
            if isinstance(op, (ir.Elementwise, ir.ChannelWise)) and (op.whole or op.inputs[1:]):
                combined |= found
        rank = max(x.ndim for x in self._inputs.values())
        fixed: dict[int, set[int]] = {}
        for name in combined:
            x = self._inputs[name]
            axes = {a for a, size in enumerate(x.shape) if size == 1 and (a or x.ndim < rank)}
            fixed[id(x)] = axes | {a for a in (self._draft.tensors[name].axis,) if a is not None}
        return fixed

    # Inputs and outputs.

    def _input(self, node: fx.Node, value: Any) -> Any:
        numbers = count()
        single = isinstance(value, torch.Tensor)

        def enter(tensor: torch.Tensor) -> Traced:
            if tensor.layout != torch.strided:
                raise TraceError(
                    f"input {node.name!r} is a {tensor.layout} tensor; give a dense one"
                )
            name = node.name if single else f"{node.name}.{next(numbers)}"
            fake: torch.Tensor = self.fakes.mode.from_tensor(tensor)
            if id(tensor) in self._shapes:
                with self.fakes.mode:
                    fake = fake.new_empty(tuple(self._shapes[id(tensor)]))
            if self._numbers is not None:
                self._numbers.name(fake, ("input", id(tensor)))
            traced = self._draft.new(name, fake)
            traced.why_fixed = "network input"
            self._inputs[name] = tensor
            self._draft.enter(ir.Input(name=name, outputs=(name,)))
            return traced

        return pytree.tree_map_only(torch.Tensor, enter, value)

    def _output(self, node: fx.Node) -> None:
        values = fx.node.map_arg(node.args[0], lambda n: self._values[n])
        needed = _distinct(pytree.tree_leaves(values))
        for tensor in needed:
            if tensor.ids is not None:
                self._draft.channels.fix(tensor.ids, "network output")
        for source in node.all_input_nodes:
            value = self._values[source]
            if isinstance(value, Parameter):
                self._draft.untouchable.setdefault(value.name, "it is a network output")
        names = tuple(tensor.name for tensor in needed)
        checked = {*self._captured.decided, *self.guarded}
        checked |= {n for check in self._captured.checks for n in check.inputs}
        checked |= {n for n in self._values if n.target is torch._assert}
        checked |= {n for n, operations in self._operations.items() if not operations}
        sizes = self._sizes.read_by(sorted(checked, key=self._order.__getitem__))
        sizes = [name for name in sizes if name not in names]
        self._draft.enter(ir.Output(name=node.name, inputs=names, sizes=tuple(sizes)))

    # One call after the other.

    def _visit(self, node: fx.Node, given: dict[fx.Node, Any]) -> None:
        if node.op == "placeholder":
            self._values[node] = self._input(node, given[node])
            if self._captured.kind == "fx":
                self._sizes.enter(node, self._values[node])
        elif node.op == "get_attr":
            self._values[node] = self.fakes.parameter(node)
        elif node.op == "output":
            self._output(node)
        else:
            self._call(node)
            decided = self._captured.decided
            if node in decided and self._values[node] != decided[node]:
                raise TraceError(f"{node.name!r} is {self._values[node]}, not {decided[node]}")

    def _call(self, node: fx.Node) -> None:
        if asked(node) in _ON_MEMORY:
            raise TraceError(f"call {node.name!r} looks at memory, which in an export is another")
        if asked(node) in _OF_KIND:
            self._ask_source(node)
        if asked(node) in (*SIZES, "numel"):
            self._ask_singly(node)
        if asked(node) in SIZES and self._understands_heads:
            self._ask_others(node)
        arguments = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: self._values[n])
        leaves = pytree.tree_leaves(arguments)
        if _is_arithmetic(node, arguments[0], leaves):
            with _failing(node):
                self._values[node] = self.fakes.execute(node, *arguments)
            self._sizes.hand_on(node, self._values[node])
            if node.target is operator.getitem and _holds_tensors(arguments[0][0]):
                self._fix_index(node, arguments[0][1])
            return
        faked = pytree.tree_map_only((Traced, Parameter), lambda leaf: leaf.fake, arguments)
        with _failing(node), self.fakes.mode, Recorder() as recorder:
            result = self.fakes.execute(node, *faked)
        if self._numbers is not None:
            for call in recorder.calls:
                event = self._numbers.event(call.func, call.args, call.kwargs)
                self._numbers.follow(event, call.func, call.args, call.kwargs, call.result)
        changed = _changed(node, recorder.calls, tensors_in(faked))
        self._follow_changes(node, recorder.calls, changed, tensors_in(result))
        inputs = _distinct(leaves)
        # Tensors in objects that are no containers to PyTorch are not followed any further.
        if not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(result)):
            self._values[node] = result
            self._sizes.ask(node, inputs, result)
            if inputs:
                self._guard(node.all_input_nodes)
                self._rigid.update(*(self._loose.get(x.name, ()) for x in inputs))
            return
        if _is_fresh(recorder.calls, tensors_in(faked), tensors_in(result)):
            self._fresh.add(node)
        site = self._site(node, arguments, inputs, recorder.calls, result, changed)
        self._understand(site, [leaf for leaf in leaves if isinstance(leaf, Parameter)])

    def _ask_source(self, node: fx.Node) -> None:
        """Let ``node`` ask what a tensor is of the one that it was rearranged from.

        The rearrangement may be left out.
        """
        source = node.args[0] if node.args else None
        while isinstance(source, fx.Node):
            value: Any = self._values.get(source)
            before = source.args[0] if source.args else None
            held: Any = self._values.get(before) if isinstance(before, fx.Node) else None
            if not (isinstance(value, Traced) and isinstance(held, Traced)):
                break
            if value.spread is None or value.fake.dtype != held.fake.dtype:
                break
            source = before
        if source is not node.args[0]:
            node.update_arg(0, source)

    def _ask_singly(self, node: fx.Node) -> None:
        """Let what looks at all sizes of a tensor look at one after the other, where it may."""
        source = node.args[0] if node.args else None
        value: Any = self._values.get(source) if isinstance(source, fx.Node) else None
        if isinstance(value, Traced) and self._captured.kind == "fx":
            for new in ask_singly(node, len(value.shape)):
                self._order[new] = self._order[node]
                self._visit(new, {})

    def _ask_others(self, node: fx.Node) -> None:
        """Let ``node`` ask for sizes of what a tensor was made of, if its channels are spread.

        Raises:
            HeadsRefused: if those sizes are others, as they may be with other inputs.
        """
        source = node.args[0] if node.args else None
        value: Any = self._values.get(source) if isinstance(source, fx.Node) else None
        if isinstance(source, fx.Node) and isinstance(value, Traced):
            for call, axis in ask_others(node, value, lambda x: self._made.get(id(x))):
                self._captured.redirected[call] = source, axis
                self.unsettled = True
        if node in self._captured.redirected:
            before, axis = self._captured.redirected[node]
            original, origin = self._values[before], self._values[node.args[0]]  # type: ignore[index]
            if original.shape[axis] != origin.shape[node.args[1]]:
                raise HeadsRefused(f"{node.name}: sizes that were equal are not in another call")

    def _understand(self, site: CallSite, held: list[Parameter]) -> None:
        """Add what a call amounts to; ``held`` are the parameters among its arguments."""
        constants = {x.name: _constant(site.node, x, self._draft.channels) for x in held}
        retry = partial(_with_constants, site, constants) if held else None
        rule = find_rule(site.node.target, site.module)
        if rule is not None:
            self._ruled[site.node] = rule
        before = [(x, x.axis, x.ids) for x in site.inputs]
        first = self._draft.channels.count
        found = classify(site, self._draft.channels, retry, rule, self._understands_heads)
        if rule is None and site.outputs:
            if is_foreign(site.node, site.module) and not self._is_open(found, site, held):
                found = [opaque(site, self._draft.channels, _COUNTS)]
            found = self._for_any_number(found, site, held, before, first)
            self._look_out(found, site)
        else:
            self._guard(site.node.all_input_nodes)
        self._add(found, site, constants)

    def _for_any_number(
        self,
        found: list[ir.Operation],
        site: CallSite,
        held: list[Parameter],
        before: list[tuple[Traced, int | None, Array | None]],
        first: int,
    ) -> list[ir.Operation]:
        """Find what a call amounts to, whatever the numbers are that it is given.

        Numbers of which more depends than zeros are to be what they were; see ``guarded``.

        Args:
            found: what it amounts to with those of the example.
            site: the call.
            held: the parameters among its arguments.
            before: the tensors that it reads, and what was known of them before it.
            first: the first id of a channel that it may have made.
        """
        numbers = [n for n in site.node.all_input_nodes if n in self._sizes.varying]
        if any(isinstance(op, ir.Opaque) for op in found):
            self._guard(numbers)
            return found
        if not numbers:
            return found
        if takes_sizes(site.node):  # one of them alone cannot be another
            self._guard(numbers)
            self.unsettled = True
            return found
        moves = only_moves(site)
        for number in numbers:
            settled = False
            for other in others(self._values[number], site.calls, moves=moves):
                tried = self._tried(site, held, before, first, {number: other})
                if tried is None:
                    continue
                settled = True
                operations, outputs = tried
                if not same_channels(site.outputs, outputs) or not same_operations(
                    found, operations
                ):
                    self.guarded[number] = self._values[number]
                    break
                found = [weakest(a, b) for a, b in zip(found, operations, strict=True)]
            if not settled:
                self._guard([number])
                self.unsettled = True
        return found

    def _fix_index(self, node: fx.Node, index: Any) -> None:
        """Let ``node`` pick the tensor that it picked, where a number has said which."""
        number = node.args[1]
        if isinstance(number, fx.Node):
            self.guarded[number] = index
            node.update_arg(1, index)

    def _guard(self, nodes: Iterable[fx.Node]) -> None:
        """Let those of ``nodes`` be what they were that are numbers among the inputs."""
        for node in nodes:
            if node in self._sizes.given:
                self.guarded[node] = self._values[node]

    def _tried(
        self,
        site: CallSite,
        held: list[Parameter],
        before: list[tuple[Traced, int | None, Array | None]],
        first: int,
        numbers: Mapping[fx.Node, Any],
    ) -> tuple[list[ir.Operation], list[Traced]] | None:
        """Find what a call amounts to with other numbers; ``None`` if it does not run."""
        clones = {
            id(x): replace(x, axis=axis, ids=None if ids is None else ids.copy())
            for x, axis, ids in before
        }
        for clone, (x, _, _) in zip(clones.values(), before, strict=True):
            clone.shape = x.shape
        overlay = Overlay(self._draft.channels, first)
        other = self._again(site, clones, {}, numbers)
        if other is None:
            return None
        return self._classified(other, held, overlay), other.outputs

    def _classified(
        self, site: CallSite, held: list[Parameter], channels: Channels
    ) -> list[ir.Operation]:
        retry = None
        if held:
            constants = {x.name: _constant(site.node, x, channels) for x in held}
            retry = partial(_with_constants, site, constants)
        return classify(site, channels, retry, None, self._understands_heads)

    def _again(
        self,
        site: CallSite,
        inputs: Mapping[int, Traced],
        parameters: Mapping[str, Parameter],
        numbers: Mapping[fx.Node, Any],
    ) -> CallSite | None:
        """The same call on other tensors and numbers; ``None`` if it does not run on them."""
        node = site.node

        def value(source: fx.Node) -> Any:
            if source in numbers:
                return numbers[source]
            tree = self._values[source]
            tree = pytree.tree_map_only(Traced, lambda x: inputs.get(id(x), x), tree)
            return pytree.tree_map_only(Parameter, lambda x: parameters.get(x.name, x), tree)

        arguments = fx.node.map_arg((node.args, dict(node.kwargs)), value)
        faked = pytree.tree_map_only((Traced, Parameter), lambda leaf: leaf.fake, arguments)
        try:
            with quiet(), self.fakes.mode, Recorder() as recorder:
                result = self.fakes.execute(node, *faked)
        except Exception:  # whatever such arguments lead to
            return None
        made = tensors_in(result)
        if len(made) <= max(site.numbers):
            return None
        outputs = [
            Traced(x.name, made[number])
            for x, number in zip(site.outputs, site.numbers, strict=True)
        ]
        return replace(
            site,
            arguments=arguments,
            inputs=list(inputs.values()),
            outputs=outputs,
            calls=recorder.calls,
            between=[],
            heads=[],
        )

    def _is_open(self, found: list[ir.Operation], site: CallSite, held: list[Parameter]) -> bool:
        """Tell whether an unseen call amounts to ``found`` for any number of channels.

        What it asks of sizes is not seen.
        """
        if all(isinstance(op, (ir.Opaque, ir.Select, ir.Concat)) for op in found):
            return True
        if site.own or any(isinstance(op, (ir.Layer, ir.Attention)) for op in found):
            return False
        own = [x for x in site.inputs if x.ids is not None]
        sizes = {len(x.ids) for x in own if x.ids is not None}
        axes = {use.name: use.axis for op in found for use in getattr(op, "parameters", ())}
        if len(sizes) != 1 or len(found) != 1 or {x.name for x in held} != axes.keys():
            return False
        if any(call.name == "squeeze" and len(call.args) == 1 for call in site.calls):
            return False
        return all(self._is_same(found, site, held, axes, size) for size in counts(*sizes))

    def _is_same(
        self,
        found: list[ir.Operation],
        site: CallSite,
        held: list[Parameter],
        axes: Mapping[str, int],
        size: int,
    ) -> bool:
        """Tell whether a call with ``size`` channels amounts to ``found``."""
        overlay = Overlay(self._draft.channels, self._draft.channels.count)
        ids: dict[bytes, Array] = {}
        clones: dict[int, Traced] = {}
        known = dict(site.parameters)
        for x in site.inputs:
            clones[id(x)] = replace(x)
            if x.axis is not None and x.ids is not None:
                key = self._draft.channels.resolve(x.ids).tobytes()
                if key not in ids:
                    ids[key] = overlay.fresh(size)
                fake = resized_fake(x.fake, x.axis, size)
                clones[id(x)] = replace(x, fake=fake, ids=ids[key])
        parameters = {}
        for parameter in held:
            fake = resized_fake(parameter.fake, axes[parameter.name], size)
            parameters[parameter.name] = replace(parameter, fake=fake)
            shape = tuple(fake.shape)
            known[id(fake)] = replace(known[id(parameter.fake)], shape=shape, original=shape)
        other = self._again(site, clones, parameters, {})
        if other is None or not same_calls(site.calls, other.calls):
            return False
        if size == 1:  # with which it would not show which axis is theirs
            return True
        operations = self._classified(
            replace(other, parameters=known), list(parameters.values()), overlay
        )
        return operations == found and other.outputs[0].axis == site.outputs[0].axis

    def _look_out(self, found: list[ir.Operation], site: CallSite) -> None:
        """Note whether a call may do something else at other sizes, though no number says so."""
        if all(isinstance(op, ir.Opaque) and op.reason != SPREADS for op in found):
            return
        if takes_sizes(site.node):
            self.unsettled = True
        for x in site.outputs:
            if x.ids is not None and only_moves(site) and units(x.ids)[1] > 1:
                self.unsettled = True
        for op in found:
            if isinstance(op, ir.Elementwise) and op.additive:
                shape, axis = site.outputs[0].shape, site.outputs[0].axis
                self.unsettled |= any(
                    size == 1 for a, size in enumerate(shape) if a not in (0, axis)
                )

    def _site(
        self,
        node: fx.Node,
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
        inputs: list[Traced],
        calls: list[Call],
        result: Any,
        changed: Mapping[int, torch.Tensor],
    ) -> CallSite:
        known = {id(tensor.fake): tensor for tensor in inputs if id(tensor.fake) not in changed}
        outputs: list[Traced] = []
        numbers: list[int] = []
        single = isinstance(result, torch.Tensor)
        counter = count()
        wanted = picked(node, result)

        def name_result(fake: torch.Tensor) -> Traced | None:
            number = next(counter)
            if wanted is not None and number not in wanted:
                return None
            if id(fake) in known:  # handed through as it is
                return known[id(fake)]
            numbers.append(number)
            outputs.append(self._draft.new(node.name if single else f"{node.name}.{number}", fake))
            return outputs[-1]

        self._values[node] = pytree.tree_map_only(torch.Tensor, name_result, result)
        is_module = node.op == "call_module"
        return CallSite(
            node=node,
            module=self._captured.modules.get(str(node.target)) if is_module else None,
            arguments=arguments,
            inputs=inputs,
            outputs=outputs,
            numbers=numbers,
            calls=calls,
            run=partial(self.fakes.execute, node),
            parameters=self.fakes.known,
            own=self.fakes.of_module(node),
        )

    def _follow_changes(
        self,
        node: fx.Node,
        calls: list[Call],
        changed: Mapping[int, torch.Tensor],
        results: list[torch.Tensor],
    ) -> None:
        """Let later readers of a tensor modified in place read the result instead."""
        returned = {id(tensor) for tensor in results}
        for fake in changed.values():
            if node.op != "call_module" and memory(fake) in self.fakes.names:
                self._effects.add(node)
                name = self.fakes.names[memory(fake)]
                self._draft.untouchable.setdefault(name, f"{node.name} modifies it")
            for earlier, tensor in self._holders.get(memory(fake), []):
                self._mutations.add(node)
                if any(torch.Tag.inplace_view in call.func.tags for call in calls):
                    raise NotInFX(f"torch.fx: {node.name!r} changes a shape in place")
                later = [user for user in earlier.users if self._order[user] > self._order[node]]
                itself = tensor.fake is fake and self._values[earlier] is tensor
                if later and itself and returned == {id(fake)}:
                    for user in later:
                        user.replace_input_with(earlier, node)
                elif later:
                    raise NotInFX(
                        f"torch.fx: {node.name!r} modifies {earlier.name!r} in place through a view"
                    )

    # What a call amounts to.

    def _add(
        self, operations: list[ir.Operation], site: CallSite, constants: dict[str, Traced]
    ) -> None:
        """Enter the operations of a call into the graph, behind the constants that they read."""
        node = site.node
        guarded = any(source in self.guarded for source in node.all_input_nodes)
        operations = [self._sizes.added(operation, node, guarded) for operation in operations]
        operations = [weakest(op, None) if op.name in self._weak else op for op in operations]
        self._operations[node] = [operation.name for operation in operations]
        self._draft.tensors.update({tensor.name: tensor for tensor in site.between})
        self._follow_squeezes(operations, site)
        if site.heads:
            self._heads[node] = site.heads[0]
            self._draft.attending.add(node.name)
        self._add_constants(operations, constants)
        for operation in operations:
            self._draft.enter(operation)
            if node in self._effects:
                self._add_effect(operation, site)
            is_opaque = isinstance(operation, ir.Opaque) and operation.reason != SPREADS
            if is_opaque or node in self._ruled:
                self._keep_parameters(operation, site, constants)

    def _follow_squeezes(self, operations: list[ir.Operation], site: CallSite) -> None:
        """Note which tensors have fewer axes where more are of size one than in the example."""
        node = site.node
        above = {root for x in site.inputs for root in self._loose.get(x.name, ())}
        if not all(_counts_from_behind(op, site) for op in operations):
            self._rigid |= above if not squeezes_all(node) else set()
        if squeezes_all(node):
            above.add(node)
        named = {axis % len(x.shape) for x in site.inputs for axis in axes_squeezed(node)}
        channels = site.inputs[0].axis if named else None
        first = named if channels is None else {axis for axis in named if axis < channels}
        if first:
            above.add(node)
            self._rigid |= {node} if named - first else set()
        for x in site.outputs if above else ():
            self._loose[x.name] = above

    def ranks(self, graph: ir.ChannelGraph) -> dict[fx.Node, int]:
        """The number of axes that calls must leave which remove those of size one.

        Only where it matters; those that move channels see to it when they are called.
        """
        moving = {op.name for op in graph.operations if isinstance(op, ir.ChannelWise)}
        return {
            node: len(self._values[node].shape)
            for node in sorted(self._rigid, key=self._order.__getitem__)
            if not (squeezes_all(node) and moving.issuperset(self._operations[node]))
        }

    def _add_constants(self, operations: list[ir.Operation], constants: dict[str, Traced]) -> None:
        read = {name for op in operations for name in (*op.inputs, *op.whole)}
        for parameter, traced in constants.items():
            name = traced.name
            if name in read:
                self._draft.tensors[name] = traced
                self._constants[name] = parameter
                self._draft.enter(
                    ir.Constant(name=name, outputs=(name,), parameter=parameter, axis=traced.axis)
                )

    def _add_effect(self, operation: ir.Operation, site: CallSite) -> None:
        """Keep what is written into a parameter or buffer."""
        for output in site.outputs:
            if output.ids is not None:
                self._draft.channels.fix(output.ids, f"{site.node.name}: modifies a buffer")
        name = f"{operation.name}.effect"
        self._draft.enter(ir.Opaque(name=name, inputs=operation.outputs, reason=_EFFECT))

    def _keep_parameters(
        self, operation: ir.Operation, site: CallSite, constants: dict[str, Traced]
    ) -> None:
        """Keep the parameters that the call uses and ``operation`` does not name."""
        target = str(site.node.target)
        module = site.module
        own = [] if module is None else [*module.named_parameters(), *module.named_buffers()]
        names = {self.fakes.first_name(f"{target}.{name}") for name, _ in own}
        for name in (names | constants.keys()).difference(ir.parameters_of(operation)):
            self._draft.untouchable.setdefault(name, f"{site.node.name} is not understood")


@contextmanager
def _failing(node: fx.Node) -> Iterator[None]:
    """Say of errors which call they come from.

    Raises:
        TraceError: for any error.
    """
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise TraceError(
            f"call {node.name!r} fails on inputs of these shapes: {type(error).__name__}: {text}"
        ) from error


def _holds_tensors(value: Any) -> bool:
    """Tell whether a result consists of activations."""
    return any(isinstance(leaf, Traced) for leaf in pytree.tree_leaves(value))


def _distinct(leaves: list[Any]) -> list[Traced]:
    """The tensors among ``leaves``, each once."""
    return list({id(leaf): leaf for leaf in leaves if isinstance(leaf, Traced)}.values())


def _counts_from_behind(operation: ir.Operation, site: CallSite) -> bool:
    """Tell whether a call does the same to channels, whatever axes come before theirs."""
    if isinstance(operation, (ir.Opaque, ir.Output)):
        return operation.reason != SPREADS if isinstance(operation, ir.Opaque) else True
    if isinstance(operation, ir.Layer):
        target = site.node.target
        linear = type(site.module) is nn.Linear or getattr(target, "__name__", "") == "linear"
        return linear and operation.groups == 1
    placed = isinstance(operation, ir.Elementwise) and operation.additive
    return not placed and all(torch.Tag.pointwise in call.func.tags for call in site.calls)


def _is_arithmetic(node: fx.Node, args: tuple[Any, ...], leaves: list[Any]) -> bool:
    """Tell whether a call computes with plain numbers, or picks an item of a result."""
    if node.target is operator.getitem and not isinstance(args[0], (Traced, Parameter)):
        return True
    return (
        node.op == "call_function"
        and getattr(node.target, "__module__", "") in _PLAIN
        and not any(isinstance(leaf, (Traced, Parameter)) for leaf in leaves)
    )


def _changed(
    node: fx.Node, calls: list[Call], given: list[torch.Tensor]
) -> dict[int, torch.Tensor]:
    """The tensors that a call modifies, by ``id``; of an assignment to a part, the whole."""
    changed = [given[0]] if node.target is assign else [f for call in calls for f in call.changed]
    return {id(fake): fake for fake in changed}


def _is_fresh(calls: list[Call], read: list[torch.Tensor], made: list[torch.Tensor]) -> bool:
    """Tell whether a call computes something, into memory of its own."""
    own = {memory(tensor) for tensor in read}.isdisjoint(memory(tensor) for tensor in made)
    return own and any(call.name not in MOVEMENT for call in calls)


def _with_constants(site: CallSite, constants: dict[str, Traced]) -> CallSite:
    """The same call with its parameters as tensors of the graph."""

    def swap(leaf: Any) -> Any:
        return constants[leaf.name]

    arguments = pytree.tree_map_only(Parameter, swap, site.arguments)
    return replace(site, arguments=arguments, inputs=_distinct(pytree.tree_leaves(arguments)))


def _constant(node: fx.Node, parameter: Parameter, channels: Channels) -> Traced:
    """A tensor that holds ``parameter``, for a call that treats it like an activation."""
    traced = Traced(f"{node.name}.{parameter.name}", parameter.fake, is_constant=True)
    long = [axis for axis, size in enumerate(traced.shape) if size > 1]
    counts = not (parameter.fake.is_floating_point() or parameter.fake.is_complex())
    if len(long) == 1 and (not counts or parameter.fake.dtype is torch.bool):  # else indices
        traced.axis = long[0]
        traced.ids = channels.fresh(traced.shape[long[0]])
    return traced
