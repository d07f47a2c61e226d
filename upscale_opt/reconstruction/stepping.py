"""Run a captured program call by call, on a model or on a copy of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from upscale_opt.errors import TraceError
from upscale_opt.tracing.capture import Captured


class Stepper:
    """The calls of a program, with the modules and tensors of one model.

    Args:
        captured: the program.
        model: the model that it was captured of, or a copy.
    """

    def __init__(self, captured: Captured, model: nn.Module) -> None:
        self.captured = captured
        self.modules = {name: model.get_submodule(name) for name in captured.modules}
        self.tensors = {
            name: captured.constants[name] if name in captured.constants else _of(model, name)
            for name in captured.tensors
        }

    def call(self, node: fx.Node, values: Mapping[fx.Node, Any], *, apart: bool = False) -> Any:
        """The result of one call, given those of the calls before.

        Args:
            node: the call; neither an input nor the output.
            values: what its arguments are.
            apart: leave the arguments as they are, though the call writes into them.

        Raises:
            TraceError: if it fails.
        """
        if node.op == "get_attr":
            return self.tensors[str(node.target)]
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: values[n])
        if apart:
            args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
        try:
            if node.op == "call_module":
                return self.modules[str(node.target)](*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            assert callable(node.target)
            return node.target(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            text = " ".join(str(error).split())[:200]
            raise TraceError(
                f"the model does not run on the calibration data ({node.name}): "
                f"{type(error).__name__}: {text}"
            ) from error

    def run(
        self, given: Mapping[fx.Node, Any], call: Callable[[fx.Node, dict[fx.Node, Any]], Any]
    ) -> Any:
        """Run the whole program, and return what the output node gets.

        Args:
            given: its arguments, which stay as they are, though the program may write into them.
            call: returns the result of a node, given the values so far.
        """
        values: dict[fx.Node, Any] = {
            node: value.clone() if isinstance(value, torch.Tensor) else value
            for node, value in given.items()
        }
        for node, done in in_order(self.captured.graph):
            if node.op == "output":
                return fx.node.map_arg(node.args[0], lambda n: values[n])
            if node.op != "placeholder":
                values[node] = call(node, values)
            for old in done:
                values.pop(old, None)
        raise AssertionError("a program without an output")


def in_order(graph: fx.Graph) -> Iterator[tuple[fx.Node, list[fx.Node]]]:
    """Every node, with those whose values nobody needs after it."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        last[node] = node
        for source in node.all_input_nodes:
            last[source] = node
    done: dict[fx.Node, list[fx.Node]] = {}
    for source, node in last.items():
        done.setdefault(node, []).append(source)
    for node in graph.nodes:
        yield node, done.get(node, [])


def _of(model: nn.Module, name: str) -> torch.Tensor:
    value: Any = model
    for part in name.split("."):
        value = getattr(value, part)
    assert isinstance(value, torch.Tensor)
    return value
