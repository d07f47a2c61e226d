"""Products with transposed parameters in a captured program: linear layers, as Falcon has them."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from upscale_opt.tracing.queries import asked


def fold_products(graph: fx.Graph, tensors: Mapping[str, torch.Tensor], kept: set[fx.Node]) -> None:
    """Let a linear layer stand for each product with a transposed matrix that is a parameter.

    Args:
        graph: a captured program.
        tensors: the parameters and other tensors that it gets, by name.
        kept: calls that must stay what they are.
    """
    for node in list(graph.nodes):
        if node in kept or not _multiplies(node):
            continue
        x, turned = node.args
        weight = _transposed(turned)
        matrix = None if weight is None else tensors.get(str(weight.target))
        if not isinstance(matrix, nn.Parameter) or matrix.ndim != 2 or turned in kept:
            continue
        with graph.inserting_before(node):
            new = graph.call_function(functional.linear, (x, weight))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        if not turned.users:
            graph.erase_node(turned)


def _multiplies(node: fx.Node) -> bool:
    """Tell whether a call is a product of two tensors."""
    called = node.target in (operator.matmul, torch.matmul) and node.op == "call_function"
    named = node.target in ("matmul", "__matmul__") and node.op == "call_method"
    both = len(node.args) == 2 and all(isinstance(arg, fx.Node) for arg in node.args)
    return (called or named) and both and not node.kwargs


def _transposed(node: Any) -> fx.Node | None:
    """The tensor of the model's whose transpose a call is, if it is one."""
    if not isinstance(node, fx.Node) or node.kwargs or not node.args:
        return None
    source, *axes = node.args
    if not isinstance(source, fx.Node) or source.op != "get_attr":
        return None
    name = asked(node)
    if name in ("T", "mT", "t"):
        return source if len(axes) == int(node.target is getattr) else None
    both = tuple(axes) in ((0, 1), (1, 0), (-2, -1), (-1, -2))
    return source if both and name in ("transpose", "swapaxes") else None
