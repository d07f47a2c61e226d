"""The study's pictures: accuracy against multiply-adds and against time."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from budget_cells import Cell, Whole
from budget_clock import Clock
from budget_methods import Runtime
from budget_tables import methods_of, shares_of

from upscale_opt.experiments.pictures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LIGHT_GREY,
    ORANGE,
    PINK,
    SKY,
    VERMILION,
    YELLOW,
    drawing,
    picture,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    "joint": BLACK,
    "constrained": BLUE,
    "greedy": SKY,
    "even": GREEN,
    "uniform": VERMILION,
    "uniform constrained": ORANGE,
    "priced": YELLOW,
    "torch-pruning": PINK,
    "torch-pruning per layer": GREY,
}

_WIDTH, _HEIGHT = 3.4, 3.0
"""Of a panel, in inches."""

Points = dict[str, list[tuple[float, float]]]
"""For each method, shares of the multiply-adds or the time, and accuracies: means over seeds."""


def draw(
    whole: Sequence[Whole], found: Sequence[Cell], clocks: Mapping[Runtime, Sequence[Clock]]
) -> bytes:
    """One network, as an SVG file: a panel for multiply-adds and one for every runtime."""
    panels = {"multiply-adds left": _points(found, lambda cell: cell.macs)}
    for runtime, own in clocks.items():
        if own:
            panels[f"time left, {runtime}"] = _points(found, partial(_time_left, own))
    top = statistics.mean(one.accuracy for one in whole)
    with drawing(len(panels) * _WIDTH + 0.3, _HEIGHT + 0.6) as figure:
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (label, points) in zip(grid, panels.items(), strict=True):
            _panel(axes, points, top, label)
        grid[0].set_ylabel("right")
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False)
        return picture(figure, "svg")


def _panel(axes: Axes, points: Points, top: float, label: str) -> None:
    axes.axhline(top, color=LIGHT_GREY, linewidth=0.8, label="unpruned")
    for method, own in points.items():
        across, up = zip(*sorted(own), strict=True)
        width = 2.0 if method == "joint" else 1.1
        axes.plot(
            across,
            up,
            color=_COLOURS[method],
            linewidth=width,
            marker="o",
            markersize=3,
            label=method,
            zorder=3 if method == "joint" else 2,
        )
    lows = [value for name, own in points.items() if name != "priced" for _, value in own]
    axes.set_ylim(max(0.0, min([*lows, top]) - 0.03), min(1.0, top + 0.02))
    axes.set_xlabel(label)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def _time_left(clocks: Sequence[Clock], cell: Cell) -> float | None:
    """A cell's share of the unpruned network's time, if it was on the clock."""
    took = (one.took() for one in clocks if one.seed == cell.seed)
    return next((shares.get((cell.method, cell.share)) for shares in took), None)


def _points(found: Sequence[Cell], place: Callable[[Cell], float | None]) -> Points:
    """Where every method's cells stand; cells that have no place are left out."""
    points: Points = {}
    for method in methods_of(found):
        for share in shares_of(found):
            own = [
                (across, one.accuracy)
                for one in found
                if (one.method, one.share) == (method, share) and (across := place(one)) is not None
            ]
            if own:
                across, up = (statistics.mean(column) for column in zip(*own, strict=True))
                points.setdefault(method, []).append((across, up))
    return points
