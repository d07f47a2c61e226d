"""The effect of layers' changes on the network's output, correlations included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from upscale_opt.reconstruction.columns import rows_of
from upscale_opt.reconstruction.data import Given, samples_in
from upscale_opt.reconstruction.elimination import Quadratic, cholesky
from upscale_opt.reconstruction.sensitivity import backwards, written_by
from upscale_opt.reconstruction.watching import Seen, Watcher, tensors_of
from upscale_opt.tracing.program import Program

_ENOUGH = 128
"""Inputs to estimate an effect by: its relative error is about the root of 2 by so many."""


_REFITTED = 0.5
"""The most columns that are refitted, as a share of the positions."""

_CHANGE = 0.02
"""The least share of a layer's output that is lost with a change whose effect tells of others."""


@dataclass(frozen=True)
class Change:
    """A change of a layer's weights.

    Attributes:
        weights: what is added, float32, of shape (groups, columns, outputs).
        shift: what is added to the outputs, of shape (groups, outputs).
        loss: the squared deviation of the layer's outputs, on the positions that were seen.
    """

    weights: Tensor
    shift: Tensor
    loss: float


def halved(
    quadratic: Quadratic, products: Tensor, weights: Tensor, free: Tensor, mean: Tensor | None
) -> Change | None:
    """The change if half of a layer's units go, as in its own order, and the rest is refitted.

    Nothing is refitted where there are too few positions to do so. More than half go where that is
    no change to speak of, as where they are dead.

    Args:
        quadratic: the layer's losses.
        products: its Gram matrix, of shape (groups, columns, columns).
        weights: its weights, of shape (groups, columns, outputs).
        free: the columns that may go, of shape (columns,).
        mean: of every column, if constants can be made good; of shape (groups, columns).
    """
    enough = float(quadratic.own_losses[-1]) * _CHANGE
    felt = int((quadratic.own_losses[:-1] < enough).sum())  # the first loss that is as much
    count = min(max(quadratic.units // 2, felt), quadratic.units - 1)
    if not count:
        return None
    places = quadratic.own_order[:, :, :count]
    units = (places + quadratic.units * torch.arange(quadratic.parts)[None, :, None]).flatten(1)
    own = units[:, :, None] * quadratic.columns + torch.arange(quadratic.columns)
    columns = torch.nonzero(free).flatten()[own.flatten(1)]
    added = torch.zeros_like(weights)
    loss = 0.0
    left = quadratic.gram.shape[1] - columns.shape[1]
    for gram, kernel, gone, change in zip(products, weights, columns, added, strict=True):
        stays = torch.ones(len(gram), dtype=torch.bool)
        stays[gone] = False
        change[gone] = -kernel[gone]
        if bool(stays.any()) and left < _REFITTED * quadratic.rows:
            cross = gram[stays][:, gone] @ kernel[gone]
            change[stays] = torch.cholesky_solve(cross, cholesky(gram[stays][:, stays]))
        loss += float((change * (gram @ change)).sum())
    shift = torch.zeros_like(added[:, 0])
    if mean is not None:
        shift = -(mean[:, :, None] * added).sum(1)
    return Change(added.float(), shift.float(), loss)


def effects(
    model: nn.Module,
    program: Program,
    calls: Sequence[Given],
    changes: Mapping[str, Change],
    seed: int = 0,
) -> dict[str, float]:
    """By weight, the share of the output's variance that a change of this layer alone costs.

    To first order, and in the mean over random projections of the output (as in
    :mod:`upscale_opt.reconstruction.sensitivity`): the square of the inner product of the
    projection's gradient with the change of the layer's output, summed over all of its positions
    and channels first. So errors add up that have the same sign all over an image, as those in
    front of a mean do.

    Args:
        model: the model, which is as before afterwards.
        program: it captured.
        calls: the calibration batches; the first of them are looked at.
        changes: by weight.
        seed: of the projections.
    """
    written = {n: own for n, own in written_by(program).items() if own[0] in changes}
    tensors = tensors_of(model)
    totals: dict[str, float] = {}
    counts: dict[str, int] = {}

    def wrapped(
        node: fx.Node, call: Callable[[], Any], samples: int
    ) -> tuple[Any, Callable[[Tensor], None] | None]:
        if node not in written:
            return call(), None
        name = written[node][0]
        watcher = Watcher(tensors, [name])
        with watcher:
            result = call()
        seen = [one for one in watcher.seen if one.name == name]
        if len(seen) != 1:
            return result, None

        def add(gradient: Tensor) -> None:
            if gradient.numel() != seen[0].y.numel():
                return
            squares = _products(seen[0], gradient, changes[name], samples).square()
            totals[name] = totals.get(name, 0.0) + float(squares.sum())
            counts[name] = counts.get(name, 0) + len(squares)

        return result, add

    few: list[Given] = []
    for given in calls:
        if sum(map(samples_in, few)) < _ENOUGH:
            few.append(given)
    backwards(model, program, few, wrapped, seed, most=_ENOUGH)
    return {name: total / counts[name] for name, total in totals.items()}


def _products(seen: Seen, gradient: Tensor, change: Change, samples: int) -> Tensor:
    """Per sample, the inner product of a gradient with the change of what a layer writes."""
    weights, shift = change.weights.to(gradient.device), change.shift.to(gradient.device)
    both = Seen(seen.name, seen.x, gradient.reshape(seen.y.shape), seen.convolving)
    each = len(seen.x) // samples
    found = []
    for sample in range(samples):
        total = gradient.new_zeros((), dtype=torch.float64)
        for x, g in rows_of(both, sample * each, (sample + 1) * each):
            total += ((x.float() @ weights + shift[:, None]) * g).sum(dtype=torch.float64)
        found.append(total)
    return torch.stack(found).cpu()
