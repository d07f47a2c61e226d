"""Choices of masks within budgets: that they meet them, how good they are, what is refused."""

from __future__ import annotations

import heapq
import random
from typing import Any

import pytest
import torch
from synthetic_losses import synthetic_losses
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.errors import BudgetError, SolverError
from upscale_opt.ir.budget import Budget
from upscale_opt.ir.choice import Choice
from upscale_opt.ir.graph import Layer
from upscale_opt.ir.losses import Chain, Losses, Reader
from upscale_opt.models import catalogue
from upscale_opt.solver import choose, compare_choices, explain_layer
from upscale_opt.solver.selection.setting import Setting

KINDS = ("plain", "cat", "residual", "chain")


class Tiny(nn.Module):
    """One or two spaces that up to three layers read."""

    def __init__(self, kind: str, size: int, other: int, readers: int) -> None:
        super().__init__()
        self.kind = kind
        self.a = nn.Conv2d(3, size, 1)
        self.b = nn.Conv2d(3 if kind == "cat" else size, size if kind == "residual" else other, 1)
        width = size + other if kind == "cat" else size
        self.readers = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in range(readers))
        self.last = nn.Conv2d(other, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        if self.kind == "chain":
            last = self.last(self.b(a).relu())
            return torch.as_tensor(last + sum(reader(a) for reader in self.readers))
        if self.kind == "cat":
            a = torch.cat([a, self.b(x)], 1)
        elif self.kind == "residual":
            a = (a + self.b(a)).relu()
        return torch.as_tensor(sum(reader(a) for reader in self.readers))


def with_all_sets(graph: uo.ChannelGraph, rng: random.Random) -> tuple[Losses, list[list[float]]]:
    """Losses with every set of channels in some chain; and by reader the losses of all sets."""
    readers, tables = [], []
    makers = {name: op for op in graph.operations for name in op.outputs}
    for op in graph.operations:
        if not isinstance(op, Layer) or makers[op.inputs[0]].kind == "input":
            continue
        size = len(graph.tensors[op.inputs[0]].channels)
        single = [rng.random() for _ in range(size)]
        both = [[rng.random() for _ in range(size)] for _ in range(size)]
        table = []
        for bits in range(1 << size):
            gone = [i for i in range(size) if bits >> i & 1]
            table.append(sum(single[i] for i in gone) + sum(both[i][j] for i in gone for j in gone))
        chains = []
        for bits in range(1, (1 << size) - 1):
            order = sorted(range(size), key=lambda i: (not bits >> i & 1, rng.random()))
            at = [sum(1 << i for i in order[:done]) for done in range(size + 1)]
            chains.append(
                Chain(
                    origin=f"set {bits}",
                    steps=tuple((i,) for i in order),
                    losses=tuple(table[b] for b in at),
                )
            )
        floors = [
            min(value for bits, value in enumerate(table) if bits.bit_count() == gone)
            for gone in range(size + 1)
        ]
        readers.append(
            Reader(
                operation=op.name,
                parameter=op.weight,
                axis=op.in_axis,
                slices=tuple(range(size)),
                chains=tuple(chains),
                floors=tuple(floors),
            )
        )
        tables.append(table)
    losses = Losses(
        graph_fingerprint=graph.masks_fingerprint, weighting="random", readers=tuple(readers)
    )
    return losses, tables


def least_loss(setting: Setting, tables: list[list[float]], most: int = 3000) -> float | None:
    """The least loss within the budget: all masks in the order of their losses are counted."""
    sorted_sets = [
        sorted((value, bits) for bits, value in enumerate(table[:-1])) for table in tables
    ]
    start = (0,) * len(tables)
    waiting, seen = [(0.0, start)], {start}
    for _ in range(most):
        if not waiting:
            return None
        loss, at = heapq.heappop(waiting)
        dropped = tuple(
            frozenset(i for i in range(16) if own[place][1] >> i & 1)
            for own, place in zip(sorted_sets, at, strict=True)
        )
        if setting.meets(setting.account(dropped)):
            return loss
        for reader, own in enumerate(sorted_sets):
            following = (*at[:reader], at[reader] + 1, *at[reader + 1 :])
            if at[reader] + 1 < len(own) and following not in seen:
                seen.add(following)
                value = sum(s[p][0] for s, p in zip(sorted_sets, following, strict=True))
                heapq.heappush(waiting, (value, following))
    return None


@pytest.mark.parametrize("seed", range(8))
def test_brute_force_finds_nothing_better(seed: int) -> None:
    rng = random.Random(seed)
    model = Tiny(KINDS[seed % 4], rng.randint(2, 3), rng.randint(2, 3), rng.randint(1, 2))
    graph = uo.trace(model, torch.zeros(1, 3, 4, 4))
    losses, tables = with_all_sets(graph, rng)
    limit: dict[str, Any] = {rng.choice(["macs", "parameters"]): rng.uniform(0.6, 0.95)}
    budget = Budget(**limit)
    best = least_loss(Setting(graph, losses, budget), tables)
    assert best is not None
    choice = choose(graph, losses, budget, time_limit=20)
    assert choice.loss == pytest.approx(best, rel=1e-6)
    assert choice.lower_bound <= best * (1 + 1e-6)
    assert choice.column_bound <= best * (1 + 1e-6)
    assert choice.status == "optimal"


Question = tuple[uo.ChannelGraph, Losses]


@pytest.fixture(scope="module")
def unet() -> Question:
    return question("topology/unet")


@pytest.fixture(scope="module")
def resnet() -> Question:
    return question("resnet18")


def question(name: str) -> Question:
    """A network's graph, with losses."""
    graph = uo.trace(catalogue.build(name), catalogue.example_inputs(name))
    return graph, synthetic_losses(graph)


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        ("residual_stage", Budget(parameters=0.8, macs=0.7)),
        ("residual_stage", Budget(macs=0.8, round_to=2)),
        ("dense_block", Budget(macs=0.75)),
        ("dense_block", Budget(macs=0.8, round_to=2)),
        ("resnext_stage", Budget(macs=0.75)),
    ],
    ids=repr,
)
def test_budgets_are_met_and_nobody_is_better(name: str, budget: Budget) -> None:
    graph, losses = question(f"topology/{name}")
    rows = compare_choices(graph, losses, budget, time_limit=20).rows
    by_name = {row.solver: row for row in rows}
    joint = by_name["joint"]
    assert joint.loss is not None
    assert joint.lower_bound is not None
    for row in rows:
        if row.loss is not None:
            assert joint.loss <= row.loss * (1 + 1e-9)
            assert row.lower_bound is not None
            assert row.lower_bound <= row.loss
            for use in row.resources:
                assert use.used <= use.limit


def test_what_is_used_is_what_the_solution_computes(resnet: Question) -> None:
    graph, losses = resnet
    choice = choose(graph, losses, Budget(macs=0.3), time_limit=3)
    solution = uo.solve(graph, choice.masks, solver="greedy")
    assert choice.resources[0].used == solution.macs <= choice.resources[0].limit
    assert Choice.from_json(choice.to_json()) == choice
    assert 0 <= choice.lower_bound <= choice.column_bound <= choice.loss
    assert choice.loss == pytest.approx(sum(layer.loss for layer in choice.layers))


def test_latency_counts_gathers(resnet: Question) -> None:
    graph, losses = resnet
    choice = choose(graph, losses, Budget(latency=0.7), time_limit=5)
    (use,) = choice.resources
    assert use.used <= use.limit
    setting = Setting(graph, losses, Budget(latency=0.7))
    gone = [
        frozenset(p.reader.slices) - frozenset(choice.masks.kept[p.reader.parameter][p.reader.axis])
        for p in setting.places
    ]
    assert use.used >= setting.account(tuple(gone)).latency


def test_widths_are_multiples(resnet: Question) -> None:
    graph, losses = resnet
    choice = choose(graph, losses, Budget(macs=0.4, round_to=16), time_limit=3)
    for layer in choice.layers:
        assert layer.kept % 16 == 0
        assert layer.written % 16 == 0 or layer.written == layer.written_before


def test_wishes_are_heeded(resnet: Question) -> None:
    graph, losses = resnet
    budget = Budget(
        macs=0.5,
        keep=("fc", "layer4.*.conv1"),
        shares={"layer1.*": (0.5, 0.75), "layer2.0.conv2": 0.25},
        at_least=7,
        equal=("layer3.*.conv2",),
    )
    choice = choose(graph, losses, budget, time_limit=3)
    kept = {layer.parameter: (layer.kept, layer.before) for layer in choice.layers}
    assert all(own[0] >= 7 for own in kept.values())
    for name, (now, before) in kept.items():
        if name == "fc.weight" or (name.startswith("layer4") and name.endswith("conv1.weight")):
            assert now == before
        if name.startswith("layer1"):
            assert 0.5 <= now / before <= 0.75
    assert kept["layer2.0.conv2.weight"] == (32, 128)
    assert len({own for name, own in kept.items() if "layer3" in name and "conv2" in name}) == 1


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(macs=0.0001), r"the least that can be had is about .*% of the multiply-adds"),
        (Budget(macs=0.5, keep=("layer9",)), r"'layer9', which is no layer here; there are layer"),
        (
            Budget(macs=0.5, keep=("fc",), shares={"f*": (0.1, 0.5)}),
            r"'fc' cannot keep what keep='fc' and shares\['f\*'\] ask for",
        ),
        (Budget(macs=0.5, equal=("layer1.*", "*.conv1")), r"equal names 'layer1.0.conv1' twice"),
        (
            Budget(macs=0.5, at_least=100, shares={"layer1.0.conv2": 0.5}),
            r"'layer1.0.conv2' cannot keep",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused(resnet: Question, budget: Budget, message: str) -> None:
    graph, losses = resnet
    with pytest.raises(BudgetError, match=message):
        choose(graph, losses, budget, time_limit=5)


def test_unknown_solvers_are_named(unet: Question) -> None:
    with pytest.raises(SolverError, match=r"unknown solver 'join'.*did you mean 'joint'"):
        choose(*unet, Budget(macs=0.5), solver="join")


def test_the_same_seed_gives_the_same_choice(unet: Question) -> None:
    first, second = (choose(*unet, Budget(macs=0.6), time_limit=30) for _ in range(2))
    assert first.masks == second.masks


def test_nothing_is_dropped_without_need(unet: Question) -> None:
    choice = choose(*unet, Budget(macs=1.0))
    assert choice.loss == 0
    assert choice.status == "optimal"
    assert all(layer.kept == layer.before for layer in choice.layers)


def test_progress_tells_of_better_choices(unet: Question) -> None:
    told: list[uo.solver.Progress] = []
    choose(*unet, Budget(macs=0.6), time_limit=5, progress=told.append)
    values = [event.value for event in told if event.value is not None]
    assert len(values) == len(told) > 0
    assert values == sorted(values, reverse=True)
    assert all(event.step == "choose" for event in told)


def test_layers_are_explained(unet: Question) -> None:
    budget = Budget(macs=0.6)
    choice = choose(*unet, budget, time_limit=5)
    layer = choice.layers[0]
    reason = explain_layer(*unet, choice, layer.operation)
    assert reason.layer == layer
    text = str(reason)
    assert f"keeps {layer.kept} of {layer.before} channels" in text
    assert "multiply-adds" in text
    if reason.fewer is not None:
        assert reason.fewer.loss >= 0
    with pytest.raises(uo.errors.ArgumentError, match="the choice has no layer 'nothing'"):
        explain_layer(*unet, choice, "nothing")
