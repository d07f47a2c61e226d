"""The costs of a model: its parameters, and the multiply-adds of one forward pass."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from upscale_opt.measuring.watching import watch
from upscale_opt.tracing.examples import Inputs, require_model


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
    parameters = sum(parameter.numel() for parameter in model.parameters())
    counter = watch(model, inputs, lambda _: FlopCounterMode(display=False))
    return Costs(parameters, int(counter.get_total_flops()) // 2)
