"""Let a pruned model refuse inputs that its program was not captured for."""

from __future__ import annotations

from torch import fx

from upscale_opt.materializing.state import State
from upscale_opt.runtime.required_inputs import Wanted, require_inputs


def write_checks(state: State) -> None:
    """Add a call for every check that the captured program makes of its inputs."""
    new = state.new
    for check in state.program.captured.checks:
        found: list[tuple[fx.Node, str, Wanted]] = []
        for source, name, want in zip(check.inputs, check.names, check.wanted, strict=True):
            node = state.env.get(source)
            if isinstance(node, fx.Node) and node in new.nodes:
                found.append((node, name, _without_channels(state, source, want)))
        first = [node for node in new.nodes if node.op == "placeholder"]
        last = [node for node in new.nodes if node in {node for node, _, _ in found}]
        if last:
            with new.inserting_after(first[-1] if last[-1] in first else last[-1]):
                new.call_function(require_inputs, (*zip(*found, strict=True), *_said(check.tracer)))


def _without_channels(state: State, source: fx.Node, want: Wanted) -> Wanted:
    """The sizes wanted of an activation, but not how many channels it has."""
    tensor = state.graph.tensors.get(str(state.program.values.get(source)))
    if source.op == "placeholder" or not isinstance(want, tuple) or tensor is None:
        return want
    return tuple(None if axis == tensor.axis else size for axis, size in enumerate(want))


def _said(tracer: str) -> tuple[str, ...]:
    """The argument that says what captured the program; what earlier versions wrote has none."""
    return () if tracer == "torch.export" else (tracer,)
