"""The result of tracing: the captured calls, the channel graph, and how they belong together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from upscale_opt.ir import graph as ir
from upscale_opt.ir.twins import without_twins
from upscale_opt.tracing.capture import Captured
from upscale_opt.tracing.rules import Rule
from upscale_opt.tracing.values import HeadCall


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
        fixed_sizes: the calls that ask for numbers which are those of the original: sizes of
            parameters, how many heads there are, or channels in a head.
        loose: the tensors whose first axes may be fewer, as ``squeeze()`` removes those of size
            one, where nothing depends on how many there are.
        sizes: which size of which tensor a number is, by tensor and axis.
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
    sizes: dict[fx.Node, tuple[str, int]]
    loose: frozenset[str] = frozenset()

    def as_solved(self, fingerprint: str) -> Program | None:
        """The program with the graph of this fingerprint, if that is a graph of it.

        It has one, and another that solutions were made for before there were twins.
        """
        if self.graph.fingerprint == fingerprint:
            return self
        before = without_twins(self.graph)
        return replace(self, graph=before) if before.fingerprint == fingerprint else None
