"""Questions of a model's code about PyTorch's state, which a trace would answer for good."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_TRUSTED = ("torch", "upscale_opt")


@contextmanager
def answering(answer: bool) -> Iterator[list[str]]:
    """Answer the model's code, where it asks whether gradients are wanted.

    PyTorch's own code gets the true answer, and so does ours, which computes the same either way.

    Yields:
        The questions that have been asked.
    """
    asked: list[str] = []
    original = torch.is_grad_enabled

    def is_grad_enabled() -> bool:
        if sys._getframe(1).f_globals.get("__name__", "").split(".")[0] in _TRUSTED:
            return original()
        asked.append("torch.is_grad_enabled")
        return answer

    torch.is_grad_enabled = is_grad_enabled
    try:
        yield asked
    finally:
        torch.is_grad_enabled = original


@contextmanager
def gradients_watched() -> Iterator[list[bool]]:
    """While this is open, notice whether code switches gradients on or off.

    Yields:
        To what they have been switched.
    """
    switched: list[bool] = []
    original: Any = torch.set_grad_enabled

    class Recording(original):  # type: ignore[misc]
        def __init__(self, mode: bool) -> None:
            switched.append(mode)
            super().__init__(mode)

    torch.set_grad_enabled = Recording  # type: ignore[misc]
    try:
        yield switched
    finally:
        torch.set_grad_enabled = original  # type: ignore[misc]
