"""Run a captured program as it is, call by call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from upscale_opt.errors import ArgumentError
from upscale_opt.runtime.required_inputs import require_inputs
from upscale_opt.runtime.signature import results_of
from upscale_opt.tracing.capture import Captured


def placed(captured: Captured, call: Any) -> dict[fx.Node, Any] | None:
    """The arguments of a call by the nodes that stand for them; ``None`` if a guard forbids it."""
    old: dict[int, torch.Tensor] = {}
    flat = iter(pytree.tree_leaves(call))
    for leaf in captured.leaves:
        new = next(flat)
        if isinstance(leaf, torch.Tensor):
            old[id(leaf)] = new

    def swap(value: Any) -> Any:
        return old.get(id(value), value)

    given = {
        node: pytree.tree_map_only(torch.Tensor, swap, value)
        for node, value in captured.given.items()
    }
    for check in captured.checks:
        if all(node in given for node in check.inputs):
            try:
                values = [given[node] for node in check.inputs]
                require_inputs(values, check.names, check.wanted, check.tracer)
            except ArgumentError:
                return None
    return given


def execute(captured: Captured, given: Mapping[fx.Node, Any]) -> Any:
    """Run a captured program, and return what it does.

    Raises:
        ArgumentError: if a number is not what a guard wants it to be.
    """
    guards = {check.inputs[0]: check for check in captured.checks if len(check.inputs) == 1}
    values: dict[fx.Node, Any] = dict(given)
    uses = {node: len(node.users) for node in captured.graph.nodes}
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "get_attr":
            values[node] = captured.tensors[str(node.target)]
            continue
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: values[n])
        if node.op == "output":
            spec = results_of(captured.graph)
            return args[0] if spec is None else pytree.tree_unflatten(args[0], spec)
        if node.op == "call_module":
            values[node] = captured.modules[str(node.target)](*args, **kwargs)
        elif node.op == "call_method":
            values[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            assert callable(node.target)
            values[node] = node.target(*args, **kwargs)
        if node in guards:
            check = guards[node]
            require_inputs([values[node]], check.names, check.wanted, check.tracer)
        del args, kwargs
        for source in node.all_input_nodes:
            uses[source] -= 1
            if not uses[source]:
                del values[source]
    raise AssertionError("a program without an output")
