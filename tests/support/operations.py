"""Operations counted instead of seconds measured: the same on a busy machine as on a quiet one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any


def longest_stretch(work: Callable[[], object]) -> int:
    """The most calls, of Python's or built-in functions, between two looks at the clock."""
    longest = calls = 0

    def count(frame: FrameType, event: str, called: Any) -> None:
        nonlocal longest, calls
        if event == "c_call" and called is time.monotonic:
            calls = 0
        elif event in ("call", "c_call"):
            calls += 1
            longest = max(longest, calls)

    profile(count, work)
    return longest


def calls_of(work: Callable[[], object], most: int) -> int:
    """The calls, of Python's or built-in functions, that some work takes.

    Raises:
        AssertionError: as soon as there are more than ``most``.
    """
    calls = 0

    def count(frame: FrameType, event: str, called: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")
        assert calls <= most, f"more than {most:,} calls"

    profile(count, work)
    return calls


def profile(count: Callable[[FrameType, str, Any], None], work: Callable[[], object]) -> None:
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
