"""Greedy against exact on the networks of the catalogue, and how long exact takes.

    python benchmarks/greedy_vs_exact.py                                  # a few networks
    python benchmarks/greedy_vs_exact.py --full --jobs 2 --out docs/solvers.md

Every network is built, traced and masked once, and leaves JSON files in a folder (--cache keeps
them). Then both solvers work on the files alone, one amount after the other.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pages
import torch

import upscale_opt as uo
from upscale_opt.masking.segments import Side
from upscale_opt.models import catalogue

A_FEW = ["resnet18", "resnet50", "densenet121", "mobilenet_v2", "googlenet", "shufflenet_v2_x1_0"]
AMOUNTS = [0.1, 0.3, 0.5, 0.7, 0.9]


@dataclass(frozen=True)
class Cell:
    """What both solvers make of one network and amount.

    Attributes:
        network, amount: which.
        original: copied channels without reordering.
        greedy: copied channels by the heuristic.
        exact: copied channels by the exact solver.
        bound: its lower bound.
        checked: ``check`` finds it proven to be optimal.
        seconds: all of ``solve`` with the exact solver: channel sets, search, proof and plan.
        process: who solved it.
    """

    network: str
    amount: float
    original: int
    greedy: int
    exact: int
    bound: int
    checked: bool
    seconds: float
    process: int

    @property
    def proven(self) -> bool:
        """Whether the exact answer is proven optimal."""
        return self.exact == self.bound

    @property
    def saved(self) -> int:
        """The copies that exact spares."""
        return self.greedy - self.exact


def prepare(name: str, folder: Path, amounts: Sequence[float], side: Side) -> str:
    """Write the network's graph, and masks for every amount, unless they are there."""
    graph_file = folder / f"{name}.json"
    missing = [a for a in amounts if not masks_file(folder, name, a, side).exists()]
    if missing or not graph_file.exists():
        torch.set_num_threads(1)
        model = catalogue.randomize(catalogue.build(name), 0)
        graph = uo.trace(model, catalogue.example_inputs(name))
        graph.save(graph_file)
        for amount in missing:
            masked = copy.deepcopy(model)
            uo.apply_masks(
                masked, graph, uo.choose_masks(masked, graph, amount, side=side, layers="conv")
            )
            uo.masks_of(masked, graph).save(masks_file(folder, name, amount, side))
            del masked
    return name


def masks_file(folder: Path, name: str, amount: float, side: Side) -> Path:
    return folder / f"{name}-{side}-{amount:g}.json"


def solve(name: str, amount: float, folder: Path, side: Side, time_limit: float) -> Cell:
    """Both solvers on one network."""
    graph = uo.ChannelGraph.load(folder / f"{name}.json")
    masks = uo.Masks.load(masks_file(folder, name, amount, side))
    original = uo.solve(graph, masks, solver="identity")
    greedy = uo.solve(graph, masks, solver="greedy")
    start = time.perf_counter()
    exact = uo.solve(graph, masks, solver="cp-sat", time_limit=time_limit)
    seconds = time.perf_counter() - start
    return Cell(
        network=name,
        amount=amount,
        original=original.objective_value,
        greedy=greedy.objective_value,
        exact=exact.objective_value,
        bound=exact.lower_bound,
        checked=uo.check(exact, graph, masks).optimal,
        seconds=seconds,
        process=os.getpid(),
    )


def solve_all(
    names: Sequence[str], amount: float, folder: Path, side: Side, time_limit: float, jobs: int
) -> list[Cell]:
    """One cell per network, in the order of ``names``."""
    work = partial(solve, amount=amount, folder=folder, side=side, time_limit=time_limit)
    cells = []
    for cell in pages.side_by_side(work, names, jobs):
        cells.append(cell)
        pages.say(
            f"{cell.network} {amount:.0%}: greedy {cell.greedy:,}, exact {cell.exact:,} "
            f"(at least {cell.bound:,}), {cell.seconds:.2f} s"
        )
    return cells


def findings(cells: Sequence[Cell]) -> list[str]:
    """What it comes to, in sentences."""
    met = [cell for cell in cells if cell.proven and cell.greedy == cell.exact]
    trivial = [cell for cell in met if cell.exact == 0]
    better = [cell for cell in cells if cell.saved > 0]
    unproven = [cell for cell in cells if not cell.proven]
    greedy, exact = (sum(getattr(cell, way) for cell in cells) for way in ("greedy", "exact"))
    lines = [
        f"* {len(cells) - len(unproven):,} of {len(cells):,} problems are solved to proven "
        "optimality.",
        f"* {sum(cell.checked for cell in cells):,} of these proofs need nobody's word: "
        "`check` verified plan, conflicts and bound without a solver.",
        f"* Greedy is already optimal on {len(met):,} of them (on {len(trivial):,} as nothing need "
        f"be copied), which only the proof tells.",
        f"* Exact copies less on {len(better):,}. Over all problems greedy copies {greedy:,} "
        f"channels and exact {exact:,}, {share(greedy - exact, greedy)} less.",
    ]
    if better:
        worst = max(better, key=lambda cell: cell.saved / cell.greedy)
        most = max(better, key=lambda cell: cell.saved)
        lines.append(
            f"* The largest share is spared on {worst.network} at {worst.amount:.0%}: "
            f"{worst.exact:,} instead of {worst.greedy:,} ({share(worst.saved, worst.greedy)} "
            f"less); the most channels on {most.network} at {most.amount:.0%}: {most.saved:,}."
        )
    for cell in unproven:
        lines.append(
            f"* Not proven: {cell.network} at {cell.amount:.0%}, {cell.exact:,} copied and at "
            f"least {cell.bound:,}, after {cell.seconds:.1f} s."
        )
    return lines


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "0 %"


def summary(by_amount: dict[float, list[Cell]]) -> list[str]:
    """One row per amount."""
    lines = [
        "| dropped | proven optimal | greedy optimal | original order | greedy | exact | all "
        "networks, s | busiest process, s | slowest network, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for amount, cells in by_amount.items():
        slowest = max(cells, key=lambda cell: cell.seconds)
        busy: dict[int, float] = {}
        for cell in cells:
            busy[cell.process] = busy.get(cell.process, 0.0) + cell.seconds
        met = sum(cell.proven and cell.greedy == cell.exact for cell in cells)
        lines.append(
            f"| {amount:.0%} | {sum(cell.proven for cell in cells)} of {len(cells)} | {met} | "
            f"{sum(cell.original for cell in cells):,} | {sum(cell.greedy for cell in cells):,} | "
            f"{sum(cell.exact for cell in cells):,} | {sum(busy.values()):.1f} | "
            f"{max(busy.values()):.1f} | {slowest.seconds:.2f} ({slowest.network}) |"
        )
    return lines


def wins(cells: Iterable[Cell]) -> list[str]:
    """Where exact copies less, the largest share first."""
    better = [cell for cell in cells if cell.saved > 0]
    better.sort(key=lambda cell: (-cell.saved / cell.greedy, cell.network, cell.amount))
    lines = [
        "| network | dropped | greedy | exact | spared | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for cell in better:
        lines.append(
            f"| {cell.network} | {cell.amount:.0%} | {cell.greedy:,} | {cell.exact:,} | "
            f"{cell.saved:,} | {share(cell.saved, cell.greedy)} |"
        )
    return lines if better else ["Nowhere."]


def everything(by_amount: dict[float, list[Cell]], names: Sequence[str]) -> list[str]:
    """One row per network, one column per amount; networks that copy nothing in a sentence."""
    columns = " | ".join(f"{amount:.0%}" for amount in by_amount)
    lines = [f"| network | {columns} | s |", "| --- |" + " --- |" * (len(by_amount) + 1)]
    free = []
    for number, name in enumerate(names):
        row = [cells[number] for cells in by_amount.values()]
        if all(cell.greedy == cell.exact == 0 for cell in row):
            free.append(name)
        else:
            texts = " | ".join(map(text_of, row))
            lines.append(f"| {name} | {texts} | {max(cell.seconds for cell in row):.2f} |")
    if free:
        lines += ["", f"Nothing to copy at any amount: {', '.join(free)}."]
    return lines


def text_of(cell: Cell) -> str:
    text = f"{cell.exact:,}" if cell.saved == 0 else f"{cell.greedy:,} → **{cell.exact:,}**"
    return text if cell.proven else f"{text} (≥ {cell.bound:,})"


def page(
    by_amount: dict[float, list[Cell]], names: Sequence[str], options: argparse.Namespace
) -> list[str]:
    """The whole document."""
    cells = [cell for row in by_amount.values() for cell in row]
    return [
        "# Greedy and exact",
        "",
        "The channels that UPSCALE's heuristic (`greedy`) copies, and the fewest possible "
        "(`cp-sat`), on the same problems: every convolution (and no linear layer) drops the same "
        f"share of its {options.side} channels, those of least L2 norm; random weights; one order "
        "per space (see [the mathematics](mathematics.md)). Seconds are those of `solve` with "
        "`cp-sat` on one thread, from graph and masks to the finished plan with its proof; tracing "
        "is apart.",
        "",
        f"Written by `{pages.command()}` with ortools {version('ortools')}, on "
        f"{os.cpu_count()} cores, {options.jobs} processes.",
        "",
        *findings(cells),
        "",
        *summary(by_amount),
        "",
        "## Where exact copies less",
        "",
        *wins(cells),
        "",
        "## All networks",
        "",
        "Copied channels: greedy → **exact**, or one number where both copy the same. All are "
        "proven optimal unless a lower bound stands behind (≥). The last column is the longest of "
        "the row's times.",
        "",
        *everything(by_amount, names),
    ]


def main() -> int:
    """Solve everything, and print or write the page."""
    parser = pages.parser(__doc__)
    parser.add_argument("networks", nargs="*", default=A_FEW, help="catalogue names")
    parser.add_argument("--full", action="store_true", help="all torchvision classifiers")
    parser.add_argument("--amounts", type=float, nargs="+", default=AMOUNTS)
    parser.add_argument("--side", choices=["input", "output", "both"], default="input")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds for each network")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--cache", type=Path, help="keep graphs and masks here, for the next time")
    options = parser.parse_args()
    names = options.networks
    if options.full:
        names = [name for name in catalogue.names() if not name.startswith(catalogue.PREFIX)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.cache or Path(temporary)
        make = partial(prepare, folder=folder, amounts=options.amounts, side=options.side)
        for number, name in enumerate(pages.side_by_side(make, names, options.jobs), 1):
            pages.say(f"traced {name} ({number} of {len(names)})")
        by_amount = {
            amount: solve_all(names, amount, folder, options.side, options.time_limit, options.jobs)
            for amount in options.amounts
        }
    pages.publish(page(by_amount, names, options), options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
