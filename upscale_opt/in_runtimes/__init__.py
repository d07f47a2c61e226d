"""Files of models run by other programs on a CPU: their times there, and what kernels cost."""

from upscale_opt.in_runtimes.backends import backend_of
from upscale_opt.in_runtimes.calibrating import calibrate
from upscale_opt.in_runtimes.judging import judge, runtime_for
from upscale_opt.in_runtimes.timing import Candidate, Comparison, beside, compare

__all__ = [
    "Candidate",
    "Comparison",
    "backend_of",
    "beside",
    "calibrate",
    "compare",
    "judge",
    "runtime_for",
]
