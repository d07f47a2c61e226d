"""Exports in onnxruntime, in OpenVINO, or compiled, beside all that computes the same there.

python benchmarks/runtimes.py --out docs/runtimes.md
python benchmarks/runtimes.py --runtime compiled --out docs/runtimes-compiled.md
python benchmarks/runtimes.py --runtime openvino --out docs/runtimes-openvino.md
python benchmarks/runtimes.py resnet50 --batch 1

What was measured is kept, a record for each network; a second call adds what is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import pages
import torch

from upscale_opt.experiments.bench.benching import Task, bench
from upscale_opt.experiments.bench.ratios import geometric_mean
from upscale_opt.experiments.bench.records import BenchRecord, Cell, Settings, done_before
from upscale_opt.experiments.bench.tables import SAME, best_other
from upscale_opt.experiments.records import Store

NETWORKS = [
    "resnet18",
    "resnet50",
    "resnet152",
    "densenet121",
    "densenet201",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "regnet_y_400mf",
    "shufflenet_v2_x1_0",
    "googlenet",
    "convnext_tiny",
]

EACH, MEAN, FLOOR = 1.02, 0.9, 1.05
"""The bars: of every cell and of the mean, over the best of the others; of the mean, over the
floor."""

ONNXRUNTIME = """# Exports in onnxruntime

In eager PyTorch a view of channels is free. In onnxruntime it is a `Slice`, which copies as a
`Gather` does, and between convolutions both come out of its blocked layout (`ReorderOutput`) and go
back into it (`ReorderInput`). A convolution that reads no multiple of 4 channels falls out of that
layout altogether, which is dear for depthwise ones; and a sum in slices is several `Add`s. With a
cost model of onnxruntime, `objective="latency"` knows all that:

```
upscale-opt calibrate resnet18 mobilenet_v2 --runtime onnxruntime --batch 1 8 --out ort.json
upscale-opt run resnet18 --objective latency --cost-model ort.json --export onnx
upscale-opt bench resnet18 --runtime onnxruntime
```

The first line fits the prices to this machine, for small batches and large ones;
`--cost-model onnxruntime`, or in Python `cost_model="onnxruntime"`, takes the built-in ones. The
last puts the export beside what it has to beat, says which plan was taken, and if another is
faster, which. What such a plan does:

* Every read of a part of a tensor is a slice, a gather, or of **the whole tensor**, for which the
  reader's weight holds zero columns (it is listed as a window): nothing is copied then, for more
  multiply-adds. Where a concatenation has one reader, slices and gathers may stand in front of it:
  it copies the less then. The prices decide, read by read, and the orders are the best at these
  prices.
* Convolutions read multiples of 4 channels, as far as there are so many; and tensors store
  multiples of 16, if unpruned they have one, else of 4. The channels added meet zero columns, or
  are written and not read. Sums take whole tensors, nothing is trimmed, and nothing shares a
  buffer.
* A forecast, which repeats on the plan what onnxruntime's optimiser does, decides if these widths
  are taken, or others that it says are faster by 3 % or more.

What stays above the floor below is, in networks with SiLU, shuffles or dense blocks, partly there
before anything is pruned (the column beside it); in dense blocks, every layer wants other halves of
all channels before it, which no order serves; and squeeze and excite reads more of a tensor than
the layer behind it.

All of it is lossless as every export is. Budgets of time take these prices, too, and with
`measure=True` they are kept by onnxruntime's clock:
`prune(model, inputs, budget=Budget(latency=0.6, cost_model="onnxruntime"), measure=True)`, or
`upscale-opt prune NETWORK --latency 0.6 --cost-model onnxruntime`.
"""

COMPILED = """# Exports compiled by torch.compile

`torch.compile` runs convolutions with their channels innermost (`channels_last`) and makes loops of
all that lies between them. A view of channels is copied there, as a gather is, mostly in a loop
that is there anyhow; and layers of whole blocks of 16 channels are faster for their size. The cost
model `"compiled"` knows that, and makes plans like those for [onnxruntime](runtimes.md). As little
is lost by selecting, little is won by a plan, and that for eager PyTorch is nearly as good:

```
upscale-opt bench mobilenet_v2 --runtime compiled
upscale-opt prune mobilenet_v2 --latency 0.6 --cost-model compiled
```

In Python, `solve(graph, masks, objective="latency", cost_model="compiled")`, and
`prune(model, inputs, budget=Budget(latency=0.6, cost_model="compiled"), measure=True)`, which
compiles every choice and keeps the budget by that clock; it wants a C++ compiler. The prices are
built in and for a CPU; `calibrate` does not fit them yet. The pruned model is an ordinary module:
`torch.compile(result.model)`.
"""

OPENVINO = """# Exports in OpenVINO

OpenVINO runs convolutions with their channels innermost, like `torch.compile`, but as an ONNX file.
A view of channels is a `Slice` there, which copies within that layout and costs little; a `Gather`
comes out of it and goes back, and costs several times as much. So orders pay in which channels that
are read together lie side by side. Layers write whole blocks of 16 channels, and read as many as
they need. A norm behind a gather runs out of that layout, row by row, and what does not fit into
caches costs more to move. The cost model `"openvino"` knows that:

```
pip install "upscale-opt[openvino]"
upscale-opt bench mobilenet_v2 --runtime openvino
upscale-opt prune mobilenet_v2 --latency 0.6 --cost-model openvino --export onnx
upscale-opt calibrate resnet18 mobilenet_v2 --runtime openvino --batch 1 8 --out openvino.json
```

In Python, `solve(graph, masks, objective="latency", cost_model="openvino")`, and
`prune(model, inputs, budget=Budget(latency=0.6, cost_model="openvino"), measure=True)`, which keeps
the budget by OpenVINO's clock. The file is the same ONNX file that [`deploy`](deploying.md) checks;
`openvino.Core().compile_model("pruned.onnx", "CPU")` runs it. All is timed in float32: where a CPU
multiplies bfloat16, OpenVINO would take that by itself, and round.
"""

WORDS = {"onnxruntime": ONNXRUNTIME, "compiled": COMPILED, "openvino": OPENVINO}
PROGRAMS = {"onnxruntime": "onnxruntime", "openvino": "OpenVINO"}
"""Those that run files, as they are called."""


def settings_of(runtime: str, batches: Sequence[int], seconds: float) -> Settings:
    """The settings of the benchmark."""
    return Settings.model_validate(
        {
            "runtime": runtime,
            "batches": tuple(batches),
            "seconds": seconds,
            "time_limit": 5.0,
            "variants": (*SAME, "latency", *(["floor"] if runtime in PROGRAMS else [])),
        }
    )


def milliseconds(cell: Cell, variant: str) -> str:
    """A variant's time, or a dash."""
    time = cell.time_of(variant)
    return "-" if time is None or time.milliseconds is None else f"{time.milliseconds:.2f}"


def page(runtime: str, records: Sequence[BenchRecord]) -> Iterator[str]:
    """The page's lines."""
    there = runtime in PROGRAMS
    program = PROGRAMS.get(runtime, "")
    yield WORDS[runtime]
    floor_is = (
        f"; *floor*: its time without the nodes that only move data, by {program}'s own profile, "
        "and beside it the same of the unpruned network, where no channel is selected and layouts "
        "change nevertheless"
    )
    yield (
        "## Measured\n\nHalf of every convolution's input channels dropped by L2 norm, random "
        "weights; one thread, all of a network's exports in turn in one process, ratios round by "
        "round. *Gather*: every selection is one; *unordered*: views where they are by chance; "
        "*eager*: our plan for eager PyTorch; *ours*: our plan for this runtime by the built-in "
        f"prices{floor_is if there else ''}. Written by `{pages.command()}` with PyTorch "
        f"{torch.__version__}{f', {program} {version(runtime)}' if there else ''}; "
        f"{records[0].machine.cpu if records else 'no'} CPU.\n"
    )
    columns = ["network", "batch", *(f"{name}, ms" for name in (*SAME, "ours"))]
    of_floors = " / floor | unpruned / its floor |" if there else ""
    yield f"| {' | '.join(columns)} | ours / best other |{of_floors} plan |"
    yield f"| --- |{' ---: |' * (len(columns) + 2 * there)} --- |"
    others: dict[str, float] = {}
    floors: list[float] = []
    unpruned_floors: list[float] = []
    for record in records:
        for cell in record.cells:
            best, floor = best_other(cell), cell.ratio("latency", "floor")
            export = record.export("latency", cell)
            times = " | ".join(milliseconds(cell, variant) for variant in (*SAME, "latency"))
            if best is None or (there and floor is None) or export is None:
                lost = " - | - |" if there else ""
                yield f"| {record.name} | {cell.batch} | {times} | - |{lost} {record.problem} |"
                continue
            others[f"{record.name} at batch {cell.batch}"] = best[1]
            over_floor = ""
            if floor is not None:
                floors.append(floor.median)
                whole = cell.time_of("unpruned")
                computing = None if whole is None else whole.computing
                unpruned_floors += [] if computing is None else [1 / computing]
                shown = "-" if computing is None else f"{1 / computing:.3f}"
                over_floor = f" {floor.median:.3f} | {shown} |"
            yield (
                f"| {record.name} | {cell.batch} | {times} | {best[1]:.3f} ({best[0]}) "
                f"|{over_floor} {export.plan} |"
            )
    yield ""
    late = [f"{name} ({ratio:.3f})" for name, ratio in others.items() if ratio > EACH]
    mean, over = geometric_mean(list(others.values())), geometric_mean(floors)
    if mean is not None:
        above = ""
        if over is not None:
            met = "met" if over <= FLOOR else "missed"
            above = f", and {over:.3f} of the floor's ({met}: {FLOOR}"
            unpruned = geometric_mean(unpruned_floors)
            above += f"; the unpruned networks {unpruned:.3f} of theirs)" if unpruned else ")"
        yield (
            f"In the geometric mean ours takes {mean:.3f} of the time of the best other "
            f"({'met' if mean <= MEAN else 'missed'}: {MEAN} is asked for){above}. No cell may be "
            f"above {EACH}: {'none is' if not late else 'missed by ' + ', '.join(late)}."
        )


def main() -> int:
    """Measure what is missing; print the page, and write it where asked."""
    options = pages.parser(__doc__)
    options.add_argument("networks", nargs="*", default=NETWORKS, help="catalogue names")
    options.add_argument("--runtime", choices=list(WORDS), default="onnxruntime")
    options.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    options.add_argument("--seconds", type=float, default=6.0, help="for each network and batch")
    options.add_argument("--records", type=Path, default=Path("out/runtimes"))
    options.add_argument("--anew", action="store_true", help="measure again what is recorded")
    given = options.parse_args()
    settings = settings_of(given.runtime, given.batch, given.seconds)
    store = Store(given.records, BenchRecord)
    records = []
    for name in given.networks:
        record = None if given.anew else done_before(store, name, settings)
        if record is None:
            record = bench(Task(name, settings))
            store.put(name, record)
        pages.say(f"{name}: {record.problem or f'{record.seconds:.0f} s'}")
        records.append(record)
    pages.publish(page(given.runtime, records), given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
