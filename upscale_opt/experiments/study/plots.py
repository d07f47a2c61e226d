"""The study's pictures: accuracy against amount, multiply-adds and latency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from upscale_opt.experiments.pictures import BLUE, LIGHT_GREY, ORANGE, drawing, picture
from upscale_opt.experiments.study.findings import (
    Spread,
    over_seeds,
    share_of,
    value_of,
)
from upscale_opt.experiments.study.names import METHODS
from upscale_opt.experiments.study.records import Row, Unpruned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"unconstrained": BLUE, "constrained": ORANGE}

_LINES: dict[str, Literal["-", "--"]] = {"unconstrained": "-", "constrained": "--"}

_WIDTH, _HEIGHT = 3.1, 2.0
"""Of a panel, in inches."""

Place = Callable[[Row], float]


def draw_against_amount(rows: Sequence[Row], unpruned: Sequence[Unpruned]) -> bytes:
    """Draw accuracy against the share of channels dropped, as an SVG file.

    A column per network and a row per criterion; the mean over seeds, with the standard deviation
    as a band around it.

    Args:
        rows: of one data set and one way of pruning.
        unpruned: the networks.
    """
    return _draw(rows, unpruned, lambda row: row.amount, "channels dropped", 0.0)


def draw_against_multiply_adds(rows: Sequence[Row], unpruned: Sequence[Unpruned]) -> bytes:
    """Draw accuracy against multiply-adds, as :func:`draw_against_amount`."""
    own = {(one.net, one.seed): one for one in unpruned}

    def place(row: Row) -> float:
        share = share_of(row, own[row.net, row.seed], "multiply_adds")
        assert share is not None
        return share

    return _draw(rows, unpruned, place, "multiply-adds left", 1.0)


def draw_against_latency(rows: Sequence[Row], unpruned: Sequence[Unpruned]) -> bytes:
    """Draw accuracy against latency, where it was measured, as :func:`draw_against_amount`."""
    measured = [row for row in rows if row.latency is not None]
    seeds = {row.seed for row in measured}
    known = [one for one in unpruned if one.seed in seeds]
    label = "time, of the unpruned network's"
    return _draw(measured, known, lambda row: row.latency or 0.0, label, 1.0)


def _draw(
    rows: Sequence[Row], unpruned: Sequence[Unpruned], place: Place, label: str, start: float
) -> bytes:
    nets = list(dict.fromkeys(row.net for row in rows))
    criteria = list(dict.fromkeys(row.criterion for row in rows))
    with drawing(len(nets) * _WIDTH + 0.6, len(criteria) * _HEIGHT + 0.9) as figure:
        from matplotlib.lines import Line2D

        grid = figure.subplots(len(criteria), len(nets), squeeze=False, sharex="col", sharey="col")
        for across, net in enumerate(nets):
            whole = [one for one in unpruned if one.net == net]
            top = over_unpruned(whole)
            for down, criterion in enumerate(criteria):
                axes = grid[down][across]
                own = [row for row in rows if (row.net, row.criterion) == (net, criterion)]
                axes.axhline(top, color=LIGHT_GREY, linewidth=0.8)
                for method in METHODS:
                    line = [row for row in own if row.method == method]
                    _draw_line(axes, line, place, (start, top), method)
                if not down:
                    axes.set_title(net, fontsize=10)
                if not across:
                    axes.set_ylabel(criterion)
                axes.set_ylim(0, 1.02)
                for axis in (axes.xaxis, axes.yaxis):
                    axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        figure.supxlabel(label, fontsize=10)
        known = rows[0].accuracy is not None if rows else True
        figure.supylabel(
            "accuracy" if known else "agreement with the unpruned network", fontsize=10
        )
        handles = [
            Line2D([], [], color=_COLOURS[method], linestyle=_LINES[method], label=method)
            for method in METHODS
        ]
        handles.append(Line2D([], [], color=LIGHT_GREY, linewidth=0.8, label="unpruned"))
        figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
        return picture(figure, "svg")


def over_unpruned(networks: Sequence[Unpruned]) -> float:
    """The mean accuracy of unpruned networks; 1 where it means agreement with themselves."""
    known = [one.accuracy for one in networks if one.accuracy is not None]
    return sum(known) / len(known) if known else 1.0


def _draw_line(
    axes: Axes,
    rows: Sequence[Row],
    place: Place,
    start: tuple[float, float],
    method: str,
) -> None:
    points = [(start[0], Spread(start[1], None))]
    for amount in sorted({row.amount for row in rows}):
        own = [row for row in rows if row.amount == amount]
        points.append((over_seeds(own, place).mean, over_seeds(own, value_of)))
    across = [at for at, _ in points]
    means = [value.mean for _, value in points]
    axes.plot(
        across,
        means,
        color=_COLOURS[method],
        linestyle=_LINES[method],
        linewidth=1.4,
        marker="o" if method == "unconstrained" else "s",
        markersize=2.5,
    )
    if any(value.deviation is not None for _, value in points):
        spreads = [value.deviation or 0.0 for _, value in points]
        axes.fill_between(
            across,
            [mean - own for mean, own in zip(means, spreads, strict=True)],
            [mean + own for mean, own in zip(means, spreads, strict=True)],
            color=_COLOURS[method],
            alpha=0.15,
            linewidth=0,
        )
