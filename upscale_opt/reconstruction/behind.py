"""Calls behind a layer: a norm, a sum with what is known by then, a rectifier.

They decide what of a layer's output is read. What the other summand lacks, the layer may make good
(He, Zhang and Sun, *Channel Pruning for Accelerating Very Deep Neural Networks*, ICCV 2017, section
3.3); and what a rectifier cuts off may be anything that it cuts off (Zhang, Zou, He and Sun,
*Accelerating Very Deep Convolutional Networks for Classification and Detection*, PAMI 2016).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from upscale_opt.ir.graph import Elementwise
from upscale_opt.reconstruction.stepping import Stepper
from upscale_opt.reconstruction.watching import Watcher
from upscale_opt.tracing.program import Program

Values = dict[fx.Node, Any]
"""Results of the calls of a program so far."""

_LONGEST = 6
"""Calls behind a layer, at most."""

_FEWEST = 8
"""Numbers to tell a rectifier by, at least."""

_TRIED = 100.0
"""Rectifiers are told by what they make of numbers between minus this and this."""

_LEAST = 1e-4
"""Channels that vary by less than this share of what another does count for nothing."""


@dataclass(frozen=True)
class Behind:
    """The calls behind a layer, each the only reader of the one before.

    Attributes:
        node: the layer's call.
        axis: of its result, along which its channels lie.
        calls: those that scale and shift channels, such as a batch norm in eval mode.
        scale: by what they scale each channel, in the masked model; 0 if next to nothing is left.
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
        """Return what the rectifier gets, for a result of the layer."""
        last = self.node
        for call in self.calls:
            y, last = _called(stepper, call, last, y), call
        return y if self.other is None else y + values[self.other]

    def read(self, sums: Tensor) -> Tensor:
        """Return what is read of it."""
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
    y: Tensor,
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
        node: the layer's call.
        y: what it gives for the first batch, in the original.
        axis: along which the channels of that lie.
        program: that it is a call of.
        steppers: of the original and of the masked model.
        values: of every batch, in both.
        watched: running means of the masked model, by name.
    """
    if y.numel() < _FEWEST or not bool(y.isfinite().all()):
        return None
    calls: list[fx.Node] = []
    added: fx.Node | None = None
    scale = y.new_ones(y.shape[axis])
    mean: str | None = None
    last, found, now = node, None, y
    for _ in range(_LONGEST):
        call = next(iter(last.users), None)
        if len(last.users) != 1 or call is None or not _may_be_tried(call, program):
            break
        if _adds(call, program):
            if added is not None:
                break
            (summand,) = (n for n in call.all_input_nodes if n is not last)
            added = _known(summand, program, steppers, values)
            if added is None or values[0][0][added].shape != y.shape:
                added = None
                break
            last = call
            continue
        found = _bounds(steppers[1], call, last, now)
        if found is not None or added is not None:
            break
        step = _step(steppers[1], call, last, now, axis)
        norm = None if step is None else _norm(steppers[1], call, last, now, watched)
        if step is None or (norm is not None and calls):
            break
        scale, now = scale * step[0], step[1]
        mean, last = mean or norm, call
        calls.append(call)
    if added is None and found is None:
        return None
    rows = y.movedim(axis, 0).reshape(y.shape[axis], -1).float()
    deviation = rows.std(1) if rows.shape[1] > 1 else rows[:, 0].abs()
    spread = scale.abs() * deviation.to(scale)
    scale = torch.where(spread >= _LEAST * spread.max(), scale, 0.0)
    low, high = found or (-math.inf, math.inf)
    return Behind(node, axis, tuple(calls), scale, added, low, high, mean)


def _may_be_tried(call: fx.Node, program: Program) -> bool:
    """Running the call on other numbers leaves no traces."""
    return call.op != "output" and call not in program.effects and call not in program.ruled


def _adds(call: fx.Node, program: Program) -> bool:
    """The call adds two tensors, and does nothing else."""
    names = program.operations.get(call) or []
    ops = [op for op in program.graph.operations if op.name in names]
    plain = len(ops) == 1 and isinstance(ops[0], Elementwise) and ops[0].additive
    return plain and len(call.all_input_nodes) == len(call.args) == 2 and not call.kwargs


def _known(
    node: fx.Node,
    program: Program,
    steppers: tuple[Stepper, Stepper],
    values: Sequence[tuple[Values, Values]],
) -> fx.Node | None:
    """The call whose result ``node`` hands on, if it is there already."""
    path = [node]
    while any(path[-1] not in own for pair in values for own in pair):
        sources = path[-1].all_input_nodes
        if len(sources) != 1 or len(path) > _LONGEST or not _may_be_tried(path[-1], program):
            return None
        path.append(sources[0])
    for pair in values:
        for stepper, own in zip(steppers, pair, strict=True):
            given = own[path[-1]]
            if not isinstance(given, Tensor):
                return None
            for at in range(len(path) - 1, 0, -1):
                result = _tried(stepper, path[at - 1], path[at], given)
                if result is None or not torch.equal(result, given):
                    return None
    return path[-1]


def _called(stepper: Stepper, call: fx.Node, source: fx.Node, given: Tensor) -> Any:
    """The result of a call for a tensor, and the model's own tensors that it uses besides.

    Raises:
        KeyError: if it uses others.
    """
    own = [node for node in call.all_input_nodes if node.op == "get_attr"]
    mine: Values = {node: stepper.tensors[str(node.target)] for node in own}
    return stepper.call(call, {**mine, source: given}, apart=True)


def _tried(stepper: Stepper, call: fx.Node, source: fx.Node, given: Tensor) -> Tensor | None:
    """The result of a call for numbers of ours; ``None`` if no tensor like those, or it fails."""
    try:
        result = _called(stepper, call, source, given)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # the numbers are ours, so whatever is wrong with them is no fault
        return None
    if not isinstance(result, Tensor) or result.shape != given.shape:
        return None
    alike = result.dtype == given.dtype and bool(result.isfinite().all())
    return result if alike else None


def _bounds(
    stepper: Stepper, call: fx.Node, source: fx.Node, like: Tensor
) -> tuple[float, float] | None:
    """The bounds of a rectifier; ``None`` if the call is none."""
    tried = torch.linspace(-_TRIED, _TRIED, like.numel(), dtype=like.dtype, device=like.device)
    tried = tried.reshape(like.shape)
    low, high = -math.inf, math.inf
    for number, given in enumerate((tried, -tried)):  # both signs for every channel
        result = _tried(stepper, call, source, given)
        if result is None:
            return None
        if number == 0:
            low, high = float(result.min()), float(result.max())
        if low >= high or not torch.equal(result, given.clamp(low, high)):
            return None
    bounds = low if low > -_TRIED else -math.inf, high if high < _TRIED else math.inf
    return None if bounds == (-math.inf, math.inf) else bounds


def _step(
    stepper: Stepper, call: fx.Node, source: fx.Node, y: Tensor, axis: int
) -> tuple[Tensor, Tensor] | None:
    """The scale of each channel, and what a call makes of ``y``.

    ``None`` if it does not merely scale and shift channels.
    """
    given = torch.zeros_like(y), torch.ones_like(y), y, -y
    none, one, result, other = (_tried(stepper, call, source, each) for each in given)
    if none is None or one is None or result is None or other is None:
        return None
    slope = one - none
    for each, result_of in ((y, result), (-y, other)):
        near = 1e-4 * float(result_of.abs().max())
        if not torch.allclose(slope * each + none, result_of, rtol=1e-4, atol=near):
            return None
    by_channel = slope.movedim(axis, 0).reshape(y.shape[axis], -1)
    if not torch.allclose(by_channel, by_channel[:, :1], rtol=1e-4, atol=1e-6):
        return None
    return by_channel[:, 0].clone(), result


def _norm(
    stepper: Stepper, call: fx.Node, source: fx.Node, y: Tensor, watched: Mapping[str, Tensor]
) -> str | None:
    """The running mean that a call subtracts."""
    watcher = Watcher(watched, watched)
    with watcher:
        _called(stepper, call, source, y)
    seen = [one.name for one in watcher.seen if one.norm]
    return seen[0] if len(seen) == 1 else None
