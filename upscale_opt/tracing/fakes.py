"""A captured model on fake tensors: its parameters, and single calls of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from upscale_opt.errors import TraceError
from upscale_opt.tracing.capture import Captured
from upscale_opt.tracing.values import Abstract


@dataclass(frozen=True)
class Parameter:
    """A parameter, buffer or constant as it appears among a call's arguments."""

    name: str
    fake: torch.Tensor


class Fakes:
    """Fake tensors for what a captured model registers, each under its first name.

    Attributes:
        mode: what the fake tensors belong to.
        known: what is known of each, by ``id`` of the fake.
        names: the name of each, by the memory it lies in.
        shapes: the shape of each, by name.
        real: what each stands for, and the fake itself, by name.
    """

    def __init__(self, model: nn.Module, captured: Captured) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.known: dict[int, Abstract] = {}
        self.names: dict[int, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.real: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._captured = captured
        self._fakes: dict[str, torch.Tensor] = {}
        _refuse_lazy(model)
        first: dict[int, str] = {}
        for name, tensor in (
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
            *captured.constants.items(),
        ):
            original = first.setdefault(id(tensor), name)
            if original == name:
                self._add(name, tensor)
            else:
                self._fakes[name] = self._fakes[original]
        for name, tensor in captured.tensors.items():
            if id(tensor) in first:
                self._fakes.setdefault(name, self._fakes[first[id(tensor)]])

    def _add(self, name: str, tensor: torch.Tensor) -> None:
        shape = tuple(tensor.shape)
        like = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        fake = FakeTensor(self.mode, like, tensor.device)
        self._fakes[name] = fake
        self.real[name] = tensor, fake
        self.names[memory(fake)] = name
        self.shapes[name] = shape
        self.known[id(fake)] = Abstract(shape, parameter=name, original=shape, zero=None)

    def first_name(self, name: str) -> str:
        """The name by which the graph knows what the model registers as ``name``."""
        found = self.known[id(self._fakes[name])].parameter
        assert found is not None
        return found

    def parameter(self, node: fx.Node) -> Parameter:
        """The parameter that a ``get_attr`` node fetches.

        Raises:
            TraceError: if the model does not register it.
        """
        target = str(node.target)
        fake = self._fakes.get(target)
        if fake is None:
            raise TraceError(f"the program uses {node.target!r}, which the model does not register")
        return Parameter(self.first_name(target), fake)

    def of_module(self, node: fx.Node) -> dict[str, torch.Tensor]:
        """The parameters and buffers of the module that ``node`` calls, by their names in it."""
        if node.op != "call_module":
            return {}
        target = str(node.target)
        module = self._captured.modules[target]
        names = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
        return {name: self._fakes[f"{target}.{name}"] for name in names}

    def execute(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call."""
        if node.op == "call_module":
            module = self._captured.modules[str(node.target)]
            state = self.of_module(node)
            if not state:
                return module(*args, **kwargs)
            return functional_call(module, state, args, kwargs, tie_weights=True)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


def memory(fake: torch.Tensor) -> int:
    """The memory that a fake tensor lies in, as a number."""
    return int(fake.untyped_storage()._cdata)


def _refuse_lazy(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise TraceError(f"{name!r} has no shape yet; run the model once before tracing it")
