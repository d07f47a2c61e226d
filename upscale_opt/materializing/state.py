"""A pruned program while it is being written."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from upscale_opt.errors import MaterializeError
from upscale_opt.ir.solution import Read, Solution
from upscale_opt.materializing.used import kind_of, registered
from upscale_opt.runtime.signature import Rereader
from upscale_opt.tracing.claims import Resize, Sizes
from upscale_opt.tracing.program import Program


@dataclass
class Buffer:
    """The part of one arena that has been written so far.

    Attributes:
        place: for each channel id, where it lies in the buffer.
        written: the tensors written, by name, and what stands for them in the pruned program.
        sources: for each channel id written: which of these tensors has it, and at which place.
        tokens: for each concatenation, the call after which it is in the buffer.
        last: the call that wrote last.
    """

    place: dict[int, int]
    written: list[tuple[str, fx.Node]] = field(default_factory=list)
    sources: dict[int, tuple[int, int]] = field(default_factory=dict)
    tokens: dict[str, fx.Node] = field(default_factory=dict)
    last: fx.Node | None = None


class State:
    """A pruned program so far, and what stands in it for the calls and tensors of the original.

    Args:
        model: the original.
        program: the captured model.
        solution: which channels to keep, and how reads are served.
        in_place: let concatenations write into buffers, and sums into their summands.

    Attributes:
        graph: the original's channel graph.
        operations: those of the graph, by name.
        device: where indices live.
        selects: the reads that take channels, by operation and operand.
        places: the reads that place channels in a sum, by operation and operand.
        new: the pruned program.
        root: the modules of ours that it calls.
        env: for calls of the captured program, what stands for them in the pruned one.
        computed: the calls of the pruned program that are those of the captured one.
        counted: what stands for tensors whose sizes along their channel axis are checked.
        selected: what calls other than concatenations and sums read, by operation and operand.
        joined: tensors by name, that calls on heads hand to one another.
        buffers: arenas, by each of the concatenations in them.
        angles: what takes some of the angles of a rotation: what of the captured program computes
            them, and which it takes.
        narrowed: of tensors by name, the elements along the last axis that are left beside what the
            solution says.
        groups: of convolutions (by module), into how many groups their channels fall.
        sizes: what modules with a rule of the user's are told.
        renamed: the original's names of modules and tensors, by those in the pruned program, where
            they differ.
    """

    def __init__(
        self, model: nn.Module, program: Program, solution: Solution, in_place: bool
    ) -> None:
        self.model, self.program, self.solution = model, program, solution
        self.in_place = in_place
        self.graph = program.graph
        self.operations = {op.name: op for op in self.graph.operations}
        self.device = kind_of(model)[1]
        self.selects: dict[tuple[str, int], Read] = {}
        self.places: dict[tuple[str, int], Read] = {}
        for read in solution.reads:
            table = self.places if read.kind == "place" else self.selects
            table[read.op, read.operand] = read
        self.new = fx.Graph(tracer_cls=Rereader)
        self.root = nn.Module()
        self.env: dict[fx.Node, Any] = {}
        self.computed: set[fx.Node] = set()
        self.counted: set[fx.Node] = set()
        self.selected: dict[tuple[str, int], fx.Node] = {}
        self.joined: dict[str, fx.Node] = {}
        self.buffers: dict[str, Buffer] = {}
        for arena in solution.arenas:
            buffer = Buffer({channel: i for i, channel in enumerate(arena.channels)})
            self.buffers.update(dict.fromkeys(arena.tensors, buffer))
        self.angles: dict[fx.Node, tuple[fx.Node, tuple[int, ...]]] = {}
        self.narrowed: dict[str, tuple[int, ...]] = {}
        self.groups: dict[str, int] = {}
        self.sizes: dict[str, tuple[Resize | None, Sizes]] = {}
        self.renamed: dict[str, str] = {}
        self._makers = _makers(program)

    def axis_of(self, name: str) -> int:
        """The channel axis of a tensor, from behind if those before it may be fewer."""
        tensor = self.graph.tensors[name]
        assert tensor.axis is not None
        return tensor.axis - (len(tensor.shape) if name in self.program.loose else 0)

    def node_of(self, reader: fx.Node, name: str) -> Any:
        """The new program's value of tensor ``name``, among the arguments of ``reader``."""
        if name in self.joined:
            return self.joined[name]
        for node in reader.all_input_nodes:
            value = self.program.values[node]
            if value == name:
                return self.env[node]
            if isinstance(value, (tuple, list)) and name in value:
                return self._part(self.env[node], list(value).index(name))
            if isinstance(value, dict) and name in value.values():
                key = next(k for k, v in value.items() if v == name)
                return self.new.call_function(operator.getitem, (self.env[node], key))
        if name in self._makers:  # what the reader gets only by way of calls that are left out
            node, key = self._makers[name]
            return self.env[node] if key is None else self._part(self.env[node], key)
        if name in self.program.constants:  # a parameter as a tensor
            for node in reader.all_input_nodes:
                if node.op == "get_attr" and self.gets(node, self.program.constants[name]):
                    return self.env[node]
        raise MaterializeError(f"call {reader.name!r} does not read {name!r}")

    def _part(self, container: Any, key: Any) -> Any:
        if isinstance(container, fx.Node):
            return self.new.call_function(operator.getitem, (container, key))
        return container[key]

    def gets(self, node: fx.Node, parameter: str) -> bool:
        """Tell whether a call of the captured program that gets an attribute gets ``parameter``."""
        tensors = self.program.captured.tensors
        own = tensors.get(parameter)
        if own is None:
            own = dict[str, torch.Tensor](registered(self.model))[parameter]
        return tensors[str(node.target)] is own or str(node.target) == parameter

    def unused(self, name: str) -> str:
        """``name`` for a module of ours, or a longer one if the model has that already."""
        name = name.replace(".", "_")
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
