"""Choices of masks, for the command line: solvers side by side, and layers explained."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from upscale_opt.cli.options import check_file
from upscale_opt.cli.progress import Steps
from upscale_opt.cli.tables import choices_table, kept_table, other_budgets, output, say
from upscale_opt.errors import BudgetError, SchemaError, UpscaleError
from upscale_opt.ir.base import write_atomically
from upscale_opt.ir.budget import Budget
from upscale_opt.ir.choice import Choice
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.losses import Losses
from upscale_opt.solver.choosing import ChoiceRow, compare_choices
from upscale_opt.solver.options import SolveOptions
from upscale_opt.solver.selection.explaining import explain_layer


def compare_on_budget(
    graph: Path,
    losses: Path,
    budget: str,
    solvers: Sequence[str],
    options: SolveOptions,
    out: Path,
) -> None:
    """Put a budget to several solvers, print their choices as a table, and write it.

    Args:
        graph: the file of the channel graph.
        losses: the file of its losses.
        budget: JSON, or a file with it; a choice's file says what it was made for.
        solvers: their names.
        options: the time limit, the seed and the threads count.
        out: the folder for ``compare.csv`` and ``compare.json``.

    Raises:
        SchemaError: if a file cannot be read.
        BudgetError: if the budget makes no sense.
        UpscaleError: if all of them failed.
    """
    asked = budget_of(budget)
    channel_graph, known = ChannelGraph.load(graph), Losses.load(losses)
    known.check(channel_graph)
    files = out / "compare.csv", out / "compare.json"
    for file in files:
        check_file(file)
    steps = Steps()
    with steps.step("choose") as tell:
        found = compare_choices(
            channel_graph,
            known,
            asked,
            solvers,
            time_limit=options.time_limit,
            seed=options.seed,
            workers=options.workers,
            progress=lambda event: tell(str(event)),
        )
    console = output()
    say(console, f"\n{graph.stem}, {asked!r}")
    console.print(choices_table(found.rows))
    for row in found.rows:
        if row.reason is not None:
            say(console, f"{row.solver}: {row.reason}")
    write_atomically(files[0], _csv(found.rows).encode())
    found.save(files[1])
    say(console, f"\nWritten to {out}: {', '.join(file.name for file in files)}")
    if all(row.status == "failed" for row in found.rows):
        raise UpscaleError("every solver failed; the table says why")


def budget_of(text: str) -> Budget:
    """The budget that JSON, or a file, asks for.

    >>> budget_of('{"macs": 0.5, "round_to": 8}')
    Budget(macs=0.5, round_to=8)

    Raises:
        SchemaError: if it is no JSON, or the file cannot be read.
        BudgetError: if it makes no sense.
    """
    if not text.lstrip().startswith("{"):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise SchemaError(f"cannot read budget {text}: {reason}") from None
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise SchemaError(f"the budget is not valid JSON: {error}") from None
    if isinstance(fields, dict) and isinstance(fields.get("budget"), dict):
        fields = fields["budget"]
    if not isinstance(fields, dict):
        raise BudgetError('a budget is a JSON object, such as {"macs": 0.5, "round_to": 8}')
    return Budget(**fields)


def explain_choice(
    choice: Choice, place: Path, layer: str | None, graph: Path | None, losses: Path | None
) -> None:
    """Print why a layer keeps as many channels as it does; without one, what all layers keep.

    Args:
        choice: the choice.
        place: its file; graph and losses lie beside it, if they are not given.
        layer: the layer's module, weight or operation.
        graph: the file of the channel graph.
        losses: the file of the losses that it was made by.

    Raises:
        SchemaError: if a file cannot be read, or they do not belong together.
        ArgumentError: if the choice has no such layer.
    """
    console = output()
    if layer is None:
        console.print(kept_table(choice))
        say(console, str(choice))
        for line in other_budgets(choice):
            say(console, line)
        say(console, f"Name a layer to see why it keeps what it does: explain {place} LAYER")
        return
    channel_graph = ChannelGraph.load(graph or place.with_name("graph.json"))
    known = Losses.load(losses or place.with_name("losses.json"))
    say(console, str(explain_layer(channel_graph, known, choice, layer)))


def _csv(rows: Sequence[ChoiceRow]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    resources = [use.resource for use in next((r.resources for r in rows if r.resources), ())]
    fields = ("solver", "status", "loss", "lower_bound", "channels", "seconds", "reason")
    writer.writerow([*fields, *resources])
    for row in rows:
        used = {use.resource: use.used for use in row.resources}
        cells = [getattr(row, field) for field in fields] + [used.get(name) for name in resources]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return text.getvalue()
