"""What the calls of a pruned program read: values of the new program, whole or some channels."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from upscale_opt.errors import MaterializeError
from upscale_opt.ir.solution import Read, Solution
from upscale_opt.materializing.concats import Concats
from upscale_opt.materializing.origin import kind_of
from upscale_opt.runtime.modules import Gather
from upscale_opt.tracing.program import Program


class Reading:
    """A pruned program while it is being written, and what stands in it for each tensor.

    Args:
        model: the original.
        program: the captured model.
        solution: how reads are served.
        gather_views: serve views that select channels as gathers.
        in_place: let concatenations write into buffers.
    """

    def __init__(
        self,
        model: nn.Module,
        program: Program,
        solution: Solution,
        gather_views: bool,
        in_place: bool,
    ) -> None:
        self.model = model
        self.program = program
        self.graph = program.graph
        self.solution = solution
        self.gather_views = gather_views
        self.device = kind_of(model)[1]
        self.selects: dict[tuple[str, int], Read] = {}
        self.places: dict[tuple[str, int], Read] = {}
        for read in solution.reads:
            table = self.places if read.kind == "place" else self.selects
            table[read.op, read.operand] = read
        self.new = fx.Graph()
        self.env: dict[fx.Node, Any] = {}
        self.root = nn.Module()
        self.computed: set[fx.Node] = set()  # calls that are those of the captured program
        self.joined: dict[str, fx.Node] = {}  # what calls on heads hand to one another
        self.makers = _makers(program)
        self.concats = Concats(self, in_place)

    def node_of(self, reader: fx.Node, name: str) -> Any:
        """The new program's value of tensor ``name``, among the arguments of ``reader``."""
        if name in self.joined:
            return self.joined[name]
        for node in reader.all_input_nodes:
            value = self.program.values[node]
            if value == name:
                return self.env[node]
            if isinstance(value, (tuple, list)) and name in value:
                container, index = self.env[node], list(value).index(name)
                if isinstance(container, fx.Node):
                    return self.new.call_function(operator.getitem, (container, index))
                return container[index]
            if isinstance(value, dict) and name in value.values():
                key = next(k for k, v in value.items() if v == name)
                return self.new.call_function(operator.getitem, (self.env[node], key))
        if name in self.makers:  # what the reader gets only by way of calls that are left out
            node, key = self.makers[name]
            value = self.env[node]
            if key is None:
                return value
            if isinstance(value, fx.Node):
                return self.new.call_function(operator.getitem, (value, key))
            return value[key]
        if name in self.program.constants:  # a parameter as a tensor
            for node in reader.all_input_nodes:
                if node.op == "get_attr" and self.names(node, self.program.constants[name]):
                    return self.env[node]
        raise MaterializeError(f"call {reader.name!r} does not read {name!r}")

    def names(self, node: fx.Node, parameter: str) -> bool:
        """Whether a call that gets an attribute gets this parameter."""
        tensors = self.program.captured.tensors
        own = tensors.get(parameter)
        if own is None:
            state: dict[str, torch.Tensor] = {}
            state.update(self.model.named_parameters(remove_duplicate=False))
            state.update(self.model.named_buffers(remove_duplicate=False))
            own = state[parameter]
        return tensors[str(node.target)] is own or str(node.target) == parameter

    def select(self, value: fx.Node, read: Read) -> fx.Node:
        """What a read takes of the tensor ``value``."""
        tensor = self.graph.tensors[read.tensor]
        layout = self.solution.tensors[read.tensor]
        assert tensor.axis is not None
        if self.concats.holds(read.tensor):
            return self.concats.read(read)
        if read.channels == layout:
            return value
        place = {entry: i for i, entry in enumerate(layout)}
        indices = [place[entry] for entry in read.channels]
        if read.plan != "gather" and not self.gather_views:
            start, length = indices[0] * tensor.features, len(indices) * tensor.features
            return self.new.call_function(torch.narrow, (value, tensor.axis, start, length))
        elements = [i * tensor.features + f for i in indices for f in range(tensor.features)]
        name = self.unused(f"gather_{read.op.replace('.', '_')}_{read.operand}")
        self.root.add_module(name, Gather(elements, tensor.axis, self.device))
        return self.new.call_module(name, (value,))

    def unused(self, name: str) -> str:
        """``name``, or a longer one if the model has that already."""
        while hasattr(self.model, name) or hasattr(self.root, name):
            name += "_"
        return name


def _makers(program: Program) -> dict[str, tuple[fx.Node, Any]]:
    """For every tensor of the graph, the call that makes it, and which of its results it is."""
    makers: dict[str, tuple[fx.Node, Any]] = {}
    for node, value in program.values.items():
        if isinstance(value, str):
            makers.setdefault(value, (node, None))
        elif isinstance(value, (tuple, list)):
            for key, name in enumerate(value):
                if isinstance(name, str):
                    makers.setdefault(name, (node, key))
    return makers
