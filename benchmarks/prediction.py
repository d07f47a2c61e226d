"""Predict how long exports take, and measure it: one row per network.

python benchmarks/prediction.py --out docs/prediction.md
python benchmarks/prediction.py resnet18 --batch 8 --format channels_last
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.ir.base import write_atomically
from upscale_opt.measuring.calibrating import Subject, calibrate_all
from upscale_opt.measuring.timing import Stopwatch
from upscale_opt.models import catalogue

NETWORKS = [
    "resnet18",
    "resnet50",
    "vgg11_bn",
    "densenet121",
    "mobilenet_v2",
    "squeezenet1_1",
    "googlenet",
    "efficientnet_b0",
    "shufflenet_v2_x1_0",
    "mnasnet1_0",
]


def export(model: nn.Module, graph: uo.ChannelGraph, amount: float) -> nn.Module:
    masked = copy.deepcopy(model)
    uo.apply_masks(masked, graph, uo.choose_masks(masked, graph, amount))
    solution = uo.solve(graph, uo.masks_of(masked, graph))
    return uo.materialize(masked, solution)


def measured(models: list[nn.Module], inputs: Tensor, rounds: int) -> list[float]:
    """The median nanoseconds of each, in turn, so that what slows the machine meets all."""
    watch = Stopwatch(inputs.device, torch.get_num_threads())
    times: list[list[float]] = [[] for _ in models]
    with torch.no_grad():
        for number in range(rounds + 1):
            for model, own in zip(models, times, strict=True):
                taken = watch.whole(lambda model=model: model(inputs))  # type: ignore[misc]
                if number:
                    own.append(taken)
    return [statistics.median(own) for own in times]


def rows(name: str, options: argparse.Namespace) -> list[tuple[str, float, float]]:
    """Of the network and of its export: what it is, predicted and measured nanoseconds."""
    channels_last = options.format == "channels_last"
    form = torch.channels_last if channels_last else torch.contiguous_format
    example = catalogue.example_inputs(name)
    model = catalogue.randomize(catalogue.build(name), 0, example).eval()
    graph = uo.trace(model, example)
    inputs = torch.randn(options.batch, 3, 224, 224).to(memory_format=form)
    subject = Subject(model, graph, inputs, name)
    cost_model = calibrate_all([subject], memory_format=options.format, seconds=options.seconds)
    models = [m.to(memory_format=form) for m in (model, export(model, graph, options.amount))]
    times = measured(models, inputs, options.rounds)
    labels = (name, f"{name}, exported")
    predicted = (uo.measuring.estimate(one, inputs, cost_model).nanoseconds for one in models)
    return list(zip(labels, predicted, times, strict=True))


def main() -> int:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="catalogue names")
    parser.add_argument("--amount", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--format", choices=["contiguous", "channels_last"], default="contiguous")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="to calibrate each network")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = [
        "# Predicted latency",
        "",
        "What the cost model predicts of networks and of their exports "
        f"({options.amount:.0%} of the input channels of all layers dropped by L2 magnitude), and "
        "what was measured. It is calibrated on the unpruned network, and on a copy pruned by 53 % "
        "whose channel orders are the greedy heuristic's; the export is another one, with other "
        f"channel counts. Batch {options.batch}, {options.format}, {options.threads} thread(s), "
        f"torch {torch.__version__}; medians of {options.rounds} runs in turn. "
        "Written by `python benchmarks/prediction.py`.",
        "",
        "| network | predicted, ms | measured, ms | predicted / measured |",
        "| --- | ---: | ---: | ---: |",
    ]
    print("\n".join(lines), flush=True)
    ratios = []
    for name in options.networks:
        for label, predicted, taken in rows(name, options):
            ratios.append(predicted / taken)
            line = f"| {label} | {predicted / 1e6:.2f} | {taken / 1e6:.2f} | {ratios[-1]:.3f} |"
            lines.append(line)
            print(line, flush=True)
    off = [abs(ratio - 1) for ratio in ratios]
    last = (
        f"Off by {statistics.median(off):.1%} in the median and {max(off):.1%} at most; "
        f"{sum(one <= 0.15 for one in off)} of {len(off)} are within 15 %."
    )
    print(f"\n{last}")
    if options.out is not None:
        write_atomically(options.out, "\n".join([*lines, "", last, ""]).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
