"""What the benchmarks share: options, processes, and pages in Markdown, printed and written."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

from upscale_opt.ir.base import write_atomically

Given = TypeVar("Given")
Made = TypeVar("Made")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Options of a script with this docstring: ``--out`` for its page; more can be added."""
    options = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    options.add_argument("--out", type=Path, help="write the page to this Markdown file")
    return options


def command() -> str:
    """What was typed to start the script."""
    return " ".join(["python", *sys.argv])


def say(line: object) -> None:
    """Show how far the script is, apart from its page."""
    print(line, file=sys.stderr, flush=True)


def side_by_side(
    work: Callable[[Given], Made], given: Iterable[Given], jobs: int
) -> Iterator[Made]:
    """The results of ``work``, in their order, made in ``jobs`` processes."""
    if jobs == 1:
        yield from map(work, given)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, given)


def shown(lines: Iterable[str]) -> Iterator[str]:
    """The same lines, each of them shown as it comes."""
    for line in lines:
        say(line)
        yield line


def publish(lines: Iterable[str], out: Path | None) -> None:
    """Print a page, and write it where asked."""
    text = "\n".join(lines) + "\n"
    print(text)
    if out is not None:
        write_atomically(out, text.encode())


def replace_section(page: Path, name: str, lines: list[str]) -> None:
    """Put lines between the markers of a section of a page.

    Raises:
        ValueError: if the page has no such section.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page} has no section {begin} … {end}")
    text = "\n".join([before + begin, "", *lines, "", end]) + after
    write_atomically(page, text.encode())


def has_upscale() -> bool:
    """Whether ``apple-upscale`` is installed; complains if not."""
    try:
        import upscale  # noqa: F401
    except ImportError:
        say("error: pip install --no-deps apple-upscale first")
        return False
    return True
