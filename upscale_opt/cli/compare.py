"""``upscale-opt compare``: solvers side by side, as tables, CSV, JSON and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from enum import Enum
from itertools import chain, groupby
from pathlib import Path
from typing import Annotated

import typer

from upscale_opt.cli.cases import graph_case, instance_cases, network_cases
from upscale_opt.cli.choices import compare_on_budget
from upscale_opt.cli.given import AnyModelsOrNone, Given, own_model
from upscale_opt.cli.options import (
    Amounts,
    Layers,
    LayersOption,
    Side,
    SideOption,
    SolverNames,
    check_file,
    solving,
)
from upscale_opt.cli.pictures import draw
from upscale_opt.cli.place import Backend, BackendOption, Jobs, Scheduler, place_of
from upscale_opt.cli.progress import Steps
from upscale_opt.cli.side_by_side import name_of, run_cells
from upscale_opt.cli.tables import comparison_table, output, row_line, say
from upscale_opt.errors import UpscaleError
from upscale_opt.experiments.pictures import check_pictures
from upscale_opt.experiments.running import Place
from upscale_opt.ir.base import write_atomically
from upscale_opt.solver.algorithms.registry import SOLVERS
from upscale_opt.solver.comparing import (
    USUAL_SOLVERS,
    Case,
    Comparison,
    ComparisonRow,
    case_of,
    options_of,
    with_gaps,
)
from upscale_opt.solver.options import SolveOptions
from upscale_opt.solver.selection.registry import SELECTORS


class Picture(str, Enum):
    """The format of the picture."""

    svg = "svg"
    png = "png"


_AMOUNTS = [0.5]
_SOLVERS = list(USUAL_SOLVERS)
_FIELDS = [name for name in SolveOptions.model_fields if name != "solver"]


@own_model()
@solving(*_FIELDS)
def compare(
    networks: AnyModelsOrNone = None,
    amount: Amounts = _AMOUNTS,
    side: SideOption = Side.input,
    layers: LayersOption = Layers.all,
    graph: Annotated[Path | None, typer.Option(help="A graph, from `trace`.")] = None,
    masks: Annotated[Path | None, typer.Option(help="Masks for --graph.")] = None,
    instance: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE...", help="Problems without a network, one per JSON file."),
    ] = None,
    losses: Annotated[
        Path | None,
        typer.Option(help="Losses for --graph, from `prune`: compare choices within --budget."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="JSON|FILE",
            help="""What may remain, such as '{"macs": 0.5, "round_to": 8}', or a choice.json.""",
        ),
    ] = None,
    solver: SolverNames = _SOLVERS,
    *,
    options: SolveOptions,
    given: Given,
    jobs: Jobs = None,
    backend: BackendOption = Backend.local,
    scheduler: Scheduler = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the files.")] = Path(
        "out/compare"
    ),
    picture: Annotated[
        Picture | None,
        typer.Option(show_default="svg, if there is matplotlib", help="The picture's format."),
    ] = None,
) -> None:
    """Compare solvers on networks and amounts, one row per solver.

    Prunes the networks as `run` does, or takes --graph and --masks, or --instance; these need no
    PyTorch. With --graph, --losses and --budget it compares choices of masks, without PyTorch, too.
    Writes compare.csv, compare.json, and with the extra `plots` compare.svg or .png.
    Ctrl-C stops, with what is finished.
    """
    names = list(dict.fromkeys(networks or ()))
    given.check(*names)
    if losses is not None or budget is not None:
        if graph is None or losses is None or budget is None:
            raise typer.BadParameter("--graph, --losses and --budget go together")
        if names or masks or instance:
            raise typer.BadParameter("--losses and --budget go with --graph alone")
        asked_for = tuple(SELECTORS if solver == _SOLVERS else solver)
        for name in asked_for:
            if name not in SELECTORS:
                raise typer.BadParameter(f"{name} does not choose masks: {', '.join(SELECTORS)} do")
        compare_on_budget(graph, losses, budget, asked_for, options, out)
        return
    for name in solver:
        if name not in SOLVERS:
            raise typer.BadParameter(f"{name} chooses masks: give --losses and --budget")
    if (graph is None) != (masks is None):
        raise typer.BadParameter("--graph and --masks go together")
    if not names and graph is None and not instance:
        raise typer.BadParameter("name networks, or give --graph and --masks, or --instance")
    asked = options_of(solver, options)
    place = place_of(jobs, backend, scheduler)
    steps = Steps()
    kinds = ("csv", "json", *_picture(picture, steps))
    files = [out / f"compare.{kind}" for kind in kinds]
    batches: list[Iterable[list[Case]]] = []
    if graph is not None and masks is not None:
        batches.append([[graph_case(graph, masks)]])
    if instance:
        batches.append([instance_cases(instance)])
    if names:
        asked_of = network_cases(
            names, amount, side.value, layers.value, options.seed, steps, given
        )
        batches.append(asked_of)
    for file in files:
        check_file(file)

    rows: list[ComparisonRow] = []
    try:
        for cases in chain.from_iterable(batches):
            _compare_on(cases, asked, place, steps, rows)
    finally:
        if rows:
            _write(files, rows)
            say(output(), f"\nWritten to {out}: {', '.join(file.name for file in files)}")
    if all(row.status == "failed" for row in rows):
        raise UpscaleError("every solver failed; the table says why")


def _picture(asked: Picture | None, steps: Steps) -> list[str]:
    """The kind of picture to make; none where none can be made and nobody asked for one.

    Raises:
        UpscaleError: if one was asked for.
    """
    try:
        check_pictures()
    except UpscaleError as error:
        if asked is not None:
            raise
        steps.note(f"without a picture: {error}")
        return []
    return [(asked or Picture.svg).value]


def _compare_on(
    cases: Sequence[Case],
    asked: Sequence[SolveOptions],
    place: Place,
    steps: Steps,
    rows: list[ComparisonRow],
) -> None:
    """Solve these cases, print their tables, and add their rows; also if interrupted on the way."""
    cells = [(case, options) for case in cases for options in asked]
    found: dict[int, ComparisonRow] = {}
    same = len({case.label for case in cases}) == 1
    try:
        with steps.step(f"solve {cases[0].label}" if same else "solve") as tell:
            for number, row in run_cells(cells, place, tell):
                found[number] = row
                steps.note(f"{name_of(cells[number][0])}, {row_line(row)}")
    finally:
        finished = with_gaps(found[number] for number in sorted(found))
        rows.extend(finished)
        for _, case in groupby(finished, key=case_of):
            _print(list(case))


def _print(rows: list[ComparisonRow]) -> None:
    """The rows of one case as a table, and why some failed."""
    console = output()
    say(console, f"\n{_heading(rows[0])}")
    console.print(comparison_table(rows))
    for row in rows:
        if row.reason is not None:
            say(console, f"{row.solver}: {row.reason}")


def _heading(row: ComparisonRow) -> str:
    if row.amount is None:
        return row.label
    return f"{row.label}, {100 * row.amount:g}% of the {Side(row.side).words} channels dropped"


def _write(files: Sequence[Path], rows: Sequence[ComparisonRow]) -> None:
    table, document, *pictures = files
    write_atomically(table, _csv(rows).encode())
    Comparison(rows=tuple(rows)).save(document)
    for picture in pictures:
        write_atomically(picture, draw(rows, picture.suffix[1:]))


def _csv(rows: Iterable[ComparisonRow]) -> str:
    text = io.StringIO()
    dumped = [row.model_dump() for row in rows]
    writer = csv.DictWriter(text, list(dumped[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(dumped)
    return text.getvalue()
