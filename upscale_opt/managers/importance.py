"""Criteria, where ``apple-upscale`` has its own; ours are in :mod:`upscale_opt.importance`."""

from upscale_opt.importance import *  # noqa: F403
