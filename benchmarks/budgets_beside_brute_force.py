"""Choices within budgets beside brute force, on questions so small that all masks can be tried.

python benchmarks/budgets_beside_brute_force.py --questions 500

With all sets as columns the program must find the optimum; with the chains that reconstruction
makes, its loss is compared with that. Bounds must not be above it in either case.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pages

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from tiny_budgets import tiny_question

from upscale_opt.errors import BudgetError
from upscale_opt.solver import choose

_TRUE = 1 + 1e-9
_SAME = 1 + 1e-6


def beside(seed: int, seconds: float) -> tuple[list[str], float | None]:
    """All that is wrong with one question, and by how much nested chains lose more."""
    tiny = tiny_question(seed)
    best = tiny.least_loss()
    if best is None:
        return [], None
    wrong = []
    nested: float | None = None
    for name, losses in (("all sets", tiny.losses), ("nested", tiny.nested())):
        try:
            choice = choose(tiny.graph, losses, tiny.budget, time_limit=seconds)
        except BudgetError as error:
            if name == "all sets":
                wrong.append(f"{seed}: refused: {error}")
            continue
        highest = max(choice.lower_bound, choice.column_bound if name == "all sets" else 0.0)
        if highest > best * _TRUE:
            wrong.append(f"{seed}, {name}: the bound {highest} is above the truth, {best}")
        if name == "all sets" and choice.loss > best * _SAME:
            wrong.append(f"{seed}: loses {choice.loss}, where {best} is possible")
        if name == "nested":
            nested = choice.loss / best - 1 if best else 0.0
    return wrong, nested


def page(results: list[tuple[list[str], float | None]]) -> Iterator[str]:
    """The findings."""
    excess = [nested for _, nested in results if nested is not None]
    wrong = [line for own, _ in results for line in own]
    yield f"{len(results)} questions, {len(excess)} of them decided by brute force:"
    yield f"{len(wrong)} wrong with all sets as columns, or in their bounds;"
    if excess:
        yield (
            f"with nested chains, {100 * sum(excess) / len(excess):.2f} % more is lost in the "
            f"mean, {100 * max(excess):.1f} % at most."
        )
    yield from wrong


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each choice")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    work = partial(beside, seconds=options.seconds)
    results = list(pages.side_by_side(work, range(options.questions), options.jobs))
    pages.publish(page(results), options.out)
    sys.exit(any(wrong for wrong, _ in results))


if __name__ == "__main__":
    main()
