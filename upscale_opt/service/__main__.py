"""``python -m upscale_opt.service serve`` and ``… worker``: as ``upscale-opt`` does it."""

from __future__ import annotations

from upscale_opt.cli import app, main
from upscale_opt.cli.serve import serve
from upscale_opt.cli.worker import worker

if __name__ == "__main__":
    known = {info.callback for info in app.registered_commands}
    for command in (serve, worker):
        if command not in known:
            app.command()(command)
    main()
