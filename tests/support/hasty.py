"""Little effort where examples are run for what they say, not for how good their answers are."""

from __future__ import annotations

import pytest

from upscale_opt.pruning import by_clock
from upscale_opt.solver.selection import joint


def make_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search masks, and put models on the clock, no longer than it takes to have an answer."""
    monkeypatch.setattr(joint, "_ROUNDS", 2)
    monkeypatch.setattr(joint, "_COARSE", 8)
    monkeypatch.setattr(by_clock, "_SECONDS", 0.3)
    monkeypatch.setattr(by_clock, "_AGAIN", 1)
