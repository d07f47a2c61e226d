"""A picture of a comparison: one panel per network, one group of bars per amount."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from upscale_opt.cli.tables import unit_of
from upscale_opt.experiments.pictures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    VERMILION,
    YELLOW,
    drawing,
    picture,
)
from upscale_opt.solver.comparing import ComparisonRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    "identity": GREY,
    "greedy": ORANGE,
    "local-search": SKY,
    "cp-sat": BLUE,
    "cp-sat-direct": PINK,
    "pulp": GREEN,
    "pulp-cbc": VERMILION,
}

_OTHER_COLOUR = YELLOW

_PANELS_PER_ROW = 4
_PANEL_HEIGHT = 2.6
_BAR_WIDTH = 0.16
"""In inches, like the heights."""


def draw(rows: Sequence[ComparisonRow], kind: str) -> bytes:
    """Draw what every solver's orders cost, and the best lower bound as a line across the bars.

    Args:
        rows: of one or several problems; the rows of a label must lie together.
        kind: ``"svg"`` or ``"png"``. The same rows give the same bytes.
    """
    panels = [(label, list(group)) for label, group in groupby(rows, key=lambda row: row.label)]
    solvers = list(dict.fromkeys(row.solver for row in rows))
    across = min(_PANELS_PER_ROW, len(panels))
    down = -(-len(panels) // across)
    bars = max(len(panel) for _, panel in panels)
    width = max(6.0, across * max(2.0, _BAR_WIDTH * bars + 1.0))
    with drawing(width, down * _PANEL_HEIGHT + 0.6) as figure:
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        grid = figure.subplots(down, across, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, (label, panel) in zip(grid.flat, panels, strict=False):
            axes.set_title(label, fontsize=10)
            _draw_panel(axes, panel, solvers)
        figure.supylabel(" / ".join(dict.fromkeys(map(unit_of, rows))), fontsize=10)
        if any(row.amount is not None for row in rows):
            figure.supxlabel("channels dropped", fontsize=10)
        handles = [
            Patch(color=_COLOURS.get(solver, _OTHER_COLOUR), label=solver) for solver in solvers
        ]
        bound = Line2D([], [], color="black", linewidth=1.6, label="lower bound")
        figure.legend(
            handles=[*handles, bound],
            loc="outside upper center",
            ncols=min(len(solvers) + 1, 5),
            frameon=False,
        )
        return picture(figure, kind)


def _draw_panel(axes: Axes, rows: Sequence[ComparisonRow], solvers: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    amounts = list(dict.fromkeys(row.amount for row in rows))
    width = 0.8 / len(solvers)
    for place, amount in enumerate(amounts):
        group = [row for row in rows if row.amount == amount]
        for row in group:
            left = place - 0.4 + width * solvers.index(row.solver)
            if row.objective_value:
                axes.bar(
                    left,
                    row.objective_value,
                    width,
                    align="edge",
                    color=_COLOURS.get(row.solver, _OTHER_COLOUR),
                )
            else:
                # A bar of no height cannot be told from one that is missing.
                sign = "0" if row.objective_value == 0 else "×"
                axes.text(left + width / 2, 0, sign, ha="center", va="bottom", fontsize=7)
        bounds = [row.lower_bound for row in group if row.lower_bound is not None]
        if any(bounds):
            axes.hlines(max(bounds), place - 0.45, place + 0.45, color="black", linewidth=1.6)
    axes.set_xlim(-0.6, len(amounts) - 0.4)
    axes.set_ylim(bottom=0, top=None if any(row.objective_value for row in rows) else 1)
    names = ["" if amount is None else f"{100 * amount:g} %" for amount in amounts]
    axes.set_xticks(range(len(amounts)), names)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
