"""Where ``apple-upscale`` has its criteria; ours are in :mod:`upscale_opt.importance`."""

from upscale_opt.importance import *  # noqa: F403
