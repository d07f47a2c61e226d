"""Reasons for a choice: why a layer keeps as many channels as it does."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np

from upscale_opt.errors import ArgumentError
from upscale_opt.ir.budget import matches
from upscale_opt.ir.choice import Choice, LayerChoice
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.losses import Losses
from upscale_opt.shown import Shown
from upscale_opt.solver.selection.setting import NOUNS, Dropped, Setting


@dataclass(frozen=True, repr=False)
class Marginal(Shown):
    """A step of one layer, everything else as it is.

    Attributes:
        loss: by how much the loss rises.
        saved: of the budget that binds, the share that it spares.
    """

    loss: float
    saved: float

    @property
    def rate(self) -> float:
        """Loss per share of the budget; endless if nothing is spared."""
        return self.loss / self.saved if self.saved > 0 else np.inf


@dataclass(frozen=True, repr=False)
class LayerReason(Shown):
    """The reasons for what a layer keeps.

    Attributes:
        layer: what it keeps.
        resource: the budget that binds most.
        price: what the choice as a whole pays for a share of it: the median over all layers.
        fewer: one size less; ``None`` if constraints forbid it.
        more: one size more, with signs turned: what it would gain, and cost.
        cheapest: other layers, by what they would lose for a share: the next ones to go.
        bounds: constraints that hold it where it is.
    """

    layer: LayerChoice
    resource: str
    price: float
    fewer: Marginal | None
    more: Marginal | None
    cheapest: tuple[tuple[str, float], ...]
    bounds: tuple[str, ...]

    def __str__(self) -> str:
        layer = self.layer
        name = layer.parameter.rpartition(".")[0] or layer.operation
        kept = f"{layer.kept:,} of {layer.before:,} channels"
        lines = [f"{name} keeps {kept} (loss {layer.loss:.4g})"]
        lines += [f"  {bound}" for bound in self.bounds]
        if self.fewer is not None:
            lines.append(f"  one size less: {_told(self.fewer, self.resource, 'lost', 'saved')}")
        if self.more is not None:
            lines.append(f"  one size more: {_told(self.more, self.resource, 'gained', 'spent')}")
        lines.append(f"  elsewhere 1% of the {self.resource} costs about {self.price / 100:.3g}")
        for other, rate in self.cheapest:
            lines.append(f"  next to shrink: {other}, at {rate / 100:.3g}")
        return "\n".join(lines)


def _told(step: Marginal, resource: str, loss: str, saved: str) -> str:
    if step.saved <= 0:
        return f"{step.loss:.3g} {loss} and no {resource} {saved}: others read those channels, too"
    return (
        f"{step.loss:.3g} {loss}, {step.saved:.3%} of the {resource} {saved} "
        f"({step.rate / 100:.3g} for 1%)"
    )


def explain_layer(graph: ChannelGraph, losses: Losses, choice: Choice, layer: str) -> LayerReason:
    """Say why a layer keeps as many channels as it does.

    Args:
        graph: the channel graph.
        losses: that the choice was made by.
        choice: the choice.
        layer: the name of the layer's module, weight or operation.

    Raises:
        ArgumentError: if the choice has no such layer.
        SchemaError: if graph, losses and choice do not belong together.
    """
    Choice.require(choice)
    setting = Setting(graph, losses, choice.budget)
    choice.masks.check(graph)
    known = [row.parameter for row in choice.layers]
    index = next(
        (
            at
            for at, row in enumerate(choice.layers)
            if layer == row.operation or matches(layer, row.parameter)
        ),
        None,
    )
    if index is None:
        names = [name.rpartition(".")[0] or name for name in known]
        near = difflib.get_close_matches(layer, names, n=3, cutoff=0.3) or names[:3]
        raise ArgumentError(f"the choice has no layer {layer!r}; there are {', '.join(near)} …")
    return _Reasons(setting, choice).of(index)


class _Reasons:
    def __init__(self, setting: Setting, choice: Choice) -> None:
        self.setting = setting
        self.choice = choice
        self.dropped: Dropped = tuple(
            frozenset(place.reader.slices)
            - frozenset(choice.masks.kept[place.reader.parameter][place.reader.axis])
            for place in setting.places
        )
        shares = [use.used / use.limit for use in choice.resources]
        self.limit = setting.limits[int(np.argmax(shares))]
        self.used = setting.account(self.dropped).of(self.limit.resource)

    def of(self, index: int) -> LayerReason:
        fewer, more = self._steps(index)
        rates = []
        for other, place in enumerate(self.setting.places):
            step = self._steps(other, only_fewer=True)[0]
            if step is not None and step.saved > 0:
                rates.append((step.rate, place.name, other))
        rates.sort()
        price = float(np.median([rate for rate, _, _ in rates])) if rates else 0.0
        nearest = tuple((name, rate) for rate, name, other in rates if other != index)[:3]
        return LayerReason(
            layer=self.choice.layers[index],
            resource=NOUNS[self.limit.resource],
            price=price,
            fewer=fewer,
            more=more,
            cheapest=nearest,
            bounds=tuple(self._bounds(index, fewer, more)),
        )

    def _steps(
        self, index: int, *, only_fewer: bool = False
    ) -> tuple[Marginal | None, Marginal | None]:
        """The next smaller and the next larger allowed size along the layer's chain."""
        place, row = self.setting.places[index], self.choice.layers[index]
        chain = next(
            (c for c in place.reader.chains if c.origin == row.chain), place.reader.chains[0]
        )
        now = len(self.dropped[index]) // place.reader.unit
        allowed = [d for d in np.flatnonzero(place.allowed).tolist() if d < len(chain.losses)]
        smaller = next((d for d in allowed if d > now), None)
        larger = next((d for d in reversed(allowed) if d < now), None)
        found: list[Marginal | None] = []
        for size in (smaller,) if only_fewer else (smaller, larger):
            if size is None:
                found.append(None)
                continue
            gone = frozenset(s for step in chain.steps[:size] for s in step)
            changed = (*self.dropped[:index], gone, *self.dropped[index + 1 :])
            used = self.setting.account(changed).of(self.limit.resource)
            sign = 1 if size > now else -1
            loss = sign * (chain.losses[size] - row.loss)
            found.append(Marginal(loss, sign * (self.used - used) / self.limit.before))
        return found[0], None if only_fewer else found[1]

    def _bounds(self, index: int, fewer: Marginal | None, more: Marginal | None) -> list[str]:
        place, budget = self.setting.places[index], self.choice.budget
        parameter = place.reader.parameter
        bounds = [
            f"keep={pattern!r} leaves it alone"
            for pattern in budget.keep
            if matches(pattern, parameter)
        ]
        bounds += [
            f"shares[{pattern!r}] keeps it between {low:.0%} and {high:.0%}"
            for pattern, (low, high) in budget.bounds.items()
            if matches(pattern, parameter) and (fewer is None or more is None)
        ]
        bounds += [
            f"equal={pattern!r} ties its width to other layers'"
            for pattern in budget.equal
            if matches(pattern, parameter)
        ]
        if budget.round_to > 1:
            bounds.append(f"round_to={budget.round_to} allows multiples only")
        least = budget.at_least * place.groups
        if fewer is None and self.choice.layers[index].kept <= max(least, budget.round_to):
            bounds.append("fewer are not allowed")
        return bounds
