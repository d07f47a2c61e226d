"""Budgets of time against the clock: what was asked for, predicted and measured.

python benchmarks/latency_budgets.py --out docs/latency-budgets.md
python benchmarks/latency_budgets.py mobilenet_v2 --share 0.6 --time-limit 10
python benchmarks/latency_budgets.py --in-onnxruntime wild/yolov8n --share 0.6
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

import upscale_opt as uo
from upscale_opt.in_runtimes.backends import BACKENDS
from upscale_opt.ir.base import write_atomically
from upscale_opt.models import catalogue
from upscale_opt.pruning.clocks import Clocks
from upscale_opt.reconstruction.losses import losses_of

NETWORKS = [
    *("mobilenet_v2", "resnet50", "densenet121", "efficientnet_b0", "vit_b_16", "wild/yolov8n"),
]
"""The last needs the extra ``wild``."""

IN_FILES = ["mobilenet_v2", "wild/yolov8n"]
"""Those that are measured in other programs, too."""


def rows(name: str, cost_model: str | None, options: argparse.Namespace) -> Iterator[str]:
    """A line of the table for every share; with a cost model of another runtime, on its clock."""
    example = catalogue.example_inputs(name)
    model = catalogue.randomize(catalogue.build(name), 0, example).eval()
    if not isinstance(example, torch.Tensor):
        raise SystemExit(f"{name} takes more than one batch of images, which is not for this table")
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, *example.shape[1:], generator=draw)
    noise = torch.randn(options.samples, *example.shape[1:], generator=draw)
    losses = losses_of(model, uo.trace(model, inputs), list(torch.split(noise, 4)))
    for share in options.share:
        budget = uo.Budget(latency=share, cost_model=cost_model)
        found = {
            measure: uo.prune(
                model,
                inputs,
                budget=budget,
                losses=losses,
                measure=measure,
                check=False,
                time_limit=options.time_limit,
            )
            for measure in (False, True)
        }
        exports = {"predicted": found[False].model, "measured": found[True].model}
        times = Clocks(model, inputs, budget.prices).beside(exports, seconds=options.seconds)
        choices = [one.choice for one in found.values() if one.choice is not None]
        predicted, told = (choice.resources[0] for choice in choices)
        copied = sum(
            len(read.channels) for read in found[True].solution.reads if read.plan == "gather"
        )
        yield (
            f"| {name} | {cost_model or 'PyTorch'} | {share:.0%} | {predicted.share:.1%} "
            f"| {times.share('predicted'):.1%} "
            f"| {told.limit / told.before:.1%} | {times.share('measured'):.1%} "
            f"| {times.milliseconds['unpruned']:.1f} | {choices[-1].loss:.3g} | {copied:,} |"
        )


def main() -> int:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", help="catalogue names")
    parser.add_argument("--share", type=float, nargs="+", default=[0.8, 0.6, 0.4])
    for runtime in BACKENDS:
        parser.add_argument(
            f"--in-{runtime}",
            nargs="*",
            default=[],
            help=f"catalogue names, to measure in {runtime}",
        )
    parser.add_argument("--samples", type=int, default=8, help="of noise, behind the losses")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--time-limit", type=float, default=20.0, help="of a choice, in seconds")
    parser.add_argument("--seconds", type=float, default=10.0, help="on the clock")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = [
        "# Budgets of time",
        "",
        "The share of an unpruned network's time that was asked for, and what the export takes by "
        "the clock: in an order drawn anew for every round, beside the unpruned network, in one "
        "process. First as the built-in cost model predicts it (`measure=False`); then "
        "with `measure=True`: what the cost model is asked for is changed by as much as it was "
        f"wrong, and the choice is made again; its loss is the last but one column. "
        f"Random weights, {options.samples} images of noise, "
        f"batch 1, {options.threads} thread(s), torch {torch.__version__}. Written by "
        f"`python {' '.join(sys.argv)}`.",
        "",
        "| network | runtime | asked for | predicted | its time | asked of the model | its time "
        "| unpruned, ms | loss | copied channels |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    print("\n".join(lines), flush=True)
    chosen: list[tuple[str, str | None]] = [(name, None) for name in options.networks]
    for runtime in BACKENDS:
        chosen += [(name, runtime) for name in getattr(options, f"in_{runtime}")]
    if not chosen:
        chosen = [(name, None) for name in NETWORKS]
        chosen += [(name, runtime) for runtime in BACKENDS for name in IN_FILES]
    for name, cost_model in chosen:
        for line in rows(name, cost_model, options):
            lines.append(line)
            print(line, flush=True)
    if options.out is not None:
        write_atomically(options.out, ("\n".join(lines) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
