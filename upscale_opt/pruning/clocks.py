"""Clocks of models where their exports will run: in PyTorch, compiled, or as ONNX files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from upscale_opt.errors import DeployError
from upscale_opt.in_runtimes.backends import BACKENDS
from upscale_opt.in_runtimes.timing import model_clock as clock_of_file
from upscale_opt.ir.cost_model import CostModel, Runtime
from upscale_opt.measuring.in_turn import Clock, Times, model_clock, times_of
from upscale_opt.tracing.examples import Inputs


@dataclass(frozen=True)
class Clocks:
    """Times of exports beside the model that they are made of.

    Attributes:
        model: the model, unpruned.
        inputs: the example inputs.
        prices: the cost model: with one of onnxruntime or OpenVINO, all are written to ONNX and
            run there; with one of ``torch.compile``, all are compiled.
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
            DeployError: if the runtime is missing, or ONNX cannot hold one of them; if one cannot
                be compiled.
        """
        clocks = {"unpruned": self._unpruned}
        clocks |= {name: self._clock(model) for name, model in exports.items()}
        parameter = next(self.model.parameters(), None)
        device = "cpu" if parameter is None else parameter.device.type
        return times_of(
            clocks, device if self._runtime == "eager" else self._runtime, seconds=seconds
        )

    def prepare(self) -> None:
        """Find out now, not after the work, if the model cannot be timed there.

        Raises:
            DeployError: with the reason, and the way out.
        """
        if self._runtime != "eager":
            try:
                _ = self._unpruned
            except DeployError as error:
                raise DeployError(
                    f"{error}; without measure (--no-measure) nothing is put on the clock"
                ) from error

    @property
    def _runtime(self) -> Runtime:
        return "eager" if self.prices is None else self.prices.runtime

    @cached_property
    def _unpruned(self) -> Clock:
        return self._clock(self.model)

    def _clock(self, model: nn.Module) -> Clock:
        if self._runtime in BACKENDS:
            return clock_of_file(model, self.inputs, self._runtime, torch.get_num_threads())
        found = model_clock(_Compiled(model) if self._runtime == "compiled" else model, self.inputs)
        if self._runtime == "compiled":
            try:
                with torch.no_grad():
                    found()
            except Exception as error:  # Dynamo, Inductor and the C++ compiler raise all kinds
                text = " ".join(str(error).split())[:200]
                raise DeployError(f"torch.compile fails: {type(error).__name__}: {text}") from error
        return found


class _Compiled(nn.Module):
    """A model compiled, however many of its class were before.

    Dynamo compiles a few widths of one class, and runs further ones as they are: it counts by the
    code that it compiles, so that every model is called by code of its own.
    """

    _numbers = itertools.count(1)

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

        def call(*args: Any, **kwargs: Any) -> Any:
            return model(*args, **kwargs)

        call.__code__ = call.__code__.replace(co_firstlineno=next(self._numbers))
        self._call: Callable[..., Any] = torch.compile(call, dynamic=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call what was compiled."""
        return self._call(*args, **kwargs)
