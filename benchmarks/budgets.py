"""The accuracy that budgets leave: masks chosen in several ways, all refitted with the same data.

python benchmarks/budgets.py --out docs/budgets.md
python benchmarks/budgets.py glyphs-resnet glyphs-densenet glyphs-mobilenet --clock
python benchmarks/budgets.py resnet --seeds 1 --method joint uniform
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import pages
import torch
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.experiments.records import Store
from upscale_opt.experiments.study.data import load_dataset
from upscale_opt.experiments.study.detector import boxes, detector
from upscale_opt.experiments.study.names import EPOCHS
from upscale_opt.experiments.study.recogniser import read, recogniser
from upscale_opt.experiments.study.records import code_key
from upscale_opt.experiments.study.sheets import f1, sheets_to_calibrate, sheets_to_read
from upscale_opt.experiments.study.subjects import share_right
from upscale_opt.experiments.study.training import recipe_of, trained
from upscale_opt.experiments.study.words import words_to_calibrate, words_to_read
from upscale_opt.importance.choosing import merge
from upscale_opt.ir.base import Document
from upscale_opt.ir.graph import Layer, slices_of
from upscale_opt.ir.losses import Losses
from upscale_opt.ir.masks import Masks
from upscale_opt.masking.segments import Method, find_segments
from upscale_opt.masking.zeros import masked_copy
from upscale_opt.reconstruction.losses import WEIGHTINGS, Weighting, losses_of, measure
from upscale_opt.solver import choose
from upscale_opt.solver.network.segments import find_segments as segments_of
from upscale_opt.solver.selection.accounts import account
from upscale_opt.solver.selection.rates import Rates

ENGLISH = "english_g2"
CRAFT = "craft"
SHARES = {
    **dict.fromkeys(("resnet", "densenet", "mobilenet"), (0.2, 0.1, 0.07, 0.05)),
    **dict.fromkeys(("glyphs-resnet", "glyphs-densenet", "glyphs-mobilenet"), (0.5, 0.33, 0.25)),
    ENGLISH: (0.5, 0.4, 0.3, 0.2),
    CRAFT: (0.5, 0.4, 0.3),
}
"""Networks, and the shares of their multiply-adds that are left."""

_CALIBRATION = 400
"""Images to choose and refit with, of those that the networks learned from; without labels."""

_SECONDS = 30.0
"""For each solver."""

_BATCH = 64
"""Images in a call on the clock."""

_CLOCKED = 1.0
"""Seconds on the clock for each export."""

WEIGHTING: Weighting = "effect"


@dataclass(frozen=True, eq=False)
class Subject:
    """A network, and what is done with it.

    Attributes:
        model: in eval mode.
        graph: its graph.
        batches: to calibrate with.
        test: tells the share that a model gets right.
        example: one input.
        whole: layers whose outputs Torch-Pruning has to leave alone.
    """

    model: nn.Module
    graph: uo.ChannelGraph
    batches: list[Tensor]
    test: Callable[[nn.Module], float]
    example: Tensor
    whole: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """One network of one seed, and where things are kept."""

    net: str
    seed: int
    cache: Path


@lru_cache(maxsize=1)
def subject(task: Task) -> Subject:
    """The network of a task; of those with weights the seed decides what calibrates them."""
    if task.net == ENGLISH:
        return _english(task.seed)
    if task.net == CRAFT:
        return _craft(task.seed)
    name, _, net = task.net.rpartition("-")
    data = load_dataset(name or "mnist5k")
    recipe = recipe_of(data.name, net, task.seed, EPOCHS[data.name])
    model = trained(recipe, data, task.cache / "networks", pages.say)
    generator = torch.Generator().manual_seed(task.seed)
    chosen = torch.randperm(len(data.train), generator=generator)[:_CALIBRATION]
    pixels, test = data.train.pixels[chosen], data.test

    def right(model: nn.Module) -> float:
        with torch.no_grad():
            return share_right(
                torch.cat([model(x) for x in torch.split(test.pixels, 250)]), test.labels
            )

    example = test.pixels[:1]
    return Subject(model, uo.trace(model, example), list(torch.split(pixels, 100)), right, example)


def _english(seed: int) -> Subject:
    model, words = recogniser(), words_to_read()

    def right(model: nn.Module) -> float:
        with torch.no_grad():
            texts = [text for x in torch.split(words.pixels, 50) for text in read(model(x))]
        return sum(map(str.__eq__, texts, words.texts)) / len(texts)

    example = words.pixels[:1]
    batches = list(torch.split(words_to_calibrate(seed).pixels, 32))
    whole = ("FeatureExtraction.ConvNet.18",)
    return Subject(model, uo.trace(model, example), batches, right, example, whole)


def _craft(seed: int) -> Subject:
    model, sheets = detector(), sheets_to_read()

    def right(model: nn.Module) -> float:
        with torch.no_grad():
            found = [box for x in torch.split(sheets.pixels, 4) for box in boxes(model(x))]
        return f1(found, sheets.boxes)

    example = sheets.pixels[:1]
    batches = list(torch.split(sheets_to_calibrate(seed).pixels, 4))
    return Subject(model, uo.trace(model, example), batches, right, example, ("conv_cls.8",))


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
        kept: for each layer, the share of its input channels that it reads.
        masks: what was dropped.
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
    kept: dict[str, float]
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


Ask = tuple[Subject, float, Weighting]
"""A network, the share of the multiply-adds that may be left, and the losses to look at."""


def _solver(name: str) -> Callable[[Ask], Masks]:
    def masks(ask: Ask) -> Masks:
        subject, share, weighting = ask
        budget = uo.Budget(macs=share)
        losses = _losses(subject, weighting)
        return choose(subject.graph, losses, budget, solver=name, time_limit=_SECONDS).masks

    return masks


@lru_cache(maxsize=1)
def _losses(subject: Subject, weighting: Weighting) -> Losses:
    return losses_of(subject.model, subject.graph, subject.batches, weighting=weighting)


def _uniform(method: Method) -> Callable[[Ask], Masks]:
    """The least share of all layers' (or spaces') channels, by norm, that meets the budget."""

    def masks(ask: Ask) -> Masks:
        subject, share, _ = ask
        low, high = 0.0, 0.999
        for _ in range(10):
            amount = (low + high) / 2
            found = uo.choose_masks(subject.model, subject.graph, amount, method=method)
            if macs_left(subject.graph, found) > share:
                low = amount
            else:
                high = amount
        return uo.choose_masks(subject.model, subject.graph, high, method=method)

    return masks


def _priced(ask: Ask) -> Masks:
    """Channels of spaces at one price per multiply-add, by the variance that goes with them.

    Every channel is scored by itself: by the shares of its readers' output variances that it
    makes, as if nothing were refitted.
    """
    subject, share, _ = ask
    scores = _lone_scores(subject)
    segments = find_segments(subject.model, subject.graph, "input", "constrained")
    rates: list[tuple[float, int, int]] = []
    for number, segment in enumerate(segments):
        saved = 1 - macs_left(subject.graph, segment.masks([0]))
        worth = torch.zeros(len(segment.channels), dtype=torch.float64)
        for part in segment.shares:
            own = scores.get(part.weight)
            if own is not None:
                worth += own[part.slices].sum(1)
        best = int(worth.argmax())  # it stays, so that no layer is left without any
        rates += [(float(w) / saved, number, row) for row, w in enumerate(worth) if row != best]
    rates.sort()
    low, high = 0, len(rates)

    def dropped(count: int) -> Masks:
        rows: list[list[int]] = [[] for _ in segments]
        for _, number, row in rates[:count]:
            rows[number].append(row)
        return merge(one.masks(own) for one, own in zip(segments, rows, strict=True) if own)

    while low < high:
        middle = (low + high) // 2
        if middle and macs_left(subject.graph, dropped(middle)) <= share:
            high = middle
        else:
            low = middle + 1
    return dropped(high)


def _torch_pruning(is_global: bool) -> Callable[[Ask], Masks]:
    """What Torch-Pruning drops: dependent channels together, by the L2 norm of their group.

    Its channels are taken over as masks, so that they are refitted and exported like all others.
    """

    def masks(ask: Ask) -> Masks:
        subject, share, _ = ask
        low, high = 0.0, 0.97
        for _ in range(8):
            ratio = (low + high) / 2
            if macs_left(subject.graph, _grouped(subject, ratio, is_global)) > share:
                low = ratio
            else:
                high = ratio
        return _grouped(subject, high, is_global)

    return masks


def _grouped(subject: Subject, ratio: float, is_global: bool) -> Masks:
    import torch_pruning

    names = {module: name for name, module in subject.model.named_modules()}
    pruner = torch_pruning.pruner.BasePruner(
        subject.model,
        subject.example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=is_global,
        pruning_ratio=ratio,
        max_pruning_ratio=0.97,
        ignored_layers=[subject.model.get_submodule(name) for name in subject.whole],
        root_module_types=[torch_pruning.ops.TORCH_CONV],
    )
    dropped: dict[str, set[int]] = {}
    for group in pruner.step(interactive=True):  # which prunes nothing by itself
        for dependency, channels in group:
            reader = dependency.target.module
            reads = dependency.handler.__name__ == "prune_in_channels"
            if reads and isinstance(reader, (nn.Conv2d, nn.Linear)):
                dropped.setdefault(names[reader], set()).update(channels)
    kept = {}
    for name, channels in dropped.items():
        size = subject.model.get_parameter(f"{name}.weight").shape[1]
        left = tuple(channel for channel in range(size) if channel not in channels)
        kept[f"{name}.weight"] = {1: left}
    return Masks(kept=kept)


@lru_cache(maxsize=1)
def _lone_scores(subject: Subject) -> dict[str, Tensor]:
    """For each weight, the share of its output's variance that each slice makes alone."""
    oracle = measure(subject.model, subject.graph, subject.batches, weighting="variance")
    found: dict[str, Tensor] = {}
    for one in oracle.measured:
        gram, weights, columns = one.quadratic.gram, one.quadratic.weights, one.quadratic.columns
        lone = [
            (gram[:, own, own] @ weights[:, own] * weights[:, own]).sum((1, 2))
            for at in range(0, gram.shape[1], columns)
            if (own := slice(at, at + columns))
        ]
        by_unit = torch.stack(lone, 1).flatten() / max(one.total, 1e-300)
        size = len(one.site.channels)
        scores = torch.full((size * one.site.features,), math.inf, dtype=torch.float64)
        for unit, entry in enumerate(one.site.free_entries):
            scores[list(one.site.slices(entry))] = by_unit[unit] / one.site.features
        found[one.site.weight] = scores
    return found


METHODS: dict[str, Callable[[Ask], Masks]] = {
    "joint": _solver("joint"),
    "constrained": _solver("constrained"),
    "greedy": _solver("greedy"),
    "even": _solver("uniform-constrained"),
    "uniform": _uniform("unconstrained"),
    "uniform constrained": _uniform("constrained"),
    "priced": _priced,
    "torch-pruning": _torch_pruning(is_global=True),
    "torch-pruning per layer": _torch_pruning(is_global=False),
}
"""What chooses masks, by name."""

PEERS = tuple(name for name in METHODS if name.startswith("torch-pruning"))
"""Methods of another package, to be installed: ``pip install --no-deps torch-pruning``."""

WITH_LOSSES = ("joint", "constrained", "greedy", "even")
"""Methods that look at refitted losses."""


def _macs(graph: uo.ChannelGraph, masks: Masks) -> int:
    return account(graph, *segments_of(graph, masks), Rates(graph, None)).macs


def macs_left(graph: uo.ChannelGraph, masks: Masks) -> float:
    """The share of the multiply-adds that masks leave."""
    counted = [_macs(graph, own) for own in (masks, Masks(kept={}))]
    return counted[0] / counted[1]


def kept_shares(graph: uo.ChannelGraph, masks: Masks) -> dict[str, float]:
    """For each layer, the share of its input channels that it reads."""
    found = {}
    for op in graph.operations:
        if isinstance(op, Layer) and op.inputs:
            size = slices_of(graph, op.weight, op.in_axis)
            found[op.weight] = len(masks.kept_on(op.weight, op.in_axis, size)) / size
    return found


def cell(task: Task, method: str, share: float, weighting: Weighting) -> Cell:
    """Choose, refit, export and test."""
    one = subject(task)
    start = time.perf_counter()
    masks = METHODS[method]((one, share, weighting))
    chosen = time.perf_counter()
    refitted, _ = uo.refit(one.model, masks, one.batches, graph=one.graph)
    done = time.perf_counter()
    solution = uo.solve(one.graph, masks, time_limit=_SECONDS)
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
        kept=kept_shares(one.graph, masks),
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
        macs = _macs(one.graph, Masks(kept={}))
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
        solution = uo.solve(one.graph, cell.masks, time_limit=_SECONDS)
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
        f"{_CALIBRATION} of the images that they learned from, and tested on 1,000 others (2,256 "
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
