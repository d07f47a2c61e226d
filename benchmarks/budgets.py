"""The accuracy that budgets leave: masks chosen in several ways, all refitted with the same data.

python benchmarks/budgets.py resnet mobilenet densenet --clock --out docs/budgets.md
python benchmarks/budgets.py glyphs-resnet glyphs-densenet glyphs-mobilenet --clock
python benchmarks/budgets.py resnet --seeds 1 --method joint uniform
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pages
import torch
from budget_methods import METHODS, PEERS, SECONDS, WITH_LOSSES, macs_left, macs_of
from budget_networks import CALIBRATION, SHARES, Task, subject
from torch import nn

import upscale_opt as uo
from upscale_opt.experiments.records import Store, code_key
from upscale_opt.ir.base import Document
from upscale_opt.ir.masks import Masks
from upscale_opt.masking.zeros import masked_copy
from upscale_opt.reconstruction.losses import WEIGHTINGS, Weighting

_BATCH = 64
"""Images in a call on the clock."""

_CLOCKED = 1.0
"""Seconds on the clock for each export."""

WEIGHTING: Weighting = "effect"


class Cell(Document):
    """One network, pruned to one budget and refitted.

    Attributes:
        net: the network.
        seed: of its training; of ``english_g2``, of what it is calibrated with.
        method: what chose the masks.
        share: of the multiply-adds, that may be left.
        weighting: of the losses that it looked at; empty if it looked at none.
        accuracy: the share of the test inputs that the export gets right; of words on pages, F1.
        macs: the share of the multiply-adds that is left.
        copied: channels that the export gathers.
        choosing: seconds to choose the masks.
        refitting: seconds to refit.
        masks: what it keeps.
    """

    what: ClassVar[str] = "cell"

    net: str
    seed: int
    method: str
    share: float
    weighting: str
    accuracy: float
    macs: float
    copied: int
    choosing: float
    refitting: float
    masks: Masks


class Whole(Document):
    """A network that is not pruned.

    Attributes:
        net: the network.
        seed: as in :class:`Cell`.
        accuracy: likewise.
        macs: its multiply-adds.
    """

    what: ClassVar[str] = "whole network"

    net: str
    seed: int
    accuracy: float
    macs: int


def cell(task: Task, method: str, share: float, weighting: Weighting) -> Cell:
    """Choose, refit, export and test."""
    one = subject(task)
    start = time.perf_counter()
    masks = METHODS[method]((one, share, weighting))
    chosen = time.perf_counter()
    refitted, _ = uo.refit(one.model, masks, one.batches, graph=one.graph)
    done = time.perf_counter()
    solution = uo.solve(one.graph, masks, time_limit=SECONDS)
    return Cell(
        net=task.net,
        seed=task.seed,
        method=method,
        share=share,
        weighting=weighting if method in WITH_LOSSES else "",
        accuracy=one.test(uo.materialize(refitted, solution)),
        macs=macs_left(one.graph, masks),
        copied=solution.objective_value,
        choosing=chosen - start,
        refitting=done - chosen,
        masks=masks,
    )


def cells(
    tasks: Sequence[Task], methods: Sequence[str], shares: Sequence[float], weighting: Weighting
) -> Iterator[Cell]:
    """All cells that are asked for; those that are kept are not made again."""
    for task in tasks:
        store = Store(task.cache / "cells", Cell)
        for share, method in itertools.product(shares or SHARES[task.net], methods):
            own = weighting if method in WITH_LOSSES else "none"
            name = f"{task.net}-{task.seed}-{method}-{share}-{own}-{code_key()}"
            found = store.find(name)
            if found is None:
                found = cell(task, method, share, weighting)
                store.put(name, found)
                pages.say(
                    f"{task.net} {task.seed}, {method}, {share:.0%}: {100 * found.accuracy:.1f} % "
                    f"right, {found.macs:.2%} left, {found.copied} copied, "
                    f"{found.choosing:.0f} + {found.refitting:.0f} s"
                )
            yield found


def whole(task: Task) -> Whole:
    """The unpruned network; from the cache if it is there."""
    store = Store(task.cache / "cells", Whole)
    name = f"{task.net}-{task.seed}-whole-{code_key()}"
    found = store.find(name)
    if found is None:
        one = subject(task)
        macs = macs_of(one.graph, Masks(kept={}))
        found = Whole(net=task.net, seed=task.seed, accuracy=one.test(one.model), macs=macs)
        store.put(name, found)
    return found


# The clock.

Took = dict[tuple[str, float], float]
"""For each method and share of the multiply-adds, the share of the unpruned network's time."""


def timed(task: Task, found: Sequence[Cell]) -> Took:
    """The exports of a network and seed beside it, in turn, on one thread."""
    one = subject(task)
    exports: dict[str, nn.Module] = {"unpruned": one.model}
    own = [cell for cell in found if (cell.net, cell.seed) == (task.net, task.seed)]
    for cell in own:
        masked = masked_copy(one.model, one.graph, cell.masks)
        solution = uo.solve(one.graph, cell.masks, time_limit=SECONDS)
        exports[f"{cell.method} {cell.share}"] = uo.materialize(masked, solution)
    images = torch.cat(one.batches)[:_BATCH]
    took = uo.measuring.beside(exports, images, seconds=_CLOCKED * len(exports)).milliseconds
    return {
        (cell.method, cell.share): took[f"{cell.method} {cell.share}"] / took["unpruned"]
        for cell in own
    }


def accuracy_in(time_left: float, whole: Whole, own: Sequence[Cell], took: Took) -> float | None:
    """The accuracy of one method at a share of the time, between the budgets that were tried.

    ``None`` if even its smallest network takes longer.
    """
    known = sorted((took[one.method, one.share], one.accuracy) for one in own)
    known.append((1.0, whole.accuracy))
    for (fast, low), (slow, high) in itertools.pairwise(known):
        if fast <= time_left <= slow:
            return low + (high - low) * (time_left - fast) / max(slow - fast, 1e-9)
    return None


def at_equal_time(
    net: str, wholes: Sequence[Whole], found: Sequence[Cell], took: dict[int, Took]
) -> Iterator[str]:
    """A line for each method, a column for each time that joint's networks take.

    Args:
        net: the network.
        wholes: the unpruned networks.
        found: all cells.
        took: by seed.
    """
    own = [one for one in found if one.net == net]
    shares = sorted({one.share for one in own}, reverse=True)
    methods = [name for name in METHODS if any(one.method == name for one in own)]
    times = {
        share: [100 * took[seed]["joint", share] for seed in took if ("joint", share) in took[seed]]
        for share in shares
    }
    yield f"### {net}, at equal time"
    yield ""
    heads = (f"{statistics.mean(times[share]):.0f}% of the time" for share in shares)
    yield f"| masks | {' | '.join(heads)} |"
    yield f"| --- |{' ---: |' * len(shares)}"
    for method in methods:
        row = []
        for share in shares:
            accuracies = [
                accuracy_in(
                    took[one.seed]["joint", share],
                    one,
                    [cell for cell in own if (cell.method, cell.seed) == (method, one.seed)],
                    took[one.seed],
                )
                for one in wholes
                if one.net == net
            ]
            known = [accuracy for accuracy in accuracies if accuracy is not None]
            whole_row = len(known) == len(accuracies)
            row.append(spread(known) if whole_row else "slower")
        yield f"| {method} | {' | '.join(row)} |"
    yield ""


# The page.


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of shares, in per cent."""
    percent = [100 * value for value in values]
    more = f" ± {statistics.stdev(percent):.1f}" if len(percent) > 1 else ""
    return f"{statistics.mean(percent):.1f}{more}"


def table(net: str, wholes: Sequence[Whole], found: Sequence[Cell]) -> list[str]:
    """One network: a line for each method, a column for each budget."""
    own = [one for one in found if one.net == net]
    shares = sorted({one.share for one in own}, reverse=True)
    methods = [name for name in METHODS if any(one.method == name for one in own)]
    unpruned = [one for one in wholes if one.net == net]
    lines = [
        f"## {net}",
        "",
        f"Unpruned: {spread([one.accuracy for one in unpruned])} %, "
        f"{unpruned[0].macs:,} multiply-adds; {len(unpruned)} seeds.",
        "",
        f"| masks | {' | '.join(f'{share:.0%}' for share in shares)} | copied | seconds |",
        f"| --- |{' ---: |' * (len(shares) + 2)}",
    ]
    for method in methods:
        mine = [one for one in own if one.method == method]
        best = [
            spread(seeds)
            if (seeds := [one.accuracy for one in mine if one.share == share])
            else "–"
            for share in shares
        ]
        copied = [one.copied for one in mine]
        seconds = statistics.mean(one.choosing for one in mine)
        lines.append(
            f"| {method} | {' | '.join(best)} | {min(copied):,} to {max(copied):,} "
            f"| {seconds:.1f} |"
        )
    return [*lines, "", *_differences(own, shares, methods), ""]


def _differences(
    own: Sequence[Cell], shares: Sequence[float], methods: Sequence[str]
) -> Iterator[str]:
    """Lines that say how far ``joint`` is ahead."""
    by_key = {(one.method, one.share, one.seed): one.accuracy for one in own}
    uniform = [name for name in methods if name.startswith("uniform")]
    others = [name for name in methods if name != "joint"]
    if "joint" not in methods:
        return
    yield "Joint, in points above (mean and standard deviation over seeds):"
    yield ""
    for label, rivals in (("the best of the others", others), ("the better uniform", uniform)):
        if not rivals:
            continue
        parts = []
        for share in shares:
            seeds = [seed for method, at, seed in by_key if (method, at) == ("joint", share)]
            means = {
                name: statistics.mean(by_key[name, share, seed] for seed in seeds)
                for name in rivals
                if seeds and all((name, share, seed) in by_key for seed in seeds)
            }
            if means:
                rival = max(means, key=lambda name: means[name])
                ahead = [
                    by_key["joint", share, seed] - by_key[rival, share, seed] for seed in seeds
                ]
                parts.append(f"{spread(ahead)} at {share:.0%} ({rival})")
        yield f"- {label}: {', '.join(parts)}"


def page(
    wholes: Sequence[Whole],
    found: Sequence[Cell],
    weighting: str,
    took: dict[Task, Took],
) -> Iterator[str]:
    """The page in Markdown; with what ``took``, if anything was put on the clock."""
    yield "# Budgets"
    yield ""
    yield (
        "The share of test inputs that networks get right when masks leave a share of their "
        "multiply-adds, in per cent. Nothing is trained after pruning: everybody's weights are "
        "refitted by `uo.refit` to the same unlabelled inputs. The residual, dense and "
        "inverted-residual network are trained on MNIST-5k, or on `glyphs` (94 printed "
        "characters, bent and noisy, tested in fonts that they did not learn from), refitted to "
        f"{CALIBRATION} of the images that they learned from, and tested on 1,000 others (2,256 "
        "glyphs). "
        "`english_g2` is EasyOCR's recogniser with its weights, refitted to 96 words drawn in "
        "16 fonts (three seeds, three sets of words), tested on 400 others; its recurrent layers "
        "stay whole, and are not counted. `craft` finds words on pages, with its weights, refitted "
        "to 12 pages of 320 x 320 (three seeds), tested on 24 others; what is said of it is F1, "
        "where boxes share half of their union. Multiply-adds are those of convolutions (depthwise "
        "ones apart) and linear layers."
    )
    yield ""
    yield (
        f"`joint`, `constrained`, `greedy` and `even` look at refitted losses, weighted by "
        f"`{weighting}`: every layer decides for itself; all layers that read a tensor decide "
        "together (a knapsack over coupled groups); the least loss per saved multiply-add, step by "
        "step; the same share of every tensor. `uniform` drops the same share of every layer's "
        "inputs by L2 norm, `uniform constrained` of every tensor. `priced` is constrained, and "
        "drops channels at one price per multiply-add by the variance that they alone make. "
        "`torch-pruning` drops what Torch-Pruning does by L2 norm of dependent channels, over all "
        "layers or the same share of each (`per layer`). "
        "`copied` are the channels that exports gather, at all budgets; `seconds` are those to "
        "choose (losses included the first time)."
    )
    yield ""
    if took:
        yield (
            f"At equal time: {_BATCH} inputs in a call, eager PyTorch, one thread, all exports of "
            "a network in turn in one process. The columns are the shares of the unpruned "
            "network's time that joint's networks take (in the mean over seeds); the others' "
            "accuracy at that time lies between the budgets that were tried, on a straight line. "
            "`slower`: even the smallest one takes longer."
        )
        yield ""
    yield f"Written by `{pages.command()}`."
    yield ""
    for net in dict.fromkeys(one.net for one in found):
        yield from table(net, wholes, found)
        own = {task.seed: own for task, own in took.items() if task.net == net}
        if own:
            yield from at_equal_time(net, wholes, found, own)


def main() -> int:
    """Measure what is missing, print the page, and write it where asked."""
    parser = pages.parser(__doc__)
    parser.add_argument("networks", nargs="*", default=list(SHARES), help=", ".join(SHARES))
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
    wholes = [whole(task) for task in tasks]
    clocked = tasks if options.clock else []
    took = {task: timed(task, found) for task in clocked}
    pages.publish(page(wholes, found, options.weighting, took), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
