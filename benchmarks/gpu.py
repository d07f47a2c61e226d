"""What exports do on a GPU: lossless there, and how fast. `make gpu` runs it.

python benchmarks/gpu.py --out docs/gpu.md
python benchmarks/gpu.py resnet18 --device cpu --minutes 3   # to try the script without a GPU

In this order, until the minutes are over: the tests that need a GPU, exports beside their masked
networks in several precisions, cost models of the device, and times beside UPSCALE's exports, the
unpruned networks and the floor where copies are free. What was left out for want of time is named.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import pages
import torch
from torch import nn

import upscale_opt as uo
from upscale_opt.experiments.bench.benching import Task, bench
from upscale_opt.experiments.bench.records import BenchRecord, Settings
from upscale_opt.experiments.bench.tables import table, tables
from upscale_opt.ir.cost_model import CostModel
from upscale_opt.measuring.calibrating import Subject, calibrate_all, device_name
from upscale_opt.models import catalogue
from upscale_opt.verifying.both import Both

Found = TypeVar("Found")
Dtype = Literal["float32", "float16", "bfloat16"]

LOSSLESS = (
    *("resnet18", "resnet50", "densenet121", "mobilenet_v2", "mobilenet_v3_large"),
    *("efficientnet_b0", "regnet_y_400mf", "shufflenet_v2_x1_0", "googlenet", "convnext_tiny"),
)
"""Networks whose exports are held against the masked ones."""

TIMED = ("resnet50", "densenet121", "efficientnet_b0", "mobilenet_v2")
"""Networks that are put on the clock."""

COMPILED = "resnet50"
"""Timed with ``torch.compile``, too, at one batch size: does it gather inside 1x1 convolutions?"""

CALIBRATED = ("resnet50", "mobilenet_v2")

PRECISIONS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

VARIANTS = ("unpruned", "gather", "upscale", "copies", "latency", "floor")

_TESTS = Path(__file__).parent.parent / "tests"
_TEST_FILES = ("measuring/test_costs.py", "cli/test_cli.py", "saving/test_saving.py")


class Clock:
    """The time that is left, and what was not done in it.

    Args:
        minutes: for everything.

    Attributes:
        missing: what was left out, and why.
    """

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.missing: list[str] = []

    def try_(self, what: str, work: Callable[[], Found]) -> Found | None:
        """What some work finds; ``None`` if there is no time for it, or it fails."""
        left = self.end - time.monotonic()
        if left < 0:
            self.missing.append(f"{what}: no time was left")
            return None
        pages.say(f"{what}; {left / 60:.1f} minutes left")
        try:
            return work()
        except Exception as error:  # the page says so, and the rest goes on
            self.missing.append(
                f"{what}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            )
            return None


def tested(device: str) -> str:
    """What pytest says of the tests that need a GPU."""
    files = [str(_TESTS / name) for name in _TEST_FILES]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(
        [*command, "-k", "cuda or gpu" if device == "cuda" else "cpu"],
        capture_output=True,
        text=True,
        check=False,
        cwd=_TESTS.parent,
    )
    (*_, last) = [line for line in done.stdout.splitlines() if line] or ["nothing"]
    return last.strip("= ")


def masked_and_export(name: str, device: str) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """A network with half of its convolutions' input channels masked, its export, and inputs."""
    inputs = catalogue.example_inputs(name, 2)
    assert isinstance(inputs, torch.Tensor)
    model = catalogue.randomize(catalogue.build(name), 0, inputs).eval()
    graph = uo.trace(model, inputs)
    uo.apply_masks(model, graph, uo.choose_masks(model, graph, 0.5, side="input", layers="conv"))
    solution = uo.solve(graph, uo.masks_of(model, graph))
    return model.to(device), uo.materialize(model.to(device), solution), inputs.to(device)


def deviations(name: str, device: str, precisions: Sequence[torch.dtype]) -> list[str]:
    """The export's deviation in every precision; words where it is more than is allowed."""
    masked, export, inputs = masked_and_export(name, device)
    found = []
    for dtype in precisions:
        try:
            found.append(f"{Both(masked, export).compare(inputs, dtype).error:.1e}")
        except uo.VerificationError as error:
            found.append(f"**differs**: {str(error).splitlines()[0]}")
    return found


def calibrated(device: str, dtype: Dtype, seconds: float) -> CostModel:
    """A cost model of the device, from :data:`CALIBRATED`."""
    subjects = []
    for name in CALIBRATED:
        inputs = catalogue.example_inputs(name, 1)
        model = catalogue.randomize(catalogue.build(name), 0, inputs).eval()
        subjects.append(Subject(model, uo.trace(model, inputs), inputs, name))
    return calibrate_all(
        subjects, device=device, dtype=getattr(torch, dtype), threads=1, seconds=seconds
    )


def timed(name: str, settings: Settings, cost: CostModel) -> BenchRecord:
    """The variants of a network, in turn."""
    return bench(Task(name, settings, (cost,)), pages.say)


def page(
    networks: Sequence[str], device: str, batches: Sequence[int], clock: Clock
) -> Iterator[str]:
    """The page in Markdown."""
    quick = torch.device(device).type != "cuda"
    precisions = PRECISIONS[:2] if quick else PRECISIONS
    yield "# On a GPU"
    yield ""
    yield (
        "Half of the input channels of every convolution dropped by L2 norm, random weights. "
        f"Measured on {device_name(torch.device(device))}, torch {torch.__version__}. "
        f"Written by `{pages.command()}`."
    )
    yield ""
    yield "## Tests"
    yield ""
    yield f"{clock.try_('the tests that need this device', partial(tested, device)) or 'Not run'}."
    yield ""
    yield "## Lossless"
    yield ""
    yield (
        "The largest deviation of the export from the masked network, both on the device: in "
        "float64 below 1e-10, in others about what the kernels themselves round."
    )
    yield ""
    rows = []
    for name in networks or LOSSLESS:
        work = partial(deviations, name, device, precisions)
        found = clock.try_(f"{name}, lossless", work)
        rows += [] if found is None else [[name, *found]]
    yield table(["network", *(str(dtype).removeprefix("torch.") for dtype in precisions)], rows)
    yield ""
    dtypes: tuple[Dtype, ...] = ("float32",) if quick else ("float32", "float16")
    for dtype in dtypes:
        yield f"## Times in {dtype}"
        yield ""
        calibrate = partial(calibrated, device, dtype, 2.0 if quick else 8.0)
        cost = clock.try_(f"a cost model for {dtype}", calibrate)
        if cost is None:
            continue
        off = [abs(check.predicted / check.measured - 1) for check in cost.checks]
        yield (
            "The variant *latency* is made by a cost model that was fitted here. Beside the clock, "
            f"it is off by {statistics.median(off):.0%} in the median of {len(off)} networks, by "
            f"{max(off):.0%} at most."
        )
        yield ""
        settings = Settings(
            batches=tuple(batches),
            device=device,
            dtype=dtype,
            cuda_graphs=not quick,
            seconds=0.3 if quick else 1.5,
            time_limit=20.0,
            variants=VARIANTS,
        )
        tasks = [(name, settings) for name in networks or TIMED]
        if dtype == dtypes[-1] and not quick:
            few = {"batches": (8,), "cuda_graphs": False, "compile": True, "variants": VARIANTS[:4]}
            tasks.append((COMPILED, settings.model_copy(update=few)))
        records = [
            record
            for name, own in tasks
            if (record := clock.try_(f"{name}, {dtype}", partial(timed, name, own, cost)))
        ]
        if records:
            yield tables(records)
    if clock.missing:
        yield "## Missing"
        yield ""
        yield from (f"* {line}" for line in clock.missing)


def main() -> int:
    """Measure, print the page, and write it where asked."""
    parser = pages.parser(__doc__)
    parser.add_argument("networks", nargs="*", help="instead of all")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--minutes", type=float, default=7.0, help="begin nothing after that")
    options = parser.parse_args()
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        pages.say("error: there is no GPU here; --device cpu tries the script without")
        return 1
    clock = Clock(options.minutes)
    pages.publish(page(options.networks, options.device, options.batch, clock), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
