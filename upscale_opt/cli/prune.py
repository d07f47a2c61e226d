"""``upscale-opt prune``: a network, a budget and data in; a smaller network and its price out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from upscale_opt.cli.given import AnyModel, Given, own_model
from upscale_opt.cli.options import (
    Method,
    MethodOption,
    check_file,
    cost_model_of,
    solving,
)
from upscale_opt.cli.progress import Steps
from upscale_opt.cli.run import Export, Timed
from upscale_opt.cli.tables import (
    costs_table,
    layers_table,
    opaque_lines,
    other_budgets,
    output,
    say,
)
from upscale_opt.ir.budget import Budget
from upscale_opt.solver.options import SolveOptions

_DOCUMENTS = ("graph.json", "losses.json", "choice.json", "masks.json", "solution.json")
_FILES = (*_DOCUMENTS, "pruned.safetensors")


@own_model()
@solving("seed", "time_limit", "workers")
def prune(
    model: AnyModel,
    macs: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="The share of the multiply-adds that may remain, in (0, 1]."
        ),
    ] = None,
    parameters: Annotated[
        float | None, typer.Option(metavar="SHARE", help="The share of the parameters.")
    ] = None,
    latency: Annotated[
        float | None, typer.Option(metavar="SHARE", help="The share of the time.")
    ] = None,
    milliseconds: Annotated[float | None, typer.Option(help="The time itself.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|FILE|noise",
            help="Unlabelled calibration data: a folder of pictures, or a file of tensors "
            "(.safetensors, .pt). Without, weights alone decide, and nothing is refitted.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many of them to use.")] = 128,
    mean: Annotated[
        str,
        typer.Option(help="Of the pictures' normalisation, by channel; ImageNet's if not given."),
    ] = "0.485,0.456,0.406",
    deviation: Annotated[str, typer.Option("--std", help="The same.")] = "0.229,0.224,0.225",
    round_to: Annotated[
        int, typer.Option(min=1, help="Widths are multiples of it wherever they may be.")
    ] = 1,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave these layers alone: a pattern such as 'layer4.*'; may be repeated."
        ),
    ] = None,
    share: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=SHARE",
            help="The share of these layers' input channels that stays, or a range: "
            "'layer1.*=0.5-0.9'; may be repeated.",
        ),
    ] = None,
    at_least: Annotated[int, typer.Option(min=1, help="Channels that every layer keeps.")] = 1,
    equal: Annotated[
        list[str] | None,
        typer.Option(help="Layers that keep equally many input channels; may be repeated."),
    ] = None,
    cost_model: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="What kernels cost, for --latency and --milliseconds: a file of "
            "`upscale-opt calibrate`, or a built-in one.",
        ),
    ] = None,
    method: MethodOption = Method.unconstrained,
    refit: Annotated[
        bool, typer.Option(help="Refit the remaining weights to the data, by least squares.")
    ] = True,
    measure: Annotated[
        bool, typer.Option(help="Put the export on the clock, beside the unpruned network.")
    ] = True,
    *,
    options: SolveOptions,
    given: Given,
    batch: Annotated[int, typer.Option(min=1, help="Batch size of drawn example inputs.")] = 1,
    export: Annotated[
        list[Export] | None,
        typer.Option(help="Write the pruned model in this format, checked; may be repeated."),
    ] = None,
    timed: Timed = True,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the files go.")] = Path("out"),
) -> None:
    """Prune MODEL to a budget: choose what goes, refit what stays, export and verify."""
    given.check(model)
    budget = Budget(
        macs=macs,
        parameters=parameters,
        latency=latency,
        milliseconds=milliseconds,
        cost_model=cost_model_of(cost_model, "latency") if cost_model else None,
        round_to=round_to,
        keep=tuple(keep or ()),
        shares=dict(map(_share_of, share or ())),
        at_least=at_least,
        equal=tuple(equal or ()),
    )
    normalisation = _numbers("--mean", mean), _numbers("--std", deviation)
    formats = list(dict.fromkeys(one.value for one in export or ()))
    for name in (*_FILES, *(f"pruned.{name}" for name in formats)):
        check_file(out / name)
    steps = Steps()
    with steps.step("load PyTorch"):
        import torch

        from upscale_opt.cli import networks
        from upscale_opt.cli.calibration import read_data
        from upscale_opt.deploying import check_format, deploy
        from upscale_opt.measuring.costs import count_costs
        from upscale_opt.pruning.prune import prune as prune_model
        from upscale_opt.saving.save import save

        for name in formats:
            check_format(name)
    with networks.memory_errors():
        with steps.step("build"):
            network, example = networks.build_any(
                model, given, seed=options.seed, batch=batch, device=torch.device("cpu")
            )
        batches = None
        if data is not None:
            with steps.step("read data"):
                batches = read_data(
                    data,
                    example,
                    samples=samples,
                    mean=normalisation[0],
                    deviation=normalisation[1],
                    seed=options.seed,
                )
        with steps.step("prune") as tell:
            result = prune_model(
                network,
                example,
                budget=budget,
                data=batches,
                refit=refit and batches is not None,
                measure=measure,
                method=method.value,
                options=options,
                progress=lambda event: tell(str(event)),
            )
        with steps.step("count costs"):
            before, after = count_costs(network, example), count_costs(result.model, example)
    assert result.choice is not None
    assert result.losses is not None
    with steps.step("write"):
        documents = (
            result.graph,
            result.losses,
            result.choice,
            result.masks,
            result.solution,
        )
        for name, document in zip(_DOCUMENTS, documents, strict=True):
            document.save(out / name)
        save(result.model, out / _FILES[-1])
    deployed = []
    for name in formats:
        with steps.step(f"export ({name})"):
            deployed.append(deploy(result.model, example, out / f"pruned.{name}"))
    judgement = ""
    if timed and "onnx" in formats:
        from upscale_opt.in_runtimes import judge, runtime_for

        with steps.step(f"time in {runtime_for(result.solution)}"):
            judgement = judge(
                result.masked, result.model, result.graph, result.masks, result.solution, example
            )

    console = output()
    if result.times is not None:
        say(console, f"Time: {result.times}")
    console.print("", costs_table(before, after))
    console.print("", layers_table(result.table))
    console.print()
    say(console, str(result.choice))
    for line in other_budgets(result.choice):
        say(console, line)
    if batches is None:
        say(console, "No data: weights alone decided, and nothing was refitted. Give --data.")
    assert result.report is not None
    say(
        console,
        "The export computes what the masked network computes. Largest deviation: "
        f"{result.report.float64_error:.1e} in float64, relative to the largest output.",
    )
    for line in opaque_lines(result.graph):
        say(console, line)
    for note in result.notes:
        say(console, f"Note: {note}")
    say(console, f"Written to {out}: {', '.join(_FILES)}")
    say(console, f"Look at it: upscale-opt report {out / 'solution.json'}")
    for file in deployed:
        say(
            console,
            f"{file.path} ({file.format}): {file.size / 1e6:.1f} MB, deviates from the export by "
            f"{file.deviation:.1e}",
        )
    if judgement:
        say(console, f"Time: {judgement}")


def _share_of(option: str) -> tuple[str, Any]:
    """A pattern and its share, or range of shares.

    >>> _share_of("layer1.*=0.5-0.9")
    ('layer1.*', (0.5, 0.9))
    """
    pattern, _, text = option.rpartition("=")
    try:
        values = [float(part) for part in text.split("-")]
    except ValueError:
        values = []
    if not pattern or len(values) not in (1, 2):
        raise typer.BadParameter(
            f"--share is PATTERN=SHARE or PATTERN=LEAST-MOST, such as 'layer1.*=0.5-0.9', "
            f"not {option!r}"
        )
    return pattern, values[0] if len(values) == 1 else (values[0], values[1])


def _numbers(option: str, text: str) -> Sequence[float]:
    try:
        values = [float(value) for value in json.loads(f"[{text}]")]
    except (ValueError, TypeError):
        values = []
    if len(values) not in (1, 3):
        raise typer.BadParameter(f"{option} is a number, or three with commas, not {text!r}")
    return values
