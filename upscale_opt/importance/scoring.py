"""Criteria by name, and segments scored by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from upscale_opt.errors import MaskError
from upscale_opt.importance.batch_norm import BatchNormScale
from upscale_opt.importance.criterion import Criterion, Importance
from upscale_opt.importance.magnitude import FPGM, L1, L2, LAMP, Random
from upscale_opt.masking.segments import Segment

CRITERIA: dict[str, Callable[[], Importance]] = {
    "l1": L1,
    "l2": L2,
    "lamp": LAMP,
    "fpgm": FPGM,
    "random": Random,
    "batch-norm": BatchNormScale,
}
"""The criteria that need no data, by their names."""


def score_segments(segments: Sequence[Segment], criterion: Criterion | None) -> None:
    """Set the ``scores`` of all segments.

    Raises:
        MaskError: if a criterion returns something else than one score per channel, or nothing
            for any segment.
    """
    importance = as_importance(criterion)
    importance.prepare(segments)
    for segment in segments:
        scores = importance.score(segment)
        if scores is not None and (
            not isinstance(scores, Tensor) or tuple(scores.shape) != (len(segment.channels),)
        ):
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise MaskError(
                f"{importance} gave {got} for segment {segment.name}, where a tensor of shape "
                f"({len(segment.channels)},) is expected: one score per channel"
            )
        segment.scores = scores
    if segments and all(segment.scores is None for segment in segments):
        raise MaskError(
            f"{importance} has nothing to say about any layer of this model; use another criterion"
        )


def as_importance(criterion: Criterion | None) -> Importance:
    """``criterion`` itself, what goes by that name, a function made one, or the L2 norm.

    Raises:
        MaskError: if it is nothing of the kind.
    """
    if criterion is None:
        return L2()
    if isinstance(criterion, Importance):
        return criterion
    if isinstance(criterion, str):
        if criterion not in CRITERIA:
            raise MaskError(
                f"no criterion {criterion!r}; there are {', '.join(CRITERIA)}, and for data "
                "HRank(batches) and Taylor(loss, batches)"
            )
        return CRITERIA[criterion]()
    if isinstance(criterion, type):
        return _made(criterion)
    if callable(criterion):
        return _Function(criterion)
    raise MaskError(
        f"a criterion is a name such as 'l2', an upscale_opt.importance.Importance, or a function "
        f"from weights to scores, not {criterion!r}"
    )


def _made(kind: type) -> Importance:
    """A criterion of which only the class was given."""
    if not issubclass(kind, Importance):
        raise MaskError(
            f"{kind.__name__} is no criterion: not an upscale_opt.importance.Importance"
        )
    try:
        return kind()
    except TypeError as error:
        raise MaskError(
            f"{kind.__name__} needs arguments; give a {kind.__name__}(...) instead of the class "
            f"({error})"
        ) from error


class _Function(Importance):
    """A user's function from weights to scores."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def __str__(self) -> str:
        return str(getattr(self.function, "__name__", type(self.function).__name__))
