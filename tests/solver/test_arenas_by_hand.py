"""Solutions with arenas that were edited by hand: refused, or harmless."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from arena_networks import (
    OTHERS,
    Case,
    X,
    chain,
    itself,
    network,
    twice_activated,
    upright,
    with_arena,
)
from comparing import EXACT, call, complaint, deviation
from sample_networks import random_masks
from torch import Tensor, nn
from torch.nn import functional

import upscale_opt as uo
from upscale_opt.errors import SchemaError, UpscaleError


def rotated(arena: dict[str, Any]) -> None:
    channels = listed(arena["channels"])
    arena["channels"] = channels[1:] + channels[:1]


def listed(channels: Any) -> list[int]:
    """Channels of JSON: a list, or runs as text."""
    if isinstance(channels, list):
        return list(channels)
    result: list[int] = []
    for run in str(channels).split(","):
        first, _, last = run.partition("-")
        result += range(int(first), int(last or first) + 1)
    return result


def merge(data: dict[str, Any]) -> None:
    """An arena of concatenations of what is not alike: of a sum and of what it sums."""
    data["arenas"] = [{"tensors": ["nothing"], "channels": [0, 1]}]


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "other places": lambda d: rotated(d["arenas"][0]),
    "backwards": lambda d: d["arenas"][0].update(channels=listed(d["arenas"][0]["channels"])[::-1]),
    "a channel less": lambda d: d["arenas"][0].update(
        channels=listed(d["arenas"][0]["channels"])[:-1]
    ),
    "a channel twice": lambda d: d["arenas"][0].update(
        channels=listed(d["arenas"][0]["channels"]) + listed(d["arenas"][0]["channels"])[:1]
    ),
    "a foreign channel": lambda d: d["arenas"][0].update(
        channels=[*listed(d["arenas"][0]["channels"]), 10**6]
    ),
    "a concatenation less": lambda d: d["arenas"][0].update(tensors=d["arenas"][0]["tensors"][:1]),
    "the other concatenation less": lambda d: d["arenas"][0].update(
        tensors=d["arenas"][0]["tensors"][1:]
    ),
    "no concatenations": lambda d: d["arenas"][0].update(tensors=[]),
    "no channels": lambda d: d["arenas"][0].update(channels=[]),
    "no arenas": lambda d: d.update(arenas=[]),
    "the arena twice": lambda d: d.update(arenas=d["arenas"] * 2),
    "two arenas": lambda d: d.update(
        arenas=[{**d["arenas"][0], "tensors": [name]} for name in d["arenas"][0]["tensors"]]
    ),
    "an unknown tensor": merge,
    "no concatenation": lambda d: d["arenas"][0]["tensors"].append("a"),
    "another model": lambda d: d.update(model="tensor"),
    "an unknown model": lambda d: d.update(model="lake"),
    "an order of the arena": lambda d: d["orders"].__setitem__(
        -1, listed(d["orders"][-1])[::-1][1:] + listed(d["orders"][-1])[-1:]
    ),
    "an order less": lambda d: d["orders"].pop(),
    "a negative channel": lambda d: d["arenas"][0].update(channels=[-1]),
    "an arena that is a list": lambda d: d.update(arenas=[[]]),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edits_are_refused_or_do_no_harm(edit: str) -> None:
    case = with_arena()
    data = json.loads(case.solution.to_json())
    EDITS[edit](data)
    try:
        solution = uo.Solution.from_json(json.dumps(data))
    except SchemaError:
        return
    complaint(uo.VerificationError, lambda: uo.check(solution, case.graph, case.masks))
    try:
        pruned = uo.materialize(case.model, solution)
    except UpscaleError:
        return
    want = call(case.model, X)
    assert deviation(want, call(pruned, X)) < EXACT
    assert deviation(want, pruned(X).detach()) < EXACT
    for _ in range(2):
        assert deviation(want, call(pruned, X)) < EXACT


def force(case: Case, tensors: list[str]) -> uo.Solution:
    """The solution without arenas, but for one that somebody wrote into it."""
    plain = uo.solve(case.graph, case.masks, solver="identity")
    stored = [case.graph.tensors[n].channels[e] for n in tensors for e in plain.tensors.get(n, ())]
    data = json.loads(plain.to_json())
    data["arenas"] = [{"tensors": tensors, "channels": list(dict.fromkeys(stored))}]
    return uo.Solution.from_json(json.dumps(data))


def scales(m: Any, x: Tensor) -> Tensor:
    """Concatenations of images of two sizes."""
    a, b = m.a(x), m.b(x)
    two = torch.cat([functional.avg_pool2d(a, 2), functional.avg_pool2d(b, 2)], 1)
    y: Tensor = m.r(torch.cat([a, b], 1)).mean((2, 3)) + m.j(two).mean((2, 3))
    return y


def flattened(m: Any, x: Tensor) -> Tensor:
    """Channels of many features each are joined."""
    a, b = m.a(x).mean(3).flatten(1), m.b(x).mean(3).flatten(1)
    y: Tensor = m.f(torch.cat([a, b], 1))
    return y


FORCED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    run.__name__: run for run in (twice_activated, scales, flattened, upright, chain, itself)
}


@pytest.mark.parametrize("name", FORCED)
def test_arenas_by_hand_are_refused_or_do_no_harm(name: str) -> None:
    for seed in range(4):
        other = {"f": lambda: nn.Linear(66, 4), **OTHERS.get(name, {})}
        model = network(FORCED[name], seed, **other)
        graph = uo.trace(model, X)
        uo.apply_masks(model, graph, random_masks(graph, seed))
        masks = uo.masks_of(model, graph)
        case = Case(model, graph, masks, uo.solve(graph, masks), nn.Module())
        cats = [op.outputs[0] for op in graph.operations if op.kind == "concat"]
        for tensors in (cats, cats[:1], cats[1:]) if cats else ():
            solution = force(case, tensors)
            complaint(uo.VerificationError, partial(uo.check, solution, graph, masks))
            try:
                pruned = uo.materialize(model, solution)
            except UpscaleError:
                continue
            assert deviation(call(model, X), call(pruned, X)) < EXACT, tensors
