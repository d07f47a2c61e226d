"""Refit the weights that masks leave, layer by layer, to a few unlabelled inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from upscale_opt.errors import ArgumentError, TraceError
from upscale_opt.ir.graph import ChannelGraph, slices_of
from upscale_opt.ir.masks import Masks
from upscale_opt.masking.zeros import apply_masks, masked_copy, masks_of
from upscale_opt.reconstruction.columns import from_matrix, matrix, rows_of
from upscale_opt.reconstruction.data import Given, calls_of, listed, program_of, samples_in
from upscale_opt.reconstruction.least_squares import GRID, Sums, fitted
from upscale_opt.reconstruction.sites import Site, filters_of, sites_of
from upscale_opt.reconstruction.stepping import Stepper, in_order
from upscale_opt.reconstruction.watching import Seen, Watcher, tensors_of
from upscale_opt.shown import Shown
from upscale_opt.tracing import trace
from upscale_opt.tracing.program import Program
from upscale_opt.tracing.unchanged import undisturbed
from upscale_opt.tracing.wrappings import unwrapped

_HELD_OUT = 0.25
"""The share of each batch by which ridges are chosen."""

_WIDEST = 8192
"""Layers with more columns than this are left as they are: their Gram matrices would not fit."""


_Pair = tuple[dict[fx.Node, Any], dict[fx.Node, Any]]
"""The values of one batch, in the original and in the copy."""


@dataclass(frozen=True, repr=False)
class Refitted(Shown):
    """One layer, refitted.

    Attributes:
        weight: its weight.
        ridge: the ridge chosen, as a share of the mean of the Gram matrix's diagonal; infinite if
            the weights are as they were.
        before: the held-out deviation of its outputs from the original's, before, as a share of
            their variance.
        after: and after.
    """

    weight: str
    ridge: float
    before: float
    after: float


@dataclass(frozen=True, repr=False)
class RefitReport(Shown):
    """The outcome of :func:`refit`.

    Attributes:
        layers: those that were looked at, in the order of execution.
        left: weights that were left as they are, with the reason.
        norms: batch norms whose statistics were estimated anew.
        samples: calibration inputs.
    """

    layers: tuple[Refitted, ...]
    left: Mapping[str, str]
    norms: int
    samples: int

    def __str__(self) -> str:
        wide = max((len(layer.weight) for layer in self.layers), default=0)
        lines = [f"{'layer':{wide}}  ridge     before   after  (share of the output's variance)"]
        lines += [
            f"{layer.weight:{wide}}  {layer.ridge:<8.0e}  {layer.before:6.4f}  {layer.after:6.4f}"
            for layer in self.layers
        ]
        lines += [f"{name}: left as it is: {why}" for name, why in self.left.items()]
        return "\n".join(lines)


def refit(
    model: nn.Module,
    masks: Masks,
    data: Iterable[Any],
    *,
    graph: ChannelGraph | None = None,
    ridge: float | str = "auto",
    norms: bool = True,
) -> tuple[nn.Module, RefitReport]:
    """Mask a copy of the model, and refit what is left to what the model computes.

    Layer by layer in the order of execution, kept weights and biases become the ridge regression
    of the original layer's outputs on the inputs that the pruned network has there. So each layer
    makes good what those before it got wrong, too (He, Zhang and Sun, *Channel Pruning for
    Accelerating Very Deep Neural Networks*, ICCV 2017). Statistics of batch norms move by as much
    as what they read moves. Labels are not needed; a few hundred inputs do.

    The copy is another function than the masked model: verify exports against it.

        >>> import torch, upscale_opt as uo
        >>> from upscale_opt.models.small_networks import build_small
        >>> model = build_small("resnet", image=8)
        >>> batches = [torch.randn(16, 1, 8, 8) for _ in range(2)]
        >>> graph = uo.trace(model, batches[0])
        >>> masks = uo.choose_masks(model, graph, 0.5)
        >>> refitted, report = uo.refit(model, masks, batches, graph=graph)
        >>> all(layer.after <= layer.before for layer in report.layers)
        True

    Args:
        model: in eval mode. It is not changed.
        masks: what to keep.
        data: batches of inputs, as for :func:`upscale_opt.trace`. All of them are gone through
            call by call, so the activations of all that are still to be read are held at a time.
        graph: the model's graph; by default it is traced with the first batch.
        ridge: the ridge as a share of the mean of the Gram matrix's diagonal, or ``"auto"``:
            for every layer the one that does best on a quarter of the data.
        norms: estimate batch norms anew.

    Returns:
        The refitted copy, with the masked slices zero, and what was done.

    Raises:
        TraceError: if the model is in training mode, or the data do not fit it, are empty, or hold
            what is not finite.
        MaskError: if the masks do not fit.
        ArgumentError: if the ridge is no share.
    """
    grid: tuple[float, ...] = GRID
    if ridge != "auto":
        if not isinstance(ridge, (int, float)) or not ridge >= 0:
            raise ArgumentError(f"a ridge is 'auto' or a share from 0 on, not {ridge!r}")
        grid = (float(ridge),)
    model = unwrapped(model)
    batches = listed(data)
    if graph is None:
        graph = trace(model, batches[0])
    program = program_of(model, graph)
    calls = calls_of(program, batches)
    fitting = _Fitting(model, program, masks, grid, norms)
    with undisturbed(model), torch.no_grad():  # the copy is ours
        fitting.run(calls)
    apply_masks(fitting.masked, graph, masks)
    report = RefitReport(
        layers=tuple(fitting.layers),
        left=fitting.left,
        norms=fitting.norms,
        samples=sum(map(samples_in, calls)),
    )
    return fitting.masked, report


@dataclass
class _Fitting:
    """Both models side by side, node by node.

    Attributes:
        masked: the copy that is refitted.
    """

    model: nn.Module
    program: Program
    masks: Masks
    grid: tuple[float, ...]
    with_norms: bool
    layers: list[Refitted] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    norms: int = 0

    def __post_init__(self) -> None:
        graph = self.program.graph
        self.masked = masked_copy(self.model, graph, self.masks)
        self.masked.eval()
        self.kept = masks_of(self.masked, graph)
        self.sites: dict[str, Site] = {}
        own, depthwise = sites_of(graph), filters_of(graph)
        known = {site.weight for site in own}
        for name in (n for op in graph.operations if (n := getattr(op, "weight", None))):
            if name not in known:
                self.left[name] = "what it reads has no channels, or it is used in different ways"
        for site in own:
            if site.calls > 1:
                self.left[site.weight] = "several layers use it"
            else:
                self.sites[site.weight] = site
        self.depthwise = depthwise
        self.before = tensors_of(self.model)
        self.after = tensors_of(self.masked)
        self.watched = {*self.sites, *self.depthwise}
        if self.with_norms:
            self.watched |= {
                f"{prefix}.running_mean".lstrip(".")
                for prefix, module in self.model.named_modules()
                if isinstance(getattr(module, "running_mean", None), Tensor)
            }
        self.steppers = (
            Stepper(self.program.captured, self.model),
            Stepper(self.program.captured, self.masked),
        )

    def run(self, calls: list[Given]) -> None:
        """Go through the program once, with all batches."""
        values: list[_Pair] = []
        for given in calls:
            own, other = (
                {n: v.clone() if isinstance(v, Tensor) else v for n, v in given.items()}
                for _ in range(2)
            )
            values.append((own, other))
        for node, done in in_order(self.program.captured.graph):
            if node.op == "output":
                return
            if node.op != "placeholder":
                self._advance(node, values, done)

    def _advance(self, node: fx.Node, values: list[_Pair], done: list[fx.Node]) -> None:
        """Fit what the node works with, one after the other, and compute its results.

        What nobody needs after it is forgotten batch by batch: results and what they are made of
        are held for one batch at a time.
        """
        writes = node in self.program.mutations or node in self.program.effects
        fit_able = bool(self.program.operations.get(node)) and node.op != "get_attr"
        at = 0
        while fit_able:
            work: _Work | None = None
            count = 0
            for before, after in values:
                first, second = self._seen(node, before, after, apart=writes)
                count = len(second)
                if at < count and len(first) == count and first[at].name == second[at].name:
                    work = work or self._work_of(second[at])
                    work.add(first[at], second[at])
            if work is not None:
                self._finish(work)
            at += 1
            if at >= count:
                break
        for pair in values:
            for stepper, own in zip(self.steppers, pair, strict=True):
                own[node] = stepper.call(node, own)
                for old in done:
                    own.pop(old, None)

    def _seen(
        self, node: fx.Node, before: dict[fx.Node, Any], after: dict[fx.Node, Any], *, apart: bool
    ) -> tuple[list[Seen], list[Seen]]:
        found = []
        for stepper, own, tensors in zip(
            self.steppers, (before, after), (self.before, self.after), strict=True
        ):
            watcher = Watcher(tensors, self.watched)
            with watcher:
                stepper.call(node, own, apart=apart)
            found.append(watcher.seen)
        return found[0], found[1]

    def _work_of(self, seen: Seen) -> _Work:
        if seen.norm:
            return _NormWork(seen.name)
        weight = self.after[seen.name]
        site = self.sites.get(seen.name)
        groups = seen.convolving.groups if seen.convolving else 1
        in_axis = 1 if site is None else site.in_axis
        if site is None and seen.convolving and seen.convolving.transposed:
            in_axis = 0
        columns = matrix(weight, in_axis, groups).shape[1]
        intact = bool(torch.equal(weight, self.before[seen.name]))
        work = _LayerWork(seen.name, in_axis, groups, intact, wide=columns > _WIDEST)
        if groups == 1 and site is not None:
            size = slices_of(self.program.graph, seen.name, site.in_axis)
            kept = self.kept.kept_on(seen.name, site.in_axis, size)
            if 0 < len(kept) < size == seen.x.shape[1]:
                work.reads = torch.tensor(sorted(kept))
        return work

    def _finish(self, work: _Work) -> None:
        if isinstance(work, _NormWork):
            self._renorm(work)
        elif isinstance(work, _LayerWork):
            self._refit(work)

    def _refit(self, work: _LayerWork) -> None:
        """Give a layer the weights that fit best."""
        name = work.name
        if work.wide:
            self.left[name] = f"it has more than {_WIDEST} columns"
            return
        if work.same or work.seen is None or work.held_out is None:
            return
        sums = work.seen, work.held_out
        if not all(bool(t.isfinite().all()) for s in sums for t in (s.xx, s.xy, s.yy)):
            raise TraceError(
                f"the layer of {name!r} reads or writes numbers that are not finite; look for "
                "overflows in the model, or huge numbers in the calibration data"
            )
        weight = self.after[name]
        layer = self.sites.get(name) or self.depthwise[name]
        bias = layer.bias
        prior = matrix(weight.cpu(), work.in_axis, work.groups)
        columns, alive = self._kept(name, work, prior)
        if columns is None or not bool(alive.any()):
            return
        wide = columns[:, :, None].expand(-1, -1, prior.shape[2])
        if work.reads is None:  # else there are sums of no others
            sums = work.seen.part(columns), work.held_out.part(columns)
        fit = fitted(
            sums[0].rows_alive(alive),
            sums[1].rows_alive(alive),
            prior.gather(1, wide),
            bias=bias is not None,
            centred=bias is None and layer.centred,
            grid=self.grid,
        )
        new = torch.zeros_like(prior).scatter_(1, wide, fit.weights) * alive[:, None, :]
        with torch.no_grad():
            weight.copy_(from_matrix(new, weight, work.in_axis, work.groups))
            if bias is not None and fit.constant is not None:
                added = (fit.constant * alive).flatten().to(self.after[bias])
                self.after[bias].add_(added)
        self.layers.append(Refitted(name, fit.ridge, fit.before, fit.after))

    def _kept(self, name: str, work: _LayerWork, prior: Tensor) -> tuple[Tensor | None, Tensor]:
        """The columns of each group that are kept, and the outputs that are."""
        graph, site = self.program.graph, self.sites.get(name)
        groups, columns, outputs = prior.shape
        if site is None:  # depthwise: a filter per channel
            size = graph.parameters[name][0]
            kept = self.kept.kept_on(name, 0, size)
            alive = torch.tensor([i in kept for i in range(size)]).reshape(groups, -1)
            return torch.arange(columns).expand(groups, -1), alive.expand(-1, outputs)
        size = slices_of(graph, name, site.out_axis)
        kept = self.kept.kept_on(name, site.out_axis, size)
        alive = torch.tensor([i in kept for i in range(size)]).reshape(groups, outputs)
        size = slices_of(graph, name, site.in_axis)
        kept = self.kept.kept_on(name, site.in_axis, size)
        read = torch.tensor([i in kept for i in range(size)]).reshape(groups, -1)
        counts = read.sum(1)
        if not bool((counts == counts.max()).all()):  # a group that is gone altogether, say
            read = read | (counts == 0)[:, None]
            counts = read.sum(1)
            if not bool((counts == counts.max()).all()):
                read = torch.ones_like(read)
        taps = columns // read.shape[1]
        every = torch.nonzero(read)[:, 1].reshape(groups, -1)
        if not every.shape[1]:
            return None, alive
        found = (every[:, :, None] * taps + torch.arange(taps)).flatten(1)
        return found, alive

    def _renorm(self, work: _NormWork) -> None:
        """Move a batch norm's statistics by as much as what it reads has moved."""
        if work.same:
            return
        prefix = work.name.removesuffix("running_mean")
        mean, variance = self.after[work.name], self.after.get(f"{prefix}running_var")
        if variance is None:
            return
        (mean_before, var_before), (mean_after, var_after) = work.statistics()
        least = 1e-12 * var_before.mean()
        known = (var_before > least) & (var_after > least)
        ratio = torch.where(known, var_after / var_before.clamp(min=1e-300), 1.0)
        with torch.no_grad():
            old = mean.double().cpu()
            # A mean scales with its channel, as far as it was estimated from other data.
            moved = mean_after + (old - mean_before) * ratio.sqrt()
            mean.copy_(torch.where(known, moved, old))
            variance.copy_((variance.double().cpu() * ratio).to(variance))
        self.norms += 1


class _Work:
    """Sums over the batches of one layer or norm."""

    same = True

    def add(self, before: Seen, after: Seen) -> None:
        """Count what both models read and write."""
        raise NotImplementedError


class _LayerWork(_Work):
    """The sums to refit a layer by.

    Attributes:
        reads: the channels that it reads, if sums are to be of these only.
    """

    reads: Tensor | None = None

    def __init__(self, name: str, in_axis: int, groups: int, intact: bool, wide: bool) -> None:
        self.name, self.in_axis, self.groups, self.wide = name, in_axis, groups, wide
        self.same = intact
        self.seen: Sums | None = None
        self.held_out: Sums | None = None

    def add(self, before: Seen, after: Seen) -> None:
        """Count the pruned layer's inputs, and what they should give."""
        self.same = self.same and bool(torch.equal(before.x, after.x))
        if self.wide or before.y.shape != after.y.shape:
            return
        target = before.y
        if after.bias is not None:  # which stays as it is while the weights are fitted
            target = target - after.bias.reshape(1, -1, *[1] * (target.ndim - 2))
        count = len(after.x)
        cut = count - int(_HELD_OUT * count) if count >= 4 else count
        read = after.x if self.reads is None else after.x[:, self.reads.to(after.x.device)]
        both = Seen(after.name, read, target, after.convolving)
        for start, stop, place in ((0, cut, "seen"), (cut, count, "held_out")):
            for x, y in rows_of(both, start, stop):
                sums = getattr(self, place)
                if sums is None:
                    sums = Sums.zeros(x.shape[0], x.shape[2], y.shape[2])
                    setattr(self, place, sums)
                sums.add(x, y)
        if self.held_out is None and self.seen is not None:
            groups, columns, outputs = self.seen.xy.shape
            self.held_out = Sums.zeros(groups, columns, outputs)


class _NormWork(_Work):
    """The means and variances of what a batch norm reads."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.same = True
        self.sums: list[list[Tensor]] = [[], []]
        self.rows = 0

    def add(self, before: Seen, after: Seen) -> None:
        """Count what both models read."""
        self.same = self.same and bool(torch.equal(before.x, after.x))
        for seen, sums in zip((before, after), self.sums, strict=True):
            x = seen.x.movedim(1, 0).flatten(1).double()
            new = [x.sum(1).cpu(), x.square().sum(1).cpu()]
            sums[:] = [a + b for a, b in zip(sums, new, strict=True)] if sums else new
        self.rows += before.x.numel() // before.x.shape[1]

    def statistics(self) -> list[tuple[Tensor, Tensor]]:
        """Mean and variance, for both models."""
        found = []
        for total, squares in self.sums:
            mean = total / self.rows
            found.append((mean, (squares / self.rows - mean.square()).clamp(min=0)))
        return found
