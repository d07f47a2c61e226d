"""Solve thousands of small random instances with every solver, beside brute force.

    python benchmarks/solver_sweep.py --count 2000 --seed 0 --jobs 2
    python benchmarks/solver_sweep.py --solver cp-sat --solver pulp-cbc
    python benchmarks/solver_sweep.py --count 1 --seed 4711           # one of them again

Exact solvers must prove the optimum that brute force finds (those that compute in floating point,
up to a millionth where weights are huge). Heuristics must not do better. Orders must be orders and
cost what the solver says, bounds must be true, and so must be every conflict in a proof and every
bound that follows from it. An instance with which anything else happens is saved as JSON. Exit
status: 0 if all is well, 1 after a failure, 130 if interrupted before any.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track

from upscale_opt.models.instances.from_sets import with_measure
from upscale_opt.models.instances.random import random_instance
from upscale_opt.solver.algorithms.registry import SOLVERS, solve_instance
from upscale_opt.solver.brute_force import brute_force
from upscale_opt.solver.problem.instance import (
    Instance,
    Measure,
    Outcome,
    as_copies,
    cost,
)
from upscale_opt.solver.problem.instance_file import InstanceFile
from upscale_opt.solver.problem.proof import false_group, proven_bound

HEURISTICS = ("local-search", "greedy", "identity")
COPIES_ONLY = ("pulp", "pulp-cbc")
ON_REQUEST = ("pulp-cbc",)
MEASURES: tuple[Measure, ...] = ("copies", "blocks")
FOLDER = Path("out/solver_sweep")


@dataclass(frozen=True)
class Result:
    """What came of one instance under one measure.

    Attributes:
        seed: what the instance was drawn from.
        measure: what orders cost.
        failures: by solver, what is wrong, in one line.
        optimal: the solvers whose orders are optimal.
        checked: the solvers whose proof alone shows their lower bound.
        seconds: by solver.
    """

    seed: int
    measure: Measure
    failures: dict[str, str]
    optimal: tuple[str, ...]
    checked: tuple[str, ...]
    seconds: dict[str, float]


def instance_of(seed: int, measure: Measure) -> Instance:
    """The instance with this seed."""
    rng = random.Random(seed)
    instance = random_instance(rng)
    if measure == "copies":
        return instance
    weights = [read.weight for read in instance.reads] if rng.random() < 0.5 else None
    return with_measure(instance, measure, weights)


def try_case(case: tuple[int, Measure], solvers: Sequence[str]) -> Result:
    """Solve one instance with all solvers."""
    seed, measure = case
    instance = instance_of(seed, measure)
    optimum = brute_force(instance)
    failures: dict[str, str] = {}
    seconds: dict[str, float] = {}
    optimal, checked = [], []
    for solver in solvers:
        if measure == "blocks" and solver in COPIES_ONLY:
            continue
        start = time.perf_counter()
        try:
            outcome = solve_instance(instance, solver, time_limit=60, seed=seed)
            seconds[solver] = time.perf_counter() - start
            problem = wrong(instance, solver, outcome, optimum)
        except Exception as error:
            failures[solver] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            seconds.setdefault(solver, 0.0)
            continue
        if problem is not None:
            failures[solver] = problem
        if outcome.objective == optimum:
            optimal.append(solver)
        if bound_by_proof(instance, outcome) >= outcome.lower_bound:
            checked.append(solver)
    return Result(seed, measure, failures, tuple(optimal), tuple(checked), seconds)


def wrong(instance: Instance, solver: str, outcome: Outcome, optimum: int) -> str | None:
    """What is wrong with the outcome."""
    for number, (space, order) in enumerate(zip(instance.spaces, outcome.orders, strict=True)):
        if sorted(order) != sorted(space.channels):
            return f"space {number} is not ordered, but {order}"
        if space.fixed and order != space.channels:
            return f"space {number} is fixed, but ordered {order}"
    if cost(instance, outcome.orders) != outcome.objective:
        return f"costs {cost(instance, outcome.orders)}, not {outcome.objective}"
    if outcome.objective < optimum:
        return f"costs {outcome.objective}, brute force {optimum}"
    if not 0 <= outcome.lower_bound <= optimum:
        return f"the bound is {outcome.lower_bound}, the optimum {optimum}"
    gap = outcome.objective - outcome.lower_bound
    if solver not in HEURISTICS and gap > rounding(instance, solver):
        return f"only proves {outcome.lower_bound} of {outcome.objective}; optimum {optimum}"
    relaxed = as_copies(instance)[0] if instance.measure == "blocks" else instance
    false = false_group(relaxed, outcome.proof)
    if false is not None:
        return f"says that demands {false} exclude each other"
    if bound_by_proof(instance, outcome) > optimum:
        return f"proves {bound_by_proof(instance, outcome)}, the optimum is {optimum}"
    return None


def rounding(instance: Instance, solver: str) -> int:
    """How much an exact solver may leave open: nothing, unless it computes in floating point."""
    weights = [read.weight for read in instance.reads]
    weights += [piece.weight for read in instance.reads for piece in read.pieces]
    if not solver.startswith("pulp") or sum(weights) < 2**28:
        return 0
    return sum(weights) >> 20


def bound_by_proof(instance: Instance, outcome: Outcome) -> int:
    """What the outcome's proof alone shows."""
    if instance.measure == "copies":
        return proven_bound(instance, outcome.proof)
    relaxed, constant = as_copies(instance)
    return constant + proven_bound(relaxed, outcome.proof)


def save(result: Result, folder: Path) -> Path:
    """Write the instance down."""
    instance = instance_of(result.seed, result.measure)
    name = f"{result.measure}-{result.seed}"
    document = InstanceFile.from_instance(
        instance, name, optimum=brute_force(instance), optimum_by="brute force"
    )
    document.save(folder / f"{name}.json")
    return folder / f"{name}.json"


def results(
    cases: Sequence[tuple[int, Measure]], solvers: Sequence[str], jobs: int
) -> Iterator[Result]:
    """Try all cases, in ``jobs`` processes."""
    task = partial(try_case, solvers=solvers)
    if jobs == 1:
        yield from map(task, cases)
        return
    quiet = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)  # the main process stops all
    with multiprocessing.get_context("forkserver").Pool(jobs, quiet) as pool:
        yield from pool.imap_unordered(task, cases, chunksize=4)


def report(console: Console, found: Sequence[Result], solvers: Sequence[str]) -> None:
    """Print one row per measure and solver."""
    for measure, solver in itertools.product(MEASURES, solvers):
        tried = [r for r in found if r.measure == measure and solver in r.seconds]
        if not tried:
            continue
        optimal = sum(solver in result.optimal for result in tried)
        checked = sum(solver in result.checked for result in tried)
        failed = sum(solver in result.failures for result in tried)
        seconds = sum(result.seconds[solver] for result in tried)
        console.print(
            f"{measure}, {solver}: {optimal:,} of {len(tried):,} optimal, bound shown by its "
            f"proof alone {checked:,} times, {failed:,} failed, {seconds:.0f} s",
            highlight=False,
            soft_wrap=True,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="how many instances")
    parser.add_argument("--seed", type=int, default=0, help="the first instance's seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument(
        "--solver", action="append", choices=list(SOLVERS), help="only this one; may be repeated"
    )
    parser.add_argument("--measure", choices=MEASURES, help="only this one")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where to save what fails")
    options = parser.parse_args(arguments)
    if options.count < 0 or options.seed < 0 or options.jobs < 1:
        parser.error("--count and --seed cannot be negative, and --jobs is 1 or more")
    solvers = options.solver or [solver for solver in SOLVERS if solver not in ON_REQUEST]
    measures: Sequence[Measure] = [options.measure] if options.measure else MEASURES
    cases = [(options.seed + i, measure) for i in range(options.count) for measure in measures]
    console = Console(stderr=True)
    found: list[Result] = []
    interrupted = False
    try:
        steps = results(cases, solvers, options.jobs)
        for result in track(steps, "solving", len(cases), console=console):
            found.append(result)
            for solver, failure in result.failures.items():
                path = save(result, options.out)
                line = f"seed {result.seed}, {result.measure}, {solver}: {failure} ({path})"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        interrupted = True
        console.print("interrupted")
    report(Console(), found, solvers)
    failed = Counter(solver for result in found for solver in result.failures)
    if failed:
        return 1
    return 130 if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
