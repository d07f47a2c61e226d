"""Remember the last trace of each living model, so that materialising need not trace again."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from upscale_opt.ir.graph import Example
from upscale_opt.tracing.capture import Capture
from upscale_opt.tracing.program import Program

_programs: WeakKeyDictionary[nn.Module, tuple[Any, Program]] = WeakKeyDictionary()


def remember(model: nn.Module, program: Program) -> None:
    """Keep ``program`` for as long as ``model`` lives."""
    _programs[model] = _signature(model), program


def recall(model: nn.Module, example: Example, capture: Capture) -> Program | None:
    """The model's last trace, if it was such a one and nothing a trace depends on has changed."""
    known = _programs.get(model)
    if known is None:
        return None
    signature, program = known
    same = program.graph.example == example and program.captured.kind == capture
    return program if same and signature == _signature(model) else None


def _signature(model: nn.Module) -> Any:
    """All that can influence a trace, short of code that is edited at run time."""
    return [
        (
            name,
            id(module),
            type(module),
            len(module._forward_hooks) + len(module._forward_pre_hooks),
            [(k, v) for k, v in module.__dict__.items() if _is_plain(v) or k == "forward"],
            [(k, id(v), v.shape, v.dtype, v.device) for k, v in _tensors(module)],
        )
        for name, module in model.named_modules(remove_duplicate=False)
    ]


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, tuple))


def _tensors(module: nn.Module) -> list[tuple[str, Any]]:
    own = (*module._parameters.items(), *module._buffers.items())
    return [(name, tensor) for name, tensor in own if tensor is not None]
