"""Python looks at a tensor: its type, attributes, place in a container, and the modes around."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hazard_networks import around
from hazards import Builder, holds, variants
from torch import Tensor
from torch._jit_internal import is_scripting

IS_TRACING: Any = torch.jit._trace.is_tracing


def _caught(m: Any, x: Any, y: Any) -> Any:
    try:
        return y + int(x.shape[2]) / 7
    except TypeError:
        return y.flip(1)


def _indexed(m: Any, x: Any, y: Any) -> Any:
    try:
        return y * [1.0, 2.0][x.shape[2]]
    except Exception:
        return y * 2


def _matched(m: Any, x: Any, y: Any) -> Any:
    return {4: y.flip(1)}.get(x.dim(), y * 2)


def _scaled_if_tensor(value: Any) -> Any:
    return value.flip(1) if isinstance(value, Tensor) else value * 2


LOOKS: dict[str, Builder] = {
    name: around(middle, honest=False)
    for name, middle in {
        "isinstance": lambda m, x, y: y.flip(1) if isinstance(x, Tensor) else y * 2,
        "isinstance of an activation": lambda m, x, y: y * 2 if isinstance(y, Tensor) else y,
        "isinstance in a helper": lambda m, x, y: _scaled_if_tensor(y),
        "isinstance of a list": lambda m, x, y: y * 2 if not isinstance(x, (list, tuple)) else y,
        "isinstance of a parameter": lambda m, x, y: (
            y * 2 if isinstance(m.writer.weight, torch.nn.Parameter) else y
        ),
        "is_tensor": lambda m, x, y: y.flip(1) if torch.is_tensor(x) else y * 2,
        "type": lambda m, x, y: y.flip(1) if type(x) is Tensor else y * 2,
        "type's name": lambda m, x, y: y.flip(1) if type(y).__name__ == "Tensor" else y * 2,
        "class": lambda m, x, y: y.flip(1) if x.__class__ is Tensor else y * 2,
        "issubclass": lambda m, x, y: y.flip(1) if issubclass(type(x), Tensor) else y * 2,
        "hasattr": lambda m, x, y: y.flip(1) if hasattr(x, "tensors") else y * 2,
        "hasattr of what is there": lambda m, x, y: y * 2 if hasattr(x, "is_cuda") else y,
        "getattr": lambda m, x, y: y + getattr(x, "scale", 2.0),
        "callable": lambda m, x, y: y.flip(1) if callable(x) else y * 2,
        "iterable": lambda m, x, y: y.flip(1) if hasattr(x, "__iter__") else y * 2,
        "identity": lambda m, x, y: y.flip(1) if x is y else y * 2,
        "identity of itself": lambda m, x, y: y.flip(1) if y[:] is y else y * 2,
        "identity of a parameter": lambda m, x, y: (
            y * 2 if m.writer.weight is m.writer.weight else y.flip(1)
        ),
        "none": lambda m, x, y: y * 2 if x is not None else y,
        "lookup": lambda m, x, y: y * {4: 2.0, 5: 3.0, 6: 5.0}.get(x.shape[2], 7.0),
        "lookup of a shape": lambda m, x, y: y * {(2, 3): 2.0}.get(tuple(x.shape[:2]), 5.0),
        "lookup of the rank": _matched,
        "in a set": lambda m, x, y: y.flip(1) if x.dim() in {4} else y * 2,
        "in a list": lambda m, x, y: y.flip(1) if x.shape[2] in [4, 5] else y * 2,
        "in a range": lambda m, x, y: y.flip(1) if x.shape[2] in range(6) else y * 2,
        "in a tuple of tensors": lambda m, x, y: y * 2 if any(t is y for t in (x, y)) else y,
        "string of the device": lambda m, x, y: y.flip(1) if str(x.device) == "cpu" else y * 2,
        "kind of device": lambda m, x, y: y.flip(1) if x.device.type == "cpu" else y * 2,
        "string of the dtype": lambda m, x, y: y.flip(1) if "64" in str(x.dtype) else y * 2,
        "formatted": lambda m, x, y: y.flip(1) if f"{x.shape[1]}" == "3" else y * 2,
        "dtype": lambda m, x, y: y.flip(1) if x.dtype == torch.float64 else y * 2,
        "floating point": lambda m, x, y: y.flip(1) if x.is_floating_point() else y * 2,
        "contiguous": lambda m, x, y: y.flip(1) if x.is_contiguous() else y * 2,
        "requires_grad": lambda m, x, y: y.flip(1) if x.requires_grad else y * 2,
        "int in a try": _caught,
        "index in a try": _indexed,
        "rank": lambda m, x, y: y.flip(1) if x.dim() == 4 else y * 2,
        "shape": lambda m, x, y: y.flip(1) if x.shape[1:2] == (3,) else y * 2,
        "shapes compared": lambda m, x, y: y * 2 if x.shape == y.shape else y.flip(1),
        "shapes of a layer compared": lambda m, x, y: (
            y + m.more.gate(y) if m.more.gate(y).shape == y.shape else y.flip(1)
        ),
        "channels compared": lambda m, x, y: y.flip(1) if y.size(1) == m.width else y * 2,
        "gradients on": lambda m, x, y: y.flip(1) if torch.is_grad_enabled() else y * 2,
        "inference mode": lambda m, x, y: y.flip(1) if torch.is_inference_mode_enabled() else y * 2,
        "compiling": lambda m, x, y: y.flip(1) if torch.compiler.is_compiling() else y * 2,
        "exporting": lambda m, x, y: y.flip(1) if torch.compiler.is_dynamo_compiling() else y * 2,
        "scripting": lambda m, x, y: y.flip(1) if is_scripting() else y * 2,
        "tracing": lambda m, x, y: y.flip(1) if IS_TRACING() else y * 2,
        "tracing by fx": lambda m, x, y: (
            y.flip(1) if torch.fx._symbolic_trace.is_fx_tracing() else y * 2
        ),
        "autocast": lambda m, x, y: y.flip(1) if torch.is_autocast_enabled("cpu") else y * 2,
        "default dtype": lambda m, x, y: y * torch.tensor(2.5).item(),
        "smaller": lambda m, x, y: y.flip(1) if x.shape[2] < 6 else y * 2,
        "truth of a size": lambda m, x, y: y.flip(1) if x.shape[2] - 5 else y * 2,
        "smallest of sizes": lambda m, x, y: y * min(x.shape[2], 5),
    }.items()
}


@variants("B", LOOKS)
def test_python_looks_at_a_tensor(builder: Builder, seed: int) -> None:
    holds(builder, seed)


# The modes around a call: what they decide at the trace they decide later.


@pytest.mark.parametrize("mode", ["grad", "no_grad", "inference"])
def test_modes_at_the_trace(mode: str) -> None:
    modes: dict[str, Any] = {
        "grad": torch.enable_grad,
        "no_grad": torch.no_grad,
        "inference": torch.inference_mode,
    }
    with modes[mode]():
        holds(around(lambda m, x, y: torch.relu(m.more.gate(y)) + y, sizes=True), 3)


def test_draws_differ() -> None:
    built = [LOOKS["isinstance"](random.Random(seed)) for seed in range(8)]
    assert len({tuple(case.inputs.shape) for case in built}) > 2
    assert len({str(case.make()) for case in built}) > 2
