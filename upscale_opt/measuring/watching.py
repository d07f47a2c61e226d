"""Watch one forward pass, on tensors without data if the model allows it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from upscale_opt.tracing.examples import Inputs, as_call, map_tensors
from upscale_opt.tracing.unchanged import composed_attention, evaluate, undisturbed

Seen = TypeVar("Seen")
Watcher = Callable[[nn.Module], AbstractContextManager[Seen]]
"""Watches what a model does while it is open."""


def watch(model: nn.Module, inputs: Inputs, watcher: Watcher[Seen]) -> Seen:
    """Return what ``watcher`` sees of one forward pass.

    The pass is run in evaluation mode and without gradients on fake tensors, which have shapes but
    no data; a model that needs data (to branch on, say) is run for real. Either way it is left as
    it was, and so is the random state.

    Args:
        model: any model, on any device.
        inputs: as for :func:`upscale_opt.trace`.
        watcher: given the model that runs, which may be a copy.

    Raises:
        TraceError: if ``inputs`` is none of the accepted forms.
    """
    args, kwargs = as_call(inputs)
    try:
        return _fake(model, args, kwargs, watcher)
    except Exception:
        # There is no list of what can go wrong here: any Python code may run in a forward pass.
        with undisturbed(model, args, kwargs):
            return _seen(model, args, kwargs, watcher)


def _fake(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], watcher: Watcher[Seen]
) -> Seen:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        memo[id(tensor)] = mode.from_tensor(tensor)
    fake = copy.deepcopy(model, memo)
    evaluate(fake)
    fake_args, fake_kwargs = map_tensors((args, kwargs), mode.from_tensor)
    with mode:
        return _seen(fake, fake_args, fake_kwargs, watcher)


def _seen(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], watcher: Watcher[Seen]
) -> Seen:
    with torch.no_grad(), composed_attention(), watcher(model) as seen:
        model(*args, **kwargs)
    return seen
