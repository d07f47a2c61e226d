"""Solve a graph from JSON, in a Python that need not have PyTorch.

Make the two files where PyTorch is, and take them wherever there is time to solve them:

    upscale-opt trace densenet121 -o graph.json --masks masks.json
    python examples/solve_without_torch.py graph.json masks.json
"""

from __future__ import annotations

import sys

import upscale_opt as uo


def main(graph_file: str, masks_file: str) -> None:
    """Solve, and print what has to be copied and why."""
    graph = uo.ChannelGraph.load(graph_file)
    masks = uo.Masks.load(masks_file)
    solution = uo.solve(graph, masks, time_limit=30)
    print(
        f"{solution.status}: {solution.objective_value:,} copied channels, "
        f"at least {solution.lower_bound:,} under any orders"
    )
    gathers = [read for read in solution.reads if read.plan == "gather"]
    print(f"\n{len(gathers)} of {len(solution.reads)} reads are gathers:")
    for read in gathers:
        print(f"  {read.name}: {read.copied} channels")

    print(f"\nChecked without a solver: {uo.check(solution, graph, masks)}")
    print("Why some of them are gathers:")
    for explanation in uo.explain(solution)[:3]:
        print(explanation)
    print("\nPyTorch was", "loaded" if "torch" in sys.modules else "not needed")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: solve_without_torch.py GRAPH MASKS")
    main(*sys.argv[1:])
