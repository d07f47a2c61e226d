"""Layers whose weights several calls share, each of which needs some of the outputs."""

from __future__ import annotations

import torch
from torch import fx
from torch.nn import functional

from upscale_opt.materializing.state import State


def narrow_layers(state: State) -> None:
    """Let calls of a weight compute only those of its outputs that are read, where these adjoin.

    So cross-attention with one weight for queries, keys and values computes the queries of one
    tensor, and the keys and values of the other.
    """
    for call in list(state.new.nodes):
        if call.target is not functional.linear or len(call.args) != 3 or call.kwargs:
            continue
        x, *tensors = call.args
        users = list(call.users)
        reads = [user for user in users if user.target is torch.narrow]
        if not users or len(reads) < len(users) or not state.computed.isdisjoint(reads):
            continue
        weight = tensors[0]
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
            continue
        places = [(int(read.args[2]), int(read.args[3])) for read in reads]
        first = min(start for start, _ in places)
        count = max(start + length for start, length in places) - first
        if count == _rows(state, str(weight.target)):
            continue
        with state.new.inserting_before(call):
            parts = [
                tensor and state.new.call_function(torch.narrow, (tensor, 0, first, count))
                for tensor in tensors
            ]
        call.args = (x, *parts)
        for read, (start, length) in zip(reads, places, strict=True):
            if length == count:
                read.replace_all_uses_with(call)
                state.new.erase_node(read)
            else:
                read.args = (call, read.args[1], start - first, length)


def _rows(state: State, name: str) -> int:
    """The outputs that are left of a weight."""
    left = state.solution.parameters.get(name, {}).get(0)
    return len(state.program.captured.tensors[name]) if left is None else len(left)
