"""How many of the weights that masks set to zero leave the network, and why the others stay.

python benchmarks/removed_weights.py --json after.json --before docs/removed-before.json
python benchmarks/removed_weights.py shufflenet_v2_x1_0 --side output --amount 0.3

The masks know nothing of any graph (`experiments/coverage/masking.py`): half of the slices of every
weight are dropped, those of least L2 norm. So every version of the library is given the same ones,
and what is counted are the zeros that are still there in the exported model.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pages
import torch
from torch import nn

import upscale_opt as uo
from upscale_opt.experiments.coverage.masking import mask, survey, weights
from upscale_opt.ir.base import write_atomically
from upscale_opt.models import catalogue
from upscale_opt.solver.checking.removal import Removal, removal

NETWORKS = [
    "resnext50_32x4d",
    "regnet_y_400mf",
    "convnext_tiny",
    "mobilenet_v3_small",
    "swin_t",
    "vit_b_16",
    "maxvit_t",
]
SIDES = ("input", "output", "both")
TOP = 3
"""So many reasons are listed per row."""


@dataclass(frozen=True)
class Row:
    """One network exported.

    Attributes:
        network: its name.
        side: which slices were dropped.
        weights: the numbers in all parameters.
        masked: the numbers in slices that the masks drop.
        gone: how many of these the exported model no longer has.
        removed: the numbers that it lacks altogether: with a filter that nothing reads any more,
            weights go that no mask dropped.
        copied: channels copied, at the optimum.
        opaque: operations that are not understood.
        deviation: from the masked model, relative, in float64.
        seconds: to trace, solve and materialize.
        reasons: why masked weights stay, and how many do, the most frequent reason first.
    """

    network: str
    side: str
    weights: int
    masked: int
    gone: int
    removed: int
    copied: int
    opaque: int
    deviation: float
    seconds: float
    reasons: tuple[tuple[str, int], ...]

    @property
    def share(self) -> float:
        """How much of what is masked is gone."""
        return self.gone / self.masked if self.masked else 1.0


def export(network: str, side: str, amount: float, constants: bool) -> Row:
    """Mask and export one network.

    Args:
        network: a name of the catalogue.
        side: a name in `SIDES`.
        amount: the share of slices to drop.
        constants: leave biases and batch norms as they are, so that output channels that are
            dropped become constants.
    """
    inputs = catalogue.example_inputs(network, 2)
    model = catalogue.randomize(catalogue.build(network), 0, inputs)
    mask(model, side, amount, survey(model, inputs), constants=constants)
    names = {name for name, _, _ in weights(model)}
    masked = {name: zeros for name, zeros in _zeros(model) if name in names}
    start = time.perf_counter()
    graph = uo.trace(model, inputs)
    masks = uo.masks_of(model, graph)
    solution = uo.solve(graph, masks)
    pruned = uo.materialize(model, solution)
    seconds = time.perf_counter() - start
    left = {name: zeros for name, zeros in _zeros(pruned) if name in masked}
    report = uo.verify(model, pruned, inputs)
    return Row(
        network=network,
        side=side,
        weights=_size(model),
        masked=sum(masked.values()),
        gone=sum(masked.values()) - sum(left.values()),
        removed=_size(model) - _size(pruned),
        copied=solution.objective_value,
        opaque=sum(op.kind == "opaque" for op in graph.operations),
        deviation=report.float64_error,
        seconds=seconds,
        reasons=tuple(_reasons(graph, left, removal(graph, masks, solution))),
    )


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _zeros(model: nn.Module) -> Iterator[tuple[str, int]]:
    for name, parameter in model.named_parameters():
        yield name, int((parameter == 0).sum())


def _reasons(
    graph: uo.ChannelGraph, left: dict[str, int], report: Removal
) -> Iterator[tuple[str, int]]:
    """Why masked weights stay: by the report, or because the graph does not name them."""
    counts: Counter[str] = Counter()
    for parameter in report.parameters:
        if parameter.name in left:
            for axis in parameter.axes:
                for stays in axis.left:
                    counts[re.sub(r"fixed: \w+: ", "fixed: ", stays.why)] += stays.weights
    opaque = {op.name: op.reason for op in graph.operations if op.kind == "opaque"}
    for name, zeros in left.items():
        if name not in graph.parameters:
            module = name.rpartition(".")[0].replace(".", "_")
            reason = f" (opaque: {opaque[module]})" if module in opaque else ""
            counts[f"not in the graph{reason}"] += zeros
    yield from ((reason, count) for reason, count in counts.most_common() if count)


# Tables.


def table(rows: Sequence[Row], before: Sequence[Row] | None) -> list[str]:
    """A Markdown table; with the shares of an older version, if there are any."""
    old = {(row.network, row.side): row for row in before or ()}
    earlier = " before |" if before else ""
    lines = [
        f"| network | side | weights | masked |{earlier} gone | weights removed | opaque "
        "| copied channels | deviation | what stays, and why |",
        f"| --- | --- |{' ---: |' * (8 if before else 7)} --- |",
    ]
    for row in rows:
        then = old.get((row.network, row.side))
        was = f" {then.share:.1%} |" if then else " - |" if before else ""
        reasons = [f"{reason}: {_share(count, row)}" for reason, count in row.reasons[:TOP]]
        lines.append(
            f"| {row.network} | {row.side} | {row.weights / 1e6:.1f} M | {row.masked / 1e6:.2f} M |"
            f"{was} {row.share:.1%} | {row.removed / row.weights:.1%} | {row.opaque or 'none'} | "
            f"{row.copied:,} | {row.deviation:.0e} | {'; '.join(reasons) or '-'} |"
        )
    return lines


def _share(count: int, row: Row) -> str:
    return f"{count / row.masked:.1%}"


def document(lines: list[str], amount: float, constants: bool) -> list[str]:
    """The table and what it shows."""
    zero = (
        "biases and batch norms stay, so that dropped output channels are constants"
        if constants
        else "so that dropped output channels are zero, their biases and the batch norms directly "
        "behind are zero there, too"
    )
    text = (
        f"{amount:.0%} of the slices of every convolution and linear weight dropped, those of "
        "least L2 norm, by a script that knows no graph (input side: one column of the weight "
        "tensor, in all groups of a convolution; output side: one row, equally many in every "
        f"group); {zero}. The network's own input and output are left alone. *Gone*: how much of "
        "what is masked the export no longer has. *Weights removed*: of all, also those that no "
        "mask dropped but nothing reads any more."
    )
    return ["# Masked weights removed", "", text, "", f"`{pages.command()}`", "", *lines]


def save(path: Path, rows: Sequence[Row], version: str) -> None:
    """Write the rows as JSON."""
    data = {"version": version, "rows": [dataclasses.asdict(row) for row in rows]}
    write_atomically(path, (json.dumps(data, indent=1) + "\n").encode())


def load(path: Path) -> list[Row]:
    """Read what `save` wrote."""
    rows = json.loads(path.read_text())["rows"]
    return [Row(**{**row, "reasons": tuple(map(tuple, row["reasons"]))}) for row in rows]


def main() -> int:
    """Export, print the table, and write it where asked."""
    parser = pages.parser(__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="catalogue names")
    parser.add_argument("--side", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--amount", type=float, default=0.5)
    parser.add_argument(
        "--constants", action="store_true", help="leave biases and batch norms as they are"
    )
    parser.add_argument("--json", type=Path, help="write the rows to this JSON file")
    parser.add_argument("--before", type=Path, help="rows of an older version, to compare with")
    parser.add_argument("--version", default="", help="what the JSON file calls the version")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for network in options.networks:
        for side in options.side:
            rows.append(export(network, side, options.amount, options.constants))
            pages.say(table(rows[-1:], None)[-1])
            if options.json is not None:
                save(options.json, rows, options.version)
    before = None if options.before is None else load(options.before)
    page = document(table(rows, before), options.amount, options.constants)
    pages.publish(page, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
