"""The study's files: rows as CSV and JSON, and the page with its pictures."""

from __future__ import annotations

import csv
import io
import os
import platform
from pathlib import Path

import torch

from upscale_opt.experiments.study.names import PHOTOGRAPHS
from upscale_opt.experiments.study.plots import (
    draw_against_amount,
    draw_against_latency,
    draw_against_multiply_adds,
)
from upscale_opt.experiments.study.records import Results, Row
from upscale_opt.experiments.study.report import write_report
from upscale_opt.ir.base import write_atomically

FILES = ("results.csv", "results.json")


def write_results(results: Results, folder: Path) -> None:
    """Write :data:`FILES`.

    Raises:
        OSError: if one of them cannot be written.
    """
    table, document = (folder / name for name in FILES)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Row.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.model_dump() for row in results.rows)
    write_atomically(table, text.getvalue().encode())
    results.save(document)


def write_page(results: Results, page: Path, command: str) -> list[Path]:
    """Write the page, and its pictures into the folder beside it that has its name.

    Args:
        results: of one side and one way of ranking, with and without constraints.
        page: a Markdown file.
        command: what was run.

    Returns:
        All files.

    Raises:
        OSError: if one of them cannot be written.
    """
    folder = page.with_suffix("")
    pictures: dict[str, list[tuple[str, str]]] = {}
    files = [page]
    for data in dict.fromkeys(row.data for row in results.rows):
        rows = [row for row in results.rows if row.data == data]
        unpruned = [one for one in results.unpruned if one.data == data]
        measure = "Agreement" if data == PHOTOGRAPHS else "Accuracy"
        for name, words, draw in (
            ("amount", "amount", draw_against_amount),
            ("multiply-adds", "multiply-adds", draw_against_multiply_adds),
            ("latency", "latency", draw_against_latency),
        ):
            if name == "latency" and all(row.latency is None for row in rows):
                continue
            file = folder / f"{data}-{name}.svg"
            write_atomically(file, draw(rows, unpruned))
            title = f"{measure} against {words}, {data}"
            pictures.setdefault(data, []).append((title, f"{folder.name}/{file.name}"))
            files.append(file)
    write_atomically(page, write_report(results, command, machine(), pictures).encode())
    return files


def machine() -> str:
    """The machine that this runs on, in words."""
    return (
        f"PyTorch {torch.__version__}, Python {platform.python_version()}, {_processor()}, "
        f"{os.cpu_count()} cores"
    )


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
