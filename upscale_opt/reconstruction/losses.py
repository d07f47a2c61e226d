"""Losses of sets of channels: what a layer cannot make good without them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from upscale_opt.errors import BudgetError
from upscale_opt.importance.criterion import Criterion
from upscale_opt.importance.scoring import score_segments
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.losses import Chain, Losses, Reader
from upscale_opt.masking.segments import find_segments
from upscale_opt.masking.zeros import state_of
from upscale_opt.reconstruction.columns import matrix
from upscale_opt.reconstruction.data import Given, calls_of, program_of, samples_in
from upscale_opt.reconstruction.effects import Change, effects, halved
from upscale_opt.reconstruction.elimination import Quadratic, projected, shrink
from upscale_opt.reconstruction.grams import Gram, Store, grams_of, is_wide
from upscale_opt.reconstruction.sensitivity import sensitivities
from upscale_opt.reconstruction.sites import Site, sites_of
from upscale_opt.reconstruction.together import orders_together
from upscale_opt.tracing.program import Program
from upscale_opt.tracing.wrappings import unwrapped

Weighting = Literal["effect", "variance", "log", "sensitivity", "sensitivity-log"]
"""A way to make losses of different layers comparable."""

WEIGHTINGS: tuple[Weighting, ...] = ("effect", "variance", "log", "sensitivity", "sensitivity-log")

ORIGINS = ("own", "norm", "space")
"""The chains that can be asked for."""

_LEAST = 1e-8
"""The share of a layer's output that counts as left, however little it is."""

_EMPTY = 5 * -math.log(_LEAST)
"""The logarithmic loss of a layer that is left nothing to read."""

MEMORY = 4 * 2**30
"""Bytes of Gram matrices that are kept in memory by default."""


def losses_of(
    model: nn.Module,
    graph: ChannelGraph,
    data: Iterable[Any] | None = None,
    *,
    weighting: Weighting = "effect",
    origins: Sequence[str] = ORIGINS,
    criterion: Criterion | None = None,
    ridge: float | None = None,
    memory: int = MEMORY,
    seed: int = 0,
) -> Losses:
    """The loss of every size of every layer's input, as :func:`measure` finds them.

    Args:
        model: as for :func:`measure`; so is the rest.
        graph: its graph.
        data: calibration batches.
        weighting: how losses become comparable.
        origins: the chains to make.
        criterion: scores, if there are no data.
        ridge: of the Gram matrices.
        memory: bytes for them.
        seed: of random projections.

    Raises:
        TraceError: as :func:`measure`.
        BudgetError: as :func:`measure`.
    """
    oracle = measure(
        model,
        graph,
        data,
        weighting=weighting,
        criterion=criterion,
        ridge=ridge,
        memory=memory,
        seed=seed,
    )
    return oracle.losses(origins)


def measure(
    model: nn.Module,
    graph: ChannelGraph,
    data: Iterable[Any] | None = None,
    *,
    weighting: Weighting = "effect",
    criterion: Criterion | None = None,
    ridge: float | None = None,
    memory: int = MEMORY,
    seed: int = 0,
) -> Oracle:
    """Measure what every layer loses with its inputs, if its other weights are refitted.

    With data, a set's loss is that of the best remaining weights: see
    :mod:`upscale_opt.reconstruction.elimination`. Without, it is the sum of a criterion's scores;
    or, without a criterion, of squared weights, as if all inputs were independent.

    Weightings, where E is the squared deviation of a layer's outputs, f its share of their
    variance:

    * ``"effect"``: as ``"log"``, times a number of the layer: the share of the variance of the
      network's output that is lost with half of the layer's inputs, or with as many as make a
      difference (:mod:`upscale_opt.reconstruction.effects`), over their f.
    * ``"variance"``: f.
    * ``"log"``: -log(1 - f), which knows that a layer of which nothing is left ends the network.
    * ``"sensitivity"``: E with each output channel weighted by how much the network's output
      depends on it (:mod:`upscale_opt.reconstruction.sensitivity`): to second order the share of
      the output's variance that is lost.
    * ``"sensitivity-log"``: the same for little losses, growing as ``"log"`` does.

    Layers that no gradient reaches have the shares of their own variance.

    Args:
        model: in eval mode. It is not changed.
        graph: its graph.
        data: batches of inputs, as for :func:`upscale_opt.trace`, without labels.
        weighting: one of those.
        criterion: if there are no data, scores channels; as for :func:`upscale_opt.choose_masks`.
        ridge: added to the Gram matrices, as a share of the mean of their diagonals; losses are
            those on these data, then. By default as much as shrinkage estimates for so few
            positions, and losses are those on others.
        memory: bytes of Gram matrices to keep in memory; further ones go to a temporary folder.
        seed: of random projections.

    Raises:
        TraceError: if the model is in training mode, or the data do not fit it, are empty, or hold
            what is not finite.
        BudgetError: if the weighting is none of those, a ridge is negative, or data and a
            criterion are given.
    """
    if weighting not in WEIGHTINGS:
        raise BudgetError(f"weighting must be one of {', '.join(WEIGHTINGS)}, not {weighting!r}")
    if ridge is not None and not ridge >= 0:
        raise BudgetError(f"a ridge is a share of the mean of the diagonal, not {ridge!r}")
    if data is not None and criterion is not None:
        raise BudgetError("losses come from data or from a criterion; give one of them")
    model = unwrapped(model)
    tensors = state_of(model, graph)
    sites = [site for site in sites_of(graph) if any(site.free)]
    if data is None:
        return _without_data(model, graph, sites, weighting, criterion)
    program = program_of(model, graph)
    calls = calls_of(program, data)
    sensitive = {}
    if weighting.startswith("sensitivity"):
        sensitive = sensitivities(model, program, calls, seed)
    scales = {
        site.weight: sensitive.get(site.weight, torch.ones(())).sqrt().to(torch.float64)
        for site in sites
    }
    grams = grams_of(model, program, calls, sites, scales, Store(memory))
    samples = sum(map(samples_in, calls))
    found = [
        _Measured.of(
            site,
            tensors[site.weight],
            grams[site.weight],
            scales[site.weight],
            weighting,
            ridge,
            known=site.weight in sensitive or not weighting.startswith("sensitivity"),
        )
        for site in sites
        if site.weight in grams
    ]
    if weighting == "effect":
        found = _with_effects(found, model, program, calls, seed)
    return Oracle(graph, weighting, samples, tuple(found))


def _with_effects(
    found: list[_Measured],
    model: nn.Module,
    program: Program,
    calls: Sequence[Given],
    seed: int,
) -> list[_Measured]:
    """The layers with their losses' effects; where one is not known, with the geometric mean."""
    changes = {one.site.weight: one.half for one in found if one.half is not None}
    costs = effects(model, program, calls, changes, seed)
    rates = {
        name: cost * one.total / changes[name].loss
        for one in found
        if (cost := costs.get(name := one.site.weight)) and changes[name].loss > 0
    }
    middle = math.exp(sum(map(math.log, rates.values())) / len(rates)) if rates else 1.0
    return [replace(one, scale=rates.get(one.site.weight, middle), half=None) for one in found]


def _without_data(
    model: nn.Module,
    graph: ChannelGraph,
    sites: Sequence[Site],
    weighting: Weighting,
    criterion: Criterion | None,
) -> Oracle:
    """Additive losses, by scores or squared weights."""
    if weighting == "effect" or weighting.startswith("sensitivity"):
        weighting = "variance" if weighting == "sensitivity" else "log"
    tensors = state_of(model, graph)
    scores: dict[str, Tensor] = {}
    if criterion is not None:
        segments = find_segments(model, graph)
        score_segments(segments, criterion)
        for segment in segments:
            if segment.scores is not None:
                low = segment.scores.detach().double().cpu()
                scores[segment.shares[0].weight] = (low - low.min().clamp(max=0)).clamp(min=0)
    found = []
    for site in sites:
        own = scores.get(site.weight)
        if criterion is not None and own is None:
            continue
        weights = matrix(tensors[site.weight].cpu(), site.in_axis, site.groups)
        if own is not None:
            weights = own.sqrt().reshape(site.groups, -1, 1)
        else:
            entries = len(site.channels) // site.groups
            weights = weights.reshape(site.groups, entries, -1).square().sum(2).sqrt()[:, :, None]
        free = torch.tensor(site.free).reshape(site.groups, -1)[0]
        total = float(weights.square().sum())
        eye = torch.eye(int(free.sum()), dtype=torch.float64).expand(site.groups, -1, -1)
        quadratic = Quadratic(eye, weights[:, free].contiguous(), site.parts, 1)
        norms = weights[:, free]
        found.append(_Measured(site, quadratic, norms, total, 1, weighting, True))
    return Oracle(graph, weighting, 0, tuple(found))


@dataclass(frozen=True)
class _Measured:
    """A site with the losses of its sets.

    Attributes:
        site: the layer.
        quadratic: the losses, as squared deviations.
        norms: the weights, for the order by norms.
        total: the loss of everything, whatever stays.
        samples: what to divide squared deviations by.
        weighting: how they become comparable.
        known: the layer's sensitivity is known.
        scale: what the loss of all of the output costs, where effects are looked at.
        half: what changes if half of the units go, until effects have been looked at.
    """

    site: Site
    quadratic: Quadratic
    norms: Tensor
    total: float
    samples: int
    weighting: Weighting
    known: bool
    scale: float = 1.0
    half: Change | None = None

    @classmethod
    def of(
        cls,
        site: Site,
        weight: Tensor,
        gram: Gram,
        scale: Tensor,
        weighting: Weighting,
        ridge: float | None,
        known: bool,
    ) -> _Measured:
        """From sums over positions, which are used up: they may be large."""
        norms = matrix(weight.cpu(), site.in_axis, site.groups)
        weights = norms * scale.reshape(site.groups, 1, -1) if scale.ndim else norms
        taps = norms.shape[1] * site.groups // (len(site.channels) * site.features)
        columns = site.features * taps
        products, wide = gram.products, is_wide(site, weight)
        centred = site.centred and not wide and gram.rows > 1  # one position has no mean but itself
        if wide:
            columns = 1
            weights = torch.ones(1, len(site.channels), 1, dtype=torch.float64)
            entries = len(site.channels)
            norms = norms.reshape(1, entries, -1).square().sum(2).sqrt()[:, :, None]
        independent = gram.independent
        if centred:
            gram.centre()
        shrink(products, max(gram.rows, 1), ridge)
        whole, every = products, norms
        weights = _narrow(weights)
        total = float((weights * (products @ weights)).sum())
        free = torch.tensor(site.free).reshape(site.groups, -1)[0].repeat_interleave(columns)
        if not bool(free.all()):
            products = torch.stack(list(projected(products, ~free)))
            weights, norms = weights[:, free].contiguous(), norms[:, free].contiguous()
        quadratic = Quadratic(products, weights, site.parts, columns)
        if ridge is None and not wide:
            stuck = int((~free).sum())
            quadratic = replace(quadratic, rows=max(independent - stuck, 0))
        half: Change | None = None
        if weighting == "effect" and not wide:
            mean = gram.sums / gram.rows if centred else None
            half = halved(quadratic, whole, every, free, mean)
        samples = max(gram.samples, 1)
        return cls(site, quadratic, norms, total, samples, weighting, known, half=half)

    @property
    def steps(self) -> int:
        """The number of units in a part."""
        return self.quadratic.units

    def weighed(self, losses: Tensor, *, empty: bool = False) -> Tensor:
        """Squared deviations made comparable.

        Args:
            losses: any shape, float64.
            empty: the last is that of a layer which is left nothing.
        """
        total = self.total if self.total > 0 else 1.0
        shares = (
            (losses / total).clamp(min=0, max=1) if self.total > 0 else torch.zeros_like(losses)
        )
        scale = self.scale
        if self.weighting.startswith("sensitivity") and self.known:
            scale = self.total / self.samples
        if self.weighting == "effect" or self.weighting.endswith("log"):
            shares = torch.log((1 - shares).clamp(min=_LEAST)).abs()
            if empty and self.total > 0:
                shares = torch.cat([shares[:-1], shares.new_full((1,), _EMPTY)])
        return shares * scale

    def chain(self, origin: str, order: Tensor) -> Chain:
        """The chain that drops units in this order, as :meth:`Quadratic.losses` takes it."""
        return self._chain(origin, order, self.quadratic.losses(order))

    def own_chain(self) -> Chain:
        """The chain in the layer's own order."""
        return self._chain("own", self.quadratic.own_order, self.quadratic.own_losses)

    def _chain(self, origin: str, order: Tensor, losses: Tensor) -> Chain:
        whole = all(self.site.free) and order.shape[2] == self.steps
        values = torch.cummax(self.weighed(losses, empty=whole), dim=0).values
        return Chain(origin=origin, steps=self.slices(order), losses=tuple(values.tolist()))

    def slices(self, order: Tensor) -> tuple[tuple[int, ...], ...]:
        """The slices of each step, ascending."""
        entries = self.site.free_entries
        groups, parts, steps = order.shape
        firsts = torch.arange(groups * parts).reshape(groups, parts, 1) * self.steps
        by_step = (order + firsts).reshape(groups * parts, steps).T.tolist()
        return tuple(
            tuple(sorted(s for unit in step for s in self.site.slices(entries[unit])))
            for step in by_step
        )

    def order_of(self, steps: Sequence[Sequence[int]]) -> Tensor:
        """The inverse of :meth:`slices`.

        Raises:
            BudgetError: if a step is not one unit of every part.
        """
        place = {
            self.site.slices(entry)[0]: unit for unit, entry in enumerate(self.site.free_entries)
        }
        number = self.site.groups * self.site.parts
        rows = []
        for step in steps:
            units = sorted(place[s] for s in step if s in place)
            whole = [s for u in units for s in self.site.slices(self.site.free_entries[u])]
            if sorted(whole) != sorted(step) or [u // self.steps for u in units] != [
                *range(number)
            ]:
                raise BudgetError(
                    f"a step of {self.site.operation!r} must drop one channel"
                    + (" of every group or head" if number > 1 else "")
                    + f", not the slices {tuple(step)}"
                )
            rows.append([unit % self.steps for unit in units])
        order = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), number).T
        return order.reshape(self.site.groups, self.site.parts, -1)

    def dropped(self, kept: Iterable[int]) -> Tensor:
        """The units of every group, as :meth:`Quadratic.loss` takes them, that are not kept."""
        left = set(kept)
        gone = [
            unit
            for unit, entry in enumerate(self.site.free_entries)
            if left.isdisjoint(self.site.slices(entry))
        ]
        each = self.steps * self.site.parts
        by_group: list[list[int]] = [[] for _ in range(self.site.groups)]
        for unit in gone:
            by_group[unit // each].append(unit % each)
        if len({len(one) for one in by_group}) > 1:
            raise BudgetError(
                f"the groups of {self.site.operation!r} must keep equally many channels"
            )
        return torch.tensor(by_group, dtype=torch.int64).reshape(self.site.groups, -1)


def _narrow(weights: Tensor) -> Tensor:
    """Weights of no more outputs than columns, with the same products of rows."""
    if weights.shape[2] <= weights.shape[1]:
        return weights.contiguous()
    factor: Tensor = torch.linalg.qr(weights.transpose(1, 2), mode="r").R
    return factor.transpose(1, 2).contiguous()


@dataclass(frozen=True)
class Oracle:
    """Answers what any set of channels costs, and makes documents of it.

    Attributes:
        graph: the graph.
        weighting: how losses were made comparable.
        samples: calibration inputs.
        measured: the layers.
    """

    graph: ChannelGraph
    weighting: str
    samples: int
    measured: tuple[_Measured, ...]

    def losses(self, origins: Sequence[str] = ORIGINS) -> Losses:
        """The document: every reader with its chains and floors.

        Raises:
            BudgetError: if there is no such origin.
        """
        unknown = [origin for origin in origins if origin not in ORIGINS]
        if unknown or not origins:
            raise BudgetError(f"chains are {', '.join(ORIGINS)}, not {', '.join(unknown)!r}")
        together: dict[str, Tensor] = {}
        if "space" in origins:
            together = orders_together([(m.site, m.quadratic, m.weighed) for m in self.measured])
        readers = []
        for one in self.measured:
            chains = []
            if "own" in origins:
                chains.append(one.own_chain())
            if "norm" in origins:
                norms = Quadratic(
                    one.quadratic.gram, one.norms, one.site.parts, one.quadratic.columns
                )
                chains.append(one.chain("norm", norms.norm_order()))
            if one.site.weight in together:
                chains.append(one.chain("space", together[one.site.weight]))
            if not chains:  # alone in its space
                chains.append(one.own_chain())
            readers.append(self._reader(one, chains))
        return Losses(
            graph_fingerprint=self.graph.masks_fingerprint,
            weighting=self.weighting,
            samples=self.samples,
            readers=tuple(readers),
        )

    def _reader(self, one: _Measured, chains: Sequence[Chain]) -> Reader:
        site = one.site
        floors = one.weighed(one.quadratic.floors(), empty=all(site.free))
        for chain in chains:  # rounding
            if len(chain.losses) == len(floors):
                floors = torch.minimum(floors, torch.tensor(chain.losses, dtype=torch.float64))
        # Lowered from behind, so that they never fall.
        floors = torch.cummin(floors.flip(0), dim=0).values.flip(0)
        return Reader(
            operation=site.operation,
            parameter=site.weight,
            axis=site.in_axis,
            slices=tuple(s for entry in site.free_entries for s in site.slices(entry)),
            unit=site.features * site.groups * site.parts,
            chains=tuple(chains),
            floors=tuple(floors.tolist()),
        )

    def loss(self, operation: str, kept: Iterable[int]) -> float:
        """The loss of one layer if it keeps these slices.

        Args:
            operation: the reader's, in the document.
            kept: slices as masks count them; those that cannot go may be left out.

        Raises:
            BudgetError: if there is no such reader, or groups would differ in size.
        """
        one = self._of(operation)
        dropped = one.dropped(kept)
        empty = all(one.site.free) and dropped.shape[1] == one.steps * one.site.parts
        loss = torch.tensor([one.quadratic.loss(dropped)], dtype=torch.float64)
        return float(one.weighed(loss, empty=empty))

    def with_chain(
        self, losses: Losses, operation: str, origin: str, steps: Sequence[Sequence[int]]
    ) -> Losses:
        """The document with one more chain.

        Args:
            losses: made by this oracle.
            operation: the reader's.
            origin: what to call the chain.
            steps: the slices that each step drops; not all need be dropped.

        Raises:
            BudgetError: if there is no such reader, or a step is no unit.
        """
        one = self._of(operation)
        chain = one.chain(origin, one.order_of(steps))
        readers = tuple(
            reader.model_copy(update={"chains": (*reader.chains, chain)})
            if reader.operation == operation
            else reader
            for reader in losses.readers
        )
        return losses.model_copy(update={"readers": readers})

    def _of(self, operation: str) -> _Measured:
        for one in self.measured:
            if one.site.operation == operation:
                return one
        raise BudgetError(f"there are no losses of {operation!r}; look at losses.readers")
