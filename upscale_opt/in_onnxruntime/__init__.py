"""Models in onnxruntime on a CPU: their times there, and what its kernels cost."""

from upscale_opt.in_onnxruntime.calibrating import calibrate
from upscale_opt.in_onnxruntime.judging import judge
from upscale_opt.in_onnxruntime.timing import Candidate, Comparison, beside, compare

__all__ = ["Candidate", "Comparison", "beside", "calibrate", "compare", "judge"]
