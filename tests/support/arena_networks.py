"""Networks that isolate one way to concatenate, and their exports with arenas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from sample_networks import Net, random_masks
from torch import Tensor, nn
from torch.nn import functional

import upscale_opt as uo
from upscale_opt.runtime.arena import ArenaRead, ArenaWrite
from upscale_opt.tracing.unchanged import reseed


def chain(m: Any, x: Tensor) -> Tensor:
    """Concatenations of concatenations, each read twice."""
    one = torch.cat([m.a(x), m.b(x)], 1)
    two = torch.cat([one, m.c(m.r(one))], 1)
    y: Tensor = m.h(two) + m.i(two) + m.j(one)
    return y


def osa(m: Any, x: Tensor) -> Tensor:
    """One-shot aggregation: layer behind layer, joined once at the end."""
    a = m.a(x)
    b = torch.relu(m.d(a))
    joined = torch.cat([a, b, m.c(x)], 1)
    y: Tensor = m.h(joined) + m.i(joined)
    return y


def inception(m: Any, x: Tensor) -> Tensor:
    """A concatenation is pooled, and the result concatenated again."""
    one = torch.cat([m.a(x), m.b(x)], 1)
    two = torch.cat([functional.max_pool2d(one, 3, 1, 1), m.c(x)], 1)
    y: Tensor = m.h(two) + m.i(two)
    return y


def twice_activated(m: Any, x: Tensor) -> Tensor:
    """The same channels in two concatenations, of different values."""
    a, b = m.a(x), m.b(x)
    one = torch.cat([a, b], 1)
    two = torch.cat([torch.sigmoid(a), torch.tanh(b), m.c(x)], 1)
    y: Tensor = m.r(one) + m.j(one) + m.h(two) + m.i(two)
    return y


def reads_an_operand(m: Any, x: Tensor) -> Tensor:
    """What is concatenated is read alone, too."""
    a, b = m.a(x), torch.relu(m.b(x))
    joined = torch.cat([a, b], 1)
    y: Tensor = m.r(joined) + m.j(joined) + m.d(a)
    return y


def dead_operand(m: Any, x: Tensor) -> Tensor:
    """Nobody reads what one of the operands holds."""
    joined = torch.cat([m.a(x), m.b(x), m.c(x)], 1)
    y: Tensor = m.h(joined) + m.i(joined)
    return y


def itself(m: Any, x: Tensor) -> Tensor:
    """A tensor stands twice in a concatenation, next to another one."""
    a = m.a(x)
    joined = torch.cat([a, m.c(x), a, m.d(a)], 1)
    y: Tensor = m.wide(joined) + m.k(joined)
    return y


def upright(m: Any, x: Tensor) -> Tensor:
    """Along another axis than the channels'."""
    joined = torch.cat([m.a(x), m.e(x)], 2)
    both = torch.cat([joined, torch.relu(joined)], 3)
    y: Tensor = m.d(both)
    return y


def shuffled(m: Any, x: Tensor) -> Tensor:
    """The channels are shuffled after a concatenation, and concatenated again."""
    one = torch.cat([m.a(x), m.e(x)], 1)
    mixed = one.view(-1, 2, 5, *one.shape[2:]).transpose(1, 2).flatten(1, 2)
    two = torch.cat([mixed, m.e(x)], 1)
    y: Tensor = m.h(two) + m.i(two)
    return y


def modified(m: Any, x: Tensor) -> Tensor:
    """Concatenations are modified in place, and so are their operands, afterwards."""
    a, b = m.a(x), m.b(x)
    one = torch.cat([a, b], 1)
    c = m.c(functional.relu_(a))
    two = torch.cat([one, c], 1)
    rest = m.h(two)
    functional.relu_(two)
    y: Tensor = rest + m.i(two) + m.d(a) + m.j(one.add_(1))
    return y


def conv(inputs: int, outputs: int, size: int = 1) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(inputs, outputs, size, padding="same")


LAYERS: dict[str, Callable[[], nn.Module]] = {
    **{"a": conv(3, 5), "b": conv(3, 6, 3), "c": conv(3, 4), "d": conv(5, 4), "e": conv(3, 5)},
    **{"r": conv(11, 3), "j": conv(11, 3), "h": conv(15, 3), "i": conv(15, 3, 3)},
    **{"wide": conv(18, 4), "k": conv(18, 4)},
}

RUNS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    run.__name__: run
    for run in (chain, inception, twice_activated, dead_operand, shuffled, upright)
}


def network(
    run: Callable[[Any, Tensor], Tensor], seed: int, **other: Callable[[], nn.Module]
) -> Net:
    with torch.random.fork_rng(devices=[]):
        reseed(seed)
        layers = {name: make() for name, make in {**LAYERS, **other}.items()}
        return Net(run, **layers).double().eval()


OTHERS: dict[str, dict[str, Callable[[], nn.Module]]] = {
    "chain": {"c": conv(3, 4), "j": conv(11, 3)},
    "osa": {"d": conv(5, 6)},
    "reads_an_operand": {"d": conv(5, 3)},
    "itself": {},
    "modified": {"c": conv(5, 4), "d": conv(5, 3)},
}
RUNS |= {run.__name__: run for run in (osa, reads_an_operand, itself, modified)}

X = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0)).double()


@dataclass(frozen=True)
class Case:
    """A masked network, its solution, and the export."""

    model: nn.Module
    graph: uo.ChannelGraph
    masks: uo.Masks
    solution: uo.Solution
    pruned: nn.Module


def exported(name: str, seed: int, **options: Any) -> Case:
    model = network(RUNS[name], seed, **OTHERS.get(name, {}))
    graph = uo.trace(model, X)
    uo.apply_masks(model, graph, random_masks(graph, seed))
    masks = uo.masks_of(model, graph)
    solution = uo.solve(graph, masks, selection="arena", **options)
    return Case(model, graph, masks, solution, uo.materialize(model, solution))


@cache
def with_arena(name: str = "chain") -> Case:
    """An export that writes a buffer, of which some reads are copies."""
    for seed in range(20):
        case = exported(name, seed)
        kinds = {type(m) for m in case.pruned.modules()}
        if {ArenaRead, ArenaWrite} <= kinds and case.solution.gathers:
            return case
    raise AssertionError("no export has an arena")
