"""Criteria: how important a channel is.

Each cites its paper. One of your own is a function from weights to scores, or a subclass of
:class:`Importance`.
"""

from upscale_opt.importance.batch_norm import BatchNormScale
from upscale_opt.importance.criterion import Criterion, Importance
from upscale_opt.importance.gradients import Taylor
from upscale_opt.importance.hrank import HRank
from upscale_opt.importance.magnitude import FPGM, L1, L2, LAMP, Magnitude, Random
from upscale_opt.importance.scoring import CRITERIA, as_importance, score_segments

__all__ = [
    "CRITERIA",
    "FPGM",
    "L1",
    "L2",
    "LAMP",
    "BatchNormScale",
    "Criterion",
    "HRank",
    "Importance",
    "Magnitude",
    "Random",
    "Taylor",
    "as_importance",
    "score_segments",
]
