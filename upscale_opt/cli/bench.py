"""``upscale-opt bench``: how long exports take, beside what they are to beat."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upscale_opt.cli.given import AnyModelsOrNone, Given, digest_of, is_own, own_model
from upscale_opt.cli.options import (
    ONE_IMAGE,
    Amount,
    BatchSizes,
    GroupNames,
    Layers,
    LayersOption,
    Seed,
    Side,
    SideOption,
    TimeLimit,
    check_file,
    check_folder,
    named_networks,
)
from upscale_opt.cli.progress import Steps
from upscale_opt.cli.tables import output, say
from upscale_opt.errors import UpscaleError
from upscale_opt.experiments.bench.names import (
    DEFAULT_VARIANTS,
    FORMATS,
    RUNTIME_VARIANTS,
    VARIANTS,
)
from upscale_opt.ir.cost_model import CostModel

if TYPE_CHECKING:
    from upscale_opt.experiments.bench.benching import Task
    from upscale_opt.experiments.bench.records import BenchRecord, Settings
    from upscale_opt.experiments.records import Store


class Dtype(str, Enum):
    """The dtype of weights and inputs while they are timed."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Runtime(str, Enum):
    """The program that exports run in."""

    eager = "eager"
    compiled = "compiled"
    onnxruntime = "onnxruntime"
    openvino = "openvino"


def _among(known: Sequence[str]) -> Callable[[list[str]], list[str]]:
    def check(values: list[str]) -> list[str]:
        for value in values:
            if value not in known:
                raise typer.BadParameter(f"{value!r} is not one of {', '.join(known)}")
        return [name for name in known if name in values]

    return check


_NO_GROUPS: list[str] = []
_CONTIGUOUS = ["contiguous"]
_USUAL: list[str] = []
_NO_FILES: list[Path] = []


@own_model()
def bench(
    networks: AnyModelsOrNone = None,
    group: GroupNames = _NO_GROUPS,
    amount: Amount = 0.5,
    side: SideOption = Side.input,
    layers: LayersOption = Layers.conv,
    batch: BatchSizes = ONE_IMAGE,
    form: Annotated[
        list[str],
        typer.Option(
            "--format",
            metavar="NAME...",
            callback=_among(FORMATS),
            help=f"Memory formats: {', '.join(FORMATS)}.",
        ),
    ] = _CONTIGUOUS,
    runtime: Annotated[
        Runtime,
        typer.Option(help="What to run in: PyTorch as it is, compiled, onnxruntime, OpenVINO."),
    ] = Runtime.eager,
    device: Annotated[str, typer.Option(help="Where to run: cpu, cuda.")] = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="Of weights and inputs.")] = Dtype.float32,
    threads: Annotated[int, typer.Option(min=1, help="That PyTorch computes with.")] = 1,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Time each compiled by torch.compile, too.")
    ] = False,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs", help="Time each as a CUDA graph, too.")
    ] = False,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="How often each runs, instead of --seconds.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.0, help="For each batch size, format and mode.")
    ] = 20.0,
    variants: Annotated[
        list[str],
        typer.Option(
            "--variants",
            metavar="NAME...",
            callback=_among(tuple(VARIANTS)),
            help=f"What to time, instead of the usual: {', '.join(VARIANTS)}.",
        ),
    ] = _USUAL,
    cost_model: Annotated[
        list[Path],
        typer.Option(
            "--cost-model",
            help="Of this machine, for the variant latency; repeat it for several formats.",
        ),
    ] = _NO_FILES,
    time_limit: TimeLimit = 60.0,
    seed: Seed = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Networks at a time; disturbs times.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Also those timed before.")] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the records.")] = Path(
        "out/bench"
    ),
    page: Annotated[
        Path | None, typer.Option(help="Write the tables into this page, between its markers.")
    ] = None,
    *,
    given: Given,
) -> None:
    """Time exports beside UPSCALE's, the unpruned network, and the floor where copies are free.

    All variants of a network run in turn, in one process. Writes a record per network; what was
    timed with the same settings is not timed again. Ctrl-C stops; the same command goes on from
    there. Fails if a network could not be timed.
    """
    if not networks and not group:
        raise typer.BadParameter("name networks, or give --group")
    given.check(*(networks or ()))
    own = [name for name in networks or () if is_own(name)]
    if own and group:
        raise typer.BadParameter("a model of your own goes alone, without --group")
    if given.weights is not None and not own:
        raise typer.BadParameter("--weights is for a model of your own here")
    if given.inputs is not None:
        raise typer.BadParameter("--inputs has a batch size of its own: give --input, and --batch")
    cost_models = {path: CostModel.load(path) for path in cost_model}
    steps = Steps()
    with steps.step("load PyTorch"):
        from upscale_opt.cli.own_model import OwnModel
        from upscale_opt.experiments.bench.benching import Task
        from upscale_opt.experiments.bench.page import read_page, write_page
        from upscale_opt.experiments.bench.records import BenchRecord, Settings, done_before
        from upscale_opt.experiments.bench.tables import summary, verdicts
        from upscale_opt.experiments.pictures import check_pictures
        from upscale_opt.experiments.records import Store
        from upscale_opt.in_runtimes.backends import BACKENDS

    names = own or named_networks(networks or [], group)
    maker = OwnModel(own[0], given) if own else None
    usual = RUNTIME_VARIANTS.get(runtime.value, DEFAULT_VARIANTS)
    settings = Settings.model_validate(
        {
            "runtime": runtime.value,
            "amount": amount,
            "side": side.value,
            "layers": layers.value,
            "seed": seed,
            "time_limit": time_limit,
            "batches": tuple(batch),
            "formats": tuple(form),
            "device": device,
            "dtype": dtype.value,
            "threads": threads,
            "compile": compiled,
            "cuda_graphs": cuda_graphs,
            "rounds": rounds,
            "seconds": seconds,
            "variants": tuple(variants) or usual,
            "cost_models": tuple(map(_digest, cost_models.values())),
            "own": digest_of(given),
        }
    )
    if runtime.value in BACKENDS:
        _check_runtime(settings)
    _check_device(settings)
    check_folder(out)
    if page is not None:
        check_file(page)
        check_pictures()
        read_page(page)
    store = Store(out, BenchRecord)
    tasks = [Task(name, settings, tuple(cost_models.values()), maker) for name in names]
    known = {name: None if force else done_before(store, name, settings) for name in names}
    records = {name: record for name, record in known.items() if record is not None}
    if records:
        steps.note(f"{len(records)} of {len(tasks)} are timed already; --force times them again")
    console = output()
    try:
        _sweep([task for task in tasks if task.name not in records], store, jobs, steps, records)
    finally:
        found = [records[name] for name in names if name in records]
        for line in (*summary(found), *verdicts(found)):
            say(console, line)
    if page is not None:
        for path in write_page(page, found, _command(networks or [], group, settings, given)):
            say(console, f"Written: {path}")
    failed = [record.name for record in found if record.problem]
    if failed:
        raise UpscaleError(
            f"{len(failed)} of {len(found)} networks could not be timed: {', '.join(failed)}; the "
            f"records in {out} say why"
        )


def _check_runtime(settings: Settings) -> None:
    """Refuse what cannot be timed in another program.

    Raises:
        UpscaleError: if it is no float32 on a CPU in the usual memory format, or it is missing.
    """
    from upscale_opt.in_runtimes import backend_of

    usual = type(settings)(variants=())
    for name in ("device", "dtype", "formats", "compile", "cuda_graphs"):
        if getattr(settings, name) != getattr(usual, name):
            raise UpscaleError(
                f"{settings.runtime} is timed on a CPU, in float32, in its own memory format: "
                "leave out --device, --dtype, --format, --compile and --cuda-graphs"
            )
    backend_of(settings.runtime).check()


def _digest(cost_model: CostModel) -> str:
    """A digest that tells cost models apart."""
    return hashlib.sha256(cost_model.to_json().encode()).hexdigest()[:12]


def _check_device(settings: Settings) -> None:
    """Refuse what cannot be timed there.

    Raises:
        UpscaleError: if there is no such device, or it has no CUDA graphs.
    """
    from upscale_opt.cli.networks import find_device

    if find_device(settings.device).type != "cuda" and settings.cuda_graphs:
        raise UpscaleError(
            f"there are no CUDA graphs on device {settings.device!r}; leave out --cuda-graphs, or "
            "give --device cuda"
        )


def _sweep(
    tasks: Sequence[Task],
    store: Store[BenchRecord],
    jobs: int,
    steps: Steps,
    records: dict[str, BenchRecord],
) -> None:
    """Add the records of all tasks to ``records``; also if interrupted on the way."""
    from upscale_opt.experiments.bench.sweeping import sweep
    from upscale_opt.experiments.running import Place

    if not tasks:
        return
    with steps.step("bench") as tell:
        for number, (task, record) in enumerate(sweep(tasks, store, Place(jobs), tell), 1):
            records[task.name] = record
            steps.note(f"{task.name} ({number} of {len(tasks)}): {_line(record)}")


def _line(record: BenchRecord) -> str:
    """A record in one line."""
    if record.problem:
        return record.problem
    parts = []
    for cell in record.cells:
        times = [
            f"{time.variant} {time.milliseconds:.1f}"
            for time in cell.times
            if time.milliseconds is not None
        ]
        parts.append(f"batch {cell.batch} {cell.format} {cell.mode}: {', '.join(times)} ms")
    return f"{'; '.join(parts)}; {record.seconds:.0f} s"


def _command(
    networks: Sequence[str], groups: Sequence[str], settings: Settings, given: Given
) -> str:
    """The command that a page says it was written by."""
    from upscale_opt.experiments.bench.records import Settings

    words = ["upscale-opt", "bench", *networks]
    words += given.words()
    if groups:
        words += ["--group", *groups]
    words += ["--batch", *map(str, settings.batches), "--format", *settings.formats]
    words += ["--device", settings.device, "--dtype", settings.dtype]
    words += ["--threads", str(settings.threads)]
    words += ["--compile"] * settings.compile + ["--cuda-graphs"] * settings.cuda_graphs
    for name in _AS_USUAL:
        value, usual = getattr(settings, name), Settings.model_fields[name].default
        if value != usual:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


_AS_USUAL = (
    *("amount", "side", "layers", "rounds", "seconds", "variants"),
    *("time_limit", "seed"),
)
"""The settings that the command names if they are not the usual ones."""
