"""Export networks of the catalogue and write one row for each: what is left, what is copied.

python benchmarks/networks.py --out docs/networks.md
python benchmarks/networks.py resnet152 --side both --amount 0.7
"""

from __future__ import annotations

import time
from typing import Literal

import pages
import torch

import upscale_opt as uo
from upscale_opt.masking.segments import Side
from upscale_opt.models import catalogue

NETWORKS = [
    "resnet18",
    "resnet50",
    "vgg16_bn",
    "squeezenet1_1",
    "densenet121",
    "mobilenet_v2",
    "efficientnet_b0",
    "googlenet",
    "regnet_y_400mf",
    "resnext50_32x4d",
    "mobilenet_v3_small",
    "shufflenet_v2_x1_0",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
]


def row(name: str, amount: float, side: Side, layers: Literal["conv", "all"]) -> str:
    """Export ``name`` and describe the result as a row of the table."""
    inputs = catalogue.example_inputs(name)
    model = catalogue.randomize(catalogue.build(name), 0, inputs)
    start = time.perf_counter()
    pruned = uo.prune(
        model,
        inputs,
        amount=amount,
        side=side,
        layers=layers,
        check=False,
        objective="copied_channels",
    )
    seconds = time.perf_counter() - start
    report = uo.verify(pruned.masked, pruned.model, inputs)
    greedy = uo.solve(pruned.graph, pruned.masks, solver="greedy")
    plain = uo.solve(pruned.graph, pruned.masks, solver="identity")
    before, after = (
        sum(p.numel() for p in module.parameters()) for module in (model, pruned.model)
    )
    opaque = sum(op.kind == "opaque" for op in pruned.graph.operations)
    solution = pruned.solution
    return (
        f"| {name} | {before / 1e6:.1f} M | {after / 1e6:.1f} M | {plain.objective_value:,} | "
        f"{greedy.objective_value:,} | {solution.objective_value:,} | {solution.lower_bound:,} | "
        f"{opaque or 'none'} | {report.float64_error:.0e} | {seconds:.1f} |"
    )


def main() -> int:
    """Print the table, and write it where asked."""
    parser = pages.parser(__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="catalogue names")
    parser.add_argument("--amount", type=float, default=0.5)
    parser.add_argument("--side", choices=["input", "output", "both"], default="input")
    parser.add_argument("--layers", choices=["conv", "all"], default="conv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Networks exported",
        "",
        f"{options.amount:.0%} of the {options.side} channels of {options.layers} layers dropped "
        "by L2 magnitude; random weights, biases and statistics. Copied channels in the original "
        "order, by the greedy heuristic and at the optimum, with its proven lower bound; opaque "
        "operations (their surroundings are kept whole); relative deviation from the masked "
        "network in float64; seconds to trace, mask, solve and materialize on one thread.",
        "",
        f"Written by `{pages.command()}`.",
        "",
        "| network | parameters | left | original order | greedy | optimum | lower bound | opaque "
        "| deviation | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = (row(name, options.amount, options.side, options.layers) for name in options.networks)
    pages.publish([*lines, *pages.shown(rows)], options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
