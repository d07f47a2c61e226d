"""The problems that ``compare`` hands to the solvers: from networks, one at a time, or files."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from upscale_opt.cli.given import Given, is_own, short_name
from upscale_opt.cli.progress import Steps
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.solver.comparing import Case
from upscale_opt.solver.problem.instance_file import InstanceFile


def graph_case(graph: Path, masks: Path) -> Case:
    """The problem that two files pose.

    Raises:
        SchemaError: if one of them cannot be read.
        MaskError: if they do not belong together.
    """
    channel_graph, kept = ChannelGraph.load(graph), Masks.load(masks)
    kept.check(channel_graph)
    return Case((channel_graph, kept), graph.stem)


def instance_cases(files: Iterable[Path]) -> list[Case]:
    """The problems that instance files state, by their names where these differ.

    Raises:
        SchemaError: if a file cannot be read.
    """
    documents = {file: InstanceFile.load(file) for file in files}
    names = [document.name for document in documents.values()]
    return [
        Case(document.to_instance(), name if names.count(name) == 1 else str(file))
        for name, (file, document) in zip(names, documents.items(), strict=True)
    ]


def network_cases(
    names: Sequence[str],
    amounts: Sequence[float],
    side: Literal["input", "output", "both"],
    layers: Literal["all", "conv"],
    seed: int,
    steps: Steps,
    given: Given,
) -> Iterator[list[Case]]:
    """For each network, when its turn comes, one problem per amount.

    A network is built and traced once, and gone before the next one is built. Its masks are those
    of ``run``.

    Raises:
        UpscaleError: at once if one of the networks does not exist.
    """
    with steps.step("load PyTorch"):
        from upscale_opt.models import catalogue

        for name in names:
            if not is_own(name):
                catalogue.example_inputs(name)  # knows the names
    return (_cases_of(name, amounts, side, layers, seed, steps, given) for name in names)


def _cases_of(
    name: str,
    amounts: Sequence[float],
    side: Literal["input", "output", "both"],
    layers: Literal["all", "conv"],
    seed: int,
    steps: Steps,
    given: Given,
) -> list[Case]:
    import gc

    import torch

    from upscale_opt.cli import networks
    from upscale_opt.importance.choosing import choose_masks
    from upscale_opt.masking.zeros import apply_masks, masks_of
    from upscale_opt.tracing import trace

    gc.collect()  # the network before is in cycles, and Python does not know how large it is
    with networks.memory_errors():
        with steps.step(f"build {name}"):
            place = torch.device("cpu")
            network, inputs = networks.build_any(name, given, seed=seed, batch=1, device=place)
        with steps.step(f"trace {name}"):
            graph = trace(network, inputs)
        cases = []
        with steps.step(f"mask {name}"):
            for amount in amounts:
                masked = copy.deepcopy(network)
                apply_masks(
                    masked, graph, choose_masks(masked, graph, amount, side=side, layers=layers)
                )
                found = masks_of(masked, graph)
                cases.append(Case((graph, found), short_name(name), amount, side))
    return cases
