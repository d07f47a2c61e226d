"""The network's sensitivity to what each layer writes, per output channel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx, nn

from upscale_opt.ir.graph import Layer
from upscale_opt.reconstruction.data import Given, samples_in
from upscale_opt.reconstruction.stepping import Stepper
from upscale_opt.tracing.program import Program
from upscale_opt.tracing.record import tensors_in
from upscale_opt.tracing.unchanged import undisturbed

_SAMPLES = 8
"""So many inputs go forward and back together."""


def sensitivities(
    model: nn.Module, program: Program, calls: Sequence[Given], seed: int = 0
) -> dict[str, Tensor]:
    """By weight, the mean squared gradient of the network's output by what the layer writes.

    The output is projected at random, so that in the mean over projections the squared gradient is
    the diagonal of the Gauss-Newton matrix (as Martens, Sutskever and Swersky, *Estimating the
    Hessian by Back-propagating Curvature*, ICML 2012, estimate it), and divided by its standard
    deviation over the batch. So, summed over positions, squared deviations times these are the
    share of the output's variance that they cost, to second order.

    Args:
        model: the model, which is as before afterwards.
        program: it captured.
        calls: the calibration batches.
        seed: of the projections.

    Returns:
        For the weights that the output depends on, float64 tensors of shape (outputs,).
    """
    written = written_by(program)
    totals: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def listening(
        node: fx.Node, call: Callable[[], Any], samples: int
    ) -> tuple[Any, Callable[[Tensor], None] | None]:
        if node not in written:
            return call(), None
        weight, axis = written[node]

        def add(gradient: Tensor) -> None:
            axes = [a for a in range(gradient.ndim) if a != axis]
            squares = gradient.double().square().sum(axes).cpu()
            totals[weight] = totals.get(weight, 0) + squares
            counts[weight] = counts.get(weight, 0) + gradient.numel() // len(squares)

        return call(), add

    backwards(model, program, calls, listening, seed)
    return {weight: total / counts[weight] for weight, total in totals.items()}


def written_by(program: Program) -> dict[fx.Node, tuple[str, int]]:
    """For every call that is one layer: the layer's weight, and the axis that it writes."""
    found: dict[fx.Node, tuple[str, int]] = {}
    layers = {op.name: op for op in program.graph.operations if isinstance(op, Layer)}
    for node, names in program.operations.items():
        own = [layers[name] for name in names if name in layers]
        if len(own) == 1 and program.values.get(node) == own[0].outputs[0]:
            axis = program.graph.tensors[own[0].outputs[0]].axis
            if axis is not None:
                found[node] = own[0].weight, axis
    return found


Listening = Callable[[fx.Node, Callable[[], Any], int], tuple[Any, Callable[[Tensor], None] | None]]
"""Makes a call for so many inputs; returns its result, and what to do with that's gradient."""


def backwards(
    model: nn.Module,
    program: Program,
    calls: Sequence[Given],
    listening: Listening,
    seed: int,
    most: int | None = None,
) -> None:
    """Run the program, and go back from random projections of its output.

    Args:
        model: the model, which is as before afterwards.
        program: it captured.
        calls: the calibration batches.
        listening: makes each call.
        seed: of the projections.
        most: inputs to look at, about.
    """
    stepper = Stepper(program.captured, model)
    parts = _parts(calls)
    if most is not None:
        before = accumulate(map(samples_in, parts), initial=0)
        parts = [part for part, count in zip(parts, before, strict=False) if count < most]
    with undisturbed(model), torch.no_grad():
        spreads = _spreads(tensors_in(stepper.run(given, stepper.call)) for given in parts)
    with undisturbed(model), torch.enable_grad():
        for number, given in enumerate(parts):
            samples = samples_in(given)
            inputs, roots = _with_gradients(given, model)
            generator = torch.Generator().manual_seed(seed + number)

            def call(node: fx.Node, values: dict[fx.Node, Any], samples: int = samples) -> Any:
                result, hook = listening(node, lambda: stepper.call(node, values), samples)
                if hook is not None and isinstance(result, Tensor) and result.requires_grad:
                    listen: Callable[..., Any] = result.register_hook
                    listen(hook)
                return result

            outputs = stepper.run(inputs, call)
            target = _projected(outputs, spreads, generator)
            if target is not None and roots:
                torch.autograd.grad(target, roots, allow_unused=True)


def _parts(calls: Sequence[Given]) -> list[Given]:
    """Batches of few inputs: gradients need all activations."""
    found = []
    for given in calls:
        size = samples_in(given)
        tensors = [value for value in given.values() if isinstance(value, Tensor)]
        alike = len(tensors) == len(given) and all(t.ndim and len(t) == size for t in tensors)
        if not alike or size <= _SAMPLES:
            found.append(given)
            continue
        count = -(-size // _SAMPLES)
        split = {node: torch.tensor_split(value, count) for node, value in given.items()}
        found += [{node: parts[at] for node, parts in split.items()} for at in range(count)]
    return found


def _with_gradients(given: Given, model: nn.Module) -> tuple[Given, list[Tensor]]:
    """The arguments such that gradients reach every layer, and what these are taken by."""
    floats = [v for v in given.values() if isinstance(v, Tensor) and v.is_floating_point()]
    if floats:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        leaves = {
            node: value.detach().clone().requires_grad_()
            for node, value in given.items()
            if isinstance(value, Tensor) and value.is_floating_point()
        }
        return {**given, **leaves}, list(leaves.values())
    roots = [parameter.requires_grad_() for parameter in model.parameters()]
    return dict(given), roots


def _spreads(outputs: Iterable[Sequence[Tensor]]) -> list[float]:
    """Of every output, its variance over the inputs of all batches, summed over its elements.

    Outputs of several shapes, as of images of several sizes, vary within each shape. Where there
    is one input of each, or all give the same, their mean squares stand in.
    """
    moments: dict[tuple[int, torch.Size], tuple[int, Tensor, float]] = {}
    for tensors in outputs:
        for at, output in enumerate(tensors):
            if not output.is_floating_point() or not output.numel():
                continue
            flat = output.detach().double().reshape(len(output) if output.ndim else 1, -1)
            key = at, output.shape[1:]
            count, mean, square = moments.get(key, (0, torch.zeros_like(flat[0]), 0.0))
            total = count + len(flat)
            own = flat.mean(0)
            off = own - mean  # as Chan, Golub and LeVeque add up variances, 1979
            square += float((flat - own).square().sum())
            square += float(off.square().sum()) * count * len(flat) / total
            moments[key] = total, mean + off * (len(flat) / total), square
    found = [1.0] * (1 + max((at for at, _ in moments), default=-1))
    for at in range(len(found)):
        mine = [moment for (place, _), moment in moments.items() if place == at]
        free = sum(count - 1 for count, _, _ in mine)
        spread = sum(square for _, _, square in mine) / free if free else 0.0
        if not 0 < spread < math.inf:
            each = [square + count * float(m.square().sum()) for count, m, square in mine]
            spread = max(sum(each) / max(sum(count for count, _, _ in mine), 1), 1e-30)
        found[at] = spread
    return found


def _projected(outputs: Any, spreads: Sequence[float], generator: torch.Generator) -> Tensor | None:
    """A random combination of all outputs, of unit variance per input."""
    found: Tensor | None = None
    for output, spread in zip(tensors_in(outputs), spreads, strict=False):
        if not (output.is_floating_point() and output.requires_grad):
            continue
        direction = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        scaled = direction.to(output.device) / math.sqrt(spread)
        term = (output * scaled.to(output.dtype)).sum()
        found = term if found is None else found + term
    return found
