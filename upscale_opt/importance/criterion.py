"""Criteria: what scores channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from upscale_opt.errors import MaskError
from upscale_opt.ir.graph import ChannelGraph, slices_of
from upscale_opt.masking.segments import Segment, Share


class Importance:
    """Scores channels: the higher, the more important.

    A criterion of your own defines :meth:`forward` (or :meth:`score`, where weights are not
    enough; :meth:`prepare` is called once before the segments are scored). Where :meth:`forward`
    is all there is, a plain function does, too.

    Attributes:
        name: ``"weight"``; or, for a criterion that looks at something else, the attribute of the
            layers that holds it, a tensor with one row per input or output channel of the layer.
        needs_feature_map_statistics: whether a model has to be run between ``register(model)`` and
            ``deregister(model)`` first, as with :class:`HRank` without batches.
    """

    name = "weight"
    needs_feature_map_statistics = False

    def prepare(self, segments: Sequence[Segment]) -> None:
        """Gather statistics, once, before the segments are scored."""

    def score(self, segment: Segment) -> Tensor | None:
        """The scores of a segment's channels, of shape (channels,); ``None`` leaves it alone.

        Raises:
            MaskError: if an attribute of a layer does not have one row per channel.
        """
        if self.name == "weight":
            return self(segment.weights())
        held = [getattr(layer, self.name, None) for layer in segment.layers]
        rows = [
            _rows(segment, share, self.name, one)
            for share, one in zip(segment.shares, held, strict=True)
            if isinstance(one, Tensor)
        ]
        return self(torch.cat([row.to(rows[0].device) for row in rows], dim=1)) if rows else None

    def forward(self, x: Tensor) -> Tensor:
        """Scores of shape (channels,) from values of shape (channels, values)."""
        raise MaskError(f"{type(self).__name__} must define forward(x)")

    def __call__(self, x: Tensor) -> Tensor:
        """As :meth:`forward`."""
        return self.forward(x)

    def __str__(self) -> str:
        return type(self).__name__


def _rows(segment: Segment, share: Share, name: str, held: Tensor) -> Tensor:
    """The values that a layer holds for a segment's channels, of shape (channels, values)."""
    size = slices_of(segment.graph, share.weight, share.axis)
    if held.ndim == 0 or len(held) != size:
        raise MaskError(
            f"attribute {name!r} of layer {share.module!r} has the shape {tuple(held.shape)}, but "
            f"one row for each of the layer's {size} {share.side} channels is needed"
        )
    values = held.detach().double().reshape(size, -1)
    return values[share.slices.to(values.device)].flatten(1)


class Prepared(Importance):
    """A criterion that works out the scores of all of a model's segments at once.

    Subclasses define :meth:`scores_of`. A copy, or a pickled one, keeps the settings but not the
    scores.
    """

    def __init__(self) -> None:
        self._scores: WeakKeyDictionary[Segment, Tensor | None] = WeakKeyDictionary()

    def scores_of(
        self, model: nn.Module, graph: ChannelGraph, segments: Sequence[Segment]
    ) -> Sequence[Tensor | None]:
        """For each of a model's segments, of which there is at least one, its scores."""
        raise MaskError(f"{type(self).__name__} must define scores_of(...)")

    def prepare(self, segments: Sequence[Segment]) -> None:
        """Work out the scores."""
        self._scores.clear()
        for own in by_model(segments):
            scores = self.scores_of(own[0].model, own[0].graph, own)
            self._scores.update(zip(own, scores, strict=True))

    def score(self, segment: Segment) -> Tensor | None:
        """The prepared scores; a segment that was not prepared is worked out by itself."""
        if segment not in self._scores:
            return self.scores_of(segment.model, segment.graph, [segment])[0]
        return self._scores[segment]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_scores": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._scores = WeakKeyDictionary()


def by_model(segments: Sequence[Segment]) -> list[list[Segment]]:
    """The segments of each model and graph."""
    found: dict[tuple[int, int], list[Segment]] = {}
    for segment in segments:
        found.setdefault((id(segment.model), id(segment.graph)), []).append(segment)
    return list(found.values())


Criterion = Importance | str | Callable[[Tensor], Tensor]
"""Criteria as they can be given: one, its name, or a function from weights to scores."""
