"""Choose masks by a criterion, without touching the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from upscale_opt.errors import MaskError
from upscale_opt.importance.criterion import Criterion
from upscale_opt.importance.scoring import score_segments
from upscale_opt.ir.graph import ChannelGraph
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
    if not isinstance(round_to, int) or isinstance(round_to, bool) or round_to < 1:
        raise MaskError(f"round_to must be a whole number from 1 on, not {round_to!r}")
    found = _chosen(segments, amount, is_global)
    if round_to == 1:
        return found
    return [
        rows if segment.scores is None else rounded(segment.scores, rows, segment.groups, round_to)
        for segment, rows in zip(segments, found, strict=True)
    ]


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
