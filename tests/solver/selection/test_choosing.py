"""Choices of masks within budgets: that they meet them, how good they are, what is refused."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from synthetic_losses import synthetic_losses
from tiny_budgets import tiny_question

import upscale_opt as uo
from upscale_opt.errors import BudgetError, SchemaError, SolverError
from upscale_opt.ir.budget import Budget
from upscale_opt.ir.choice import Choice
from upscale_opt.ir.losses import Losses, Reader
from upscale_opt.ir.profiles import CPU
from upscale_opt.models import catalogue
from upscale_opt.solver import choose, compare_choices, explain_layer
from upscale_opt.solver.selection.setting import Setting


@pytest.mark.parametrize(
    ("seed", "timed"), [*((seed, False) for seed in range(8)), *((seed, True) for seed in range(4))]
)
def test_brute_force_finds_nothing_better(seed: int, timed: bool) -> None:
    tiny = tiny_question(seed, timed=timed)
    best = tiny.least_loss()
    assert best is not None
    choice = choose(tiny.graph, tiny.losses, tiny.budget, time_limit=20)
    assert choice.loss == pytest.approx(best, rel=1e-6)
    assert choice.lower_bound <= best * (1 + 1e-9)
    assert choice.column_bound <= best * (1 + 1e-9)
    if not timed:  # bounds do not know that odd widths are dearer
        assert choice.status == "optimal"


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_nested_chains_bound_all_masks(seed: int, timed: bool) -> None:
    """With few columns the answer may be worse, but no bound is above the truth."""
    tiny = tiny_question(seed, timed=timed)
    best = tiny.least_loss()
    assert best is not None
    choice = choose(tiny.graph, tiny.nested(), tiny.budget, time_limit=20)
    assert choice.lower_bound <= best * (1 + 1e-9) <= choice.loss * (1 + 2e-9)


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
    rows = compare_choices(graph, losses, budget, time_limit=4).rows
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


@pytest.mark.parametrize("seed", range(6))
def test_points_of_the_curve_can_be_had(seed: int) -> None:
    """Whoever asks for what is left there loses no more; who asks for less than that, no less."""
    tiny = tiny_question(seed)
    curve = choose(tiny.graph, tiny.losses, tiny.budget, time_limit=20).trade_off
    assert curve[0].loss == 0
    assert curve[0].shares == pytest.approx([1.0] * len(curve[0].shares))
    for before, after in itertools.pairwise(curve):
        assert before.loss < after.loss
        assert sum(before.shares) > sum(after.shares)
    for point in curve[1:-1:2]:
        there = Budget(macs=min(point.shares[0] * (1 + 1e-9), 1.0))
        least = choose(tiny.graph, tiny.losses, there, time_limit=20).loss
        assert least <= point.loss * (1 + 1e-9)


def test_curves_that_do_not_fit_the_resources_are_refused() -> None:
    tiny = tiny_question(0)
    choice = choose(tiny.graph, tiny.losses, tiny.budget, time_limit=20)
    data = json.loads(choice.to_json())
    data["trade_off"][0]["shares"].append(1.0)
    with pytest.raises(SchemaError, match="one for each resource"):
        Choice.from_json(json.dumps(data))
    del data["trade_off"]  # as documents were before
    assert Choice.from_json(json.dumps(data)).loss_at(0.5) is None


def test_the_curve_heeds_wishes(resnet: Question) -> None:
    graph, losses = resnet
    free, kept = (
        choose(graph, losses, Budget(macs=0.7, keep=keep), solver="constrained", time_limit=3)
        for keep in ((), ("layer4.*", "layer3.*"))
    )
    assert free.trade_off[-1].shares[0] < 0.1 < 0.4 < kept.trade_off[-1].shares[0]


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


def test_gathers_that_cost_more_than_they_save_are_not_chosen(resnet: Question) -> None:
    graph, losses = resnet
    kernels = {**CPU.kernels, "gather": CPU.kernels["gather"].model_copy(update={"launch": 1e9})}
    budget = Budget(latency=0.7, cost_model=CPU.model_copy(update={"kernels": kernels}))
    choice = choose(graph, losses, budget, time_limit=3)
    (use,) = choice.resources
    assert use.used <= use.limit < 1e9
    solution = uo.solve(graph, choice.masks, objective="latency", cost_model=budget.cost_model)
    assert solution.objective_value < 1e9


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


@pytest.mark.parametrize("round_to", [1, 8])
def test_the_least_that_can_be_had_can_be_had(unet: Question, round_to: int) -> None:
    """Even if there is no time to search."""
    with pytest.raises(BudgetError) as refused:
        choose(*unet, Budget(parameters=1e-4, round_to=round_to), time_limit=1)
    found = re.search(r"about ([0-9.]+)% of the parameters", str(refused.value))
    assert found is not None
    share = float(found[1]) / 100 + 1e-4
    budget = Budget(parameters=share, round_to=round_to)
    (use,) = choose(*unet, budget, time_limit=0.01).resources
    assert use.share <= share


def test_rounding_is_named_where_it_alone_is_in_the_way(unet: Question) -> None:
    choose(*unet, Budget(parameters=0.28), time_limit=1)
    with pytest.raises(BudgetError, match=r"multiples of round_to=8,.*without rounding it can be"):
        choose(*unet, Budget(parameters=0.28, round_to=8), time_limit=1)
    with pytest.raises(BudgetError, match=r"round_to=8,.*allow more, or leave fewer"):
        choose(*unet, Budget(parameters=1e-4, round_to=8), time_limit=1)


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


def test_interrupted_with_the_best_so_far(resnet: Question) -> None:
    def stop(event: uo.solver.Progress) -> None:
        raise KeyboardInterrupt

    choice = choose(*resnet, Budget(macs=0.5), time_limit=20, progress=stop)
    assert choice.resources[0].used <= choice.resources[0].limit
    assert choice.status == "feasible"
    assert choice.lower_bound <= choice.column_bound <= choice.loss


@pytest.mark.parametrize("document", [Choice, Losses])
def test_documents_of_other_versions_are_refused(
    document: type[Choice] | type[Losses], resnet: Question
) -> None:
    choice = choose(*resnet, Budget(macs=1.0))
    text = (choice if document is Choice else resnet[1]).to_json()
    for change in ({"schema_version": 99}, {"more": 1}):
        with pytest.raises(SchemaError, match=r"99|more"):
            document.from_json(json.dumps({**json.loads(text), **change}))
    with pytest.raises(SchemaError):
        document.from_json(text[: len(text) // 2])


def test_losses_that_cannot_be_are_refused(resnet: Question) -> None:
    graph, losses = resnet
    reader = losses.readers[0]
    (chain, *_) = reader.chains
    for bad in (
        {"losses": (*chain.losses[:-1], -1.0)},
        {"losses": (*chain.losses[:-1], float("nan"))},
        {"losses": chain.losses[:-1]},
        {"steps": (chain.steps[0], *chain.steps[:-1])},
        {"steps": ((10**6,), *chain.steps[1:])},
    ):
        data = {**chain.model_dump(), **bad}
        with pytest.raises(SchemaError, match=chain.origin):
            Reader(**{**reader.model_dump(), "chains": (data,)})
    strange = losses.model_copy(
        update={"readers": (reader.model_copy(update={"operation": "nobody"}),)}
    )
    with pytest.raises(BudgetError, match="nobody"):
        choose(graph, strange, Budget(macs=0.5))
