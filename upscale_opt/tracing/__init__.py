"""Tracing: from a PyTorch model to its channel graph."""

from __future__ import annotations

from torch import nn

from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.tracing.examples import Inputs, as_call, require_model
from upscale_opt.tracing.recent import remember
from upscale_opt.tracing.running import run
from upscale_opt.tracing.wrappings import unwrapped


def trace(model: nn.Module, inputs: Inputs) -> ChannelGraph:
    """The channel graph of ``model``: which channels every tensor carries, and how they meet.

    The model is captured by :mod:`torch.fx` (by :mod:`torch.export` where FX cannot), and run
    call by call on fake tensors; no activation is computed and the model is not changed.
    Operations that are not understood are recorded as opaque, with the reason. What the model's
    Python code decides by its mode (``if self.training``) is decided by the mode it has now.

    Args:
        model: in train or eval mode, on any device, of any floating-point dtype; of one wrapped by
            ``DataParallel``, ``torch.compile`` and the like, what is inside, by its own names.
        inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments.

    Raises:
        TraceError: if the model cannot be captured, or does not run on ``inputs``.
    """
    require_model(model, "trace")
    model = unwrapped(model)
    program = run(model, *as_call(inputs))
    remember(model, program)
    return program.graph
