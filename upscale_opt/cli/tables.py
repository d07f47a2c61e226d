"""What the commands print when they are done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from upscale_opt.ir.graph import ChannelGraph, Opaque
from upscale_opt.ir.solution import Solution
from upscale_opt.solver.comparing import ComparisonRow
from upscale_opt.solver.objectives import UNITS

if TYPE_CHECKING:
    from upscale_opt.costs import Costs

_MAX_REASONS = 8


def output() -> Console:
    """Where results go: stdout, and not squeezed into 80 columns if that is a file."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=100)


def say(console: Console, line: str) -> None:
    """Print ``line`` as it is, without wrapping it."""
    console.print(line, markup=False, soft_wrap=True)


def costs_table(before: Costs, after: Costs) -> Table:
    """Parameters and multiply-adds, before and after."""
    table = _table("size", "unpruned", "pruned", "left")
    for name, old, new in (
        ("parameters", before.parameters, after.parameters),
        ("multiply-adds", before.multiply_adds, after.multiply_adds),
    ):
        share = f"{100 * new / old:.1f} %" if old else "-"
        table.add_row(name, f"{old:,}", f"{new:,}", share)
    return table


def orders_table(solutions: Mapping[str, Solution]) -> Table:
    """One row per choice of channel orders; the last one is exported."""
    table = _table("order", "reads", "views", "gathers", "copied channels", "lower bound", "status")
    for name, solution in solutions.items():
        table.add_row(
            name,
            f"{solution.views + solution.gathers:,}",
            f"{solution.views:,}",
            f"{solution.gathers:,}",
            f"{solution.objective_value:,} of {read_channels(solution):,}",
            lower_bound(solution),
            solution.status,
        )
    return table


def comparison_table(rows: Sequence[ComparisonRow]) -> Table:
    """One row per solver."""
    table = _table("solver", unit_of(rows[0]), "views", "lower bound", "gap", "status", "seconds")
    for row in rows:
        table.add_row(
            row.solver,
            _number(row.objective_value),
            "-" if row.views is None else f"{row.views:,} of {row.reads:,}",
            _number(row.lower_bound),
            "-" if row.gap is None else f"{100 * row.gap:.2f} %",
            row.status,
            f"{row.seconds:.2f}",
        )
    return table


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def unit_of(row: ComparisonRow) -> str:
    """What the row's objective value counts; a bare instance does not know."""
    return UNITS.get(row.objective, "cost")


def row_line(row: ComparisonRow) -> str:
    """What a solver found, in one line."""
    if row.objective_value is None:
        return f"{row.solver}: {row.status} after {row.seconds:.2f} s"
    found = f"{unit_of(row)} {row.objective_value:,}"
    return f"{row.solver}: {found}, {row.status}, {row.seconds:.2f} s"


def times_table(seconds: Mapping[str, float]) -> Table:
    """Seconds by step."""
    table = _table("step", "seconds")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.2f}")
    table.add_section()
    table.add_row("all", f"{sum(seconds.values()):.2f}")
    return table


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def order_name(solution: Solution) -> str:
    """What a solution's orders are called in a table."""
    if solution.solver == "identity":
        return "no reordering"
    if solution.solver == "cp-sat":
        return "optimum" if solution.status == "optimal" else "best found"
    return solution.solver


def read_channels(solution: Solution) -> int:
    """The channels that all reads together need."""
    return sum(len(read.channels) for read in solution.reads if not read.optional)


def lower_bound(solution: Solution) -> str:
    """The lower bound, or a dash where a heuristic proved none."""
    proven = solution.status == "optimal" or solution.lower_bound > 0
    return f"{solution.lower_bound:,}" if proven or solution.solver == "cp-sat" else "-"


def summary(solution: Solution) -> str:
    """A solution in one line."""
    reads = solution.views + solution.gathers
    if solution.objective == "copied_channels":
        cost = f"{solution.objective_value:,} of {read_channels(solution):,} read channels copied"
    else:
        cost = f"{solution.objective_value:,} {UNITS[solution.objective]}"
    return (
        f"{order_name(solution)}: {reads:,} reads, {solution.views:,} views, "
        f"{solution.gathers:,} gathers; {cost}, lower bound {lower_bound(solution)}"
    )


def opaque_lines(graph: ChannelGraph) -> list[str]:
    """Why channels stay that might have gone, the most frequent reason first."""
    reasons = Counter(op.reason for op in graph.operations if isinstance(op, Opaque))
    if not reasons:
        return []
    lines = [f"{reasons.total():,} operations are opaque: what they read and write stays whole"]
    lines += [f"  {count} x {reason}" for reason, count in reasons.most_common(_MAX_REASONS)]
    if len(reasons) > _MAX_REASONS:
        lines.append(f"  and {len(reasons) - _MAX_REASONS} more reasons, in the graph")
    return lines
