"""What processes do in tests; they import it by its name, and it loads no PyTorch."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from upscale_opt.errors import UpscaleError
from upscale_opt.experiments.processes import Tell


class StubbornError(Exception):
    """One that can be written, but not read again."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__("stubborn")


def who(item: int, tell: Tell) -> tuple[int, int]:
    tell(f"at {item}")
    print("noise")
    return item * item, os.getpid()


def dies_at_two(item: int, tell: Tell) -> int:
    if item == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def leaves(item: int, tell: Tell) -> None:
    sys.exit(item)


def fails(item: int, tell: Tell) -> None:
    raise UpscaleError(f"{item} is wrong")


def is_missing(item: int, tell: Tell) -> None:
    raise FileNotFoundError(2, "gone", "file")


def is_stubborn(item: int, tell: Tell) -> None:
    raise StubbornError(1, 2)


def sleeps(folder: str, tell: Tell) -> None:
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)
