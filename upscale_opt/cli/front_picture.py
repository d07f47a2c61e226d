"""A picture of fronts: one panel per network, copies against multiply-adds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from upscale_opt.cli.fronts import Front, Fronts
from upscale_opt.experiments.pictures import BLUE, VERMILION, drawing, picture
from upscale_opt.solver.network.objectives import UNITS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS_PER_ROW = 3
_WIDTH = 3.4
_HEIGHT = 2.6
"""Of a panel, in inches."""

_FOUND = BLUE
_BOUND = VERMILION


def draw(fronts: Fronts, kind: str) -> bytes:
    """Draw what is copied at each budget, and what no plan falls below.

    Args:
        fronts: of one or several networks.
        kind: ``"svg"`` or ``"png"``. The same fronts give the same bytes.
    """
    across = min(_PANELS_PER_ROW, len(fronts.networks))
    down = -(-len(fronts.networks) // across)
    with drawing(max(5.0, across * _WIDTH), down * _HEIGHT + 0.6) as figure:
        grid = figure.subplots(down, across, squeeze=False)
        for axes in grid.flat[len(fronts.networks) :]:
            axes.set_axis_off()
        for axes, front in zip(grid.flat, fronts.networks, strict=False):
            _draw_panel(axes, front)
        figure.supylabel(UNITS[fronts.objective], fontsize=10)
        figure.supxlabel("multiply-adds that windows may add, %", fontsize=10)
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
        return picture(figure, kind)


def _draw_panel(axes: Axes, front: Front) -> None:
    budgets = [100 * point.budget for point in front.points]
    values = [point.objective_value for point in front.points]
    bounds = [point.lower_bound for point in front.points]
    axes.step(budgets, values, where="post", color=_FOUND, marker="o", markersize=3, label="found")
    axes.plot(budgets, bounds, "--", color=_BOUND, marker=".", label="lower bound")
    if front.macs:
        spent = [100 * point.extra_macs / front.macs for point in front.points]
        axes.plot(spent, values, "x", color=_FOUND, label="really added")
    axes.set_title(front.name, fontsize=10)
    axes.set_ylim(bottom=0, top=None if any(values) else 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
