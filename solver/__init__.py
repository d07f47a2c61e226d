"""The optimisation: from a channel graph and masks to a proven solution. Never imports torch."""

from upscale_opt.solver.solve import instance_of, solve

__all__ = ["instance_of", "solve"]
