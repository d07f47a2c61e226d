"""What workers of a cluster do in tests. It loads no PyTorch, which takes its time."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from upscale_opt.errors import UpscaleError


def square(item: int) -> tuple[int, int]:
    return item * item, os.getpid()


def dies_once(marker: str) -> str:
    """Kills its process the first time."""
    time.sleep(0.1)
    if marker and not os.path.exists(marker):
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return marker


def dies(item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fails(item: int) -> None:
    raise UpscaleError(f"{item} is wrong")


def sleeps(marker: str) -> None:
    Path(marker).touch()
    time.sleep(0.5)
