"""What a forward pass moves in memory: unpruned networks beside their exports.

python benchmarks/moved_bytes.py shufflenet_v2_x1_0 densenet121 --out docs/moved-bytes.md
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from removed_weights import SIDES, mask
from torch import Tensor

import upscale_opt as uo
from upscale_opt.ir.base import write_atomically
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
    mask(model, inputs, side, amount, constants=False)
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="catalogue names")
    parser.add_argument("--side", choices=SIDES, default="input")
    parser.add_argument("--amount", type=float, default=0.5)
    parser.add_argument("--objective", default="copied_channels", help="what the orders minimise")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Bytes moved",
        "",
        "Megabytes that one forward pass at batch 1 (float32) writes in kernels that only move "
        "data (`upscale_opt.movement`), before and after pruning, and by kernel; "
        f"{options.amount:.0%} of the {options.side} slices of every weight dropped by L2 norm "
        "(`benchmarks/removed_weights.py`). The ratio is of the exported network to the unpruned.",
        "",
        f"`python {' '.join(sys.argv)}`",
        "",
        "| network | side | unpruned, MB | exported, MB | ratio | unpruned, by kernel "
        "| exported, by kernel | deviation |",
        "| --- | --- | ---: | ---: | ---: | --- | --- | ---: |",
    ]
    for network in options.networks:
        lines.append(row(network, options.side, options.amount, options.objective))
        print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out is not None:
        write_atomically(options.out, text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
