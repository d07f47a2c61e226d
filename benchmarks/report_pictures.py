"""Screenshots of a report: light, dark, and on a phone.

python benchmarks/report_pictures.py

Needs Playwright, and Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pages

import upscale_opt as uo
from upscale_opt.ir.base import write_atomically
from upscale_opt.models import catalogue
from upscale_opt.report import page

PICTURES = {
    "light": ((1280, 800), "light", "header"),
    "dark": ((1280, 800), "dark", "details.segment[open]"),
    "narrow": ((375, 720), "light", "details.segment[open]"),
}
"""Name → size, colours, and what stands at the top."""


def report(name: str) -> str:
    """The report of a network whose layers lose half of their input channels each."""
    inputs = catalogue.example_inputs(name)
    model = catalogue.randomize(catalogue.build(name), 0, inputs)
    pruned = uo.prune(model, inputs, amount=0.5, check=False)
    return page(pruned.solution, pruned.graph, pruned.masks, title=name)


def main() -> int:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", nargs="?", default="resnet50", help="a catalogue name")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"), help="the folder")
    options = parser.parse_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pages.say("error: pip install playwright first")
        return 1
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pages.say("error: there is no Chromium on the PATH")
        return 1
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "report.html"
        file.write_text(report(options.network))
        browser: Any = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"]
        )
        for name, ((width, height), scheme, top) in PICTURES.items():
            size = {"width": width, "height": height}
            view = browser.new_context(viewport=size, color_scheme=scheme).new_page()
            view.goto(file.as_uri())
            view.wait_for_selector("details.segment[open] .panel h3")
            move = "e => window.scrollTo(0, e.getBoundingClientRect().top + scrollY - 70)"
            view.locator(top).first.evaluate(move)
            view.wait_for_timeout(400)
            path = options.out / f"report-{name}.png"
            write_atomically(path, view.screenshot())
            pages.say(path)
        browser.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
