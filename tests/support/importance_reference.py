"""Plain references for the criteria's tests: a small network, its units by hand, and loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.importance import Importance, score_segments
from upscale_opt.importance.choosing import choose_masks
from upscale_opt.masking.segments import Method, Segment, Side, find_segments


class Small(nn.Module):
    """A residual sum, a concatenation, and a linear layer behind a flattening, in float64."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.body_norm = nn.BatchNorm2d(4)
        self.side = nn.Conv2d(4, 3, 1)
        self.head = nn.Conv2d(7, 5, 1)
        self.fc = nn.Linear(5 * 2 * 2, 6)
        self.double().eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in (*self.parameters(), *self.buffers()):
                if tensor.is_floating_point():
                    tensor.copy_(torch.randn(tensor.shape, generator=generator))
            for norm in (self.norm, self.body_norm):
                assert norm.running_var is not None
                norm.running_var.abs_().add_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.body_norm(self.body(x))
        x = torch.cat([x, self.side(x)], dim=1)
        x = nn.functional.adaptive_avg_pool2d(self.head(x), 2)
        out: Tensor = self.fc(x.flatten(1))
        return out


@dataclass(frozen=True)
class Part:
    """Where a unit's channels lie in one weight: ``slices[channel]`` along ``axis``."""

    weight: str
    axis: int
    slices: tuple[tuple[int, ...], ...]


Unit = tuple[Part, ...]
"""What goes together."""


def part(weight: str, axis: int, count: int, start: int = 0, features: int = 1) -> Part:
    """Channels that follow one another."""
    firsts = [start + c * features for c in range(count)]
    return Part(weight, axis, tuple(tuple(range(f, f + features)) for f in firsts))


_INPUTS = {
    "body": part("body.weight", 1, 4),
    "side": part("side.weight", 1, 4),
    "head": part("head.weight", 1, 7),
    "fc": part("fc.weight", 1, 5, features=4),
}
_OUTPUTS = {
    "stem": part("stem.weight", 0, 4),
    "body": part("body.weight", 0, 4),
    "side": part("side.weight", 0, 3),
    "head": part("head.weight", 0, 5),
}
_STREAM_INPUTS = (_INPUTS["body"], _INPUTS["side"], part("head.weight", 1, 4))
_STREAM_OUTPUTS = (_OUTPUTS["stem"], _OUTPUTS["body"])
_SIDE_INPUTS = (part("head.weight", 1, 3, start=4),)

UNITS: dict[tuple[Method, Side], list[Unit]] = {
    ("unconstrained", "input"): [(_INPUTS[n],) for n in ("body", "side", "head", "fc")],
    ("unconstrained", "output"): [(_OUTPUTS[n],) for n in ("stem", "body", "side", "head")],
    ("unconstrained", "both"): [
        (_OUTPUTS["stem"],),
        (_INPUTS["body"],),
        (_OUTPUTS["body"],),
        (_INPUTS["side"],),
        (_OUTPUTS["side"],),
        (_INPUTS["head"],),
        (_OUTPUTS["head"],),
        (_INPUTS["fc"],),
    ],
    ("constrained", "input"): [_STREAM_INPUTS, _SIDE_INPUTS, (_INPUTS["fc"],)],
    ("constrained", "output"): [_STREAM_OUTPUTS, (_OUTPUTS["side"],), (_OUTPUTS["head"],)],
    ("constrained", "both"): [
        (*_STREAM_OUTPUTS, *_STREAM_INPUTS),
        (_OUTPUTS["side"], *_SIDE_INPUTS),
        (_OUTPUTS["head"], _INPUTS["fc"]),
    ],
}
"""The units of :class:`Small`, in the order of its segments."""

WAYS = sorted(UNITS)


def traced(model: nn.Module, *shape: int) -> uo.ChannelGraph:
    """The graph of a model in float64."""
    return uo.trace(model, torch.zeros(*(shape or (2, 3, 6, 6)), dtype=torch.float64))


def segments_of(
    model: nn.Module, method: Method = "unconstrained", side: Side = "input", *shape: int
) -> list[Segment]:
    """The segments of a model in float64."""
    return find_segments(model, traced(model, *shape), side, method)


def scores_of(segments: list[Segment], criterion: Importance) -> dict[str, list[float] | None]:
    """The scores by the segments' names."""
    score_segments(segments, criterion)
    return {s.name: None if s.scores is None else s.scores.tolist() for s in segments}


def by_channel(tensors: dict[str, Tensor], unit: Unit) -> list[list[float]]:
    """For each channel of a unit, all that ``tensors`` hold for it."""
    rows: list[list[float]] = [[] for _ in unit[0].slices]
    for one in unit:
        for row, slices in zip(rows, one.slices, strict=True):
            for index in slices:
                row.extend(tensors[one.weight].select(one.axis, index).flatten().tolist())
    return rows


def weights_by_channel(model: nn.Module, unit: Unit) -> list[list[float]]:
    """For each channel of a unit, all of its weights."""
    return by_channel({name: value.detach() for name, value in model.named_parameters()}, unit)


def masked(
    units: Sequence[Unit], scores: Sequence[Sequence[float] | None], amount: float, together: bool
) -> dict[tuple[str, int], set[int]]:
    """The slices to keep, by weight and axis, when the least of these scores go.

    Args:
        units: what the scores are for.
        scores: of the channels of every unit; ``None`` keeps them all.
        amount: the share to drop.
        together: rank all units' channels together.
    """
    ranked = [
        [(score, number, channel) for channel, score in enumerate(own or ())]
        for number, own in enumerate(scores)
    ]
    pools = [[entry for own in ranked for entry in own]] if together else ranked
    gone = {entry[1:] for pool in pools for entry in sorted(pool)[: int(amount * len(pool))]}
    kept: dict[tuple[str, int], set[int]] = {}
    for number, unit in enumerate(units):
        for one in unit:
            slices = kept.setdefault((one.weight, one.axis), set())
            for channel, own in enumerate(one.slices):
                if (number, channel) not in gone:
                    slices.update(own)
    return kept


def norm(values: list[float], p: float) -> float:
    """The L-p norm."""
    if p == math.inf:
        return max(map(abs, values))
    total: float = math.fsum(abs(v) ** p for v in values) ** (1 / p)
    return total


def lamp(magnitudes: list[float]) -> list[float]:
    """LAMP scores, by the definition."""
    scores = []
    for channel, magnitude in enumerate(magnitudes):
        survivors = [
            other
            for place, other in enumerate(magnitudes)
            if other > magnitude or (other == magnitude and place >= channel)
        ]
        total = math.fsum(survivors)
        scores.append(magnitude / total if total else 0.0)
    return scores


def fpgm(rows: list[list[float]]) -> list[float]:
    """The sums of Euclidean distances."""
    return [math.fsum(math.dist(row, other) for other in rows) for row in rows]


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    """A loss of the kind that :class:`Taylor` takes."""
    found: Tensor = model(batch).square().mean()
    return found


DATA = [
    torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(n)).double() for n in (2, 5)
]


def assert_chooses(
    criterion: Importance,
    model: Small,
    scores: list[list[float]],
    method: Method,
    side: Side,
    together: bool,
) -> None:
    """Masks of half of the channels keep those with the greatest of these scores."""
    masks = choose_masks(
        model,
        traced(model),
        0.5,
        criterion=criterion,
        method=method,
        side=side,
        is_global=together,
    )
    for (weight, axis), kept in masked(UNITS[method, side], scores, 0.5, together).items():
        assert set(masks.kept[weight][axis]) == kept, (weight, axis)
