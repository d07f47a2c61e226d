"""Little effort where things are run for what they say, not for how good their answers are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from upscale_opt.experiments.processes import Tell
from upscale_opt.experiments.running import Place
from upscale_opt.measuring import in_turn
from upscale_opt.pruning import by_clock
from upscale_opt.solver import choosing
from upscale_opt.solver.selection import bound, joint


def _run_here(
    work: Callable[[Any, Tell], Any], items: Sequence[Any], place: Place, *, tell: Tell
) -> Iterator[tuple[int, Any]]:
    """As ``run_apart``, which starts a process for every item."""
    yield from ((number, work(item, tell)) for number, item in enumerate(items))


def search_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search masks, and put models on the clock, no longer than it takes to have an answer."""
    monkeypatch.setattr(joint, "_ROUNDS", 1)
    monkeypatch.setattr(joint, "_COARSE", 8)
    monkeypatch.setattr(joint, "_TRIES", 3)
    monkeypatch.setattr(bound, "_ROUNDS", 20)
    monkeypatch.setattr(choosing, "_SEARCH", 0.05)
    monkeypatch.setattr(by_clock, "_SECONDS", 0.3)
    monkeypatch.setattr(in_turn, "rounds_within", lambda seconds, one_round: 10)


def make_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, on fewer images, in one process, without a third choice for what the clock says."""
    search_little(monkeypatch)
    monkeypatch.setattr("upscale_opt.experiments.bench.sweeping.run_apart", _run_here)
    monkeypatch.setattr(by_clock, "_AGAIN", 1)
    datasets: Any = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    few = type(digits)(images=digits.images[:797], target=digits.target[:797])
    monkeypatch.setattr(datasets, "load_digits", lambda: few)
