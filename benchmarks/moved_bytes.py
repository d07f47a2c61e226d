"""What a forward pass moves in memory: unpruned networks beside their exports.

python benchmarks/moved_bytes.py shufflenet_v2_x1_0 densenet121 --out docs/moved-bytes.md
"""

from __future__ import annotations

import sys

import pages
import torch
from removed_weights import SIDES
from torch import Tensor

import upscale_opt as uo
from upscale_opt.coverage.masking import mask, survey
from upscale_opt.models import catalogue
from upscale_opt.movement import Movement, moved_bytes

NETWORKS = ["shufflenet_v2_x1_0", "resnet50", "densenet121", "googlenet", "mobilenet_v3_small"]


def row(network: str, side: str, amount: float, objective: str) -> str:
    """Mask and export a network, and run it: a row of the table."""
    inputs = catalogue.example_inputs(network)
    batch = catalogue.example_inputs(network, 2)
    assert isinstance(inputs, Tensor)
    assert isinstance(batch, Tensor)
    model = catalogue.randomize(catalogue.build(network), 0, batch)
    before = moved_bytes(model, inputs)
    mask(model, side, amount, survey(model, inputs))
    graph = uo.trace(model, inputs)
    solution = uo.solve(graph, uo.Masks.from_model(model, graph), objective=objective)
    pruned = uo.materialize(model, solution)
    error = uo.verify(model, pruned, inputs).float64_error
    after = moved_bytes(pruned, inputs)
    ratio = f"{after.total / before.total:.2f}" if before.total else "-"
    return (
        f"| {network} | {side} | {before.total / 1e6:.2f} | {after.total / 1e6:.2f} | {ratio} | "
        f"{_parts(before)} | {_parts(after)} | {error:.0e} |"
    )


def _parts(movement: Movement) -> str:
    return ", ".join(f"{op} {size / 1e6:.2f}" for op, size in movement.by_op.items()) or "-"


def main() -> int:
    """Export, print the table, and write it where asked."""
    parser = pages.parser(__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="catalogue names")
    parser.add_argument("--side", choices=SIDES, default="input")
    parser.add_argument("--amount", type=float, default=0.5)
    parser.add_argument("--objective", default="copied_channels", help="what the orders minimise")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Bytes moved",
        "",
        "Megabytes that one forward pass at batch 1 (float32) writes in kernels that only move "
        "data (`upscale_opt.movement`), before and after pruning, and by kernel; "
        f"{options.amount:.0%} of the {options.side} slices of every weight dropped by L2 norm "
        "(`upscale_opt.coverage.masking`). The ratio is of the exported network to the unpruned.",
        "",
        f"`{pages.command()}`",
        "",
        "| network | side | unpruned, MB | exported, MB | ratio | unpruned, by kernel "
        "| exported, by kernel | deviation |",
        "| --- | --- | ---: | ---: | ---: | --- | --- | ---: |",
    ]
    rows = (
        row(network, options.side, options.amount, options.objective)
        for network in options.networks
    )
    pages.publish([*lines, *pages.shown(rows)], options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
