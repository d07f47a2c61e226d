"""The numbers at the top of the page, as HTML that needs no script."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from upscale_opt.ir.choice import Choice
from upscale_opt.ir.graph import Attention, ChannelGraph, Opaque
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.report.curve import curves
from upscale_opt.solver.api import solve
from upscale_opt.solver.checking.audit import AuditReport, check
from upscale_opt.solver.checking.explaining import Explanation
from upscale_opt.solver.layer_table import LayerTable, Size
from upscale_opt.solver.layers import layers_of, prices_of
from upscale_opt.solver.network.objectives import UNITS

_REASONS = {
    "conflict": "cannot be views together with the reads that are",
    "hindrance": "cannot be views under any order",
    "choice": "could be views: nothing forbids it, but this solution has them as gathers",
}


@dataclass(frozen=True)
class Summary:
    """The figures of the solution as a whole that the page shows.

    Attributes:
        solution: the solution.
        choice: what chose the masks, if a budget did.
        layers: every layer before and after, if the graph is known.
        original: the solution without reordering, if it could be had.
        checked: what checking it showed, if it could be checked.
        explanations: of all gathers and windows.
        notes: what is missing, and what to know.
    """

    solution: Solution
    choice: Choice | None
    layers: LayerTable | None
    original: Solution | None
    checked: AuditReport | None
    explanations: tuple[Explanation, ...]
    notes: tuple[str, ...]

    def html(self) -> str:
        """The summary's HTML."""
        return "\n".join(
            [
                '<div class="tiles">',
                *self._tiles(),
                "</div>",
                '<div class="tables">',
                _table("Reads", ("", "original order", "chosen order"), self._orders()),
                _table("Size", ("", "unpruned", "pruned", "left"), self._sizes()),
                "</div>",
                *(() if self.choice is None else curves(self.choice)),
                *(() if self.layers is None else _layers(self.layers)),
                _list("Why there are copies", self._reasons()),
                _list("What to know", self.notes),
                '<details class="more"><summary>How it was found</summary><dl>',
                *(
                    f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>"
                    for name, value in self._facts()
                ),
                "</dl></details>",
            ]
        )

    def _tiles(self) -> Iterator[str]:
        solution = self.solution
        unit, value = UNITS[solution.objective], solution.objective_value
        note = ""
        if solution.objective == "copied_channels" and not solution.weights:
            note = f"of {_read_channels(solution):,} that are read"
        if solution.objective == "copied_bytes":
            note = f"{_number(_copied(solution))} of {_read_channels(solution):,} read channels"
        if self.original is not None:
            note += f"{'; ' if note else ''}{self.original.objective_value:,} before ordering"
        yield _tile("value", unit[0].upper() + unit[1:], f"{value:,}", note)
        known = _has_bound(solution)
        bound = f"{solution.lower_bound:,}" if known else "none"
        yield _tile(
            "bound", "Lower bound", bound, "no order costs less" if known else "not claimed"
        )
        gap = (value - solution.lower_bound) / value if value else 0.0
        text = f"{100 * gap:.1f} %" if known else "not known"
        if known and 0 < gap < 0.001:
            text = "below 0.1 %"
        yield _tile("gap", "Gap", text, "between value and bound")
        optimal = solution.status == "optimal"
        mark, word = ("✓", "Proven optimal") if optimal else ("○", "Feasible")
        yield _tile("status", "Status", f"{mark} {word}", self._proof(), solution.status)

    def _proof(self) -> str:
        if self.checked is not None:
            if self.checked.proven and self.checked.lower_bound:
                return "checked here: the proof holds"
            if self.checked.lower_bound:
                return "plan checked here; the bound is the solver's word"
            return "plan checked here"
        return "as the solution says; not checked here"

    def _orders(self) -> Iterator[tuple[str, ...]]:
        before, after = self.original, self.solution
        counts = [("views", "views"), ("windows", "windows"), ("gathers", "gathers")]
        for name, attribute in counts:
            old = None if before is None else getattr(before, attribute)
            new = getattr(after, attribute)
            if old or new or name != "windows":
                yield name, _number(old), _number(new)
        yield "copied channels", _number(_copied(before)), _number(_copied(after))
        if after.objective not in ("copied_channels", "gathers") or after.weights:
            old = None if before is None else before.objective_value
            yield UNITS[after.objective], _number(old), _number(after.objective_value)

    def _sizes(self) -> Iterator[tuple[str, ...]]:
        old: Size | None = None
        new: Size | None = None
        if self.layers is not None:
            old, new = self.layers.before, self.layers.after
        for name, attribute in (("parameters", "parameters"), ("multiply-adds", "multiply_adds")):
            before = None if old is None else getattr(old, attribute)
            after = None if new is None else getattr(new, attribute)
            if name == "multiply-adds" and after is None and self.solution.macs:
                after = self.solution.macs + self.solution.extra_macs
            share = f"{100 * after / before:.1f} %" if before and after is not None else "–"
            yield name, _number(before), _number(after), share
        if old is not None and new is not None and old.nanoseconds:
            times = [f"{size.nanoseconds / 1e6:.3g}" for size in (old, new)]
            yield "estimated ms", *times, f"{100 * new.nanoseconds / old.nanoseconds:.1f} %"
        if self.solution.extra_macs:
            share = f"{100 * self.solution.extra_macs / self.solution.macs:.2g} % more"
            yield "added by windows", "–", _number(self.solution.extra_macs), share

    def _reasons(self) -> Iterator[str]:
        found: Counter[str] = Counter(e.reason for e in self.explanations)
        copied: Counter[str] = Counter()
        for explanation in self.explanations:
            copied[explanation.reason] += explanation.copied
        for reason, words in _REASONS.items():
            if found[reason]:
                number = found[reason]
                yield (
                    f"{number:,} {'gather' if number == 1 else 'gathers'} "
                    f"({copied[reason]:,} channels) {words}."
                )

    def _facts(self) -> Iterator[tuple[str, str]]:
        solution = self.solution
        yield "Solver", f"{solution.solver}, seed {solution.seed}"
        yield "Minimised", UNITS[solution.objective]
        yield "Selection", solution.selection
        if solution.max_extra_macs:
            yield "Windows may add", f"{100 * solution.max_extra_macs:g} % of the multiply-adds"
        if solution.weights:
            yield "Weights", ", ".join(f"{name} × {w}" for name, w in solution.weights.items())
        if solution.cost_model is not None:
            yield "Cost model", f"{solution.cost_model.device}, {solution.cost_model.dtype}"
        for arena in solution.arenas:
            yield "Arena", f"{len(arena.channels):,} channels, for {', '.join(arena.tensors)}"
        times = solution.times
        yield (
            "Seconds",
            f"{times.analysis:.2f} to analyse, {times.solve:.2f} to solve, "
            f"{times.layout:.2f} to lay out",
        )
        if self.checked is not None:
            yield "Checked", f"{UNITS[solution.objective]}: {self.checked}"
        yield "Graph", solution.graph_fingerprint


def summarise(
    solution: Solution,
    graph: ChannelGraph | None,
    masks: Masks | None,
    choice: Choice | None,
    explanations: tuple[Explanation, ...],
) -> Summary:
    """Find out what can be said with what is there.

    Raises:
        VerificationError: if the solution does not belong to graph and masks.
        MaskError: if the masks do not fit the graph.
    """
    checked = original = None
    if graph is not None and masks is not None:
        checked = check(solution, graph, masks)
        original = solve(
            graph,
            masks,
            solver="identity",
            objective=solution.objective,
            selection=solution.selection,
            weights=solution.weights,
            cost_model=solution.cost_model,
        )
    prices = prices_of(solution, choice)
    return Summary(
        solution,
        choice,
        None if graph is None else layers_of(graph, solution, choice, cost_model=prices),
        original,
        checked,
        explanations,
        tuple(_notes(solution, graph, masks)),
    )


def _notes(solution: Solution, graph: ChannelGraph | None, masks: Masks | None) -> Iterator[str]:
    if graph is None:
        yield (
            "Made without the graph: reads that every order serves alike are listed but not drawn, "
            "and the unpruned network's sizes are missing. Give --graph for the rest."
        )
    elif masks is None:
        yield (
            "Made without the masks: the solution is not checked, and what the original order "
            "costs is missing. Give --masks for that."
        )
    if graph is not None:
        opaque = sum(isinstance(op, Opaque) for op in graph.operations)
        if opaque:
            yield (
                f"{opaque:,} operations are opaque: the channels around them stay. Their own "
                "parameters and multiply-adds are not in the sizes."
            )
        if any(isinstance(op, Attention) for op in graph.operations):
            yield "The products of attention itself are not among the multiply-adds."
    optional = sum(read.optional for read in solution.reads)
    if optional:
        yield (
            f"{optional:,} further views merely drop channels that nobody needs, for free; they "
            "are not shown."
        )


def _read_channels(solution: Solution) -> int:
    return sum(len(read.channels) for read in solution.reads if not read.optional)


def _copied(solution: Solution | None) -> int | None:
    return None if solution is None else solution.copied


def _has_bound(solution: Solution) -> bool:
    """Heuristics claim none."""
    return solution.status == "optimal" or solution.lower_bound > 0


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _text(value: str) -> str:
    return html.escape(value)


def _tile(name: str, label: str, value: str, note: str, state: str = "") -> str:
    extra = f' data-state="{_text(state)}"' if state else ""
    return (
        f'<div class="tile" id="{name}"{extra}><h2>{_text(label)}</h2>'
        f'<p class="figure">{_text(value)}</p><p class="note">{_text(note)}</p></div>'
    )


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    titles = "".join(f'<th scope="col">{_text(title)}</th>' for title in head)
    lines = [f"<table><caption>{_text(caption)}</caption><thead><tr>{titles}</tr></thead><tbody>"]
    for name, *cells in rows:
        data = "".join(f"<td>{_text(cell)}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{_text(name)}</th>{data}</tr>')
    return "".join([*lines, "</tbody></table>"])


def _layers(table: LayerTable) -> Iterator[str]:
    """The network layer by layer; every cell has its title, for screens too narrow for a table."""
    yield f'<details class="more layers"{" open" if len(table.rows) <= _FEW_LAYERS else ""}>'
    yield f"<summary>Layer by layer ({len(table.rows) - 1:,} layers)</summary>"
    titles = "".join(f'<th scope="col">{_text(title)}</th>' for title in table.columns)
    yield f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>'
    for name, *cells in table.cells():
        columns = zip(table.columns[1:], cells, strict=True)
        data = "".join(
            f'<td data-title="{_text(title)}">{_text(cell)}</td>' for title, cell in columns
        )
        yield f'<tr><th scope="row">{_text(name)}</th>{data}</tr>'
    yield f'</tbody></table></div><p class="note">{_text(table.note)}</p></details>'


_FEW_LAYERS = 40
"""A table of more layers is folded."""


def _list(title: str, items: Iterable[str]) -> str:
    listed = "".join(f"<li>{_text(item)}</li>" for item in items)
    return (
        f'<section class="notes"><h2>{_text(title)}</h2><ul>{listed}</ul></section>'
        if listed
        else ""
    )
