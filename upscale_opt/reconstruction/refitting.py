"""Refit the weights that masks leave, layer by layer, to a few unlabelled inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from upscale_opt.errors import ArgumentError, TraceError
from upscale_opt.ir.graph import ChannelGraph, slices_of, users_of
from upscale_opt.ir.masks import Masks
from upscale_opt.masking.zeros import apply_masks, masked_copy, masks_of
from upscale_opt.reconstruction.behind import Behind, Values, behind
from upscale_opt.reconstruction.columns import from_matrix
from upscale_opt.reconstruction.counting import (
    WIDEST,
    Judge,
    LayerWork,
    NormWork,
    Work,
    held_out_from,
    wide,
)
from upscale_opt.reconstruction.data import Given, calls_of, listed, program_of, samples_in
from upscale_opt.reconstruction.least_squares import GRID, fitted
from upscale_opt.reconstruction.sites import Site, filters_of, sites_of
from upscale_opt.reconstruction.stepping import Stepper, in_order
from upscale_opt.reconstruction.watching import Seen, Watcher, tensors_of
from upscale_opt.shown import Shown
from upscale_opt.tracing import trace
from upscale_opt.tracing.program import Program
from upscale_opt.tracing.unchanged import undisturbed
from upscale_opt.tracing.wrappings import unwrapped

Pair = tuple[Values, Values]
"""The values of one batch, in the original and in the copy."""

_ROUNDS = 8
"""Fits of a layer with a rectifier behind it, at most."""

_GAIN = 0.99
"""There is another round if one has left no more than this share of the deviation."""


@dataclass(frozen=True, repr=False)
class Refitted(Shown):
    """One layer, refitted.

    Attributes:
        weight: its weight.
        ridge: the ridge chosen, as a share of the mean of the Gram matrix's diagonal; infinite if
            the weights are as they were.
        before: the held-out deviation of its outputs from the original's, before, as a share of
            their variance; of what is read of them, where they are summed or rectified.
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
        norms: batch norms whose statistics are others now.
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
    Accelerating Very Deep Neural Networks*, ICCV 2017). Where an output is added to what is known
    by then, the layer makes good what that lacks; and where it is rectified, what is cut off may be
    anything that is cut off, which is fitted in rounds (Zhang, Zou, He and Sun, *Accelerating Very
    Deep Convolutional Networks for Classification and Detection*, PAMI 2016). Statistics of other
    batch norms move by as much as what they read moves. Labels are not needed; a few hundred inputs
    do.

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
        norms: set statistics of batch norms; else they stay, and what stands behind them is not
            looked at.

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
        weights = {*self.sites, *self.depthwise}
        self.layer_names = {
            op.name
            for name, operations in users_of(graph).items()
            if name in weights
            for op in operations
        }
        self.before = tensors_of(self.model)
        self.after = tensors_of(self.masked)
        norms = {
            f"{prefix}.running_mean".lstrip(".")
            for prefix, module in self.model.named_modules()
            if isinstance(getattr(module, "running_mean", None), Tensor)
        }
        self.means = {name: self.after[name] for name in norms}
        self.settled: set[str] = set()
        self.watched = {*self.sites, *self.depthwise}
        if self.with_norms:
            self.watched |= norms
        self.steppers = (
            Stepper(self.program.captured, self.model),
            Stepper(self.program.captured, self.masked),
        )

    def run(self, calls: list[Given]) -> None:
        """Go through the program once, with all batches."""
        values: list[Pair] = []
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

    def _advance(self, node: fx.Node, values: list[Pair], done: list[fx.Node]) -> None:
        """Fit what the node works with, one after the other, and compute its results.

        What nobody needs after it is forgotten batch by batch: results and what they are made of
        are held for one batch at a time.
        """
        writes = node in self.program.mutations or node in self.program.effects
        fit_able = bool(self.program.operations.get(node)) and node.op != "get_attr"
        if fit_able and not writes and self._fit_what_is_read(node, values):
            fit_able = False
        at = 0
        while fit_able:
            work: Work | None = None
            count = 0
            for before, after in values:
                (first, _), (second, _) = self._seen(node, before, after, apart=writes)
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

    def _fit_what_is_read(self, node: fx.Node, values: list[Pair]) -> bool:
        """Fit a layer to what is read of it, if there is a sum or a rectifier behind it.

        What a rectifier cuts off may be what it is by then, as long as it is cut off. So this is
        done in rounds, and the weights stay that do best on what is held out.

        Returns:
            Whether it was: else the layer is to be fitted to what it writes.
        """
        if self.layer_names.isdisjoint(self.program.operations[node]):
            return False
        (before, after), *_ = values
        (first, y), (second, _) = self._seen(node, before, after, apart=False)
        if len(first) != 1 or len(second) != 1 or first[0].name != second[0].name:
            return False
        read = self._behind(node, first[0], y, values)
        work = None if read is None else self._work_of(second[0])
        if read is None or not isinstance(work, LayerWork) or work.wide:
            return False
        layer = self.sites.get(work.name) or self.depthwise[work.name]
        names = [name for name in (work.name, layer.bias, read.mean) if name is not None]
        judge = Judge(read, self._kept(work.name, work.prior)[1].flatten())
        best = start = [self.after[name].clone() for name in names]
        ridge = chosen = None
        rounds = _ROUNDS if read.cuts else 1
        for number in range(rounds + 1):
            done = number == rounds or (ridge is not None and math.isinf(ridge))
            same = True
            for before, after in values:
                ((one,), y), ((other,), now) = self._seen(node, before, after, apart=False)
                should = wide(read.sums(self.steppers[0], y, before))
                does = wide(read.sums(self.steppers[1], now, after))
                if not should.shape == does.shape == y.shape:
                    return False
                same = same and bool(torch.equal(should, does))
                judge.add(should, does, held_out_from(len(one.x)))
                if not done:
                    aim = read.wanted(wide(now), does, should, cut=number > 0)
                    work.add(replace(one, y=aim.reshape(one.y.shape)), other)
            if number == 0:
                work.same = same
            left = judge.end()
            if left < 1 and number:
                best, chosen = [self.after[name].clone() for name in names], ridge
            if done or (number and not left <= _GAIN):
                break
            ridge = self._refit(work, read, ridge)
            if ridge is None:
                break
            work.again()
        moved = read.mean is not None and not torch.equal(best[-1], start[-1])
        for name, tensor in zip(names, best, strict=True):
            self.after[name].copy_(tensor)
        if chosen is None:  # none of it was any better
            return work.same
        self.layers.append(Refitted(work.name, chosen, judge.first, judge.least))
        self.norms += moved
        if read.mean is not None:
            self.settled.add(read.mean)
        return True

    def _behind(self, node: fx.Node, seen: Seen, y: Any, values: list[Pair]) -> Behind | None:
        """Find what stands behind the layer seen in a call, if it can be fitted to that."""
        if seen.norm or not (seen.name in self.sites or seen.name in self.depthwise):
            return None
        if not isinstance(y, Tensor) or y.numel() != seen.y.numel():
            return None
        axis = 1 if seen.convolving else y.ndim - 1
        if y.shape != seen.y.shape and (seen.convolving or y.shape[axis] != seen.y.shape[1]):
            return None
        if not torch.equal(y.reshape(seen.y.shape), seen.y):  # a bias is added later, say
            return None
        found = behind(node, y, axis, self.program, self.steppers, values, self.means)
        if found is not None and found.mean is not None:
            used = users_of(self.program.graph).get(found.mean, [])
            if not self.with_norms or len(used) != 1:
                return None
        return found

    def _seen(
        self, node: fx.Node, before: Values, after: Values, *, apart: bool
    ) -> tuple[tuple[list[Seen], Any], tuple[list[Seen], Any]]:
        """Layers and norms at work in one call, and what it gives, in both models."""
        found = []
        for stepper, own, tensors in zip(
            self.steppers, (before, after), (self.before, self.after), strict=True
        ):
            watcher = Watcher(tensors, self.watched)
            with watcher:
                result = stepper.call(node, own, apart=apart)
            found.append((watcher.seen, result))
        return found[0], found[1]

    def _work_of(self, seen: Seen) -> Work:
        if seen.norm:
            return NormWork(seen.name)
        weight = self.after[seen.name]
        site = self.sites.get(seen.name)
        groups = seen.convolving.groups if seen.convolving else 1
        in_axis = 1 if site is None else site.in_axis
        if site is None and seen.convolving and seen.convolving.transposed:
            in_axis = 0
        intact = bool(torch.equal(weight, self.before[seen.name]))
        work = LayerWork(seen.name, weight, in_axis, groups, intact)
        if groups == 1 and site is not None:
            size = slices_of(self.program.graph, seen.name, site.in_axis)
            kept = self.kept.kept_on(seen.name, site.in_axis, size)
            if 0 < len(kept) < size == seen.x.shape[1]:
                work.reads = torch.tensor(sorted(kept))
        return work

    def _finish(self, work: Work) -> None:
        if isinstance(work, NormWork):
            self._renorm(work)
        elif isinstance(work, LayerWork):
            self._refit(work)

    def _refit(
        self, work: LayerWork, read: Behind | None = None, ridge: float | None = None
    ) -> float | None:
        """Give a layer the weights that fit best.

        Args:
            work: the sums.
            read: what of its outputs is read, if not all of it as it is.
            ridge: the ridge, if it was chosen before.

        Returns:
            The ridge; ``None`` if it stays as it is.
        """
        name = work.name
        if work.wide:
            self.left[name] = f"it has more than {WIDEST} columns"
            return None
        if work.same or work.seen is None or work.held_out is None:
            return None
        sums = work.seen, work.held_out
        if not all(bool(t.isfinite().all()) for s in sums for t in (s.xx, s.xy, s.yy)):
            raise TraceError(
                f"the layer of {name!r} reads or writes numbers that are not finite; look for "
                "overflows in the model, or huge numbers in the calibration data"
            )
        weight = self.after[name]
        layer = self.sites.get(name) or self.depthwise[name]
        bias = layer.bias
        mean = None if bias is not None or read is None else read.mean
        prior = work.prior
        columns, alive = self._kept(name, prior)
        if columns is None or not bool(alive.any()):
            return None
        wide = columns[:, :, None].expand(-1, -1, prior.shape[2])
        if work.reads is None:  # else there are sums of no others
            sums = work.seen.part(columns), work.held_out.part(columns)
        scale, useful = torch.ones_like(alive, dtype=torch.float64), alive
        if read is not None:  # where it is next to nothing, any weights do
            own = read.scale.double().cpu().reshape(alive.shape).abs()
            useful = alive & (own > 0)
            scale = torch.where(own > 0, own, 1.0)
        free = bias is not None or mean is not None
        before = prior.gather(1, wide)
        first, second = (each.rows_alive(useful).scaled(scale) for each in sums)
        fit = fitted(
            first,
            second,
            before * scale[:, None, :],
            bias=free,
            centred=not free and layer.centred,
            grid=self.grid if ridge is None else (ridge,),
        )
        weights = torch.where(useful[:, None, :], fit.weights / scale[:, None, :], before)
        weights = weights * alive[:, None, :]
        new = torch.zeros_like(prior).scatter_(1, wide, weights)
        with torch.no_grad():
            weight.copy_(from_matrix(new, weight, work.in_axis, work.groups))
            if fit.constant is not None:
                added = (fit.constant / scale * useful).flatten()
                if bias is not None:
                    self.after[bias].add_(added.to(self.after[bias]))
                elif mean is not None:
                    self.after[mean].sub_(added.to(self.after[mean]))
        if read is None:
            self.layers.append(Refitted(name, fit.ridge, fit.before, fit.after))
        return fit.ridge

    def _kept(self, name: str, prior: Tensor) -> tuple[Tensor | None, Tensor]:
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

    def _renorm(self, work: NormWork) -> None:
        """Move a batch norm's statistics by as much as what it reads has moved."""
        if work.same or work.name in self.settled:
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
