"""The way from a call of a model into a program by :mod:`torch.export`."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from upscale_opt.errors import TraceError
from upscale_opt.runtime.required_inputs import Wanted
from upscale_opt.runtime.signature import Signature, results_of
from upscale_opt.tracing.guards import Check, stand_in, wanted_of


def enter(
    graph: fx.Graph,
    signature: inspect.Signature,
    call: tuple[tuple[Any, ...], dict[str, Any]],
    wanted: Mapping[fx.Node, Wanted],
) -> tuple[dict[fx.Node, Any], Check]:
    """Give a program the model's own parameters, in place of what the example's arguments hold.

    So it can be told what was left out, and of how many tensors lists are.

    Args:
        graph: the program; it is changed.
        signature: the model's.
        call: the example's positional and keyword arguments.
        wanted: the demands on the program's inputs.

    Returns:
        What the arguments were, by the nodes that stand for them; and the demands on them.

    Raises:
        TraceError: if the program takes something else.
    """
    places = list(wanted)
    flat, spec = pytree.tree_flatten(call)
    if len(flat) != len(places):
        raise TraceError("torch.export: the program takes other inputs than the model")
    numbered: Any = pytree.tree_unflatten(list(range(len(flat))), spec)
    bound = signature.bind(*numbered[0], **numbered[1]).arguments
    real = signature.bind(*call[0], **call[1]).arguments
    inside = [node for node in graph.nodes if node.op not in ("placeholder", "get_attr")]
    first = inside[0]  # the output, if there is nothing else
    nodes: dict[str, fx.Node] = {}
    with graph.inserting_before(first):
        for name, parameter in signature.parameters.items():
            target, default = stand_in(name, parameter)
            if type(bound.get(name)) is int:
                nodes[name] = node = places[bound[name]]
                first.prepend(node)
                node.target, node.args = target, default
            else:
                nodes[name] = graph.create_node("placeholder", target, default)
        taker = _Taker(graph, places, wanted)
        given: dict[fx.Node, Any] = {}
        asked: dict[str, Wanted] = {}
        for name, node in nodes.items():
            if name in bound:
                given[node], asked[name] = real[name], taker.take(bound[name], node)
                continue
            many = signature.parameters[name].kind
            empty: Any = () if many is inspect.Parameter.VAR_POSITIONAL else {}
            given[node] = node.args[0] if node.args else empty
            asked[name] = wanted_of(given[node])
    for node in places:
        if node not in given:
            graph.erase_node(node)
    graph.set_codegen(Signature(results_of(graph)))
    return given, Check(tuple(given), tuple(asked), tuple(asked.values()))


class _Taker:
    """Takes what arguments hold for a program's former inputs, by their numbers."""

    def __init__(
        self, graph: fx.Graph, places: Sequence[fx.Node], wanted: Mapping[fx.Node, Wanted]
    ) -> None:
        self.graph, self.places, self.wanted = graph, places, wanted

    def take(self, value: Any, node: fx.Node) -> Wanted:
        """The demands on the value that ``node`` stands for."""
        if type(value) is int:
            place = self.places[value]
            if place is not node:
                place.replace_all_uses_with(node)
            return self.wanted[place]
        if not isinstance(value, (Mapping, tuple, list)):
            raise TraceError(f"torch.export: an input holds a {type(value).__name__}")
        named = isinstance(value, Mapping)
        found: dict[Any, Wanted] = {}
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            part = self.graph.call_function(operator.getitem, (node, key))
            found[key] = self.take(item, part)
            if not part.users:
                self.graph.erase_node(part)
        return found if named else list(found.values())
