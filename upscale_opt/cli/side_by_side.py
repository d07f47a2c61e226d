"""Solvers on cases, here or elsewhere; what Ctrl-C leaves is finished."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from upscale_opt.cli.progress import Tell
from upscale_opt.experiments.running import Place, run_all
from upscale_opt.solver.comparing import Case, ComparisonRow, Settings, run_case
from upscale_opt.solver.network.objectives import UNITS

Cell = tuple[Case, str]
"""One solver on one case."""


def run_cells(
    cells: Sequence[Cell], settings: Settings, place: Place, tell: Tell
) -> Iterator[tuple[int, ComparisonRow]]:
    """Yield the number of a cell and its row, as soon as it is finished.

    Args:
        cells: what to solve.
        settings: for all solvers.
        place: where; in this process cells finish in their order.
        tell: told how the solvers are getting on.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when all that is finished was yielded.
        UpscaleError: if a process was killed, or the cluster is lost.
    """
    if place.is_here:
        return _in_turn(cells, settings, tell)
    return run_all(_solved, [(*cell, settings) for cell in cells], place)


def _in_turn(
    cells: Sequence[Cell], settings: Settings, tell: Tell
) -> Iterator[tuple[int, ComparisonRow]]:
    def progress(solver: str, best: int, bound: int) -> None:
        numbers = f"{best:,} {UNITS[settings.objective]}, lower bound {bound:,}"
        tell(f"{name_of(case)}, {solver}: {numbers}")

    with noticing_interrupts() as interrupted:
        for number, (case, solver) in enumerate(cells):
            row = run_case(case, solver, settings, progress)
            yield number, row
            if interrupted():
                raise KeyboardInterrupt


def name_of(case: Case) -> str:
    """What a case is called in a line about it."""
    return case.label if case.amount is None else f"{case.label} {100 * case.amount:g}%"


@contextmanager
def noticing_interrupts() -> Iterator[Callable[[], bool]]:
    """Remember Ctrl-C: a solver that is interrupted returns what it has, as if time had run out."""
    pressed = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _solved(cell: tuple[Case, str, Settings]) -> ComparisonRow:
    case, solver, settings = cell
    return run_case(case, solver, settings)
