"""``upscale-opt coverage``: which networks export losslessly, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upscale_opt.cli.options import (
    Amount,
    GroupNames,
    Seed,
    TimeLimit,
    check_file,
    check_folder,
    named_networks,
)
from upscale_opt.cli.place import Backend, BackendOption, Jobs, Scheduler, place_of
from upscale_opt.cli.progress import Steps
from upscale_opt.cli.tables import output, say
from upscale_opt.errors import UpscaleError
from upscale_opt.experiments.running import Place
from upscale_opt.ir.base import write_atomically

if TYPE_CHECKING:
    from upscale_opt.experiments.coverage.covering import Task
    from upscale_opt.experiments.coverage.records import NetworkRecord
    from upscale_opt.experiments.records import Store


class Precision(str, Enum):
    """The dtype in which an export is compared with its network."""

    auto = "auto"
    float64 = "float64"
    float32 = "float32"


_NO_GROUPS: list[str] = []


def coverage(
    networks: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="Networks of the catalogue.")
    ] = None,
    group: GroupNames = _NO_GROUPS,
    amount: Amount = 0.5,
    dtype: Annotated[
        Precision, typer.Option(help="Compare in this; auto is float64 for all but giants.")
    ] = Precision.auto,
    skip_larger_than: Annotated[
        int | None, typer.Option(min=1, metavar="PARAMETERS", help="Leave larger networks out.")
    ] = None,
    time_limit: TimeLimit = 60.0,
    patience: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Give up a network after this.")
    ] = 3600.0,
    seed: Seed = 0,
    jobs: Jobs = None,
    backend: BackendOption = Backend.local,
    scheduler: Scheduler = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also those that were lossless before.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the records.")] = Path(
        "out/coverage"
    ),
    page: Annotated[
        Path | None,
        typer.Option(help="Write the groups' tables into this page, between its markers."),
    ] = None,
) -> None:
    """Export networks with masks on either side and on both, and check that nothing is lost.

    The masks drop slices of every weight by L2 norm. Writes a record per network; what is lossless
    by its record is not done again. Ctrl-C stops; the same command goes on from there. Fails if a
    network is not lossless.
    """
    if not networks and not group:
        raise typer.BadParameter("name networks, or give --group")
    place = place_of(jobs, backend, scheduler)
    steps = Steps()
    with steps.step("load PyTorch"):
        from upscale_opt.experiments.coverage import sweeping
        from upscale_opt.experiments.coverage.covering import Task
        from upscale_opt.experiments.coverage.records import NetworkRecord
        from upscale_opt.experiments.coverage.table import summary
        from upscale_opt.experiments.records import Store

    names = named_networks(networks or [], group)
    check_folder(out)
    if page is not None:
        check_file(page)
        _with_tables(page, [], "")
    store = Store(out, NetworkRecord)
    tasks = [Task(name, amount, seed, dtype.value, time_limit, skip_larger_than) for name in names]
    known = {task.name: None if force else sweeping.done_before(store, task) for task in tasks}
    records = {name: record for name, record in known.items() if record is not None}
    if records:
        steps.note(f"{len(records)} of {len(tasks)} are done already; --force does them again")
    try:
        left = [task for task in tasks if task.name not in records]
        _sweep(left, store, place, patience, steps, records)
    finally:
        found = [records[name] for name in names if name in records]
        console = output()
        for line in summary(found):
            say(console, line)
    if page is not None:
        write_atomically(page, _with_tables(page, found, _heading(found, amount)).encode())
        say(console, f"Written: {page}")
    lossy = [record.name for record in found if not record.lossless]
    if lossy:
        raise UpscaleError(
            f"{len(lossy)} of {len(found)} networks are not lossless: {', '.join(lossy)}; the "
            f"records in {out} say why"
        )


def _sweep(
    tasks: Sequence[Task],
    store: Store[NetworkRecord],
    place: Place,
    patience: float,
    steps: Steps,
    records: dict[str, NetworkRecord],
) -> None:
    """Add the records of all tasks to ``records``; also if interrupted on the way."""
    from upscale_opt.experiments.coverage.sweeping import sweep

    if not tasks:
        return
    with steps.step("cover") as tell:
        tell(f"0 of {len(tasks)}")
        for number, (task, record) in enumerate(sweep(tasks, store, place, patience), 1):
            steps.note(f"{task.name}: {_line(record)}")
            tell(f"{number} of {len(tasks)}")
            if record is not None:
                records[task.name] = record


def _line(record: NetworkRecord | None) -> str:
    """A record in one line."""
    if record is None:
        return "left out, too large"
    if record.problem:
        return record.problem.splitlines()[0]
    parts = []
    for side in record.sides:
        if side.status == "failed":
            parts.append(f"{side.side} failed ({side.problem.splitlines()[0][:200]})")
        else:
            removed = f"{100 * (1 - side.left / side.masked):.0f} %" if side.masked else "nothing"
            parts.append(f"{side.side} {side.status} ({side.deviation:.0e}), {removed} removed")
    return f"{'; '.join(parts)}; {record.seconds:.0f} s"


def _heading(records: Sequence[NetworkRecord], amount: float) -> str:
    versions = {name: text for record in records for name, text in record.versions.items()}
    packages = ", ".join(f"{name} {text}" for name, text in versions.items())
    return (
        f"Written by `upscale-opt coverage`: random weights, and the {100 * amount:g} % of every "
        f"weight's slices that have the least L2 norm set to zero. {packages}."
    )


def _with_tables(page: Path, records: Sequence[NetworkRecord], heading: str) -> str:
    """The page with the tables in their place.

    Raises:
        UpscaleError: if it has none.
    """
    from upscale_opt.experiments.coverage import table

    before = page.read_text(encoding="utf-8") if page.exists() else None
    try:
        return table.page(before, records, heading)
    except UpscaleError as error:
        raise UpscaleError(f"{page}: {error}") from None
