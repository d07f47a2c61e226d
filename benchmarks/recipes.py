"""Measures the figures of the how-to pages anew: runs their code, and writes what it prints.

python benchmarks/recipes.py howto-timm.md howto-int8.md

Of each page the blocks called ``figures`` are replaced; without names, those of all pages whose
packages are here. The frameworks of some are no dependencies: put a folder that has them on
PYTHONPATH.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pages

from upscale_opt.ir.base import write_atomically

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r"^```(python|figures)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def measured(page: str) -> str:
    """The page, with the figures that its code prints now."""
    namespace: dict[str, Any] = {"__name__": "page"}
    printed = ""

    def renewed(match: re.Match[str]) -> str:
        nonlocal printed
        if match[1] == "figures":
            return f"```figures\n{printed}```"
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(match[2], namespace)
        printed = out.getvalue()
        return match[0]

    return BLOCK.sub(renewed, page)


def lacking(page: str) -> list[str]:
    """The packages that a page imports, and that are not here."""
    names = re.findall(r"^(?:import|from) (\w+)", page, re.MULTILINE)
    return [name for name in dict.fromkeys(names) if importlib.util.find_spec(name) is None]


def quieten() -> None:
    """Let frameworks print nothing of their own, look for nothing, and need no tables."""
    settings = {"YOLO_VERBOSE": "false", "YOLO_OFFLINE": "true", "HF_HUB_OFFLINE": "1"}
    os.environ.update(settings, TRANSFORMERS_VERBOSITY="error", TQDM_DISABLE="1")
    if importlib.util.find_spec("polars") is None and importlib.util.find_spec("ultralytics"):
        trainer: Any = importlib.import_module("ultralytics.engine.trainer")
        trainer.BaseTrainer.read_results_csv = lambda self: {}  # what else polars would read


def main() -> int:
    """Run the pages and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pages", nargs="*", help="names in docs/")
    names = parser.parse_args().pages
    warnings.filterwarnings("ignore")  # of libraries; they are no figures
    quieten()
    here = Path.cwd()
    for path in [DOCS / name for name in names] or sorted(DOCS.glob("howto-*.md")):
        text = path.read_text(encoding="utf-8")
        if "\n```figures\n" not in text:
            continue
        if lacking(text):
            if names:
                raise SystemExit(f"{path.name} needs {', '.join(lacking(text))}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                new = measured(text)
            finally:
                os.chdir(here)
        write_atomically(path, new.encode())
        pages.say(path.name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
