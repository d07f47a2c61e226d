"""Every criterion, with and without constraints, on every side: lossless? and what is copied?

python benchmarks/criteria.py --out docs/criteria.md
python benchmarks/criteria.py resnet18 --criterion lamp hrank --amount 0.7
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pages
import torch
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.importance import CRITERIA, HRank, Importance, Taylor
from upscale_opt.masking.segments import Method, Side
from upscale_opt.models import catalogue

NETWORKS = [
    "resnet18",
    "densenet121",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "regnet_y_400mf",
    "shufflenet_v2_x0_5",
]
METHODS: tuple[Method, ...] = ("unconstrained", "constrained")
SIDES: tuple[Side, ...] = ("input", "output", "both")


def images(network: str) -> Tensor:
    """Small ones, where the network takes those."""
    if network.startswith(("inception", "vit", "swin", "maxvit")):
        full = catalogue.example_inputs(network)
        assert isinstance(full, Tensor)
        return full
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Cross entropy with made-up labels: what matters here is that there are gradients."""
    logits = model(batch)
    return nn.functional.cross_entropy(logits, torch.arange(len(batch)) % logits.shape[1])


def batches() -> list[Tensor]:
    """Small random images, for criteria that look at data."""
    return [torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))]


ALL: dict[str, Callable[[], Importance]] = {
    **CRITERIA,
    "hrank": lambda: HRank(batches()),
    "taylor": lambda: Taylor(loss, batches()),
}


@dataclass(frozen=True)
class Row:
    """What came of one export."""

    network: str
    criterion: str
    side: Side
    method: Method
    copied: int
    before: int
    after: int
    deviation: float
    seconds: float


Case = tuple[str, str, Side, Method]
"""A network, a criterion, a side and a method."""


def export(case: Case, amount: float) -> Row:
    """Export a network; raises VerificationError if anything is lost."""
    network, criterion, side, method = case
    torch.set_num_threads(1)
    model = catalogue.build(network)
    inputs = images(network)
    catalogue.randomize(model, 0, inputs)
    start = time.perf_counter()
    pruned = uo.prune(
        model,
        inputs,
        amount=amount,
        criterion=ALL[criterion](),
        side=side,
        method=method,
        layers="conv",
    )
    seconds = time.perf_counter() - start
    assert pruned.report is not None
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, pruned.model))
    copied = pruned.solution.copied
    error = pruned.report.float64_error
    return Row(network, criterion, side, method, copied, before, after, error, seconds)


def table(rows: list[Row], amount: float) -> list[str]:
    """The rows as Markdown: one line per network, side and method."""
    names = ", ".join(dict.fromkeys(row.criterion for row in rows))
    lines = [
        "# Criteria",
        "",
        f"Every criterion ({names}), {amount:.0%} of the channels of the convolutions dropped, "
        "random weights, images of 64 x 64 where the network takes them. Over all criteria: the "
        "least and the most parameters left and channels copied, and the largest deviation of an "
        "export from its masked network in float64.",
        "",
        f"`{pages.command()}`",
        "",
        "| network | side | method | exports | parameters left | copied channels | deviation |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for key in dict.fromkeys((row.network, row.side, row.method) for row in rows):
        some = [row for row in rows if (row.network, row.side, row.method) == key]
        left = [row.after / row.before for row in some]
        copied = [row.copied for row in some]
        worst = max(row.deviation for row in some)
        lines.append(
            f"| {' | '.join(key)} | {len(some)} | {min(left):.1%} to {max(left):.1%} | "
            f"{min(copied):,} to {max(copied):,} | {worst:.0e} |"
        )
    return lines


def main() -> int:
    """Export, print the table, and write it where asked."""
    parser = pages.parser(__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="catalogue names")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--criterion", nargs="+", choices=list(ALL), default=list(ALL))
    parser.add_argument("--side", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--amount", type=float, default=0.5)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    cases = [
        (network, criterion, side, method)
        for network in options.networks
        for criterion in options.criterion
        for side in options.side
        for method in options.method
    ]
    rows: list[Row] = []
    for row in pages.side_by_side(partial(export, amount=options.amount), cases, options.jobs):
        rows.append(row)
        pages.say(
            f"{len(rows)}/{len(cases)} {row.network} {row.criterion} {row.side} {row.method}: "
            f"{row.copied:,} copied, {row.deviation:.0e}, {row.seconds:.1f} s"
        )
    pages.publish(table(rows, options.amount), options.out)
    lossy = [row for row in rows if not (row.deviation < 1e-10 or math.isnan(row.deviation))]
    copying = [row for row in rows if row.method == "constrained" and row.copied]
    for row in (*lossy, *copying):
        pages.say(f"NOT AS IT SHOULD BE: {row}")
    return 1 if lossy or copying else 0


if __name__ == "__main__":
    sys.exit(main())
