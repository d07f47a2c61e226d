"""Records of the calls of a model's submodules while it runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from upscale_opt.errors import TraceError
from upscale_opt.ir.graph import Example
from upscale_opt.materializing.used import kind_of
from upscale_opt.tracing.examples import Inputs, as_call, describe, remake
from upscale_opt.tracing.unchanged import same_random_state


@dataclass
class Calls:
    """The calls of one submodule.

    Attributes:
        count: how often.
        example: the arguments of its first call, by shape and dtype.
        obstacle: why it cannot be traced by itself, or ``""``.
    """

    count: int = 0
    example: Example | None = None
    obstacle: str = ""


@dataclass
class _Recorder:
    calls: dict[str, Calls] = field(default_factory=dict)
    running: list[str] = field(default_factory=list)

    def enter(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        for outer in _outer(name):
            if outer not in self.running:
                known = self.calls.setdefault(outer, Calls())
                known.obstacle = f"{name} is called from outside of it"
        known = self.calls.setdefault(name, Calls())
        known.count += 1
        if known.count == 1:
            try:
                known.example = describe(*_one_kind(module, args, kwargs))
            except TraceError as error:
                known.obstacle = str(error)
        self.running.append(name)


def record_calls(model: nn.Module, inputs: Inputs) -> dict[str, Calls]:
    """Run ``model`` once and say what each of its submodules was called with.

    Args:
        model: the model, in whatever mode it is; ``""`` is its own name.
        inputs: what it is called with.

    Returns:
        By name, the submodules that were called, and containers of such.
    """
    recorder = _Recorder()
    args, kwargs = as_call(inputs)
    with _hooked(model, recorder), torch.no_grad(), same_random_state(model, inputs):
        model(*args, **kwargs)
    for name, known in recorder.calls.items():
        known.obstacle = known.obstacle or _shared(model, name)
    return recorder.calls


@contextmanager
def _hooked(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    handles = []
    for name, module in model.named_modules():

        def enter(module: nn.Module, args: Any, kwargs: dict[str, Any], name: str = name) -> None:
            recorder.enter(name, module, args, kwargs)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            recorder.running.pop()

        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _outer(name: str) -> Iterator[str]:
    """The submodules that ``name`` lies in, from the inside out."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _one_kind(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments, all positional or all by name, as tracing wants them."""
    if not args or not kwargs:
        return args, kwargs
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    if bound.args and len(bound.args) + len(bound.kwargs) != len(bound.arguments):
        raise TraceError("it is called with a varying number of arguments, some of them by name")
    return (), dict(bound.arguments)


def _shared(model: nn.Module, name: str) -> str:
    """The reason why pruning ``name`` would change another part of the model, or ``""``."""
    inside: dict[int, str] = {}
    outside: dict[int, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        within = not name or path == name or path.startswith(f"{name}.")
        for key, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None:
                (inside if within else outside)[id(value)] = f"{path}.{key}".lstrip(".")
    both = inside.keys() & outside.keys()
    return f"{inside[both.pop()]} is used outside of it, too" if both else ""


def inputs_of(module: nn.Module, example: Example) -> Inputs:
    """Arguments like those recorded, all zero.

    Args:
        module: the submodule; of its dtype, and on its device.
        example: what was recorded.
    """
    args, kwargs = remake(example, *kind_of(module))
    return kwargs if kwargs else args
