"""The study: what pruning to a budget costs in accuracy, and what it buys in time.

python benchmarks/study.py --out docs/study.md
python benchmarks/study.py glyphs-resnet --seeds 0 --runtime eager

What was measured is kept; a second call adds what is missing, as long as the code is the same, and
``--kept`` shows what is there.
Torch-Pruning and UPSCALE have to be installed: ``pip install --no-deps torch-pruning
apple-upscale``.
"""

from __future__ import annotations

import statistics
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import pages
import torch
from budget_cells import Cell, Whole, as_it_is, cells, tuned, wholes
from budget_clock import Clock, clock
from budget_methods import BY_TIME, JOINTS, METHODS, Runtime
from budget_networks import CALIBRATION, CRAFT, EFFICIENTNET, ENGLISH, SHARES, Task
from budget_pictures import draw
from budget_tables import (
    accuracies,
    ahead,
    at,
    at_equal_time,
    heads,
    in_time,
    methods_of,
    shares_of,
    smallest,
    table,
)

from upscale_opt.ir.base import write_atomically

NETWORKS = ("glyphs-resnet", "glyphs-densenet", "glyphs-mobilenet", ENGLISH, CRAFT, EFFICIENTNET)

QUICK = ("even", "priced")
"""Methods of the quick look on digits; of networks with weights, the second is shown, too."""

UNFITTED = ("joint", "uniform", "uniform constrained", "torch-pruning", "torch-pruning per layer")
"""Methods that are shown without refitting, too."""

TUNED = (
    "joint",
    "constrained",
    "uniform",
    "uniform constrained",
    "torch-pruning",
    "torch-pruning per layer",
)
"""Methods whose smallest networks are trained for an epoch."""

POINT = 0.01

WORDS = {
    "glyphs-resnet": "A residual network, trained here to tell 94 printed characters apart.",
    "glyphs-densenet": "A dense network, trained likewise.",
    "glyphs-mobilenet": "A network of inverted residuals, trained likewise.",
    ENGLISH: (
        "EasyOCR's recogniser with its weights: seven convolutions and two recurrent layers, which "
        "stay whole and are not counted. Refitted to 96 words drawn in 16 fonts, tested on 400 "
        "others: the share of words that are read without a mistake."
    ),
    CRAFT: (
        "EasyOCR's detector with its weights: a U-net on VGG-16. Refitted to 12 pages of 320 x "
        "320, tested on 24 others: F1, where boxes share half of their union."
    ),
    EFFICIENTNET: (
        "EfficientNet-Lite0 with its ImageNet weights. ImageNet is not at hand: it sees 66 crops "
        "of three photographs, and what is said is how often a pruned network says what the "
        "unpruned one says, after refitting to 24 other crops. This tells how fast a real "
        "network departs from itself, not how accurate it is."
    ),
}


@dataclass(eq=False)
class Results:
    """All that was measured of one network.

    Attributes:
        net: its name.
        whole: unpruned, of every seed.
        found: its cells.
        plain: accuracies without refitting.
        later: accuracies after one epoch.
        clocks: by runtime, the seeds that were on the clock.
        by_time: cells whose masks were asked for time there.
    """

    net: str
    whole: list[Whole]
    found: list[Cell]
    plain: dict[tuple[str, float, int], float] = field(default_factory=dict)
    later: dict[tuple[str, float, int], float] = field(default_factory=dict)
    clocks: dict[Runtime, list[Clock]] = field(default_factory=dict)
    by_time: dict[Runtime, list[Cell]] = field(default_factory=dict)

    @property
    def top(self) -> float:
        """The unpruned accuracy, the mean over seeds."""
        return statistics.mean(one.accuracy for one in self.whole)

    def mean(self, method: str, share: float) -> float | None:
        """The accuracy of a method at a share of the multiply-adds, the mean over seeds."""
        own = [one.accuracy for one in self.found if (one.method, one.share) == (method, share)]
        return statistics.mean(own) if own else None

    def least(self, method: str) -> float | None:
        """The smallest share of the multiply-adds at which a method loses a point or less."""
        points = [
            (share, value)
            for share in shares_of(self.found)
            if (value := self.mean(method, share)) is not None
        ]
        return smallest(self.top, points, POINT)


def shown_of(net: str) -> list[str]:
    """The methods that are compared on a network."""
    hidden = QUICK if net.startswith("glyphs") else QUICK[:1]
    return [name for name in METHODS if name not in hidden]


def results_of(net: str, tasks: Sequence[Task], options: Namespace) -> Results:
    """Measure what is missing of a network."""
    own = [task for task in tasks if task.net == net]
    methods = options.method or shown_of(net)
    kept = options.kept
    found = list(cells(own, methods, options.share, "effect", kept=kept))
    by_seed = {task.seed: task for task in own if any(one.seed == task.seed for one in found)}
    results = Results(net, wholes(list(by_seed.values())), found)
    last = min(shares_of(found), default=0.0)
    for cell in found:
        key = (cell.method, cell.share, cell.seed)
        if cell.method in UNFITTED:
            plain = as_it_is(by_seed[cell.seed], cell, kept=kept)
            results.plain |= {} if plain is None else {key: plain}
        trained = net.startswith("glyphs") and cell.seed in options.tuned
        if trained and cell.share == last and cell.method in TUNED:
            later = tuned(by_seed[cell.seed], cell, kept=kept)
            results.later |= {} if later is None else {key: later}
    there = [task for seed, task in by_seed.items() if seed in options.clocked]
    for runtime in options.runtime:
        same = [own for name, own in BY_TIME[runtime].items() if name in methods]
        more = list(cells(there, same, options.share, "effect", kept=kept))
        results.by_time[runtime] = more
        timed = [clock(task, [*found, *more], runtime, kept=kept) for task in there]
        results.clocks[runtime] = [one for one in timed if one is not None]
    return results


# The page.


def in_short(results: Sequence[Results]) -> Iterator[str]:
    """What a reader in a hurry wants to know."""
    yield "## In short"
    yield ""
    yield (
        "Without any training after pruning; *time* is of the unpruned network's. *Others* are "
        "constrained, greedy and priced masks; *uniform* is the better of the two uniform "
        "ways and *Torch-Pruning* the better of its two, refitted like ours."
    )
    yield ""
    names = [
        "network",
        "unpruned, %",
        "multiply-adds left",
        "ours (joint), %",
        "time, eager",
        "time, onnxruntime",
        "best other, %",
        "uniform, %",
        "Torch-Pruning, %",
    ]
    yield from heads(names)
    for one in results:
        for share in shares_of(one.found):
            yield f"| {' | '.join(_short(one, share))} |"
    yield ""
    for one in results:
        yield from _verdicts(one)
    yield ""
    yield "The smallest network that loses a point or less, in multiply-adds (on straight lines "
    yield "between the budgets that were tried; `–`: none of them):"
    yield ""
    known = [name for name in METHODS if any(name in methods_of(one.found) for one in results)]
    yield from heads(["network", *known])
    for one in results:
        least = [one.least(method) for method in known]
        shown = ["–" if value is None else f"{value:.0%}" for value in least]
        yield f"| {one.net} | {' | '.join(shown)} |"
    yield ""


def _short(one: Results, share: float) -> list[str]:
    known = accuracies(one.found)

    def best(names: Sequence[str]) -> str:
        means = [value for name in names if (value := one.mean(name, share)) is not None]
        return f"{100 * max(means):.1f}" if means else "–"

    def time(runtime: Runtime) -> str:
        took = [
            own
            for each in one.clocks.get(runtime, ())
            if (own := each.took().get(("joint", share))) is not None
        ]
        return f"{statistics.mean(took):.0%}" if took else "–"

    return [
        one.net,
        f"{100 * one.top:.1f}",
        f"{share:.0%}",
        at(known, "joint", share),
        time("eager"),
        time("onnxruntime"),
        best(("constrained", "greedy", "priced")),
        best(("uniform", "uniform constrained")),
        best(("torch-pruning", "torch-pruning per layer")),
    ]


def _verdicts(one: Results) -> Iterator[str]:
    """Lines: where joint is ahead of the best other beyond the spread, and where behind."""
    compared = [("multiply-adds", accuracies(one.found), shares_of(one.found), "joint")]
    for runtime, clocks in one.clocks.items():
        if clocks:
            times, reached = in_time(one.whole, [*one.found, *one.by_time[runtime]], clocks)
            sure = {key: value for key, value in reached.items() if value is not None}
            asked = BY_TIME[runtime]["joint"]
            order = sorted(times, reverse=True)
            for who, label in (("joint", ""), (asked, ", asked for time")):
                compared.append((f"time in {runtime}{label}", sure, order, who))
    parts = []
    for label, known, shares, me in compared:
        better: list[str] = []
        level: list[str] = []
        worse: list[str] = []
        for share in shares:
            rivals = dict.fromkeys(who for who, _, _ in known if who not in JOINTS)
            found = ahead(known, share, list(rivals), me)
            if found is None or len(found[1]) < 2:  # one seed tells of no spread
                continue
            mean, deviation = statistics.mean(found[1]), statistics.stdev(found[1])
            place = better if mean > deviation else worse if mean < -deviation else level
            place.append(f"{share:.0%}")
        words = [
            f"{name} at {', '.join(own)}"
            for name, own in (("ahead", better), ("level", level), ("behind", worse))
            if own
        ]
        if words:
            parts.append(f"by {label}: {'; '.join(words)}")
    if parts:
        yield f"- **{one.net}**, joint beside the best other, beyond the spread:"
        yield from (f"    - {part}" for part in parts)


def section(one: Results, picture: str | None) -> Iterator[str]:
    """All about one network."""
    yield f"## {one.net}"
    yield ""
    yield WORDS.get(one.net, "")
    yield ""
    if picture is not None:
        yield f"![Accuracy against multiply-adds and time, {one.net}]({picture})"
        yield ""
    yield from table(one.whole, one.found)
    shares = shares_of(one.found)
    if one.plain:
        yield "Without refitting:"
        yield ""
        yield from heads(["masks", *(f"{share:.0%}" for share in shares)])
        for method in UNFITTED:
            if any(who == method for who, _, _ in one.plain):
                plain = (at(one.plain, method, share) for share in shares)
                yield f"| {method} | {' | '.join(plain)} |"
        yield ""
    if one.later:
        last = min(shares)
        same = {key: value for key, value in accuracies(one.found).items() if key in one.later}
        yield f"Refitted, exported, and trained for one epoch, at {last:.0%}:"
        yield ""
        yield from heads(["masks", "before the epoch", "after it"])
        for method in TUNED:
            if any(who == method for who, _, _ in one.later):
                yield f"| {method} | {at(same, method, last)} | {at(one.later, method, last)} |"
        yield ""
    for runtime, clocks in one.clocks.items():
        if clocks:
            yield f"### {one.net}, at equal time in {runtime}"
            yield ""
            yield from at_equal_time(one.whole, [*one.found, *one.by_time[runtime]], clocks)


def page(results: Sequence[Results], pictures: Mapping[str, str]) -> Iterator[str]:
    """The page in Markdown."""
    yield "# What pruning to a budget costs, and what it buys"
    yield ""
    yield (
        "Masks chosen in several ways for the same budgets of multiply-adds; everybody's weights "
        "refitted by `uo.refit` to the same unlabelled inputs; the exports tested and put on the "
        "clock. All figures are shares of test inputs that are right, in per cent, with the "
        "standard deviation over seeds. A seed is another training of the small networks, and "
        "other inputs to refit networks with weights to. A dash: not measured."
    )
    yield ""
    yield from in_short(results)
    yield "## The ways to choose"
    yield ""
    yield (
        "`joint` (ours), `constrained` and `greedy` look at the same losses, those after "
        "refitting: every layer decides for itself, together with the order of channels; all "
        "layers that read a tensor decide together (a knapsack over coupled groups); every layer "
        "for itself, the least loss per saved multiply-add, step by step. `uniform` drops the same "
        "share of every layer's inputs by L2 norm, as UPSCALE's masking does by default (which "
        "wants a GPU and pictures of 224 x 224), `uniform "
        "constrained` of every tensor. `priced` is constrained, and drops channels at one price "
        "per multiply-add by the variance that they alone make. `torch-pruning` drops what "
        "Torch-Pruning does by L2 norm of dependent channels, over all layers or the same share of "
        "each (`per layer`); its channels are taken over as masks. `copied` are the channels that "
        "exports gather, at all budgets; `seconds` are those to choose (losses included the first "
        "time)."
    )
    yield ""
    yield (
        "*glyphs*: 94 printed characters in Matplotlib's fonts, bent and noisy, tested in fonts "
        f"that they did not learn from (2,256 pictures); refitted to {CALIBRATION} of those that "
        "they learned from."
    )
    yield ""
    yield (
        "*At equal time*: one thread, all exports of a network in turn in one process. The columns "
        "are the shares of the unpruned network's time that joint's networks take (in the mean "
        "over seeds); the others' accuracy at that time lies between the budgets that were tried, "
        "on a straight line; `slower`: even the smallest one takes longer. Everybody's exports are "
        "ours, in onnxruntime with its prices. *Asked for time*: masks for as much time as the "
        "same way's masks for multiply-adds take by that runtime's built-in cost model. "
        "`uniform, exported by UPSCALE` is what UPSCALE "
        "makes of the masks of `uniform`."
    )
    yield ""
    yield f"Written by `{pages.command()}` with PyTorch {torch.__version__}."
    yield ""
    for one in results:
        yield from section(one, pictures.get(one.net))


def main() -> int:
    """Measure what is missing, print the page, and write it where asked."""
    parser = pages.parser(__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=", ".join(SHARES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--method", nargs="+", choices=list(METHODS), default=[])
    parser.add_argument("--share", type=float, nargs="+", default=[], help="budgets")
    parser.add_argument(
        "--runtime", nargs="*", choices=get_args(Runtime), default=list(get_args(Runtime))
    )
    parser.add_argument("--clocked", type=int, nargs="*", default=[0, 1, 2], help="seeds")
    parser.add_argument("--tuned", type=int, nargs="*", default=[0, 1, 2], help="seeds")
    parser.add_argument("--kept", action="store_true", help="show only what was measured before")
    parser.add_argument("--cache", type=Path, default=Path("out/budgets"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for net in options.networks:
        seeds = options.seeds[:1] if net == EFFICIENTNET else options.seeds
        tasks = [Task(net, seed, options.cache) for seed in seeds]
        results.append(results_of(net, tasks, options))
    results = [one for one in results if one.found]
    pictures = {}
    if options.out is not None:
        for one in results:
            place = Path(options.out.stem) / f"{one.net}.svg"
            write_atomically(options.out.parent / place, draw(one.whole, one.found, one.clocks))
            pictures[one.net] = place.as_posix()
    pages.publish(page(results, pictures), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
