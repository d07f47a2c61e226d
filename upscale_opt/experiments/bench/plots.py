"""The benchmark's pictures: ratios of times, a row per network, with their intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from upscale_opt.experiments.bench.bars import cell_of, cells_of
from upscale_opt.experiments.bench.names import BASES
from upscale_opt.experiments.bench.records import BenchRecord
from upscale_opt.experiments.bench.tables import asked, title
from upscale_opt.experiments.pictures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LIGHT_GREY,
    ORANGE,
    PINK,
    SKY,
    YELLOW,
    drawing,
    picture,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    "unpruned": BLACK,
    "gather": GREY,
    "upscale": ORANGE,
    "upscale-index": YELLOW,
    "constrained": SKY,
    "copies": GREEN,
    "latency": BLUE,
    "floor": PINK,
}

_MARKERS = {"unpruned": "|", "upscale": "s", "latency": "D", "floor": "v", "copies": "^"}

_ROW, _WIDTH = 0.2, 3.4
"""The height of a network's row and the width of a panel, in inches."""

_OF_BASE = {
    "upscale": "the time of apple-upscale's export",
    "unpruned": "the unpruned network's time",
    "floor": "the floor, where copies are free",
}


@dataclass(frozen=True)
class Plot:
    """A picture and what it shows.

    Attributes:
        name: of its file, without a folder.
        caption: a sentence or two.
        png: the file's content. The same records give the same bytes.
    """

    name: str
    caption: str
    png: bytes


def plots(records: Sequence[BenchRecord]) -> Iterator[Plot]:
    """A picture for every base that times were divided by."""
    for base in BASES:
        shown = [
            variant
            for variant in asked(records)
            if any(c.ratio(variant, base) for record in records for c in record.cells)
        ]
        if shown:
            caption = (
                f"Times over {_OF_BASE[base]}: the median of the ratios in every round, with its "
                "95 % interval. Left of the line is faster. A row per network; a panel per batch "
                "size, memory format and mode."
            )
            yield Plot(f"over-{base}.png", caption, _draw(records, shown, base))


def _draw(records: Sequence[BenchRecord], variants: Sequence[str], base: str) -> bytes:
    cells = cells_of(records)
    names = list(dict.fromkeys(record.name for record in records if record.cells))
    with drawing(_WIDTH * len(cells) + 1.5, _ROW * len(names) + 1.6) as figure:
        from matplotlib.lines import Line2D

        panels = figure.subplots(1, len(cells), squeeze=False, sharey=True)[0]
        for axes, (key, own) in zip(panels, cells.items(), strict=True):
            axes.set_title(title(key), fontsize=9)
            _draw_cell(axes, own, key, names, variants, base)
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        figure.supxlabel(f"time / {base}", fontsize=10)
        handles = [
            Line2D([], [], color=_COLOURS[v], marker=_MARKERS.get(v, "o"), linestyle="", label=v)
            for v in variants
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
        return picture(figure, "png")


def _draw_cell(
    axes: Axes,
    records: Sequence[BenchRecord],
    key: tuple[int, str, str],
    names: Sequence[str],
    variants: Sequence[str],
    base: str,
) -> None:
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    axes.axvline(1.0, color=LIGHT_GREY, linewidth=0.8, zorder=0)
    for number, variant in enumerate(variants):
        for record in records:
            ratio = cell_of(record, key).ratio(variant, base)
            if ratio is None:
                continue
            row = names.index(record.name) + 0.6 * ((number + 0.5) / len(variants) - 0.5)
            axes.plot([ratio.low, ratio.high], [row, row], color=_COLOURS[variant], linewidth=0.9)
            axes.plot(
                ratio.median,
                row,
                color=_COLOURS[variant],
                marker=_MARKERS.get(variant, "o"),
                markersize=3.5,
            )
    axes.set_xscale("log")
    axes.set_xticks([t for t in (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4) if _within(axes, t)])
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _within(axes: Axes, tick: float) -> bool:
    low, high = axes.get_xlim()
    return low <= tick <= high or tick == 1
