"""The accuracy that budgets leave: masks chosen in several ways, all refitted with the same data.

A quick look on small networks; the whole of it is ``study.py``.

python benchmarks/budgets.py resnet mobilenet densenet --clock --out docs/budgets.md
python benchmarks/budgets.py resnet --seeds 1 --method joint uniform
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pages
import torch
from budget_cells import Cell, Whole, cells, wholes
from budget_clock import Clock, clock
from budget_methods import METHODS, PEERS
from budget_networks import CALIBRATION, SHARES, Task
from budget_tables import at_equal_time, table

from upscale_opt.reconstruction.losses import WEIGHTINGS, Weighting

NETWORKS = ("resnet", "mobilenet", "densenet")

WEIGHTING: Weighting = "effect"


def page(
    nets: Sequence[str],
    whole: Sequence[Whole],
    found: Sequence[Cell],
    weighting: str,
    clocks: Sequence[Clock],
) -> Iterator[str]:
    """The page in Markdown; at equal time, too, if anything was put on the clock."""
    yield "# Budgets"
    yield ""
    yield (
        "The share of test inputs that networks get right when masks leave a share of their "
        "multiply-adds, in per cent: a quick look on digits; [the study](study.md) has harder data "
        "and real weights. Nothing is trained after pruning: everybody's weights are "
        "refitted by `uo.refit` to the same unlabelled inputs. The residual, dense and "
        "inverted-residual network are trained on MNIST-5k (three seeds), refitted to "
        f"{CALIBRATION} of the images that they learned from, and tested on 1,000 others. "
        "Multiply-adds are those of convolutions (depthwise ones apart) and linear layers."
    )
    yield ""
    yield (
        f"`joint`, `constrained`, `greedy` and `even` look at refitted losses, weighted by "
        f"`{weighting}`: every layer decides for itself; all layers that read a tensor decide "
        "together (a knapsack over coupled groups); the least loss per saved multiply-add, step by "
        "step; the same share of every tensor. `uniform` drops the same share of every layer's "
        "inputs by L2 norm, `uniform constrained` of every tensor. `priced` is constrained, and "
        "drops channels at one price per multiply-add by the variance that they alone make. "
        "`copied` are the channels that exports gather, at all budgets; `seconds` are those to "
        "choose (losses included the first time)."
    )
    yield ""
    if clocks:
        yield (
            f"At equal time: {clocks[0].batch} inputs in a call, eager PyTorch, one thread, all "
            "exports of a network in turn in one process. The columns are the shares of the "
            "unpruned network's time that joint's networks take (in the mean over seeds); the "
            "others' accuracy at that time lies between the budgets that were tried, on a straight "
            "line. `slower`: even the smallest one takes longer."
        )
        yield ""
    yield f"Written by `{pages.command()}`."
    yield ""
    for net in nets:
        own = [one for one in whole if one.net == net]
        its = [one for one in found if one.net == net]
        yield f"## {net}"
        yield ""
        yield from table(own, its)
        timed = [one for one in clocks if one.net == net]
        if timed:
            yield f"### {net}, at equal time"
            yield ""
            yield from at_equal_time(own, its, timed)


def main() -> int:
    """Measure what is missing, print the page, and write it where asked."""
    parser = pages.parser(__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=", ".join(SHARES))
    ours = [name for name in METHODS if name not in PEERS]
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--method", nargs="+", choices=list(METHODS), default=ours)
    parser.add_argument("--share", type=float, nargs="+", default=[], help="budgets")
    parser.add_argument("--weighting", choices=WEIGHTINGS, default=WEIGHTING)
    parser.add_argument("--clock", action="store_true", help="compare at equal time, too")
    parser.add_argument("--cache", type=Path, default=Path("out/budgets"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks = [Task(net, seed, options.cache) for net in options.networks for seed in options.seeds]
    found = list(cells(tasks, options.method, options.share, options.weighting))
    timed = [clock(task, found, "eager") for task in tasks] if options.clock else []
    clocks = [one for one in timed if one is not None]
    pages.publish(
        page(options.networks, wholes(tasks), found, options.weighting, clocks), options.out
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
