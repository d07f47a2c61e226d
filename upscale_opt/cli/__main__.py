"""``python -m upscale_opt.cli``: as ``upscale-opt`` does it."""

from __future__ import annotations

from upscale_opt.cli import main

if __name__ == "__main__":
    main()
