"""Progress on stderr: live on a terminal, a line per step elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from upscale_opt.solver.network.objectives import UNITS
from upscale_opt.solver.progress import Listener

Tell = Callable[[str], None]
"""Says how a step is getting on."""

PATIENCE = 2.0
"""Seconds between two lines about one step, where lines cannot be overwritten."""


class Steps:
    """Shows every step while it runs.

    Args:
        console: where; stderr by default.

    Attributes:
        seconds: how long each finished step took; steps of one name are added up.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.seconds: dict[str, float] = {}
        if console is None:
            console = Console(stderr=True, highlight=False, emoji=False)
        self._console = console

    @contextmanager
    def step(self, name: str) -> Iterator[Tell]:
        """Run the body as the step called ``name``; it is given a function to say more."""
        start = time.perf_counter()
        if self._console.is_terminal:
            with self._live(name) as tell:
                yield tell
        else:
            self._print(f"{name} ...")
            yield self._lines(name, start)
        seconds = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if self._console.is_terminal:
            self._print(f"{name:<20}{seconds:8.2f} s")

    def note(self, line: str) -> None:
        """Say something that stays."""
        self._print(line)

    @contextmanager
    def _live(self, name: str) -> Iterator[Tell]:
        columns = (SpinnerColumn("line"), TextColumn("{task.description}"), TimeElapsedColumn())
        with Bar(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(name, total=None)
            yield lambda detail: progress.update(task, description=f"{name}: {detail}")

    def _lines(self, name: str, start: float) -> Tell:
        last = start

        def tell(detail: str) -> None:
            nonlocal last
            if time.perf_counter() - last >= PATIENCE:
                last = time.perf_counter()
                self._print(f"{name}: {detail}")

        return tell

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)


def solver_progress(tell: Tell, objective: str = "copied_channels") -> Listener:
    """The ``progress`` for :func:`upscale_opt.solve` that tells both numbers."""
    return lambda event: tell(f"{event.value:,} {UNITS[objective]}, lower bound {event.bound:,}")
