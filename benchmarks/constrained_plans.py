"""Masks grown until coupled layers agree: does any network of the catalogue still copy channels?

    python benchmarks/constrained_plans.py                        # a few networks
    python benchmarks/constrained_plans.py --full --jobs 2

Every layer drops its channels for itself; ``constrain`` grows the masks; and the plan without
reordering must have no gather. Plans only: benchmarks/criteria.py exports and verifies.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import pages
from greedy_vs_exact import A_FEW, masks_file, prepare

import upscale_opt as uo
from upscale_opt.masking.segments import Side
from upscale_opt.models import catalogue


def copied(name: str, amount: float, folder: Path, side: Side) -> tuple[str, int]:
    """The channels that the plan of the grown masks copies."""
    prepare(name, folder, [amount], side)
    graph = uo.ChannelGraph.load(folder / f"{name}.json")
    masks = uo.Masks.load(masks_file(folder, name, amount, side))
    solution = uo.solve(graph, uo.constrain(graph, masks), solver="identity")
    return name, solution.copied


def main() -> int:
    """Go through the networks; 1 if one of them copies."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="all of torchvision's classifiers")
    parser.add_argument("--amount", type=float, default=0.3)
    parser.add_argument("--side", choices=["input", "output", "both"], default="input")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--cache", type=Path, help="keep graphs and masks here, for the next time")
    options = parser.parse_args()
    every = [name for name in catalogue.names() if not name.startswith(catalogue.PREFIX)]
    names = every if options.full else A_FEW
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.cache or Path(temporary)
        work = partial(copied, amount=options.amount, folder=folder, side=options.side)
        runs = list(pages.side_by_side(work, names, options.jobs))
    for name, count in runs:
        if count:
            print(f"{name}: {count:,} channels copied")
    clean = sum(not count for _, count in runs)
    print(f"{clean} of {len(names)} networks copy nothing")
    return 0 if clean == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
