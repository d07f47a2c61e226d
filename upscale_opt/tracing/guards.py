"""Guards: what a capture assumed of a model's inputs, and so what the pruned model checks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from upscale_opt.runtime.required_inputs import DEFAULT, Wanted, require_inputs


@dataclass(frozen=True)
class Check:
    """The demands on inputs; see :func:`upscale_opt.runtime.required_inputs.require_inputs`.

    Attributes:
        inputs: the inputs; in a model that is traced again, perhaps activations.
        names: what to call them.
        wanted: sizes, kinds or values.
        tracer: what made the capture that assumes this.
    """

    inputs: tuple[fx.Node, ...]
    names: tuple[str, ...]
    wanted: tuple[Wanted, ...]
    tracer: str = "torch.export"

    def __str__(self) -> str:
        pairs = zip(self.names, self.wanted, strict=True)
        return f"{self.tracer} assumes " + ", ".join(f"{name}: {want!r}" for name, want in pairs)


def is_plain(value: Any) -> bool:
    """Tell whether code can spell a value, and one can tell whether another is the same."""
    if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
        return all(map(is_plain, value))
    if isinstance(value, slice):
        return all(map(is_plain, (value.start, value.stop, value.step)))
    return value is None or type(value) in (bool, int, float, complex, str, torch.dtype)


def default_of(value: Any) -> Any:
    """The stand-in for the default ``value`` in the signature of a pruned model."""
    return value if is_plain(value) else DEFAULT


def stand_in(name: str, parameter: inspect.Parameter) -> tuple[str, tuple[Any, ...]]:
    """The target and the arguments of the placeholder of a parameter of a model."""
    lacks = parameter.default is parameter.empty
    # What follows a parameter with a default must have one, too.
    spelled = DEFAULT if lacks else default_of(parameter.default)
    lacks &= parameter.kind is not parameter.KEYWORD_ONLY
    return MANY.get(parameter.kind.name, "") + name, () if lacks else (spelled,)


MANY = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}
"""The marks in front of parameters that take any number of arguments."""


def wanted_of(value: Any) -> Wanted:
    """The demands on an argument that was ``value`` when a model was traced with proxies.

    Tensors must have as many axes, as axes are written by their numbers.
    """
    if isinstance(value, torch.Tensor):
        return (None,) * value.ndim
    if isinstance(value, Mapping):
        return {str(key): wanted_of(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [wanted_of(item) for item in value]
    return value


def checks_within(graph: fx.Graph) -> list[Check]:
    """Take what pruned models require of inputs out of a program."""
    checks: list[Check] = []
    for node in list(graph.nodes):
        if node.target is require_inputs:
            values, *named = node.args[:3]
            entries = [e for e in zip(values, *named, strict=True) if isinstance(e[0], fx.Node)]
            if entries:
                inputs, names, wanted = zip(*entries, strict=True)
                checks.append(Check(inputs, names, wanted, *node.args[3:]))
            graph.erase_node(node)
    return checks
