"""Clocks of models where their exports will run: in PyTorch as it is, or in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from upscale_opt.errors import DeployError
from upscale_opt.in_onnxruntime.timing import model_clock as clock_in_onnxruntime
from upscale_opt.ir.cost_model import CostModel
from upscale_opt.measuring.in_turn import Clock, Times, model_clock, times_of
from upscale_opt.tracing.examples import Inputs

_ONNXRUNTIME = "onnxruntime"


@dataclass(frozen=True)
class Clocks:
    """Times of exports beside the model that they are made of.

    Attributes:
        model: the model, unpruned.
        inputs: the example inputs.
        prices: the cost model: with one of onnxruntime, all are written to ONNX and run there.
    """

    model: nn.Module
    inputs: Inputs
    prices: CostModel | None

    def beside(self, exports: Mapping[str, nn.Module], *, seconds: float = 2.0) -> Times:
        """Time the model, called ``"unpruned"``, and exports by name, in turn.

        Args:
            exports: on the inputs' device.
            seconds: the time for all of it, about.

        Raises:
            DeployError: in onnxruntime, if it is missing or ONNX cannot hold one of them.
        """
        clocks = {"unpruned": self._unpruned}
        clocks |= {name: self._clock(model) for name, model in exports.items()}
        parameter = next(self.model.parameters(), None)
        device = "cpu" if parameter is None else parameter.device.type
        return times_of(clocks, _ONNXRUNTIME if self._there else device, seconds=seconds)

    def prepare(self) -> None:
        """Find out now, not after the work, if the model cannot be timed there.

        Raises:
            DeployError: with the reason, and the way out.
        """
        if self._there:
            try:
                _ = self._unpruned
            except DeployError as error:
                raise DeployError(
                    f"{error}; without measure (--no-measure) nothing is put on the clock"
                ) from error

    @property
    def _there(self) -> bool:
        return self.prices is not None and self.prices.runtime == _ONNXRUNTIME

    @cached_property
    def _unpruned(self) -> Clock:
        return self._clock(self.model)

    def _clock(self, model: nn.Module) -> Clock:
        if self._there:
            return clock_in_onnxruntime(model, self.inputs, torch.get_num_threads())
        return model_clock(model, self.inputs)
