"""``upscale-opt study``: what removing constraints buys, on networks trained on real data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from upscale_opt.cli.options import Amounts, Side, SideOption, check_file, check_folder
from upscale_opt.cli.place import Backend, BackendOption, Jobs, Scheduler, place_of
from upscale_opt.cli.progress import Steps
from upscale_opt.cli.tables import output, say
from upscale_opt.errors import needed
from upscale_opt.experiments.running import Place
from upscale_opt.experiments.study.names import (
    CRITERIA,
    DATA,
    METHODS,
    NETS,
    TRAINED,
    WEIGHT_DECAY,
)

if TYPE_CHECKING:
    from upscale_opt.experiments.study.records import Row, Unpruned
    from upscale_opt.experiments.study.running import Work

Item = TypeVar("Item")
Result = TypeVar("Result")


def _several(flag: str, names: Sequence[str], text: str) -> Any:
    """An option that takes several of some names; each counts once."""

    def check(values: list[str]) -> list[str]:
        for value in values:
            if value not in names:
                raise typer.BadParameter(f"{value!r} is not one of {', '.join(names)}")
        return [name for name in names if name in values]

    words = f"{text}: one or several of {', '.join(names)}."
    return typer.Option(flag, callback=check, metavar="NAME...", help=words)


def _decay(value: float) -> float:
    if not 0 <= value < float("inf"):
        raise typer.BadParameter(f"it must be at least 0, and finite, not {value:g}")
    return value


_NETS = list(TRAINED)
_DATA = list(DATA[:1])
_CRITERIA = list(CRITERIA)
_METHODS: list[str] = list(METHODS)
_AMOUNTS: list[float] = []


def study(
    net: Annotated[list[str], _several("--net", NETS, "The networks")] = _NETS,
    data: Annotated[list[str], _several("--data", DATA, "What they are trained on")] = _DATA,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Trainings of each.")] = 3,
    amount: Amounts = _AMOUNTS,
    criterion: Annotated[
        list[str], _several("--criterion", CRITERIA, "What ranks the channels")
    ] = _CRITERIA,
    method: Annotated[list[str], _several("--method", METHODS, "Who decides")] = _METHODS,
    side: SideOption = Side.input,
    is_global: Annotated[
        bool, typer.Option("--global", help="Rank the channels of all layers together.")
    ] = False,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="How often training sees every image.")
    ] = None,
    weight_decay: Annotated[
        float, typer.Option(callback=_decay, help="Of training.")
    ] = WEIGHT_DECAY,
    latency: Annotated[
        bool, typer.Option(help="Measure latencies; nothing else should be running then.")
    ] = True,
    jobs: Jobs = None,
    backend: BackendOption = Backend.local,
    scheduler: Scheduler = None,
    cache: Annotated[
        Path, typer.Option(help="The folder that keeps networks and finished rows.")
    ] = Path("out/study/cache"),
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the files.")] = Path(
        "out/study"
    ),
    doc: Annotated[
        Path | None, typer.Option(help="The page to write; study.md in --out if not given.")
    ] = None,
) -> None:
    """Train networks, prune them with and without constraints, and measure what is left of them.

    Nothing is fine-tuned. Writes results.csv, results.json, and a page with tables and pictures.
    Ctrl-C stops; the same command goes on from there. efficientnet-lite0 comes trained, and is
    shown photographs, whatever --data says.
    """
    needed("matplotlib", "the study needs", "study")
    page = out / "study.md" if doc is None else doc
    place = place_of(jobs, backend, scheduler)
    steps = Steps()
    with steps.step("load PyTorch"):
        from upscale_opt.experiments.study import writing
        from upscale_opt.experiments.study.latency import measure_task
        from upscale_opt.experiments.study.plan import Plan
        from upscale_opt.experiments.study.records import Results
        from upscale_opt.experiments.study.report import summary
        from upscale_opt.experiments.study.running import prepare
        from upscale_opt.experiments.study.sweep import run_task

    for file in (page, *(out / name for name in writing.FILES)):
        check_file(file)
    check_folder(cache)
    plan = Plan(
        net=tuple(net),
        data=tuple(data),
        seeds=seeds,
        amount=tuple(sorted(amount)),
        criterion=tuple(criterion),
        method=tuple(name for name in METHODS if name in method),
        side=side.value,
        is_global=is_global,
        epochs=epochs,
        weight_decay=weight_decay,
    )
    tasks = plan.tasks()
    unpruned: dict[int, Unpruned] = {}
    found: dict[int, list[Row]] = {}
    try:
        _carry_out(steps, "train", prepare, plan.recipes(), cache, place, unpruned)
        _carry_out(steps, "prune", run_task, tasks, cache, place, found)
        if latency:
            first = {number: task for number, task in enumerate(tasks) if task.recipe.seed == 0}
            timed: dict[int, list[Row]] = {}
            _carry_out(steps, "time", measure_task, list(first.values()), cache, Place(), timed)
            found.update({number: timed[place] for place, number in enumerate(first)})
    finally:
        results = Results(
            unpruned=tuple(unpruned[number] for number in sorted(unpruned)),
            rows=tuple(row for number in sorted(found) for row in found[number]),
        )
        if results.rows:
            writing.write_results(results, out)
    files = [out / name for name in writing.FILES]
    command = plan.command() + ("" if latency else " --no-latency")
    files += writing.write_page(results, page, command)
    console = output()
    for line in summary(results):
        say(console, line)
    say(console, f"\nWritten: {', '.join(map(str, files))}")


def _carry_out(
    steps: Steps,
    name: str,
    work: Work[Item, Result],
    items: Sequence[Item],
    cache: Path,
    place: Place,
    found: dict[int, Result],
) -> None:
    """Add what becomes of each item to ``found``, by its number; also if interrupted on the way."""
    from upscale_opt.experiments.study.running import run_each

    with steps.step(name) as tell:
        for number, result in run_each(work, items, cache, place, tell):
            found[number] = result
            tell(f"{len(found)} of {len(items)}")
