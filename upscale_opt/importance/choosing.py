"""Choose masks by a criterion, without touching the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from upscale_opt.errors import MaskError
from upscale_opt.importance.criterion import Criterion
from upscale_opt.importance.scoring import score_segments
from upscale_opt.ir.graph import ChannelGraph, Layer
from upscale_opt.ir.masks import Masks
from upscale_opt.masking.ranking import least, least_by_group, rounded
from upscale_opt.masking.segments import Layers, Method, Segment, Side, find_segments


def choose_masks(
    model: nn.Module,
    graph: ChannelGraph,
    amount: float,
    *,
    criterion: Criterion | None = None,
    side: Side = "input",
    method: Method = "unconstrained",
    is_global: bool = False,
    layers: Layers = "all",
    round_to: int = 1,
) -> Masks:
    """Masks that drop the least important channels.

    The network's own inputs and outputs are left alone.

    Args:
        model: the model. It is not changed.
        graph: its graph.
        amount: the share of channels to drop, in [0, 1); rounded down.
        criterion: scores the channels: a name such as ``"l1"``, one of
            :mod:`upscale_opt.importance`, or a function from weights (a float64 tensor of shape
            (channels, weights per channel)) to scores of shape (channels,); the L2 norm by default.
        side: drop input channels, output channels, or both.
        method: every layer decides for itself (``"unconstrained"``), or all layers that share a
            channel together (``"constrained"``).
        is_global: rank the channels of all layers together, rather than each layer's by
            themselves.
        layers: prune all layers, or convolutions only.
        round_to: every layer (of grouped ones every group) keeps a multiple of it, where it has as
            many: as many as otherwise, rounded up; down where it has not so many.

    Raises:
        MaskError: if an option is not one of those, graph and model do not fit together, or the
            criterion does not give one score per channel.
    """
    segments = find_segments(model, graph, side, method, layers)
    score_segments(segments, criterion)
    chosen = choose(segments, amount, is_global, round_to)
    return merge(segment.masks(rows) for segment, rows in zip(segments, chosen, strict=True))


def choose(
    segments: Sequence[Segment], amount: float, is_global: bool, round_to: int = 1
) -> list[list[int]]:
    """For each segment, the channels to drop, by their place in it; none where there are no scores.

    Raises:
        MaskError: if ``amount`` or ``round_to`` is out of range, or a score is not a number.
    """
    _check_multiple(round_to)
    found = _chosen(segments, amount, is_global)
    if round_to == 1:
        return found
    return [
        rows if segment.scores is None else rounded(segment.scores, rows, segment.groups, round_to)
        for segment, rows in zip(segments, found, strict=True)
    ]


def round_masks(
    model: nn.Module,
    graph: ChannelGraph,
    masks: Masks,
    round_to: int,
    *,
    criterion: Criterion | None = None,
    method: Method = "unconstrained",
) -> Masks:
    """Masks from elsewhere, changed so that layers keep multiples of ``round_to``.

    A layer of which something is dropped keeps as many channels as before, rounded up: the best of
    what was dropped come back. Where it has not so many, the worst of what was kept go, too.

        >>> import torch, upscale_opt as uo
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 20, 1), torch.nn.Conv2d(20, 4, 1))
        >>> graph = uo.trace(model, torch.zeros(1, 3, 5, 5))
        >>> masks = uo.Masks(kept={"1.weight": {1: range(7, 18)}})
        >>> len(round_masks(model, graph, masks, 8).kept["1.weight"][1])
        16

    Args:
        model: the model, with the weights that it has without the masks. It is not changed.
        graph: its graph.
        masks: what is kept.
        round_to: of grouped layers, every group keeps a multiple.
        criterion: scores the channels, as for :func:`choose_masks`.
        method: every layer by itself, or all layers that share a channel together; then give masks
            on which they agree (:func:`upscale_opt.constrain`).

    Raises:
        MaskError: if the masks do not fit the graph, ``round_to`` is no whole number from 1 on, or
            the criterion does not give one score per channel.
    """
    _check_multiple(round_to)
    Masks.require(masks)
    masks.check(graph)
    biases = {op.weight: op.bias for op in graph.operations if isinstance(op, Layer)}
    kept = {
        name: {axis: set(own) for axis, own in by_axis.items()}
        for name, by_axis in masks.kept.items()
    }
    segments = find_segments(model, graph, "both", method)
    dropped = {at: rows for at, one in enumerate(segments) if (rows := _dropped_rows(one, masks))}
    score_segments([segments[at] for at in dropped], criterion)
    for at, rows in dropped.items():
        segment = segments[at]
        if segment.scores is None:
            continue
        order = segment.scores.detach().double().cpu().argsort(stable=True).argsort().double()
        order[[row for row in range(len(order)) if row not in rows]] += len(order)
        new = set(rounded(order, sorted(rows), segment.groups, round_to))
        for share in segment.shares:
            names = [share.weight]
            bias = biases.get(share.weight)
            if share.side == "output" and bias is not None:
                names.append(bias)
            for name in names:
                own = kept.get(name, {}).get(share.axis if name == share.weight else 0)
                if own is not None:
                    own |= set(share.slices[sorted(rows - new)].flatten().tolist())
                    own -= set(share.slices[sorted(new - rows)].flatten().tolist())
    return Masks(
        kept={
            name: {axis: tuple(sorted(own)) for axis, own in by_axis.items()}
            for name, by_axis in kept.items()
        },
        graph_fingerprint=masks.graph_fingerprint,
    )


def _dropped_rows(segment: Segment, masks: Masks) -> set[int]:
    """The channels of a segment that masks drop."""
    found: set[int] = set()
    for share in segment.shares:
        kept = masks.kept.get(share.weight, {}).get(share.axis)
        if kept is not None:
            there = set(kept)
            rows = enumerate(share.slices.tolist())
            found |= {row for row, slices in rows if there.isdisjoint(slices)}
    return found


def _check_multiple(round_to: object) -> None:
    if not isinstance(round_to, int) or isinstance(round_to, bool) or round_to < 1:
        raise MaskError(f"round_to must be a whole number from 1 on, not {round_to!r}")


def _chosen(segments: Sequence[Segment], amount: float, is_global: bool) -> list[list[int]]:
    scores = [segment.scores for segment in segments]
    if is_global:
        rows = iter(least([one for one in scores if one is not None], amount))
        return [[] if one is None else next(rows) for one in scores]
    return [
        [] if one is None else least_by_group(one, amount, segment.groups)
        for one, segment in zip(scores, segments, strict=True)
    ]


def merge(masks: Iterable[Masks]) -> Masks:
    """Masks that drop whatever one of ``masks`` drops."""
    kept: dict[str, dict[int, set[int]]] = {}
    graphs: set[str | None] = set()
    for one in masks:
        graphs.add(one.graph_fingerprint)
        for name, by_axis in one.kept.items():
            known = kept.setdefault(name, {})
            for axis, indices in by_axis.items():
                known[axis] = known[axis] & set(indices) if axis in known else set(indices)
    return Masks(
        kept={
            name: {axis: tuple(sorted(indices)) for axis, indices in by_axis.items()}
            for name, by_axis in kept.items()
        },
        graph_fingerprint=graphs.pop() if len(graphs) == 1 else None,
    )
