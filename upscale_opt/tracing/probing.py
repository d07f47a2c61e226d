"""Does a program do the same to channels at other sizes? Build its graph again, and see."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from upscale_opt.errors import TraceError
from upscale_opt.tracing.building import Builder
from upscale_opt.tracing.capture import Captured, quiet
from upscale_opt.tracing.guards import Check
from upscale_opt.tracing.heads import HeadsRefused
from upscale_opt.tracing.numbering import Numbers
from upscale_opt.tracing.program import Program
from upscale_opt.tracing.varying import same_operations, text, weakest

Shapes = Mapping[int, tuple[int, ...]]
"""Other shapes for the tensors among a call's arguments, by ``id``."""


def built(
    model: nn.Module,
    captured: Captured,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    understands_heads: bool,
) -> tuple[Program, Any, Numbers]:
    """The program with its channel graph, which holds at other sizes, or says at which it does.

    Returns:
        The program, what it returns on tensors without data, and the numbers of these.
    """

    def build(weak: Collection[str] = ()) -> tuple[Builder, Program, Numbers]:
        numbers = Numbers({})
        builder = Builder(model, captured, understands_heads, numbers, weak=weak)
        return builder, builder.build(args, kwargs), numbers

    builder, program, numbers = build()
    while builder.unsettled and captured.kind == "fx":
        redirected = len(captured.redirected)
        probe = _Probe(model, captured, args, kwargs, understands_heads, program)
        fixed = probe.run()
        if len(captured.redirected) > redirected:  # as it is seen at other sizes alone
            builder, program, numbers = build()
            continue
        if probe.weak:
            builder, program, numbers = build(probe.weak)
        _fix(captured, fixed)
        break
    _fix(captured, builder.broadcast())
    captured.checks = [c for c in captured.checks if not builder.settled.issuperset(c.inputs)]
    for node, value in builder.guarded.items():
        wanted = list(value) if isinstance(value, tuple) else value
        captured.checks.append(Check((node,), (text(node),), (wanted,), _tracer(captured)))
    for node, rank in builder.ranks(program.graph).items():
        wanted = (None,) * rank
        captured.checks.append(Check((node,), (text(node),), (wanted,), _tracer(captured)))
    return program, builder.result(), numbers


def _tracer(captured: Captured) -> str:
    return f"torch.{captured.kind}"


class _Probe:
    """Builds a program's graph again, on inputs of other sizes.

    Attributes:
        weak: the operations that do not treat zeros alike at all sizes.
    """

    def __init__(
        self,
        model: nn.Module,
        captured: Captured,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        understands_heads: bool,
        program: Program,
    ) -> None:
        self._model = model
        self._captured = captured
        self._call = args, kwargs
        self._understands_heads = understands_heads
        self._graph = program.graph
        leaves = pytree.tree_leaves(list(captured.given.values()))
        self._inputs = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        self.weak: set[str] = set()

    def run(self) -> dict[int, set[int]]:
        """The axes of inputs whose sizes are to stay, by the tensors' ``id``."""
        batch = self._with_batch({})
        unknown = []
        for sizes in self._sizes():
            agrees = self._agrees(self._with_batch(sizes))
            if agrees is None:
                unknown.append(sizes)
                continue
            fixed = [] if agrees else [s for s in (batch, sizes) if s and not self._agrees(s)]
            if not agrees and not fixed:
                fixed = [batch, sizes]
            return self._axes(fixed)
        # It runs at none of them, and so nothing is known of any others at which it may run.
        return self._axes([*unknown, *([batch] if batch and self._agrees(batch) is False else [])])

    def _agrees(self, shapes: Shapes) -> bool | None:
        """Compare the graphs; ``None`` if the program does not run at these sizes."""
        builder = Builder(self._model, self._captured, self._understands_heads, shapes=shapes)
        try:
            with quiet():
                graph = builder.build(*self._call).graph
        except HeadsRefused:
            return False
        except TraceError:
            return None
        ours = {op.name: op for op in self._graph.operations}
        theirs = {op.name: op for op in graph.operations}
        same = list(ours) == list(theirs) and same_operations(
            list(ours.values()), list(theirs.values())
        )
        if not same or self._graph.tensors.keys() != graph.tensors.keys():
            return False
        for name, tensor in self._graph.tensors.items():
            other = graph.tensors[name]
            if (tensor.axis, tensor.channels) != (other.axis, other.channels):
                return False
            if (tensor.features == 1) is not (other.features == 1):
                return False  # how many there are is checked only where there are several
        self.weak |= {name for name, op in ours.items() if weakest(op, theirs[name]) != op}
        return True

    # Other sizes.

    def _with_batch(self, shapes: Shapes) -> dict[int, tuple[int, ...]]:
        """The same shapes, and another batch."""
        first = [x.shape[0] for x in self._inputs if x.ndim > 1]
        found = dict(shapes)
        for x in self._inputs:
            if first and x.ndim and x.shape[0] == first[0]:
                shape = found.get(id(x), tuple(x.shape))
                found[id(x)] = (shape[0] + 1, *shape[1:])
        return found

    def _sizes(self) -> Iterator[dict[int, tuple[int, ...]]]:
        """Other sizes of images or sequences, the likely ones first."""
        tried: list[dict[int, tuple[int, ...]]] = []
        # An axis of size one is for broadcasting, unless there are no others.
        least = 2 if any(x.shape[a] > 1 for x in self._inputs for a in _space(x)) else 1
        for axes in (_space, _time, _before_last):
            for change in (_halved, _doubled, _half_more):
                found = {}
                for x in self._inputs:
                    free = axes(x)
                    shape = tuple(
                        change(s) if a in free and s >= least else s for a, s in enumerate(x.shape)
                    )
                    if shape != tuple(x.shape):
                        found[id(x)] = shape
                if found and found not in tried:
                    tried.append(found)
                    yield found

    def _axes(self, shapes: list[dict[int, tuple[int, ...]]]) -> dict[int, set[int]]:
        """The axes along which inputs of these shapes are others."""
        return {
            id(x): {
                axis
                for given in shapes
                for axis, (a, b) in enumerate(zip(given.get(id(x), x.shape), x.shape, strict=True))
                if a != b
            }
            for x in self._inputs
        }


def _halved(size: int) -> int:
    """Half of a large image, which takes a quarter of the time."""
    return size // 2 if size >= _LARGE and size % 2 == 0 else size


def _doubled(size: int) -> int:
    return 2 * size


def _half_more(size: int) -> int:
    return size + max(1, size // 2)


_LARGE = 64


def _space(x: torch.Tensor) -> range:
    """The axes of images, and of sequences whose channels come first."""
    if x.ndim < 3:
        whole = not (x.is_floating_point() or x.is_complex())
        return range(1, x.ndim) if whole else range(0)
    return range(2, x.ndim)


def _time(x: torch.Tensor) -> range:
    """The axes of images beside sequences whose channels come last."""
    return range(1, 2) if x.ndim == 3 else _space(x)


def _before_last(x: torch.Tensor) -> range:
    """The axes of images and sequences whose channels come last."""
    return range(1, x.ndim - 1) if x.ndim > 2 else _space(x)


def _fix(captured: Captured, fixed: Mapping[int, set[int]]) -> None:
    """Let sizes of inputs be those of the example."""
    if not any(fixed.values()):
        return

    def walk(value: Any, wanted: Any) -> Any:
        if isinstance(value, torch.Tensor) and isinstance(wanted, tuple):
            axes = fixed.get(id(value), set())
            return tuple(
                int(value.shape[axis]) if axis in axes else want for axis, want in enumerate(wanted)
            )
        if isinstance(wanted, dict):
            return {key: walk(value[key], want) for key, want in wanted.items()}
        if isinstance(wanted, list):
            return [walk(item, want) for item, want in zip(value, wanted, strict=True)]
        return wanted

    for number, check in enumerate(captured.checks):
        if all(node in captured.given for node in check.inputs):
            wanted = tuple(
                walk(captured.given[node], want)
                for node, want in zip(check.inputs, check.wanted, strict=True)
            )
            captured.checks[number] = dataclasses.replace(check, wanted=wanted)
