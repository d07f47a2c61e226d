"""Memory that calls of a pruned program modify in place, and what must be copied for them first."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import fx

from upscale_opt.materializing.state import State
from upscale_opt.runtime.modules import Gather, PlacedSum

_IN_PLACE_OPERATORS = frozenset({"iadd", "isub", "imul", "itruediv"})

_COMPUTING = frozenset(
    {
        *("conv1d", "conv2d", "conv3d", "convolution", "_convolution", "linear", "addmm"),
        *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "mm", "bmm", "matmul"),
        *("batch_norm", "layer_norm", "group_norm", "instance_norm", "add", "sub", "mul"),
        *("relu", "relu6", "leaky_relu", "gelu", "silu", "elu", "sigmoid", "tanh", "hardswish"),
    }
)
"""Functions that compute anew whatever the mode; dropout, for one, may return what it gets."""

_COMPUTING_MODULES = frozenset(
    f"torch.nn.modules.{name}"
    for name in ("conv", "linear", "batchnorm", "instancenorm", "normalization", "activation")
)
"""The files that define the modules which do the same."""


_HANDING_ON = frozenset(
    {
        *(f"torch.nn.modules.dropout.{name}" for name in ("Dropout", "Dropout1d", "Dropout2d")),
        *(f"torch.nn.modules.dropout.{name}" for name in ("Dropout3d", "AlphaDropout")),
        "torch.nn.modules.dropout.FeatureAlphaDropout",
        "torch.nn.modules.linear.Identity",
        "torchvision.ops.stochastic_depth.StochasticDepth",
        "timm.layers.drop.DropPath",
    }
)
"""Modules that return what they get, or else something new, and keep neither."""


def protect(state: State) -> None:
    """Let no call modify in place what others still read, and let sums modify what none does.

    The original is free of the former (tracing sees to it), but here a tensor may be a view of
    another where the original had a copy. Only what was just computed is safe to modify.
    """
    _Protection(state).run(state.env)


class _Protection:
    """The program that is protected."""

    def __init__(self, state: State) -> None:
        self.program = state.program
        self.new = state.new
        self.root = state.root
        self.computed = state.computed
        self.in_place = state.in_place

    def run(self, env: Mapping[fx.Node, Any]) -> None:
        """Go through the calls in their order."""
        written: dict[fx.Node, fx.Node] = {}  # which node a call was written for, in order
        for node, call in env.items():
            if isinstance(call, fx.Node) and call.op.startswith("call_"):
                written.setdefault(call, node)
        fresh = {c for c, node in written.items() if node in self.program.fresh} & self.computed
        mutations = self.program.mutations - self.program.effects
        owned: set[fx.Node] = set()  # of these it is even known that nothing else keeps them
        for call, node in written.items():
            if self._makes_its_result(call, call in fresh):
                owned.add(call)
            source = self._handed_on(call)
            if source in fresh:
                fresh.add(call)
                owned.update({call} if source in owned else ())
            if self._is_placed_sum(call):
                fresh.add(call)
                self._let_write(call, owned)
            if node not in mutations or call not in self.computed:
                continue
            for value in (*call.args[:1], *call.kwargs.values()):
                if isinstance(value, fx.Node) and not (value in fresh and len(value.users) == 1):
                    with self.new.inserting_before(call):
                        copied = self.new.call_method("clone", (value,))
                    owned.add(copied)
                    call.replace_input_with(value, copied)
            if self._returns_what_it_modifies(call):
                fresh.add(call)
                owned.update({call} if call.args[0] in owned else ())

    def _let_write(self, call: fx.Node, owned: Set[fx.Node]) -> None:
        """Let a sum be computed in its whole summand if nothing else reads that."""
        placed = self.root.get_submodule(str(call.target))
        assert isinstance(placed, PlacedSum)
        whole = [value for value, all_of in zip(call.args, placed.whole, strict=True) if all_of]
        if self.in_place and len(whole) == 1 and isinstance(whole[0], fx.Node):
            alone = len(whole[0].users) == 1 and call.args.count(whole[0]) == 1
            placed.spare = alone and (whole[0] in owned or self._makes_its_result(whole[0], False))

    def _is_placed_sum(self, call: fx.Node) -> bool:
        ours = call.op == "call_module" and getattr(self.root, str(call.target), None)
        return isinstance(ours, PlacedSum)

    def _makes_its_result(self, call: fx.Node, computes: bool) -> bool:
        """Tell whether a call is known to return, in any mode, memory that nothing else refers to.

        Args:
            call: in the new program.
            computes: whether it computed something new when it was traced.
        """
        name = getattr(call.target, "__name__", str(call.target)).partition(".")[0]
        if call.op == "call_method":
            return name == "clone" or (computes and name in _COMPUTING)
        if call.op == "call_function":
            return call.target is torch.cat or (computes and name in _COMPUTING)
        ours = getattr(self.root, str(call.target), None)
        if isinstance(ours, (Gather, PlacedSum)):
            return True
        module = self.program.captured.modules.get(str(call.target))
        known = type(module).__module__ in _COMPUTING_MODULES
        return computes and known and module is not None and not module._forward_hooks

    def _handed_on(self, call: fx.Node) -> fx.Node | None:
        """The input that a call may return as it is, if nothing else reads it."""
        module = self.program.captured.modules.get(str(call.target))
        if call.op != "call_module" or module is None or module._forward_hooks:
            return None
        kind, source = type(module), call.args[0] if call.args else None
        if f"{kind.__module__}.{kind.__qualname__}" not in _HANDING_ON:
            return None
        return source if isinstance(source, fx.Node) and len(source.users) == 1 else None

    def _returns_what_it_modifies(self, call: fx.Node) -> bool:
        """Tell whether a call modifies its first argument, and gives just that back."""
        if call.op == "call_module":
            module = self.program.captured.modules[str(call.target)]
            ours = type(module).__module__.startswith("torch.nn.modules.activation")
            return ours and getattr(module, "inplace", False) is True
        name = getattr(call.target, "__name__", str(call.target))
        if call.op == "call_function" and getattr(operator, name, None) is call.target:
            return name in _IN_PLACE_OPERATORS
        return call.op == "call_method" and name.endswith("_") and not name.endswith("__")
