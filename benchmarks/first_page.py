"""What the README begins with: an OCR network with real weights, before and after.

python benchmarks/first_page.py --latency 0.5 0.35 --write README.md
"""

from __future__ import annotations

import argparse
import runpy
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pages
import torch

EXAMPLE = Path(__file__).parent.parent / "examples" / "faster_reader.py"
NAME = "benefit"


def table(shares: list[float]) -> Iterator[str]:
    """One row for the network as it is, and one for each share of its time.

    Times stand beside those of the unpruned network from the same seconds.
    """
    faster: Any = runpy.run_path(str(EXAMPLE))["faster"]
    found = []
    for share in shares:
        with tempfile.TemporaryDirectory() as folder:
            pages.say(f"to {share:.0%} of its time")
            found.append(faster(share, Path(folder), batch=8))
            pages.say(found[-1])
    first = found[0]
    yield "| | words read correctly | ms in PyTorch | ms in onnxruntime | seconds to prune |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    yield f"| as it was | {first.accuracy[0]:.1%} | | | |"
    for share, done in zip(shares, found, strict=True):
        cells = [f"to {share:.0%} of its time", f"{done.accuracy[1]:.1%}"]
        for old, new in (done.pytorch, done.onnx):
            cells.append(f"{old:.0f} → {new:.0f} ({new / old:.0%})")
        yield f"| {' | '.join(cells)} | {done.seconds:.0f} |"
    yield ""
    threads = torch.get_num_threads()
    yield (
        f"(Eight pictures at a time, {threads} {'thread' if threads == 1 else 'threads'}; "
        "times before and after, run in turn. Nothing was trained. Written by "
        f"`{pages.command()}`.)"
    )


def main() -> int:
    """Measure, print, and write the table where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--latency", type=float, nargs="+", default=[0.5, 0.35], help="shares")
    parser.add_argument("--write", type=Path, help="the page with the section `benefit`")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # of code that torch.export writes
    lines = list(table(options.latency))
    print("\n".join(lines))
    if options.write is not None:
        pages.replace_section(options.write, NAME, lines)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
