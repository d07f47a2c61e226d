"""Write the small instances with their optima that every solver is tested on.

python benchmarks/instance_library.py --out tests/solver/instances

The same instances come out at every run. Optima are found by trying all orders, or proven by
cp-sat where a space has too many of them; each file says which.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from upscale_opt.errors import SolverError
from upscale_opt.models.instances.from_sets import one_space, with_measure
from upscale_opt.models.instances.handmade import NETWORK_LIKE, POISONED, WITH_WISHES
from upscale_opt.models.instances.obstructions import Obstruction, obstruction
from upscale_opt.models.instances.random import (
    GENERATORS,
    chains,
    correlated,
    dense_block,
    embedded,
    independent,
    noisy_intervals,
    streams,
)
from upscale_opt.solver.algorithms.registry import solve_instance
from upscale_opt.solver.brute_force import brute_force
from upscale_opt.solver.problem.instance import Instance
from upscale_opt.solver.problem.instance_file import InstanceFile

FOLDER = Path(__file__).parents[1] / "tests" / "solver" / "instances"


def library() -> Iterator[tuple[str, Instance]]:
    """All instances by name; those of measure "blocks" say so in it."""
    for name, instance in named():
        yield name, instance
        if all(read.parts for read in instance.reads) and instance.reads:
            yield f"{name}-blocks", with_measure(instance, "blocks")
    yield from POISONED.items()
    yield from WITH_WISHES.items()


def named() -> Iterator[tuple[str, Instance]]:
    """The instances that make sense under both measures."""
    yield from NETWORK_LIKE.items()
    sizes: list[tuple[Obstruction, int]] = [("I", 2), ("II", 2), ("III", 3), ("IV", 1), ("V", 1)]
    for name, k in sizes:
        rows = obstruction(name, k)
        number = f"-{k}" if name in ("I", "II", "III") else ""
        elements = len(frozenset().union(*rows))
        yield f"tucker-{name.lower()}{number}", one_space(elements, rows)
    rng = random.Random(0)
    yield "tucker-ii-1-among-others", one_space(8, embedded(rng, obstruction("II", 1), 8))
    yield "independent-thirds", independent(rng, 6, 8, amount=1 / 3)
    yield "correlated-halves", correlated(rng, 6, 8, correlation=0.7)
    yield "three-chains", chains(rng, 6, 8, count=3)
    yield "laminar", GENERATORS["laminar"](rng, 6, 8)
    yield "noisy-intervals", noisy_intervals(rng, 6, 8, flips=0.15)
    yield "streams", streams(rng, 6, 9, spaces=3)
    yield "dense-block", dense_block(rng, 4, 6, max_gathers=1)
    yield "anything", GENERATORS["anything"](rng, 6, 8)


def solved(name: str, instance: Instance) -> InstanceFile:
    """The instance as a document, with its optimum."""
    by: Literal["brute force", "cp-sat"] = "brute force"
    try:
        optimum = brute_force(instance)
    except SolverError:  # too large to try all orders
        outcome = solve_instance(instance, "cp-sat", time_limit=600)
        if not outcome.optimal:
            raise SolverError(f"cp-sat did not prove an optimum of {name!r}") from None
        optimum, by = outcome.objective, "cp-sat"
    return InstanceFile.from_instance(instance, name, optimum=optimum, optimum_by=by)


def main() -> int:
    """Write one file per instance."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder to write to")
    folder: Path = parser.parse_args().out
    for name, instance in library():
        document = solved(name, instance)
        document.save(folder / f"{name}.json")
        print(f"{name}: {document.optimum:,} ({document.optimum_by})", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
