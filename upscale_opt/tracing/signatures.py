"""Let a program by :mod:`torch.export` be called as its model is, with arguments left out."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator, Mapping
from typing import Any

from torch import fx
from torch.fx.graph import CodeGen, _PyTreeCodeGen
from torch.utils import _pytree as pytree

from upscale_opt.errors import TraceError
from upscale_opt.runtime.required_inputs import DEFAULT, Wanted
from upscale_opt.tracing.guards import Check, default_of, wanted_of

MANY = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}
"""The signs before the names of parameters that take many arguments."""


def spelled(parameter: inspect.Parameter) -> tuple[str, tuple[Any, ...]]:
    """The name and the arguments of the placeholder that stands for a parameter.

    Its default is what code can spell of it.
    """
    lacks = parameter.default is parameter.empty
    # What follows a parameter with a default must have one, too.
    default = DEFAULT if lacks else default_of(parameter.default)
    lacks &= parameter.kind is not parameter.KEYWORD_ONLY
    many = MANY.get(parameter.kind.name, "")
    return many + parameter.name, () if lacks or many else (default,)


def call_as_before(
    graph: fx.Graph,
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    wanted: Mapping[fx.Node, Wanted],
) -> tuple[dict[fx.Node, Any], list[Check]]:
    """Give a program the parameters of its model instead of one for each tensor.

    Args:
        graph: the program; it is changed.
        signature: the model's.
        args: the positional arguments that it was captured with.
        kwargs: and the keyword arguments.
        wanted: what is required of the inputs, by the nodes that stand for them.

    Returns:
        What the new nodes stand for, and what is required of it.

    Raises:
        TraceError: if the program takes other inputs than these.
    """
    places = list(wanted)
    if len(pytree.tree_leaves((args, dict(kwargs)))) != len(places):
        raise TraceError("torch.export: the program takes other inputs than the model")
    graph.set_codegen(_Returning(graph._codegen.pytree_info))  # type: ignore[attr-defined]
    bound = signature.bind(*args, **kwargs).arguments
    nodes: dict[str, fx.Node] = {}
    before = places[0] if places else next(iter(graph.nodes))
    with graph.inserting_before(before):
        for name, parameter in signature.parameters.items():
            label, default = spelled(parameter)
            nodes[name] = graph.create_node("placeholder", label, default, name=f"given_{name}")
    given: dict[fx.Node, Any] = {}
    demands: list[Wanted] = []
    remaining = iter(places)
    for name, parameter in signature.parameters.items():
        node = nodes[name]
        many = MANY.get(parameter.kind.name)
        if name in bound or many:
            given[node] = bound.get(name, () if many == "*" else {})
            with graph.inserting_before(before):
                demands.append(_replace(graph, node, given[node], remaining, wanted))
        else:
            given[node] = node.args[0]
            demands.append(wanted_of(given[node]))
    for place in places:
        graph.erase_node(place)
    taken = {node.name for node in graph.nodes}
    for name, node in nodes.items():
        node.name = node.name if name in taken else name
    checks = [Check(tuple(nodes.values()), tuple(nodes), tuple(demands))] if nodes else []
    return given, checks


def _replace(
    graph: fx.Graph,
    node: fx.Node,
    value: Any,
    places: Iterator[fx.Node],
    wanted: Mapping[fx.Node, Wanted],
) -> Wanted:
    """Take what ``value`` holds out of ``node``; what is required of it."""

    def item(key: Any, part: Any) -> Wanted:
        picked = graph.call_function(operator.getitem, (node, key))
        return _replace(graph, picked, part, places, wanted)

    if isinstance(value, (tuple, list)):
        return [item(number, part) for number, part in enumerate(value)]
    if isinstance(value, Mapping):
        return {key: item(key, part) for key, part in value.items()}
    place = next(places)
    place.replace_all_uses_with(node)
    return wanted[place]


class _Returning(_PyTreeCodeGen):
    """Writes results as their containers, and takes arguments one by one."""

    def gen_fn_def(self, *args: Any, **kwargs: Any) -> str:
        """The first line of ``forward``."""
        return CodeGen.gen_fn_def(self, *args, **kwargs)

    def process_inputs(self, *inputs: Any) -> Any:  # type: ignore[override]
        """The arguments as they are."""
        return inputs
