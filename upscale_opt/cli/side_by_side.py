"""Solvers on cases, here or elsewhere; what Ctrl-C leaves is finished."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType

from upscale_opt.cli.progress import Tell, solver_progress
from upscale_opt.experiments.running import Place, run_all
from upscale_opt.solver.comparing import Case, ComparisonRow, run_case
from upscale_opt.solver.options import SolveOptions

Cell = tuple[Case, SolveOptions]
"""A case, and how to solve it."""


def run_cells(
    cells: Sequence[Cell], place: Place, tell: Tell
) -> Iterator[tuple[int, ComparisonRow]]:
    """Yield the number of a cell and its row, as soon as it is finished.

    Args:
        cells: what to solve.
        place: where; in this process cells finish in their order.
        tell: told how the solvers are getting on.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when all that is finished was yielded.
        UpscaleError: if a process was killed, or the cluster is lost.
    """
    if place.is_here:
        return _in_turn(cells, tell)
    return run_all(_solved, cells, place)


def _in_turn(cells: Sequence[Cell], tell: Tell) -> Iterator[tuple[int, ComparisonRow]]:
    with noticing_interrupts() as interrupted:
        for number, (case, options) in enumerate(cells):
            told = solver_progress(partial(_tell_of, case, options, tell), options.objective)
            yield number, run_case(case, options, told)
            if interrupted():
                raise KeyboardInterrupt


def _tell_of(case: Case, options: SolveOptions, tell: Tell, text: str) -> None:
    tell(f"{name_of(case)}, {options.solver}: {text}")


def name_of(case: Case) -> str:
    """The name of a case in a line about it."""
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


def _solved(cell: Cell) -> ComparisonRow:
    return run_case(*cell)
