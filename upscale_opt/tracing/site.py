"""One call of the captured program, as executed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from upscale_opt.tracing.record import Call
from upscale_opt.tracing.values import Abstract, HeadCall, Traced


@dataclass
class CallSite:
    """One call of the captured program, as executed.

    Attributes:
        node: the call.
        module: the module called, if one is.
        arguments: the call's arguments, with :class:`Traced` and :class:`Parameter` as leaves.
        inputs: the distinct tensors among them, in order.
        outputs: the tensors that it returned, apart from those that nothing uses.
        numbers: which of all tensors it returned each of ``outputs`` is.
        calls: the ATen operations it executed.
        run: execute the call on other arguments (of the same structure).
        parameters: what is known of parameters, by ``id`` of their fakes.
        own: the fakes of the called module's own parameters and buffers, by their names in it.
        between: tensors of the graph that the call's operations hand to one another.
        heads: how the call is written again, if it works on heads.
    """

    node: fx.Node
    module: nn.Module | None
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    inputs: list[Traced]
    outputs: list[Traced]
    numbers: list[int]
    calls: list[Call]
    run: Callable[[tuple[Any, ...], dict[str, Any]], Any]
    parameters: dict[int, Abstract]
    own: dict[str, torch.Tensor]
    between: list[Traced] = field(default_factory=list)
    heads: list[HeadCall] = field(default_factory=list)
