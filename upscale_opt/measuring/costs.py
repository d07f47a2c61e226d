"""What a model costs: its parameters, and the multiply-adds of one forward pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from upscale_opt.tracing.examples import Inputs, as_call, map_tensors, require_model


@dataclass(frozen=True)
class Costs:
    """The size of a model.

    Attributes:
        parameters: the numbers in its parameters; shared ones count once, buffers do not.
        multiply_adds: of the convolutions and matrix products of one forward pass.
    """

    parameters: int
    multiply_adds: int


def count_costs(model: nn.Module, inputs: Inputs) -> Costs:
    """Count the parameters of ``model``, and the multiply-adds of one forward pass on ``inputs``.

    The pass is run in evaluation mode on fake tensors, which have shapes but no data; a model that
    needs data (to branch on, say) is run for real. Either way it is left as it was, and so is the
    random state.

    Args:
        model: on any device, of any floating-point dtype.
        inputs: as for :func:`upscale_opt.trace`.

    Raises:
        TraceError: if ``model`` is no model, or ``inputs`` are none of the accepted forms.
    """
    require_model(model, "measure")
    args, kwargs = as_call(inputs)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    try:
        flops = _count_fake(model, args, kwargs)
    except Exception:
        # There is no list of what can go wrong here: any Python code may run in a forward pass.
        flops = _count_real(model, args, kwargs)
    return Costs(parameters, flops // 2)


def _count_fake(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        memo[id(tensor)] = mode.from_tensor(tensor)
    fake = copy.deepcopy(model, memo).eval()
    fake_args, fake_kwargs = map_tensors((args, kwargs), mode.from_tensor)
    with mode:
        return _count(fake, fake_args, fake_kwargs)


def _count_real(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    training = [module for module in model.modules() if module.training]
    devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
    try:
        model.eval()
        with torch.random.fork_rng(sorted(devices, key=str)):
            return _count(model, args, kwargs)
    finally:
        for module in training:
            module.training = True


def _count(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    with torch.no_grad(), composed_attention(), FlopCounterMode(display=False) as counter:
        model(*args, **kwargs)
    return int(counter.get_total_flops())


@contextmanager
def composed_attention() -> Iterator[None]:
    """Have attention computed by products that the counter knows, not by one fused kernel."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
