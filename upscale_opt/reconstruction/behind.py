"""What stands behind a layer: a norm, a sum with what is known by then, a rectifier.

They decide what of a layer's output is read. What the other summand lacks, the layer may make good
(He, Zhang and Sun, *Channel Pruning for Accelerating Very Deep Neural Networks*, ICCV 2017, section
3.3); and what a rectifier cuts off may be anything that it cuts off (Zhang, Zou, He and Sun,
*Accelerating Very Deep Convolutional Networks for Classification and Detection*, PAMI 2016).
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from upscale_opt.errors import TraceError
from upscale_opt.ir.graph import Elementwise
from upscale_opt.reconstruction.stepping import Stepper
from upscale_opt.reconstruction.watching import Watcher
from upscale_opt.tracing.program import Program

Values = dict[fx.Node, Any]
"""What the calls of a program have given so far."""

_LONGEST = 6
"""Calls behind a layer, at most."""

_FEWEST = 8
"""Numbers to tell a rectifier by, at least."""

_TRIED = 100.0
"""Rectifiers are told by what they make of numbers between minus this and this."""

_LEAST = 1e-4
"""Channels that are scaled by less than this share of the largest scale count for nothing."""


@dataclass(frozen=True)
class Behind:
    """The calls behind a layer, each the only reader of the one before.

    Attributes:
        node: the layer's call.
        axis: of its result, along which its channels lie.
        calls: those that scale and shift channels, such as a batch norm in eval mode.
        scale: by what they scale each channel, in the masked model; 0 if by next to nothing.
        other: what is added then; ``None`` if nothing is.
        low: what is below it is read as if it was this.
        high: and what is above.
        mean: the running mean of the batch norm directly behind, if there is one.
    """

    node: fx.Node
    axis: int
    calls: tuple[fx.Node, ...]
    scale: Tensor
    other: fx.Node | None
    low: float
    high: float
    mean: str | None

    @property
    def cuts(self) -> bool:
        """There is a rectifier."""
        return self.low > -math.inf or self.high < math.inf

    def sums(self, stepper: Stepper, y: Tensor, values: Values) -> Tensor:
        """What the rectifier gets, for a result of the layer."""
        last = self.node
        for call in self.calls:
            y, last = _called(stepper, call, last, y, values), call
        return y if self.other is None else y + values[self.other]

    def read(self, sums: Tensor) -> Tensor:
        """What is read of it."""
        return sums.clamp(self.low, self.high) if self.cuts else sums

    def wanted(self, y: Tensor, now: Tensor, sums: Tensor, *, cut: bool) -> Tensor:
        """The result that the layer should give.

        Args:
            y: that it gives.
            now: what the rectifier gets with it.
            sums: what it gets in the original.
            cut: what the rectifier cuts off may stay where it is, as far as it cuts it off anyhow.
        """
        aim = sums
        if cut and self.low > -math.inf:
            aim = torch.where(sums <= self.low, now.clamp(max=self.low), aim)
        if cut and self.high < math.inf:
            aim = torch.where(sums >= self.high, now.clamp(min=self.high), aim)
        scale = along(self.scale, y, self.axis)
        return torch.where(scale == 0, y, y + (aim - now) / torch.where(scale == 0, 1.0, scale))


def along(numbers: Tensor, like: Tensor, axis: int) -> Tensor:
    """A number for every channel, in a shape that goes with ``like``."""
    shape = [1] * like.ndim
    shape[axis] = -1
    return numbers.reshape(shape)


def behind(
    node: fx.Node,
    axis: int,
    program: Program,
    steppers: tuple[Stepper, Stepper],
    values: Sequence[tuple[Values, Values]],
    watched: Mapping[str, Tensor],
) -> Behind | None:
    """Find what stands behind a layer; ``None`` if there is neither a sum nor a rectifier.

    What calls do is told by what they do to numbers: to zeros and ones, to numbers on both sides of
    zero, and to what the layer gives for the first batch.

    Args:
        node: the layer's call, which gives one tensor.
        axis: along which the channels of its result lie.
        program: that it is a call of.
        steppers: of the original and of the masked model.
        values: of every batch, in both.
        watched: running means of the masked model, by name.
    """
    own, other = values[0]
    y = steppers[0].call(node, own, apart=True)
    if y.numel() < _FEWEST:
        return None
    calls: list[fx.Node] = []
    added: fx.Node | None = None
    scale = y.new_ones(y.shape[axis])
    mean: str | None = None
    last, found = node, None
    for _ in range(_LONGEST):
        call = next(iter(last.users), None)
        if len(last.users) != 1 or call is None or call.op == "output":
            break
        if call in program.effects:  # trying it would leave traces
            break
        if _adds(call, program):
            if added is not None:
                break
            (added,) = (n for n in call.all_input_nodes if n is not last)
            added = _known(added, steppers, values)
            if added is None or _shape(own[added]) != y.shape:
                added = None
                break
            last = call
            continue
        try:
            bounds = _bounds(steppers[1], call, last, y, other)
            if bounds is not None:
                found = bounds
                break
            if added is not None:
                break
            step = _slope(steppers[1], call, last, y, other, axis)
        except TraceError:  # it takes no such numbers
            break
        norm = None if step is None else _norm(steppers[1], call, last, y, other, watched)
        if step is None or (norm is not None and calls):
            break
        mean = mean or norm
        scale = scale * step
        calls.append(call)
        last = call
    if added is None and found is None:
        return None
    scale = torch.where(scale.abs() >= _LEAST * scale.abs().max(), scale, 0.0)
    low, high = found or (-math.inf, math.inf)
    return Behind(node, axis, tuple(calls), scale, added, low, high, mean)


def _adds(call: fx.Node, program: Program) -> bool:
    """The call adds two tensors, and does nothing else."""
    names = program.operations.get(call) or []
    ops = [op for op in program.graph.operations if op.name in names]
    plain = len(ops) == 1 and isinstance(ops[0], Elementwise) and ops[0].additive
    return plain and len(call.all_input_nodes) == len(call.args) == 2 and not call.kwargs


def _known(
    node: fx.Node, steppers: tuple[Stepper, Stepper], values: Sequence[tuple[Values, Values]]
) -> fx.Node | None:
    """The call whose result ``node`` hands on, if it is there already."""
    path = [node]
    while any(path[-1] not in own for pair in values for own in pair):
        sources = path[-1].all_input_nodes
        if len(sources) != 1 or path[-1].op == "placeholder" or len(path) > _LONGEST:
            return None
        path.append(sources[0])
    given = values[0][0][path[-1]]
    if not isinstance(given, Tensor):
        return None
    for at in range(len(path) - 1, 0, -1):
        result = _called(steppers[0], path[at - 1], path[at], given, values[0][0])
        if _shape(result) != given.shape or not torch.equal(result, given):
            return None
    return path[-1]


def _shape(value: Any) -> torch.Size | None:
    return value.shape if isinstance(value, Tensor) else None


def _called(stepper: Stepper, call: fx.Node, source: fx.Node, given: Tensor, values: Values) -> Any:
    """What a call gives for a tensor; the model's own tensors it may use besides."""
    mine: Values = {source: given}
    for node in call.all_input_nodes:
        if node.op == "get_attr":
            mine[node] = stepper.tensors[str(node.target)]
        elif node is not source and node not in values:
            raise TraceError(f"{call.name} needs what is not there yet")
    return stepper.call(call, ChainMap(mine, values), apart=True)


def _bounds(
    stepper: Stepper, call: fx.Node, source: fx.Node, like: Tensor, values: Values
) -> tuple[float, float] | None:
    """What a rectifier cuts off; ``None`` if the call is none."""
    tried = torch.linspace(-_TRIED, _TRIED, like.numel(), dtype=like.dtype, device=like.device)
    tried = tried.reshape(like.shape)
    result = _called(stepper, call, source, tried, values)
    if _shape(result) != tried.shape or not result.is_floating_point():
        return None
    low, high = float(result.min()), float(result.max())
    if low >= high or not torch.equal(result, tried.clamp(low, high)):
        return None
    bounds = low if low > -_TRIED else -math.inf, high if high < _TRIED else math.inf
    return None if bounds == (-math.inf, math.inf) else bounds


def _slope(
    stepper: Stepper, call: fx.Node, source: fx.Node, y: Tensor, values: Values, axis: int
) -> Tensor | None:
    """By what a call scales each channel; ``None`` if it does not merely scale and shift them."""
    none = _called(stepper, call, source, torch.zeros_like(y), values)
    if _shape(none) != y.shape:
        return None
    slope: Tensor = _called(stepper, call, source, torch.ones_like(y), values) - none
    result = _called(stepper, call, source, y, values)
    near = 1e-4 * float(result.abs().max())
    if not torch.allclose(slope * y + none, result, rtol=1e-4, atol=near):
        return None
    by_channel = slope.movedim(axis, 0).flatten(1)
    if not torch.allclose(by_channel, by_channel[:, :1], rtol=1e-4, atol=1e-6):
        return None
    return by_channel[:, 0].clone()


def _norm(
    stepper: Stepper,
    call: fx.Node,
    source: fx.Node,
    y: Tensor,
    values: Values,
    watched: Mapping[str, Tensor],
) -> str | None:
    """The running mean that a call subtracts."""
    watcher = Watcher(watched, watched)
    with watcher:
        _called(stepper, call, source, y, values)
    seen = [one.name for one in watcher.seen if one.norm]
    return seen[0] if len(seen) == 1 else None
