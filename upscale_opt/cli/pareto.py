"""``upscale-opt pareto``: how many copies a few more multiply-adds spare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.table import Table

from upscale_opt.cli.cases import network_cases
from upscale_opt.cli.fronts import (
    Front,
    FrontPoint,
    Fronts,
    Objective,
    Selection,
    point_of,
    solutions,
    tidied,
)
from upscale_opt.cli.given import AnyModels, Given, own_model
from upscale_opt.cli.options import (
    Amount,
    Layers,
    LayersOption,
    Side,
    SideOption,
    check_file,
    share,
    solving,
)
from upscale_opt.cli.progress import Steps, Tell
from upscale_opt.cli.side_by_side import noticing_interrupts
from upscale_opt.cli.tables import new_table, output, say
from upscale_opt.errors import UpscaleError
from upscale_opt.experiments.pictures import check_pictures
from upscale_opt.ir.base import write_atomically
from upscale_opt.solver.comparing import Case
from upscale_opt.solver.network.objectives import UNITS
from upscale_opt.solver.options import SolveOptions
from upscale_opt.solver.problem.instance import Instance


def _budgets(values: list[float]) -> list[float]:
    return sorted(set(map(share, values)))


_BUDGETS = [0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5]


@own_model()
@solving(
    *("objective", "selection", "time_limit", "seed", "workers"),
    objectives=get_args(Objective),
    selections=get_args(Selection),
)
def pareto(
    networks: AnyModels,
    amount: Amount = 0.5,
    side: SideOption = Side.input,
    layers: LayersOption = Layers.all,
    budgets: Annotated[
        list[float],
        typer.Option(
            "--budgets",
            callback=_budgets,
            metavar="FLOAT...",
            help="The shares of the multiply-adds that windows may add: --budgets 0 0.1 0.5",
        ),
    ] = _BUDGETS,
    *,
    options: SolveOptions,
    given: Given,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the points go.")] = Path(
        "front.json"
    ),
    plot: Annotated[Path | None, typer.Option(help="Draw them here, as .svg or .png.")] = None,
) -> None:
    """Show how many copies are left when windows may add so many multiply-adds.

    A window copies nothing, but reads channels in vain that lie between those wanted. Prunes the
    networks as `run` does. For every budget it prints what is copied, and what cannot be gone
    below. Ctrl-C stops, with the points found.
    """
    if plot is not None and plot.suffix not in (".svg", ".png"):
        raise typer.BadParameter(f"--plot draws .svg or .png, not {plot}")
    if plot is not None:
        check_pictures()
    options = SolveOptions.of(options, selection=options.selection or "tensor")
    steps = Steps()
    names = list(dict.fromkeys(networks))
    given.check(*names)
    batches = network_cases(names, [amount], side.value, layers.value, options.seed, steps, given)
    for file in (out, plot):
        if file is not None:
            check_file(file)
    found: dict[str, Front] = {}
    try:
        for cases in batches:
            for case in cases:
                with steps.step(f"solve {case.label}") as tell:
                    _solve(case, budgets, options, steps, tell, found)
    finally:
        if found:
            fronts = Fronts(
                amount=amount,
                side=side.value,
                layers=layers.value,
                **options.model_dump(include={"objective", "selection", "seed", "time_limit"}),
                networks=tuple(found.values()),
            )
            _write(fronts, out, plot)


def _solve(
    case: Case,
    budgets: list[float],
    options: SolveOptions,
    steps: Steps,
    tell: Tell,
    found: dict[str, Front],
) -> None:
    """Add a network's front to ``found``, and its points as they are found.

    Raises:
        KeyboardInterrupt: after Ctrl-C, with the points until then in ``found``.
    """
    if isinstance(case.problem, Instance):
        raise UpscaleError(f"{case.label} is no network; windows have no price in it")
    graph, masks = case.problem
    points: list[FrontPoint] = []
    with noticing_interrupts() as interrupted:
        for budget, solution in solutions(graph, masks, budgets, options, tell):
            points.append(point_of(budget, solution))
            front = Front(name=case.label, macs=solution.macs, points=tidied(points))
            found[case.label] = front
            steps.note(f"{case.label}: {_line(front, options.objective)}")
            if interrupted():
                raise KeyboardInterrupt


def _line(front: Front, objective: str) -> str:
    """A front's last point in one line."""
    last = front.points[-1]
    return (
        f"{100 * last.budget:g} % more multiply-adds: {last.objective_value:,} {UNITS[objective]}, "
        f"lower bound {last.lower_bound:,}, {last.seconds:.2f} s"
    )


def _write(fronts: Fronts, out: Path, plot: Path | None) -> None:
    """Print the fronts, and write the files."""
    console = output()
    fronts.save(out)
    files = [out]
    if plot is not None:
        from upscale_opt.cli.front_picture import draw

        write_atomically(plot, draw(fronts, plot.suffix[1:]))
        files.append(plot)
    dropped = f"{100 * fronts.amount:g}% of the {Side(fronts.side).words} channels dropped"
    for front in fronts.networks:
        say(console, f"\n{front.name}, {dropped}: {front.macs:,} multiply-adds without windows")
        console.print(_table(front, UNITS[fronts.objective]))
    say(console, f"\nWritten: {', '.join(map(str, files))}")


def _table(front: Front, unit: str) -> Table:
    """One row per budget."""
    kinds = ("views", "windows", "gathers")
    table = new_table("budget", unit, "lower bound", "extra multiply-adds", *kinds, "seconds")
    for point in front.points:
        spent = 100 * point.extra_macs / front.macs if front.macs else 0.0
        table.add_row(
            f"{100 * point.budget:g} %",
            f"{point.objective_value:,}",
            f"{point.lower_bound:,}",
            f"{point.extra_macs:,} ({spent:.2g} %)",
            *(f"{getattr(point, kind):,}" for kind in kinds),
            f"{point.seconds:.2f}",
        )
    return table
