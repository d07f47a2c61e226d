"""Channels gathered by apple-upscale's plans and by ours, on the same masked networks.

Ours is solved on UPSCALE's terms (``selection="segment"``), greedily and exactly, and on our own
(``selection="tensor"``). ``apple-upscale`` pins an old torch: install it without its dependencies
(``pip install --no-deps apple-upscale``).

    python benchmarks/greedy_vs_upscale.py resnet18 densenet121 --amount 0.3 0.5 0.7
    python benchmarks/greedy_vs_upscale.py --full --out docs/greedy.md
"""

from __future__ import annotations

import gc
import logging
import time
from dataclasses import dataclass

import pages
import torch
from torch import nn

import upscale_opt as uo
from upscale_opt.models import catalogue

QUICK = [
    "resnet18",
    "resnet50",
    "vgg11",
    "squeezenet1_1",
    "densenet121",
    "mnasnet1_0",
    "mobilenet_v2",
    "efficientnet_b0",
]

FULL = [
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("wide_resnet50_2", "wide_resnet101_2", "alexnet"),
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    *("squeezenet1_0", "squeezenet1_1"),
    *(f"densenet{depth}" for depth in (121, 161, 169, 201)),
    *(f"mnasnet{width}" for width in ("0_5", "0_75", "1_0", "1_3")),
    "mobilenet_v2",
    *(f"efficientnet_b{size}" for size in range(8)),
    *(f"efficientnet_v2_{size}" for size in "sml"),
]
"""Every torchvision classifier that apple-upscale 0.1.1 exports."""


@dataclass(frozen=True)
class Row:
    """The channels gathered in one network.

    Attributes:
        network: a catalogue name.
        amount: the share of channels dropped.
        read: channels that the original's plan reads: those of all consumers it plans for.
        original: channels that the original's plan gathers.
        greedy: by our heuristic, on the original's terms.
        optimum: at least, on the original's terms.
        tensor: at least, on ours.
    """

    network: str
    amount: float
    read: int
    original: int
    greedy: uo.Solution
    optimum: uo.Solution
    tensor: uo.Solution

    @property
    def agrees(self) -> bool:
        """Whether our heuristic gathers as many channels as the original."""
        return self.greedy.objective_value == self.original

    def __str__(self) -> str:
        counts = [f"{self.read:,}", f"{self.original:,}"]
        counts += [_count(found) for found in (self.greedy, self.optimum, self.tensor)]
        return f"| {self.network} | {self.amount:.0%} | {' | '.join(counts)} |"


def _count(found: uo.Solution) -> str:
    count = f"{found.objective_value:,}"
    if found.solver == "greedy" or found.status == "optimal":
        return count
    return f"{count} (at least {found.lower_bound:,})"


def original(model: nn.Module, inputs: torch.Tensor) -> tuple[int, int]:
    """How many channels UPSCALE's plan for the masked ``model`` reads, and gathers."""
    from upscale import PruningManager

    plan = PruningManager(model).compute([inputs]).spec.tensor_to_input_activation_indices
    gathered = sum(len(taken) for taken in plan.values() if not isinstance(taken, range))
    return sum(map(len, plan.values())), gathered


def compare(network: str, amount: float, seed: int) -> Row:
    """Mask the network, and plan it by both tools."""
    inputs = catalogue.example_inputs(network)
    assert isinstance(inputs, torch.Tensor)
    model = catalogue.build(network, seed=seed)
    graph = uo.trace(model, inputs)
    uo.apply_masks(model, graph, uo.choose_masks(model, graph, amount, side="input", layers="conv"))
    masks = uo.masks_of(model, graph)
    return Row(
        network,
        amount,
        *original(model, inputs),
        greedy=uo.solve(graph, masks, solver="greedy", selection="segment"),
        optimum=uo.solve(graph, masks, selection="segment"),
        tensor=uo.solve(graph, masks),
    )


def page(rows: list[Row]) -> list[str]:
    """The table, as Markdown."""
    others = [f"{row.network} at {row.amount:.0%}" for row in rows if not row.agrees]
    verdict = f"On {len(rows) - len(others)} of these {len(rows)} rows"
    return [
        "# The greedy heuristic beside UPSCALE's own",
        "",
        "Channels gathered in one forward pass, as the plans count them. Both tools are given the "
        "same masked network: the input channels of every convolution dropped by L2 magnitude, "
        'random initial weights. *On UPSCALE\'s terms* (`selection="segment"`) all tensors of a '
        "segment store one set of channels, and every layer selects its channels right in front "
        'of itself; *on ours* (`selection="tensor"`) selections also move in front of batch norms '
        "and concatenations. See [the mathematics](mathematics.md#upscales-own-terms).",
        "",
        f"{verdict} our heuristic gathers exactly as many channels as the original"
        + (f"; the other ones are {', '.join(others)}." if others else "."),
        "",
        f"Written by `{pages.command()}`.",
        "",
        "| network | dropped | channels read | UPSCALE | our greedy, its terms "
        "| optimum, its terms | optimum, our terms |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *map(str, rows),
    ]


def main() -> int:
    """Print the table, and write it where asked."""
    parser = pages.parser(__doc__)
    parser.add_argument("networks", nargs="*", help="catalogue names; by default a quick few")
    parser.add_argument(
        "--full", action="store_true", help="all 38 networks that UPSCALE exports (20 minutes)"
    )
    parser.add_argument("--amount", type=float, nargs="+", default=[0.5], help="shares to drop")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    options = parser.parse_args()
    if not pages.has_upscale():
        return 1
    logging.getLogger("pruning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    names = options.networks or (FULL if options.full else QUICK)
    rows: list[Row] = []
    for network, amount in ((name, amount) for name in names for amount in options.amount):
        start = time.perf_counter()
        rows.append(compare(network, amount, options.seed))
        gc.collect()  # models are in cycles, and Python does not know how large they are
        pages.say(f"{rows[-1]} {time.perf_counter() - start:.0f} s")
    pages.publish(page(rows), options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
