"""What a forward pass moves in memory: unpruned networks, our exports, and apple-upscale's.

``apple-upscale`` pins an old torch: install it without its dependencies
(``pip install --no-deps apple-upscale``). Where it is missing, or cannot export a network, its
columns stay empty.

python benchmarks/moved_bytes.py shufflenet_v2_x1_0 densenet121 --out docs/moved-bytes.md
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
from dataclasses import dataclass

import pages
import torch
from removed_weights import SIDES
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.experiments.coverage.masking import mask, survey
from upscale_opt.measuring.bytes_moved import Movement, moved_bytes
from upscale_opt.models import catalogue
from upscale_opt.solver.network.objectives import FOR_EXPORTS

NETWORKS = ["shufflenet_v2_x1_0", "resnet50", "densenet121", "googlenet", "mobilenet_v3_small"]
PLACES = 10


@dataclass(frozen=True)
class Row:
    """What one network moves in a forward pass.

    Attributes:
        network: a catalogue name.
        side: which slices were dropped.
        unpruned: before masking.
        exported: our export.
        theirs: apple-upscale's export of the same masked network; none if it is not installed,
            cannot export it, or its export computes something else.
        deviation: of our export from the masked network, relative, in float64.
    """

    network: str
    side: str
    unpruned: Movement
    exported: Movement
    theirs: Movement | None
    deviation: float

    def __str__(self) -> str:
        before, after = self.unpruned.total, self.exported.total
        counts = [f"{before / 1e6:.2f}", f"{after / 1e6:.2f}", _ratio(after, before)]
        if self.theirs is None:
            counts += ["-", "-"]
        else:
            counts += [f"{self.theirs.total / 1e6:.2f}", _ratio(after, self.theirs.total)]
        movements = (self.unpruned, self.exported, self.theirs)
        cells = [self.network, self.side, *counts, *(_parts(m) for m in movements)]
        return f"| {' | '.join(cells)} | {self.deviation:.0e} |"

    @property
    def places(self) -> str:
        """Where most is moved, in each of the networks."""
        lines = [f"### {self.network}", ""]
        movements = {"unpruned": self.unpruned, "exported": self.exported, "UPSCALE": self.theirs}
        for name, movement in movements.items():
            first = list(movement.by_place.items())[:PLACES] if movement else []
            parts = [f"`{place or '(model)'}` {size / 1e6:.2f}" for place, size in first]
            lines.append(f"* {name}: {', '.join(parts) or '-'}")
        return "\n".join([*lines, ""])


def _ratio(moved: int, reference: int) -> str:
    return f"{moved / reference:.2f}" if reference else "-"


def _parts(movement: Movement | None) -> str:
    by_op = movement.by_op if movement else {}
    return ", ".join(f"{op} {size / 1e6:.2f}" for op, size in by_op.items()) or "-"


def upscaled(model: nn.Module, inputs: Tensor) -> nn.Module | None:
    """apple-upscale's export of a masked network, or nothing if there is none that is right."""
    try:
        from upscale import PruningManager
    except ImportError:
        return None
    pruned = copy.deepcopy(model).eval()
    with torch.no_grad():
        try:
            PruningManager(pruned).compute([inputs[:1]]).prune()
            result, expected = pruned(inputs), model.eval()(inputs)
            error = (result - expected).abs().max() / expected.abs().max()
        except Exception as problem:  # it fails in many ways
            print(f"apple-upscale: {type(problem).__name__}: {problem}", file=sys.stderr)
            return None
    if error > TOLERANCE:
        print(f"apple-upscale: its export deviates by {error:.0e}", file=sys.stderr)
        return None
    return pruned


TOLERANCE = 1e-3


def measure(network: str, options: argparse.Namespace) -> Row:
    """Mask and export a network, and run it: a row of the table."""
    inputs = catalogue.example_inputs(network, options.batch)
    several = catalogue.example_inputs(network, 2)
    assert isinstance(inputs, Tensor)
    assert isinstance(several, Tensor)
    model = catalogue.randomize(catalogue.build(network), 0, several)
    before = moved_bytes(model, inputs)
    mask(model, options.side, options.amount, survey(model, several[:1]))
    theirs = upscaled(model, inputs)
    graph = uo.trace(model, several[:1])
    masks = uo.masks_of(model, graph)
    solution = uo.solve(
        graph,
        masks,
        objective=options.objective,
        selection=options.selection,
        max_extra_macs=options.max_extra_macs,
    )
    pruned = uo.materialize(model, solution)
    return Row(
        network,
        options.side,
        before,
        moved_bytes(pruned, inputs),
        None if theirs is None else moved_bytes(theirs, inputs),
        uo.verify(model, pruned, several).float64_error,
    )


def main() -> int:
    """Export, print the table, and write it where asked."""
    parser = pages.parser(__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="catalogue names")
    parser.add_argument("--side", choices=SIDES, default="input")
    parser.add_argument("--amount", type=float, default=0.5)
    parser.add_argument("--objective", default=FOR_EXPORTS, help="what the orders minimise")
    parser.add_argument("--selection", default="tensor", help="or arena: cats share buffers")
    parser.add_argument("--max-extra-macs", type=float, default=0.0, help="for windows, a share")
    parser.add_argument("--batch", type=int, default=1, help="images in a forward pass")
    parser.add_argument(
        "--places", action="store_true", help=f"list the {PLACES} places that move most"
    )
    options = parser.parse_args()
    if options.batch < 1:
        parser.error("--batch must be at least 1")
    logging.getLogger("pruning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    lines = [
        "# Bytes moved",
        "",
        f"Megabytes that one forward pass at batch {options.batch} (float32, CPU) writes in "
        "kernels that only move data and in the copies that other kernels make of inputs they "
        "cannot read as they lie (`uo.measuring.moved_bytes`), before and after pruning, and by "
        f"kernel; {options.amount:.0%} of the {options.side} slices of every weight dropped by L2 "
        "norm (`benchmarks/removed_weights.py`). *UPSCALE* is apple-upscale's export of the same "
        "masked network, where it makes one that computes the same. Ratios are of our export to "
        "the unpruned network, and to UPSCALE's.",
        "",
        f"`{pages.command()}`",
        "",
        "| network | side | unpruned, MB | exported, MB | ratio | UPSCALE, MB | ratio "
        "| unpruned, by kernel | exported, by kernel | UPSCALE, by kernel | deviation |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | --- | --- | ---: |",
    ]
    rows = []
    for network in options.networks:
        rows.append(measure(network, options))
        pages.say(rows[-1])
    lines += map(str, rows)
    if options.places:
        lines += ["", "## Places that move most, MB", "", *(row.places for row in rows)]
    pages.publish(lines, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
