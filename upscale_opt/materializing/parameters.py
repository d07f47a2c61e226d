"""The modules and tensors of a pruned model: copies of the original's, smaller where they must."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from upscale_opt.errors import MaterializeError
from upscale_opt.ir import graph as ir
from upscale_opt.ir.solution import Solution
from upscale_opt.masking.slices import sliced
from upscale_opt.runtime.modules import fit_sizes
from upscale_opt.tracing.capture import Captured
from upscale_opt.tracing.claims import Resize, Sizes, resize


def slice_parameters(
    model: nn.Module, graph: ir.ChannelGraph, solution: Solution
) -> dict[int, torch.Tensor]:
    """Copy what changes, smaller: a memo that makes deep copies use these."""
    memo: dict[int, torch.Tensor] = {}
    own: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    own.update(model.named_buffers(remove_duplicate=False))
    for name, by_axis in solution.parameters.items():
        tensor = own[name]
        data = sliced(tensor.detach(), by_axis, graph.grouped.get(name, 1))
        form = {4: torch.channels_last, 5: torch.channels_last_3d}.get(data.ndim)
        if form is not None and tensor.is_contiguous(memory_format=form):
            data = data.contiguous(memory_format=form)
        memo[id(tensor)] = (
            nn.Parameter(data.clone(), requires_grad=tensor.requires_grad)
            if isinstance(tensor, nn.Parameter)
            else data.clone()
        )
    return memo


def fill_root(
    root: nn.Module,
    new: fx.Graph,
    model: nn.Module,
    captured: Captured,
    memo: dict[int, Any],
    groups: Mapping[str, int],
    sizes: Mapping[str, tuple[Resize | None, Sizes]],
) -> None:
    """Copy the modules and tensors that the new program names into its root.

    Args:
        root: holds the modules of ours already.
        new: the pruned program.
        model: the original.
        captured: the original's program, and what it names.
        memo: what deep copies are to use.
        groups: of convolutions, into how many groups their channels fall.
        sizes: what modules with a rule of the user's are told.
    """
    transient = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    for node in new.nodes:
        target = str(node.target)
        if node.op == "call_module" and target in captured.modules:
            try:
                module = copy.deepcopy(captured.modules[target], memo)
            except RuntimeError as error:
                raise MaterializeError(f"module {target!r} cannot be copied: {error}") from error
            fit_sizes(module, groups.get(target))
            if target in sizes:
                resize(module, *sizes[target])
            _attach(root, target, module)
        elif node.op == "get_attr":
            value = copy.deepcopy(captured.tensors[target], memo)
            _attach(root, target, value, persistent=target not in transient)


def _attach(root: nn.Module, target: str, value: Any, persistent: bool = True) -> None:
    """Set ``value`` as attribute ``target``, with plain modules on the way to it."""
    *path, last = target.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    if isinstance(value, nn.Module):
        root.add_module(last, value)
    elif isinstance(value, nn.Parameter):
        root.register_parameter(last, value)
    else:
        root.register_buffer(last, value, persistent)
