"""The tensors and modules that a pruned model's program uses, and of which kind its inputs are."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx, nn

from upscale_opt.runtime.modules import OURS


def kind_of(model: nn.Module) -> tuple[torch.dtype, torch.device]:
    """The dtype and device that inputs of ``model`` have: those of its first weight.

    That is the first floating-point parameter or buffer that a program (if it is one) uses, and of
    two axes or more, as a scalar may be a loss's temperature.
    """
    used = tensors_of(model).values() if isinstance(model, fx.GraphModule) else ()
    tensors = [t for t in (*used, *model.parameters(), *model.buffers()) if t.is_floating_point()]
    first = next(
        (tensor for tensor in tensors if tensor.ndim >= 2), tensors[0] if tensors else None
    )
    if first is None:
        return torch.get_default_dtype(), torch.device("cpu")
    return first.dtype, first.device


def tensors_of(pruned: fx.GraphModule) -> dict[str, torch.Tensor]:
    """The parameters and buffers that the program uses, but the indices that follow from it.

    A model pruned in place may have others, which belong to its class.
    """
    called, read = _named(pruned.graph)
    ours = {name for name, module in pruned.named_modules() if isinstance(module, OURS)}
    return {
        name: tensor
        for name, tensor in registered(pruned)
        if name in read
        or (name.rpartition(".")[0] not in ours and not called.isdisjoint(_places(name)))
    }


def modules_of(pruned: fx.GraphModule) -> dict[str, nn.Module]:
    """The modules that the program uses by name: those called, those within, and those around."""
    called, read = _named(pruned.graph)
    around = {place for name in (*called, *read) for place in _places(name)}
    return {
        name: module
        for name, module in pruned.named_modules()
        if name == "" or name in around or not called.isdisjoint(_places(name))
    }


def _named(graph: fx.Graph) -> tuple[set[str], set[str]]:
    """The modules that the program calls, and the tensors that it reads itself."""
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    return called, {str(node.target) for node in graph.nodes if node.op == "get_attr"}


def _places(name: str) -> list[str]:
    """``["a", "a.b", "a.b.c"]`` for ``"a.b.c"``."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def registered(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All parameters and buffers, those with several names by each."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
