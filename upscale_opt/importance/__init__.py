"""Criteria: how important a channel is.

Each cites its paper. One of your own is a function from weights to scores, or a subclass of
:class:`Importance`.
"""

from collections.abc import Callable

from upscale_opt.importance.batch_norm import BatchNormScale
from upscale_opt.importance.criterion import Importance, as_importance, score_segments
from upscale_opt.importance.gradients import Taylor
from upscale_opt.importance.hrank import HRank
from upscale_opt.importance.magnitude import FPGM, L1, L2, LAMP, Magnitude, Random

CRITERIA: dict[str, Callable[[], Importance]] = {
    "l1": L1,
    "l2": L2,
    "lamp": LAMP,
    "fpgm": FPGM,
    "random": Random,
    "batch-norm": BatchNormScale,
}
"""The criteria that need no data, by their names on the command line."""

__all__ = [
    "CRITERIA",
    "FPGM",
    "L1",
    "L2",
    "LAMP",
    "BatchNormScale",
    "HRank",
    "Importance",
    "Magnitude",
    "Random",
    "Taylor",
    "as_importance",
    "score_segments",
]
