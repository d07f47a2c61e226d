"""Run a user's model on a user's batches, and leave it as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from upscale_opt.tracing.unchanged import unchanged


def as_batches(batches: Iterable[Any]) -> Iterable[Any]:
    """``batches``; a single tensor or dict is one batch, not a series of images or names."""
    return [batches] if isinstance(batches, (Tensor, Mapping)) else batches


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; afterwards it and the random state are as before, come what may.

    That is: the modes, hooks and other attributes of its modules, its buffers, and its parameters'
    gradients and ``requires_grad``. Only the parameters' values are not watched. Inside, there are
    no gradients at first.
    """
    tensors = [*model.parameters(), *model.buffers()]
    devices = {tensor.device for tensor in tensors if tensor.device.type == "cuda"}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(sorted(devices, key=str)))
        stack.enter_context(unchanged(model))
        stack.callback(_restore_modes, [(module, module.training) for module in model.modules()])
        stack.callback(_restore_values, [(b, b.detach().clone()) for b in model.buffers()])
        stack.callback(_restore_gradients, [(t, t.grad, t.requires_grad) for t in tensors])
        for tensor in tensors:
            tensor.grad = None
        for module in model.modules():
            module.training = False  # not by eval(), which exported programs refuse
        yield


def _restore_modes(saved: list[tuple[nn.Module, bool]]) -> None:
    for module, training in saved:
        module.training = training


def _restore_values(saved: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for buffer, value in saved:
            if not torch.equal(buffer, value):
                buffer.copy_(value)


def _restore_gradients(saved: list[tuple[Tensor, Tensor | None, bool]]) -> None:
    for tensor, gradient, requires_grad in saved:
        tensor.grad = gradient
        if tensor.requires_grad != requires_grad:
            tensor.requires_grad_(requires_grad)
