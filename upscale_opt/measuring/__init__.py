"""The costs of a model: parameters, multiply-adds, bytes moved, and time."""

from upscale_opt.measuring.bytes_moved import Movement, moved_bytes
from upscale_opt.measuring.calibrating import calibrate
from upscale_opt.measuring.costs import Costs, count_costs
from upscale_opt.measuring.estimating import Estimate, estimate
from upscale_opt.measuring.in_turn import Times, beside

__all__ = [
    "Costs",
    "Estimate",
    "Movement",
    "Times",
    "beside",
    "calibrate",
    "count_costs",
    "estimate",
    "moved_bytes",
]
