"""Run a captured program on real data: once as a whole, and single calls as often as needed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from upscale_opt.ir import graph as ir
from upscale_opt.tracing.program import Program
from upscale_opt.tracing.unchanged import reseed

Values = Mapping[str, Tensor]
"""Tensors of the graph, or parameters, by name."""

NOTHING: Values = {}


class Replay:
    """The captured program, run once on real data, and single calls of it as often as needed.

    Attributes:
        tensors: what the graph's tensors hold.
        state: parameters, buffers and constants, by the names that the graph uses.
    """

    def __init__(
        self, model: nn.Module, program: Program, args: tuple[Any, ...], graph: ir.ChannelGraph
    ) -> None:
        self.program = program
        self._known = frozenset(graph.tensors)
        self.state: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}
        for name, tensor in (
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
            *program.captured.constants.items(),
        ):
            if self._names.setdefault(id(tensor), name) == name:
                self.state[name] = tensor.detach()
        self.tensors = {name: self.state[own] for name, own in program.constants.items()}
        self._env: dict[fx.Node, Any] = {}
        given = self._given(model, args)
        for node in program.captured.graph.nodes:
            if node.op in ("placeholder", "output"):
                self._env[node] = given.get(node)
            else:
                self._env[node] = self._run(node, NOTHING, NOTHING)
            self.tensors.update(self._results(node, self._env[node]))

    def _given(self, model: nn.Module, args: tuple[Any, ...]) -> dict[fx.Node, Any]:
        places = [n for n in self.program.captured.graph.nodes if n.op == "placeholder"]
        if self.program.captured.kind == "export":
            return dict(zip(places, pytree.tree_leaves((args, {})), strict=True))
        bound = inspect.signature(model.forward).bind(*args)
        bound.apply_defaults()
        return {place: bound.arguments[str(place.target).lstrip("*")] for place in places}

    def result(
        self, node: fx.Node | None, name: str, tensors: Values, state: Values, seed: int = 0
    ) -> Tensor:
        """The graph's tensor ``name``, as ``node`` computes it from other inputs and parameters."""
        own = self.program.constants.get(name)
        if own is not None:  # a parameter as it is
            return state.get(own, self.state[own])
        assert node is not None
        return self._results(node, self._run(node, tensors, state, seed))[name]

    def _run(self, node: fx.Node, tensors: Values, state: Values, seed: int = 0) -> Any:
        """Run one call on copies, for it may modify what it is given."""
        constants = {
            self.program.constants[name]: value
            for name, value in tensors.items()
            if name in self.program.constants
        }
        state = {**self.state, **constants, **state}
        copies: dict[int, Tensor] = {}

        def copied(tensor: Tensor) -> Tensor:
            return copies.setdefault(id(tensor), tensor.detach().clone())

        def argument(source: fx.Node) -> Any:
            value = self._env[source]
            if source.op == "get_attr":
                return copied(state[self._name(source)])
            names = pytree.tree_leaves(self.program.values.get(source))
            if not self._known.issuperset(n for n in names if isinstance(n, str)):
                value = self._run(source, tensors, state, seed)  # part of a later operation
            leaves, structure = pytree.tree_flatten(value)
            swapped = [
                copied(tensors.get(name, leaf)) if isinstance(leaf, Tensor) else leaf
                for name, leaf in zip(names, leaves, strict=True)
            ]
            return pytree.tree_unflatten(swapped, structure)

        if node.op == "get_attr":
            return state[self._name(node)]
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), argument)
        with torch.no_grad(), torch.random.fork_rng([]):
            reseed(seed)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            if node.op == "call_function":
                assert callable(node.target)
                return node.target(*args, **kwargs)
            module = self.program.captured.modules[str(node.target)]
            own = {
                name: copied(state[self._names[id(tensor)]])
                for name, tensor in (*module.named_parameters(), *module.named_buffers())
            }
            return functional_call(module, own, args, kwargs)

    def _name(self, node: fx.Node) -> str:
        """The name of the parameter, buffer or constant that a ``get_attr`` node fetches."""
        target = str(node.target)
        return self._names.get(id(self.program.captured.tensors[target]), target)

    def _results(self, node: fx.Node, value: Any) -> dict[str, Tensor]:
        if node.op in ("get_attr", "output"):
            return {}
        names = pytree.tree_leaves(self.program.values[node])
        pairs = zip(names, pytree.tree_leaves(value), strict=True)
        return {name: leaf for name, leaf in pairs if isinstance(leaf, Tensor) and name is not None}
