"""``upscale-opt inspect``: a network before it is pruned, and what of it could go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from upscale_opt.cli.given import AnyModel, Given, own_model
from upscale_opt.cli.options import (
    Seed,
    check_file,
    cost_model_of,
)
from upscale_opt.cli.progress import Steps
from upscale_opt.cli.tables import layers_table, new_table, output, say
from upscale_opt.ir.graph import ChannelGraph, Layer, Opaque
from upscale_opt.ir.profiles import profile
from upscale_opt.solver.layer_table import LayerTable
from upscale_opt.solver.layers import REST, layers_of
from upscale_opt.solver.network.coupling import Group, Member, groups

_MOST = 12
"""Couplings and reasons that are listed without ``--all``."""

_NAMES = 3
"""Names that are listed in a row."""


@own_model()
def inspect(
    model: AnyModel,
    *,
    given: Given,
    batch: Annotated[int, typer.Option(min=1, help="Batch size of drawn example inputs.")] = 1,
    cost_model: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            show_default="cpu",
            help="What kernels cost: a file of `upscale-opt calibrate`, or a built-in one.",
        ),
    ] = None,
    measure: Annotated[bool, typer.Option(help="Put the network on the clock, too.")] = True,
    everything: Annotated[
        bool, typer.Option("--all", help=f"List all couplings, not the {_MOST} largest.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the graph to this JSON file.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Say what of MODEL could be pruned: its layers, which of them are coupled, what stays and why.

    And where the time goes, by a cost model. Nothing is changed.
    """
    given.check(model)
    if out is not None:
        check_file(out)
    prices = cost_model_of(cost_model, "latency") or "cpu"
    steps = Steps()
    with steps.step("load PyTorch"):
        import torch

        from upscale_opt.cli import networks
        from upscale_opt.measuring.in_turn import beside
        from upscale_opt.tracing import trace
    with networks.memory_errors():
        with steps.step("build"):
            network, example = networks.build_any(
                model, given, seed=seed, batch=batch, device=torch.device("cpu")
            )
        with steps.step("trace"):
            graph = trace(network, example)
        times = None
        if measure:
            with steps.step("measure"):
                times = beside({"measured": network}, example, seconds=1.0)
    if out is not None:
        graph.save(out)
    table = layers_of(graph, cost_model=profile(prices) if isinstance(prices, str) else prices)
    found = groups(graph)

    console = output()
    say(
        console,
        f"{model}: {len(table.rows) - 1:,} layers, {table.before.parameters:,} parameters, "
        f"{table.before.multiply_adds:,} multiply-adds, captured by torch.{graph.capture}",
    )
    say(
        console,
        f"Time: {table.before.nanoseconds / 1e6:.2f} ms estimated"
        + ("" if times is None else f"; {times}"),
    )
    console.print("", layers_table(table))
    console.print("", _time_table(table))
    coupled = _couplings(found)
    if coupled:
        shown = coupled if everything else coupled[:_MOST]
        console.print("", _coupling_table(shown))
        if len(shown) < len(coupled):
            say(console, f"and {len(coupled) - len(shown):,} more; --all lists them")
    console.print()
    for line in (*_free_lines(graph, found), *_opaque_lines(graph, everything)):
        say(console, line)
    if out is not None:
        say(console, f"Written to {out}")


def _time_table(table: LayerTable) -> Table:
    """The estimated time by kind of layer, most first."""
    times: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for row in table.rows:
        times[row.kind or REST] += row.before.nanoseconds  # type: ignore[assignment]
        counts[row.kind or REST] += bool(row.kind)
    shown = new_table("where the time goes", "layers", "ms", "share")
    for kind, nanoseconds in times.most_common():
        share = nanoseconds / max(table.before.nanoseconds, 1)
        number = f"{counts[kind]:,}" if counts[kind] else ""
        shown.add_row(kind, number, f"{nanoseconds / 1e6:.3g}", f"{100 * share:.1f} %")
    return shown


def _couplings(found: Sequence[Group]) -> list[Group]:
    """The groups in which several layers read or write the same channels, most layers first."""
    several = [g for g in found if len(g.producers) > 1 or len(g.consumers) > 1]
    return sorted(several, key=lambda g: -len(g.producers) - len(g.consumers))


def _coupling_table(found: Sequence[Group]) -> Table:
    table = new_table("coupled channels", "written by", "read by")
    for column in table.columns[1:]:
        column.justify = "left"
    for group in found:
        table.add_row(
            f"{len(group.channels):,}",
            *(escape(_named(m)) for m in (group.producers, group.consumers)),
        )
    return table


def _named(members: Sequence[Member]) -> str:
    names = list(dict.fromkeys(m.parameter.rpartition(".")[0] or m.parameter for m in members))
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + more or "-"


def _free_lines(graph: ChannelGraph, found: Sequence[Group]) -> Iterator[str]:
    """Lines about the layers whose input channels may go, and why those of the others may not."""
    free, stay = 0, Counter[str]()
    for op in graph.operations:
        if not isinstance(op, Layer) or not op.inputs:
            continue
        spaces = {graph.space_of[channel] for channel in graph.tensors[op.inputs[0]].channels}
        fixed = [found[space].fixed for space in spaces]
        free += None in fixed
        stay.update({next(reason for reason in fixed if reason)} if None not in fixed else ())
    total = free + stay.total()
    yield f"{free:,} of {total:,} layers may lose input channels"
    for reason, count in stay.most_common(_MOST):
        yield f"  {count:,} may not: {reason}"


def _opaque_lines(graph: ChannelGraph, everything: bool) -> Iterator[str]:
    opaque = [op for op in graph.operations if isinstance(op, Opaque)]
    if not opaque:
        yield "Everything is understood: no operation is opaque"
        return
    yield f"{len(opaque):,} operations are opaque: what they read and write stays whole"
    shown = opaque if everything else opaque[:_MOST]
    for op in shown:
        yield f"  {op.name}: {op.reason}"
    if len(shown) < len(opaque):
        yield f"  and {len(opaque) - len(shown):,} more; --all lists them"
