"""How far the solvers get on large instances, and the PQ-tree on many sets.

python benchmarks/solver_scaling.py --out docs/scaling.md
python benchmarks/solver_scaling.py --solver cp-sat --solver local-search --time-limit 10
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import pages
import torch

import upscale_opt as uo
from upscale_opt.models import catalogue
from upscale_opt.models.instances.from_sets import one_space, with_measure
from upscale_opt.models.instances.random import (
    chains,
    correlated,
    dense_block,
    independent,
    noisy_intervals,
)
from upscale_opt.solver.algorithms.registry import SOLVERS, solve_instance
from upscale_opt.solver.api import instance_of
from upscale_opt.solver.problem.instance import Instance
from upscale_opt.solver.problem.pqtree import PQTree

SOLVERS_SHOWN = ("cp-sat", "local-search", "greedy", "identity")


def densenet201() -> Instance:
    """What the 48 layers of DenseNet-201's third block read, half of it masked, nothing else."""
    model = catalogue.build("densenet201")
    graph = uo.trace(model, catalogue.example_inputs("densenet201"))
    masks = uo.choose_masks(model, graph, amount=0.5, layers="conv")
    block = {
        name: kept
        for name, kept in masks.kept.items()
        if name.startswith("features.denseblock3.") and name.endswith(".conv1.weight")
    }
    assert len(block) == 48
    return instance_of(graph, uo.Masks(kept=block))


def growing_sets(rng: random.Random) -> Instance:
    """The same 48 reads if the block were one space: half of 256, 288, ... 1,760 channels."""
    sizes = [256 + 32 * layer for layer in range(48)]
    return one_space(256 + 32 * 48, [rng.sample(range(size), size // 2) for size in sizes])


def small_sets() -> Instance:
    """60 sets of 2 to 14 of 70 channels."""
    rng = random.Random(3)
    sizes = [rng.randint(2, 14) for _ in range(60)]
    return one_space(70, [rng.sample(range(70), size) for size in sizes])


def blocks(instance: Instance) -> Instance:
    """The same with its blocks as what orders cost."""
    return with_measure(instance, "blocks")


CASES: Mapping[str, Callable[[random.Random], Instance]] = {
    "36 random sets of 512 of 1,024 channels (as long as ResNet-152's third stage)": lambda rng: (
        independent(rng, 36, 1024)
    ),
    "64 random sets of 2,048 of 4,096 channels": lambda rng: independent(rng, 64, 4096),
    "DenseNet-201's third block, traced, 50 % of its 48 bottlenecks' inputs masked": lambda rng: (
        densenet201()
    ),
    "48 random sets over that block as a single space of 1,792 channels": growing_sets,
    "48 sets of 512 of 1,024 channels that agree (correlation 0.9)": lambda rng: correlated(
        rng, 48, 1024, correlation=0.9
    ),
    "48 sets of 51 of 1,024 channels": lambda rng: independent(rng, 48, 1024, amount=0.05),
    "48 sets of 10 of 1,024 channels": lambda rng: independent(rng, 48, 1024, amount=0.01),
    "64 intervals of 1,024 channels, 0.1 % flipped": lambda rng: noisy_intervals(
        rng, 64, 1024, flips=0.001
    ),
    "48 sets in three chains of 1,024 channels": lambda rng: chains(rng, 48, 1024, count=3),
    "dense block of 40 layers with 32 to 64 channels each, read piece by piece": lambda rng: (
        dense_block(rng, 40, 64)
    ),
    "60 sets of 2 to 14 of 70 channels": lambda rng: small_sets(),
    "12 random sets of 32 of 64 channels, blocks": lambda rng: blocks(independent(rng, 12, 64)),
    "24 intervals of 64 channels, 2 % flipped, blocks": lambda rng: blocks(
        noisy_intervals(rng, 24, 64)
    ),
    "36 random sets of 512 of 1,024 channels, blocks": lambda rng: blocks(
        independent(rng, 36, 1024)
    ),
}
"""What is solved, by the name it has in the table."""

NOTES = """\
Where sets are large and independent, any three of them conflict, and a single inequality (of all
these sets two can be views) proves the optimum; the number of channels hardly matters. Smaller
sets also conflict in fours, fives and more. Those conflicts are not enumerated, but found one by
one, a few thousand of them in the last instance of copied channels, and each raises the bound by
little. Where time runs out, it is mostly the bound that is missing.

For blocks there is a program of its own, a circuit through all channels that differ, as long as
there are no more than some two hundred of them. Beyond that, local search and Held and Karp's bound
for the travelling salesman are left, and nothing closes the gap between them."""


def rows(solvers: Sequence[str], time_limit: float, workers: int) -> Iterator[str]:
    """One row per instance and solver."""
    for name, build in CASES.items():
        instance = build(random.Random(0))
        for solver in solvers:
            start = time.perf_counter()
            outcome = solve_instance(instance, solver, time_limit=time_limit, workers=workers)
            seconds = time.perf_counter() - start
            status = "optimal" if outcome.optimal else "feasible"
            yield (
                f"| {name} | {len(instance.reads)} | {solver} | {outcome.objective:,} | "
                f"{outcome.lower_bound:,} | {status} | {seconds:.2f} |"
            )
            name = ""  # once is enough


def tree_rows() -> Iterator[str]:
    """One row per number of sets and channels, for sets that can all be consecutive."""
    for sets, channels in ((64, 1024), (64, 8192), (256, 8192), (64, 65536)):
        instance = noisy_intervals(random.Random(0), sets, channels, flips=0)
        wanted = [demand.channels for demand in instance.demands]
        start = time.perf_counter()
        tree = PQTree(range(channels))
        reduced = sum(tree.reduce(members) for members in wanted)
        tree.frontier()
        seconds = time.perf_counter() - start
        ones = sum(map(len, wanted))
        yield f"| {sets} | {channels:,} | {ones:,} | {reduced} | {seconds:.2f} |"


def document(options: argparse.Namespace) -> Iterator[str]:
    """The lines of the page."""
    yield from (
        "# How far the solvers get",
        "",
        "Large instances: what the best orders found cost (copied channels, or blocks where the "
        f"name says so), and what is proven of it. One run each, with a limit of "
        f"{options.time_limit:g} s and {options.workers} worker of CP-SAT.",
        "",
        f"Written by `{pages.command()}`.",
        "",
        "| instance | reads | solver | cost | lower bound | status | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    )
    solvers = options.solver or [solver for solver in SOLVERS_SHOWN if solver in SOLVERS]
    yield from rows(solvers, options.time_limit, options.workers)
    yield from (
        "",
        NOTES,
        "",
        "## The PQ-tree alone",
        "",
        "Random intervals of a hidden order, reduced one by one; then the order is read off.",
        "",
        "| sets | channels | members of all sets | met | seconds |",
        "| --- | --- | --- | --- | --- |",
    )
    yield from tree_rows()


def main() -> int:
    """Print the page, and write it where asked."""
    parser = pages.parser(__doc__)
    parser.add_argument("--solver", action="append", choices=list(SOLVERS), help="may be repeated")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds for each")
    parser.add_argument("--workers", type=int, default=1, help="threads of CP-SAT")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pages.publish(pages.shown(document(options)), options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
