"""The tables and lines that commands print when they are done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, OverflowMethod
from rich.markup import escape
from rich.table import Table

from upscale_opt.ir.choice import Choice
from upscale_opt.ir.graph import ChannelGraph, Opaque
from upscale_opt.ir.solution import Solution
from upscale_opt.solver.choosing import ChoiceRow
from upscale_opt.solver.comparing import ComparisonRow
from upscale_opt.solver.layer_table import LayerTable
from upscale_opt.solver.network.objectives import UNITS
from upscale_opt.solver.selection.setting import NOUNS

if TYPE_CHECKING:
    from upscale_opt.measuring.costs import Costs

_MAX_REASONS = 8


def output() -> Console:
    """The place of results: stdout, and not squeezed into 80 columns if that is a file."""
    console = Console(highlight=False, emoji=False)  # :Name: may be a model's
    return console if console.is_terminal else Console(highlight=False, emoji=False, width=100)


def say(console: Console, line: str) -> None:
    """Print ``line`` as it is, without wrapping it."""
    console.print(line, markup=False, soft_wrap=True)


def other_budgets(choice: Choice) -> Iterator[str]:
    """One line on what other budgets would lose, if that is known."""
    losses = ((share, choice.loss_at(share)) for share in _SHARES)
    known = [f"{share:.0%}: {loss:.3g}" for share, loss in losses if loss is not None]
    if known:
        what = NOUNS[choice.resources[0].resource]
        yield (
            f"Loss at other shares of the {what}, about: {', '.join(known)} "
            f"(here: {choice.loss:.3g})"
        )


_SHARES = (0.9, 0.75, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


def costs_table(before: Costs, after: Costs) -> Table:
    """Parameters and multiply-adds, before and after."""
    table = new_table("size", "unpruned", "pruned", "left")
    for name, old, new in (
        ("parameters", before.parameters, after.parameters),
        ("multiply-adds", before.multiply_adds, after.multiply_adds),
    ):
        share = f"{100 * new / old:.1f} %" if old else "-"
        table.add_row(name, f"{old:,}", f"{new:,}", share)
    return table


def layers_table(layers: LayerTable) -> Table:
    """One row per layer, before and after."""
    *_, total = rows = list(layers.cells())
    columns = layers.columns
    table = new_table(*columns)
    table.columns[1].justify = "left"
    for row in rows[:-1]:
        table.add_row(*map(escape, row))
    table.add_section()
    table.add_row(*total)
    table.caption = layers.note or None
    table.caption_justify = "left"
    return table


def kept_table(choice: Choice) -> Table:
    """One row per layer that could choose its channels: what it read and wrote, and reads now."""
    table = new_table("layer", "reads", "of", "writes", "of", "loss")
    for layer in choice.layers:
        name = layer.parameter.rpartition(".")[0] or layer.operation
        writes = (f"{layer.written:,}", f"{layer.written_before:,}")
        table.add_row(
            name,
            f"{layer.kept:,}",
            f"{layer.before:,}",
            *(writes if layer.written_before else ("-", "-")),
            f"{layer.loss:.4g}",
        )
    table.add_section()
    table.add_row("all", "", "", "", "", f"{choice.loss:.4g}")
    return table


def orders_table(solutions: Mapping[str, Solution]) -> Table:
    """One row per choice of channel orders; the last one is exported."""
    found = list(solutions.values())
    windows = any(solution.windows for solution in found)
    kinds = ("views", "windows", "gathers") if windows else ("views", "gathers")
    unit = UNITS[found[0].objective]
    channels = ("copied channels",) if unit == "copied bytes" else ()
    table = new_table("order", "reads", *kinds, *channels, unit, "lower bound", "status")
    for name, solution in solutions.items():
        table.add_row(
            name,
            f"{reads(solution):,}",
            *(f"{getattr(solution, kind):,}" for kind in kinds),
            *(_copied(solution) for _ in channels),
            _value(solution),
            lower_bound(solution),
            solution.status,
        )
    return table


def _value(solution: Solution) -> str:
    """The cost of the orders; of copied channels, also the number of those that are read."""
    value = f"{solution.objective_value:,}"
    if solution.objective == "copied_channels":
        return f"{value} of {read_channels(solution):,}"
    return value


def _copied(solution: Solution) -> str:
    """The channels that are copied, of those that are read."""
    return f"{solution.copied:,} of {read_channels(solution):,}"


def comparison_table(rows: Sequence[ComparisonRow]) -> Table:
    """One row per solver."""
    windows = any(row.windows for row in rows)
    more: tuple[str, ...] = ("windows", "extra macs") if windows else ()
    stored = any(row.widths not in (None, "trimmed") for row in rows)
    more += ("widths",) if stored else ()
    rest = ("lower bound", "gap", "status", "seconds")
    table = new_table("solver", unit_of(rows[0]), "views", *more, *rest)
    for row in rows:
        table.add_row(
            row.solver,
            _number(row.objective_value),
            "-" if row.views is None else f"{row.views:,} of {row.reads:,}",
            *((_number(row.windows), _number(row.extra_macs)) if windows else ()),
            *((row.widths or "-",) if stored else ()),
            _number(row.lower_bound),
            "-" if row.gap is None else f"{100 * row.gap:.2f} %",
            row.status,
            f"{row.seconds:.2f}",
        )
    return table


def choices_table(rows: Sequence[ChoiceRow]) -> Table:
    """One row per solver that chose masks."""
    names = [use.resource for use in next((row.resources for row in rows if row.resources), ())]
    table = new_table("solver", "loss", "lower bound", *names, "channels", "status", "seconds")
    for row in rows:
        shares = {use.resource: f"{use.share:.1%}" for use in row.resources}
        table.add_row(
            row.solver,
            "-" if row.loss is None else f"{row.loss:.4g}",
            "-" if row.lower_bound is None else f"{row.lower_bound:.4g}",
            *(shares.get(name, "-") for name in names),
            _number(row.channels),
            row.status,
            f"{row.seconds:.2f}",
        )
    return table


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def unit_of(row: ComparisonRow) -> str:
    """The unit of the row's objective value; a bare instance does not know."""
    return UNITS.get(row.objective, "cost")


def row_line(row: ComparisonRow) -> str:
    """One line that says what a solver found."""
    if row.objective_value is None:
        return f"{row.solver}: {row.status} after {row.seconds:.2f} s"
    found = f"{unit_of(row)} {row.objective_value:,}"
    return f"{row.solver}: {found}, {row.status}, {row.seconds:.2f} s"


def times_table(seconds: Mapping[str, float]) -> Table:
    """Seconds by step."""
    table = new_table("step", "seconds")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.2f}")
    table.add_section()
    table.add_row("all", f"{sum(seconds.values()):.2f}")
    return table


def new_table(*columns: str) -> Table:
    """An empty table; the first column is aligned to the left, the others to the right."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for number, column in enumerate(columns):
        # A name that is cut short cannot be copied.
        overflow: OverflowMethod = "ellipsis" if number else "fold"
        table.add_column(column, justify="right" if number else "left", overflow=overflow)
    return table


def order_name(solution: Solution) -> str:
    """The name of a solution's orders in a table."""
    if solution.solver == "identity":
        return "no reordering"
    if solution.solver == "cp-sat":
        return "optimum" if solution.status == "optimal" else "best found"
    return solution.solver


def reads(solution: Solution) -> int:
    """The number of reads, apart from the optional ones."""
    return solution.views + solution.windows + solution.gathers


def read_channels(solution: Solution) -> int:
    """The channels that all reads together need."""
    return sum(len(read.channels) for read in solution.reads if not read.optional)


def lower_bound(solution: Solution) -> str:
    """The lower bound, or a dash where a heuristic proved none."""
    proven = solution.status == "optimal" or solution.lower_bound > 0
    return f"{solution.lower_bound:,}" if proven or solution.solver == "cp-sat" else "-"


def summary(solution: Solution) -> str:
    """A solution in one line."""
    if solution.objective == "copied_channels":
        cost = f"{solution.objective_value:,} of {read_channels(solution):,} read channels copied"
    else:
        cost = f"{solution.objective_value:,} {UNITS[solution.objective]}"
        if solution.objective == "copied_bytes":
            cost += f" ({_copied(solution)} read channels)"
    windows = f"{solution.windows:,} windows, " if solution.windows else ""
    return (
        f"{order_name(solution)}: {reads(solution):,} reads, {solution.views:,} views, {windows}"
        f"{solution.gathers:,} gathers; {cost}, lower bound {lower_bound(solution)}"
    )


def layout_lines(solution: Solution) -> list[str]:
    """Lines about windows, their costs, and arenas; none for a plan without them."""
    lines = []
    if solution.windows:
        lines.append(f"{solution.windows:,} windows add {extra_work(solution)}")
    if solution.arenas:
        joined = sum(len(arena.tensors) for arena in solution.arenas)
        lines.append(
            f"{len(solution.arenas):,} arenas: buffers that {joined:,} concatenations share"
        )
    return lines


def extra_work(solution: Solution) -> str:
    """The multiply-adds that windows add, and their share."""
    share = 100 * solution.extra_macs / solution.macs if solution.macs else 0.0
    return f"{solution.extra_macs:,} multiply-adds ({share:.2g} %)"


def opaque_lines(graph: ChannelGraph) -> list[str]:
    """The reasons why channels stay that might have gone, the most frequent one first."""
    reasons = Counter(op.reason for op in graph.operations if isinstance(op, Opaque))
    if not reasons:
        return []
    lines = [f"{reasons.total():,} operations are opaque: what they read and write stays whole"]
    lines += [f"  {count} x {reason}" for reason, count in reasons.most_common(_MAX_REASONS)]
    if len(reasons) > _MAX_REASONS:
        lines.append(f"  and {len(reasons) - _MAX_REASONS} more reasons, in the graph")
    return lines
