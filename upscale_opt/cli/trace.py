"""``upscale-opt trace``: a network's graph, and masks for it, as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upscale_opt.cli.given import AnyModel, Given, own_model
from upscale_opt.cli.options import (
    Amount,
    Layers,
    LayersOption,
    Seed,
    Side,
    SideOption,
    check_file,
)
from upscale_opt.cli.progress import Steps
from upscale_opt.cli.tables import opaque_lines, output, say


@own_model()
def trace(
    model: AnyModel,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the graph goes.")] = Path(
        "graph.json"
    ),
    masks: Annotated[
        Path | None, typer.Option(help="Prune by magnitude, and write the masks here.")
    ] = None,
    amount: Amount = 0.5,
    side: SideOption = Side.input,
    layers: LayersOption = Layers.all,
    seed: Seed = 0,
    *,
    given: Given,
) -> None:
    """Trace MODEL and write its graph, and with --masks masks for it. `solve` reads both."""
    given.check(model)
    for path in (out, masks):
        if path is not None:
            check_file(path)
    steps = Steps()
    with steps.step("build"):
        import torch

        from upscale_opt.cli import networks
        from upscale_opt.importance.choosing import choose_masks
        from upscale_opt.masking.zeros import apply_masks, masks_of
        from upscale_opt.tracing import trace as trace_model

        network, inputs = networks.build_any(
            model, given, seed=seed, batch=1, device=torch.device("cpu")
        )
    with steps.step("trace"):
        graph = trace_model(network, inputs)
        graph.save(out)
    console = output()
    say(
        console,
        f"{out}: {len(graph.tensors):,} tensors, {len(graph.operations):,} operations, "
        f"{len(graph.spaces):,} spaces",
    )
    for line in opaque_lines(graph):
        say(console, line)
    if masks is not None:
        with steps.step("mask"):
            apply_masks(
                network,
                graph,
                choose_masks(network, graph, amount, side=side.value, layers=layers.value),
            )
            found = masks_of(network, graph)
            found.save(masks)
        say(
            console, f"{masks}: {amount:.0%} of the {side.words} channels of {layers.words} dropped"
        )
