"""``upscale-opt calibrate``: make a cost model of this machine by the clock."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from upscale_opt.cli.given import AnyModels, Given, is_own, own_model
from upscale_opt.cli.options import ONE_IMAGE, BatchSizes, Seed, check_file
from upscale_opt.cli.progress import Steps
from upscale_opt.cli.tables import new_table, output, say

if TYPE_CHECKING:
    from upscale_opt.ir.cost_model import CostModel


class Format(str, Enum):
    """Memory formats of images."""

    contiguous = "contiguous"
    channels_last = "channels_last"


class Runtime(str, Enum):
    """The programs whose kernels can be timed."""

    eager = "eager"
    onnxruntime = "onnxruntime"
    openvino = "openvino"


class Dtype(str, Enum):
    """The precision of activations and weights."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    float64 = "float64"


def _seconds(value: float) -> float:
    if not value > 0:
        raise typer.BadParameter(f"it must be more than 0, not {value:g}")
    return value


@own_model()
def calibrate(
    models: AnyModels,
    out: Annotated[Path, typer.Option("--out", "-o", help="The cost model to write.")] = Path(
        "cost-model.json"
    ),
    runtime: Annotated[
        Runtime,
        typer.Option(help="Where exports will run: PyTorch as it is, onnxruntime or OpenVINO."),
    ] = Runtime.eager,
    device: Annotated[str, typer.Option(help="Where to time it: cpu, cuda, …")] = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="The precision to time it in.")] = Dtype.float32,
    memory_format: Annotated[
        Format, typer.Option("--format", help="The memory format to time it in.")
    ] = Format.contiguous,
    batch: BatchSizes = ONE_IMAGE,
    threads: Annotated[int, typer.Option(min=1, help="To compute with on a CPU.")] = 1,
    seconds: Annotated[
        float, typer.Option(callback=_seconds, help="How long to time each network, roughly.")
    ] = 5.0,
    seed: Seed = 0,
    *,
    given: Given,
) -> None:
    """Time the kernels of networks here, whole and pruned by half; write what kernels cost.

    What moves data costs more where it fills caches: give all batch sizes that will run. A model of
    your own is timed at that of its inputs.
    """
    given.check(*dict.fromkeys(models))
    if runtime is not Runtime.eager:
        usual = device == "cpu" and dtype is Dtype.float32 and memory_format is Format.contiguous
        if not usual:
            raise typer.BadParameter(
                f"{runtime.value} is timed on a CPU, in float32, in its own memory format: "
                "leave out --device, --dtype and --format"
            )
    check_file(out)
    steps = Steps()
    with steps.step("load PyTorch"):
        if runtime is not Runtime.eager:
            from upscale_opt.in_runtimes import backend_of

            backend_of(runtime.value).check()
        import torch

        from upscale_opt.cli import networks
        from upscale_opt.measuring.calibrating import Subject, calibrate_all
        from upscale_opt.tracing import trace

        place = networks.find_device(device)
    with networks.memory_errors():
        subjects = []
        for name in dict.fromkeys(models):
            for size in batch[:1] if is_own(name) else batch:
                title = name if len(batch) == 1 or is_own(name) else f"{name} at batch {size}"
                with steps.step(f"trace {title}"):
                    network, inputs = networks.build_any(
                        name, given, seed=seed, batch=size, device=place
                    )
                    subjects.append(Subject(network, trace(network, inputs), inputs, title))
        with steps.step("calibrate") as tell:
            if runtime is not Runtime.eager:
                from upscale_opt import in_runtimes

                cost_model = in_runtimes.calibrate(
                    subjects,
                    runtime=runtime.value,
                    threads=threads,
                    seconds=seconds,
                    progress=lambda event: tell(event.step),
                )
            else:
                cost_model = calibrate_all(
                    subjects,
                    device=place,
                    dtype=getattr(torch, dtype.value),
                    memory_format=memory_format.value,
                    threads=threads,
                    seconds=seconds,
                    progress=lambda event: tell(event.step),
                )
    cost_model.save(out)
    console = output()
    console.print(_prices(cost_model))
    console.print(_checks(cost_model))
    say(console, f"Written to {out}: {cost_model.device_name}, {cost_model.dtype}")


def _prices(cost_model: CostModel) -> Table:
    """One row per kind of kernel; a dash where nothing was timed and the numbers are scaled."""
    table = new_table("kernel", "launch, µs", "ns per kB", "ns per 1,000 macs", "block", "error")
    for kind, price in cost_model.kernels.items():
        error = cost_model.error.get(kind)
        table.add_row(
            kind,
            f"{price.launch / 1e3:.1f}",
            f"{price.ns_per_byte * 1e3:.3g}",
            f"{price.ns_per_mac * 1e3:.3g}",
            "-" if price.block == 1 else f"{price.block}{'' if price.both else ' written'}",
            "-" if error is None else f"{error:.0%}",
        )
    return table


def _checks(cost_model: CostModel) -> Table:
    """One row per network that was predicted and measured."""
    table = new_table("network", "predicted, ms", "measured, ms", "predicted / measured")
    for check in cost_model.checks:
        ratio = check.predicted / check.measured
        row = (f"{check.predicted / 1e6:.2f}", f"{check.measured / 1e6:.2f}", f"{ratio:.3f}")
        table.add_row(check.network, *row)
    return table
