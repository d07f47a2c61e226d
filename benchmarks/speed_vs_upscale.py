"""Time our trace + solve + materialize beside apple-upscale's compute + prune, in one process.

Both export the same masked networks (L2 magnitude, 50 % of every convolution's input channels),
in turn, one thread each. ``apple-upscale`` pins an old torch: install it without its dependencies
(``pip install --no-deps apple-upscale``).

    python benchmarks/speed_vs_upscale.py resnet50 densenet201 --runs 3 --out docs/speed.md
"""

from __future__ import annotations

import copy
import platform
import statistics
import time

import pages
import torch
from torch import nn

import upscale_opt as uo
from upscale_opt.models import catalogue


def ours(model: nn.Module, inputs: torch.Tensor) -> tuple[float, int]:
    """Seconds, and copied channels."""
    start = time.perf_counter()
    graph = uo.trace(model, inputs)
    solution = uo.solve(graph, uo.masks_of(model, graph))
    uo.materialize(model, solution)
    return time.perf_counter() - start, solution.objective_value


def theirs(model: nn.Module, inputs: torch.Tensor) -> float:
    """Seconds."""
    from upscale import PruningManager

    start = time.perf_counter()
    PruningManager(model).compute([inputs]).prune()
    return time.perf_counter() - start


def compare(name: str, runs: int) -> str:
    """One row of the table."""
    inputs = catalogue.example_inputs(name)
    assert isinstance(inputs, torch.Tensor)
    model = catalogue.build(name)
    graph = uo.trace(model, inputs)
    uo.apply_masks(model, graph, uo.choose_masks(model, graph, 0.5, side="input", layers="conv"))
    pairs = []
    for run in range(runs):
        upscale_seconds = theirs(copy.deepcopy(model), inputs)
        our_seconds, copied = ours(copy.deepcopy(model), inputs)
        pairs.append((our_seconds, upscale_seconds))
        pages.say(
            f"{name} {run + 1}/{runs}: ours {our_seconds:.2f} s, UPSCALE {upscale_seconds:.2f} s"
        )
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    return (
        f"| {name} | {mine:.2f} | {other:.2f} | {statistics.median(ratios):.3f} "
        f"({ratios[0]:.3f} to {ratios[-1]:.3f}) | {copied:,} |"
    )


def main() -> int:
    """Run the comparison and print (and write) the table."""
    parser = pages.parser(__doc__)
    parser.add_argument(
        "models", nargs="*", default=["resnet50", "densenet201"], help="catalogue names"
    )
    parser.add_argument("--runs", type=int, default=3, help="interleaved runs (median counts)")
    options = parser.parse_args()
    if not pages.has_upscale():
        return 1
    torch.set_num_threads(1)
    compare("resnet18", 1)  # what is loaded on first use is not timed
    lines = [
        "# Export time beside UPSCALE",
        "",
        "Median seconds of interleaved runs in one process, one thread: ours is trace + solve + "
        "materialize, UPSCALE's is compute + prune, on the same masked network (L2 magnitude, 50 % "
        "of every convolution's input channels, batch 1, 224 x 224).",
        "",
        f"Written by `{pages.command()}` with torch {torch.__version__}, Python "
        f"{platform.python_version()}, {platform.machine()}.",
        "",
        "| network | ours, s | UPSCALE, s | ratio (range) | our copied channels |",
        "| --- | --- | --- | --- | --- |",
        *(compare(name, options.runs) for name in options.models),
    ]
    pages.publish(lines, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
