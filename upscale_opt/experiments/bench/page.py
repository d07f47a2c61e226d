"""The page that a benchmark writes: tables between its markers, and pictures beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from upscale_opt.errors import UpscaleError
from upscale_opt.experiments.bench.plots import Plot, plots
from upscale_opt.experiments.bench.records import BenchRecord
from upscale_opt.experiments.bench.tables import tables
from upscale_opt.ir.base import write_atomically

BEGIN = "<!-- bench:begin -->"
END = "<!-- bench:end -->"


def read_page(path: Path) -> tuple[str, str]:
    """The text before and behind the tables; a title, if there is no such page.

    Raises:
        UpscaleError: if the page has no two markers, in their order.
    """
    text = f"# Performance\n\n{BEGIN}\n{END}\n"
    if path.exists():
        text = path.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UpscaleError(
            f"{path}: the page has no place for the tables: no lines {BEGIN} and {END}"
        )
    return head, tail


def write_page(path: Path, records: Sequence[BenchRecord], command: str) -> list[Path]:
    """Write the tables into the page, and the pictures into a folder of its name.

    Args:
        path: the page; made if there is none.
        records: of all networks.
        command: what the page says it was written by.

    Returns:
        The files written.

    Raises:
        UpscaleError: if the page has no place for the tables.
        OSError: if a file cannot be written.
    """
    head, tail = read_page(path)
    drawn = list(plots(records))
    folder = path.with_suffix("")
    for plot in drawn:
        write_atomically(folder / plot.name, plot.png)
    parts = [f"Written by `{command}`.", tables(records).rstrip(), *_shown(drawn, folder.name)]
    body = "\n\n".join(parts)
    write_atomically(path, f"{head}{BEGIN}\n\n{body}\n\n{END}{tail}".encode())
    return [path, *(folder / plot.name for plot in drawn)]


def _shown(drawn: Sequence[Plot], folder: str) -> list[str]:
    """The pictures, each above its caption."""
    parts = ["### Pictures"] if drawn else []
    for plot in drawn:
        parts += [f"![{plot.caption}]({folder}/{plot.name})", f"*{plot.caption}*"]
    return parts
