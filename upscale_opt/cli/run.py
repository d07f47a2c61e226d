"""``upscale-opt run``: the whole chain on one network, and a report."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from upscale_opt.cli.given import AnyModel, Given, arguments_of, is_own, own_model, short_name
from upscale_opt.cli.options import (
    Amount,
    CriterionOption,
    Layers,
    LayersOption,
    Method,
    MethodOption,
    Side,
    SideOption,
    check_file,
    solving,
)
from upscale_opt.cli.progress import Steps, solver_progress
from upscale_opt.cli.tables import (
    costs_table,
    layout_lines,
    opaque_lines,
    order_name,
    orders_table,
    output,
    say,
    times_table,
)
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.solver.algorithms.registry import HEURISTICS
from upscale_opt.solver.api import solve
from upscale_opt.solver.network.coupling import constrain
from upscale_opt.solver.options import SolveOptions

_FILES = ("graph.json", "masks.json", "solution.json", "pruned.safetensors")


class Export(str, Enum):
    """A format of the pruned model for other runtimes."""

    onnx = "onnx"
    pt2 = "pt2"
    safetensors = "safetensors"


Timed = Annotated[
    bool,
    typer.Option(
        "--time/--no-time",
        help="Put an ONNX file on the clock, beside the unpruned network's.",
    ),
]


@own_model()
@solving(defaults=SolveOptions().for_export())
def run(
    model: AnyModel,
    amount: Amount = 0.5,
    side: SideOption = Side.input,
    layers: LayersOption = Layers.all,
    criterion: CriterionOption = "l2",
    method: MethodOption = Method.unconstrained,
    is_global: Annotated[
        bool, typer.Option("--global", help="Rank the channels of all layers together.")
    ] = False,
    *,
    options: SolveOptions,
    given: Given,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    batch: Annotated[int, typer.Option(min=1, help="Batch size of the example inputs.")] = 1,
    export: Annotated[
        list[Export] | None,
        typer.Option(help="Write the pruned model in this format, checked; may be repeated."),
    ] = None,
    timed: Timed = True,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where the files go; out/MODEL if not given.")
    ] = None,
) -> None:
    """Prune MODEL, find its best channel orders, export it, and verify the export.

    The weights are random without --weights, and every layer drops its least important channels:
    for itself, or, with constraints, together with the layers that share them. Writes graph.json,
    masks.json, solution.json and pruned.safetensors; with --export pruned.onnx or pruned.pt2, too.
    """
    given.check(model)
    folder = Path("out") / short_name(model) if out is None else out
    formats = list(dict.fromkeys(one.value for one in export or ()))
    steps = Steps()
    with steps.step("load PyTorch"):
        from upscale_opt.cli import networks
        from upscale_opt.deploying import check_format, deploy
        from upscale_opt.importance.choosing import choose_masks
        from upscale_opt.masking.zeros import apply_masks, masks_of
        from upscale_opt.materializing.materialize import materialize
        from upscale_opt.measuring.costs import count_costs
        from upscale_opt.pruning.notes import notes_of
        from upscale_opt.saving.save import save
        from upscale_opt.tracing import trace
        from upscale_opt.verifying.verify import verify

        place = networks.find_device(device)
        for name in formats:
            check_format(name)
    with networks.memory_errors():
        with steps.step("build"):
            network, inputs = networks.build_any(
                model, given, seed=options.seed, batch=batch, device=place
            )
        for name in (*_FILES, *(f"pruned.{name}" for name in formats)):
            check_file(folder / name)
        with steps.step("trace"):
            graph = trace(network, inputs)
        with steps.step("count costs"):
            before = count_costs(network, inputs)
        with steps.step("mask"):
            wanted = choose_masks(
                network,
                graph,
                amount,
                criterion=criterion,
                side=side.value,
                method=method.value,
                is_global=is_global,
                layers=layers.value,
            )
            apply_masks(network, graph, wanted)
            masks = masks_of(network, graph)
            if method is Method.constrained:
                masks = constrain(graph, masks)
                apply_masks(network, graph, masks)
        solutions = _solve_all(steps, graph, masks, options)
        solution = solutions[-1]
        with steps.step("materialize"):
            pruned = materialize(network, solution)
        with steps.step("verify"):
            report = verify(network, pruned, inputs)
        with steps.step("count costs"):
            after = count_costs(pruned, inputs)
    with steps.step("write"):
        graph_file, masks_file, solution_file, pruned_file = (folder / name for name in _FILES)
        graph.save(graph_file)
        masks.save(masks_file)
        solution.save(solution_file)
        save(pruned, pruned_file)
    deployed = []
    for name in formats:
        with steps.step(f"export ({name})"):
            target = folder / f"pruned.{name}"
            deployed.append(deploy(pruned, inputs, target, definition=network))
    judgement = ""
    if timed and "onnx" in formats and place.type == "cpu":
        from upscale_opt.in_runtimes import judge, runtime_for

        with steps.step(f"time in {runtime_for(solution)}"):
            judgement = judge(network, pruned, graph, masks, solution, inputs)

    console = output()
    dropped = f"{amount:.0%} of the {side.words} channels of {layers.words} dropped"
    dropped += f" by {criterion}, {method.words}"
    say(console, f"{model}, {dropped}")
    for table in (
        costs_table(before, after),
        orders_table({order_name(found): found for found in solutions}),
        times_table(steps.seconds),
    ):
        console.print("", table)
    console.print()
    for line in (*layout_lines(solution), *opaque_lines(graph)):
        say(console, line)
    say(
        console,
        f"The export ({order_name(solution)}) computes what the masked network computes. Largest "
        f"deviation: {report.float64_error:.1e} in float64, {report.own_error:.1e} in "
        f"{report.dtype}, relative to the largest output.",
    )
    for note in (*notes_of(network, pruned, graph, masks, solution), *report.notes):
        say(console, f"Note: {note}")
    say(console, f"Written to {folder}: {', '.join(_FILES)}")
    for file in deployed:
        sizes = ", ".join(map(str, file.batches))
        say(
            console,
            f"{file.path} ({file.format}): {file.size / 1e6:.1f} MB, run in batches of {sizes}, "
            f"deviates from the export by {file.deviation:.1e}",
        )
    if judgement:
        say(console, f"Time: {judgement}")
    say(console, f"Load it in Python: {_loading(model, given, pruned_file)}")


def _solve_all(
    steps: Steps, graph: ChannelGraph, masks: Masks, options: SolveOptions
) -> list[Solution]:
    """The two heuristics to compare with, and last the solver that was asked for."""
    solutions = []
    others = [name for name in HEURISTICS[::-1] if name != options.solver]
    for name in [*others, options.solver]:
        with steps.step(f"solve ({name})") as tell:
            told = solver_progress(tell, options.objective)
            solutions.append(solve(graph, masks, options=options, solver=name, progress=told))
    return solutions


def _loading(model: str, given: Given, path: Path) -> str:
    """Python that loads what is pruned of the network called ``model``."""
    module, definition = "torchvision", f"torchvision.models.{model}()"
    if is_own(model):
        module, _, name = model.partition(":")
        positional, named = arguments_of(given.arguments)
        texts = [*map(repr, positional), *(f"{key}={value!r}" for key, value in named.items())]
        definition = f"{module}.{name}({', '.join(texts)})"
    if model.startswith("topology/"):
        module = "upscale_opt.models.catalogue"
        definition = f"{module}.build({model!r})"
    call = f"upscale_opt.load({definition}, {str(path)!r})"
    return f"import upscale_opt, {module}; pruned = {call}"
