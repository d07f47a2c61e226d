"""UPSCALE's heuristic, and its own terms: what `solver="greedy"` and `selection="segment"` promise.

The figures of networks are those that apple-upscale 0.1.1 reaches with the same masks
(`benchmarks/greedy_vs_upscale.py` compares the two directly).
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from comparing import BENCHMARKS, EXACT, benchmark, call, deviation
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from network_strategies import network_and_masks
from operations import calls_of
from sample_networks import built
from solver_outcomes import check, instances, random_sets
from torch.utils import _pytree as pytree

import upscale_opt as uo
from upscale_opt.models.generated.masks import WeightMasks, apply_weight_masks
from upscale_opt.models.generated.networks import RandomNetwork
from upscale_opt.models.instances.from_sets import of_parts, one_space, with_pieces
from upscale_opt.models.instances.random import laminar
from upscale_opt.solver.algorithms.greedy import greedy_orders, solve_greedy
from upscale_opt.solver.network.objectives import OBJECTIVES
from upscale_opt.solver.network.segments import find_segments
from upscale_opt.solver.problem.instance import (
    Demand,
    Instance,
    Part,
    Read,
    Space,
    cost,
)

COMMAND = BENCHMARKS / "greedy_vs_upscale.py"

# The heuristic.


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(instances(sets=12, channels=16))
def test_outcomes_are_valid_and_always_the_same(instance: Instance) -> None:
    outcome = solve_greedy(instance)
    check(instance, outcome)
    assert outcome == solve_greedy(instance)
    by_demands = greedy_orders(instance, whole=False)
    assert cost(instance, by_demands) >= outcome.lower_bound
    if instance.measure == "blocks":
        assert by_demands == outcome.orders


@pytest.mark.parametrize(("channels", "largest"), [(60, 3), (100, 4), (400, 20)])
def test_it_is_not_exponential(channels: int, largest: int) -> None:
    """There are more chordless paths than anyone can try: all take 10 million calls and more."""
    instance = random_sets(64, channels, 1, 2, largest)
    assert calls_of(lambda: solve_greedy(instance), most=1_000_000) > 10_000
    check(instance, solve_greedy(instance))


@pytest.mark.parametrize("whole", [True, False])
def test_a_long_chain_of_nested_sets(whole: bool) -> None:
    instance = one_space(1500, [range(size) for size in range(1, 1500)])
    assert cost(instance, greedy_orders(instance, whole=whole)) == 0


def test_a_path_and_what_is_inside() -> None:
    path = [{5, 2, 7}, {7, 0, 3}, {3, 6, 4}, {6, 4}, {5, 2}]
    assert solve_greedy(one_space(8, path)).objective == 0


@given(st.integers(0, 2**20), st.integers(1, 12), st.integers(1, 20))
def test_nested_and_disjoint_sets_are_all_views(seed: int, sets: int, channels: int) -> None:
    assert solve_greedy(laminar(random.Random(seed), sets, channels)).objective == 0


@pytest.mark.parametrize("weight", [1, 3, 1000])
def test_two_sets_are_views_whatever_their_weight(weight: int) -> None:
    """Also where a read's weight is not its number of channels: gathers count 1, bytes far more."""
    space = Space(tuple(range(30)))
    demands = (
        Demand(0, "interval", frozenset(range(0, 30, 2))),
        Demand(0, "interval", frozenset(range(0, 30, 3))),
    )
    reads = (Read(weight, (0,)), Read(weight, (1,)))
    assert solve_greedy(Instance((space,), demands, reads)).objective == 0


def test_the_path_that_covers_most_comes_first() -> None:
    """Paths of two cover 4 + 3 - 2, 3 + 3 - 1 and 4 + 3 - 1 channels; the last is the most.

    So the first set comes without 0, then 0, which the third shares; the second is torn apart.
    """
    instance = one_space(6, [{0, 1, 2, 3}, {2, 3, 4}, {4, 5, 0}])
    outcome = solve_greedy(instance)
    assert outcome.orders == ((1, 2, 3, 0, 4, 5),)
    assert outcome.objective == 3


def test_among_equals_the_first_reads_win() -> None:
    """Three sets of two, each sharing one channel with each other: any two can be views."""
    sets = [{0, 1}, {1, 2}, {2, 0}]
    assert solve_greedy(one_space(3, sets)).orders == ((0, 1, 2),)
    assert solve_greedy(one_space(3, sets[::-1])).orders == ((0, 2, 1),)


def test_a_set_inside_two_others_stays_whole_in_both() -> None:
    """{2, 3} lies inside both sets of the path, which therefore meet in it."""
    instance = one_space(6, [{0, 2, 3}, {2, 3, 5}, {2, 3}])
    outcome = solve_greedy(instance)
    assert outcome.objective == 0
    assert outcome.orders == ((0, 2, 3, 5, 1, 4),)


# Reads across spaces.


def across(*wanted: tuple[set[int], set[int]]) -> Instance:
    """Reads of a memory that holds channels 0 to 3 and then 4 to 7."""
    spaces = [Space((0, 1, 2, 3)), Space((4, 5, 6, 7))]
    return of_parts(spaces, [[Part(i, frozenset(p)) for i, p in enumerate(w)] for w in wanted])


def test_a_read_across_spaces_is_one_node() -> None:
    """The wide read contains the other two, so it is ordered by them: 1 0, then 5 4, then the rest.

    It would be a view if its share of the first space were a suffix. By demands it is.
    """
    instance = across(({0, 1}, set()), (set(), {5, 4}), ({0, 1, 2}, {4, 5, 6}))
    assert greedy_orders(instance) == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert solve_greedy(instance).objective == 6
    assert cost(instance, greedy_orders(instance, whole=False)) == 0


def test_what_neighbours_share_has_to_lie_at_the_end() -> None:
    """The first read shares 0, but its last space ends in 4, which the second does not want.

    So no path leads from it to the second, but one leads back, as the second reads one space only:
    the second's own channels, what they share, what is left of the first. In a graph that did not
    look at spaces, the first read would come first, for it has more channels.
    """
    instance = across(({0, 1}, {4}), ({0, 2}, set()))
    assert greedy_orders(instance) == ((2, 0, 1, 3), (4, 5, 6, 7))


def test_all_of_the_last_space_may_be_shared() -> None:
    """Both share 4, all that the first wants of its last space, and then 0 may be shared too."""
    first, second = ({0, 1}, {4}), ({0, 2}, {4, 5})
    assert greedy_orders(across(first, second)) == ((1, 0, 2, 3), (4, 5, 6, 7))
    assert greedy_orders(across(second, first)) == ((1, 0, 2, 3), (4, 5, 6, 7))


def test_in_a_dense_block_one_layer_gets_a_view() -> None:
    """Masks in general position leave edges only from the layer that reads a single space.

    It comes first, so it is a view, and all others are gathers; prefixes and suffixes would let two
    of them be views.
    """
    rng = random.Random(0)
    spaces = [Space(tuple(range(32 * i, 32 * i + 32))) for i in range(4)]
    wanted = [
        [Part(i, frozenset(rng.sample(spaces[i].channels, 16))) for i in range(layer)]
        for layer in (1, 2, 3, 4, 4)
    ]
    instance = of_parts(spaces, wanted)
    assert solve_greedy(instance).objective == 16 * (2 + 3 + 4 + 4)
    assert cost(instance, greedy_orders(instance, whole=False)) == 16 * (3 + 4 + 4)


def test_reads_with_pieces_are_seen_demand_by_demand() -> None:
    instance = with_pieces(across(({0, 3}, {4, 6}), ({0, 1}, {5})), 4)
    assert greedy_orders(instance) == greedy_orders(instance, whole=False)


def test_spaces_twice_in_one_memory_and_fixed_ones() -> None:
    """A read of cat([x, x, y]) with y fixed wants one set of x, and y is left as it is."""
    spaces = (Space((3, 2, 1, 0)), Space((9, 8, 7), fixed=True))
    parts = (Part(0, frozenset({3, 1})), Part(0, frozenset({3, 1})), Part(1, frozenset({9, 7})))
    outcome = solve_greedy(Instance(spaces, (), (Read(6, None, parts=parts),)))
    assert outcome.orders == ((3, 1, 2, 0), (9, 8, 7))
    assert outcome.objective == outcome.lower_bound == 6


# On UPSCALE's own terms.

UPSCALE = {
    "resnet18": (256, 256),
    "squeezenet1_1": (0, 0),
    "densenet121": (16176, 15632),
    "mobilenet_v2": (208, 208),
}
"""What UPSCALE gathers of half of all convolutions' input channels, and the optimum there.

``benchmarks/greedy_vs_upscale.py`` has more, beside UPSCALE itself.
"""


@pytest.mark.parametrize("name", UPSCALE)
def test_it_gathers_as_many_channels_as_the_original(name: str) -> None:
    model, graph = built(name)
    masks = uo.choose_masks(model, graph, 0.5, layers="conv")
    greedy = uo.solve(graph, masks, solver="greedy", selection="segment")
    optimum = uo.solve(graph, masks, selection="segment")
    assert (greedy.objective_value, optimum.objective_value) == UPSCALE[name]
    assert optimum.status == "optimal"
    assert uo.solve(graph, masks).objective_value <= optimum.objective_value


def test_only_consumers_select() -> None:
    model, graph = built("densenet121")
    masks = uo.choose_masks(model, graph, 0.5, side="input", layers="conv")
    _, segments = find_segments(graph, masks, "segment")
    kinds = {op.name: op.kind for op in graph.operations}
    assert {kinds[name] for name, _ in segments.selects} == {"layer"}
    assert not segments.places
    assert not segments.sole_reader
    for op in graph.operations:
        if op.kind == "channelwise":
            assert segments.stored[op.inputs[0]] == segments.stored[op.outputs[0]]
    readers = [op.name for op in graph.operations if (op.name, 0) in segments.selects]
    assert [name for name, _ in segments.selects] == readers
    hoisted = {kinds[name] for name, _ in find_segments(graph, masks, "tensor")[1].selects}
    assert "channelwise" in hoisted


@settings(
    max_examples=30,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(network_and_masks(), st.booleans())
def test_its_plans_are_lossless(drawn: tuple[RandomNetwork, WeightMasks], biases: bool) -> None:
    network, masks = drawn
    apply_weight_masks(network, masks, biases=biases).double()
    inputs = network.example_inputs(2, dtype=torch.float64)
    graph = uo.trace(network, inputs)
    found = uo.masks_of(network, graph)
    want = call(network, inputs)
    assume(all(bool(leaf.isfinite().all()) for leaf in pytree.tree_leaves(want)))
    for objective in OBJECTIVES:
        greedy, optimum = (
            uo.solve(graph, found, solver=solver, objective=objective, selection="segment")
            for solver in ("greedy", "cp-sat")
        )
        assert optimum.objective_value <= greedy.objective_value
        if objective == "copied_channels":
            assert optimum.status == "optimal"
            for solution in (greedy, optimum):
                assert sum(read.copied for read in solution.reads) == solution.objective_value
                pruned = uo.materialize(network, solution)
                assert deviation(want, call(pruned, inputs)) < EXACT


# The command.


def test_command_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "upscale", None)
    monkeypatch.setattr(sys, "argv", ["greedy_vs_upscale.py"])
    assert benchmark("greedy_vs_upscale").main() == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: pip install --no-deps apple-upscale first"
    ]


class _Upscale:
    """Stands in for apple-upscale's manager, with a plan that gathers 256 of 300 channels."""

    def __init__(self, model: torch.nn.Module) -> None:
        plan = {1: range(44), 2: list(range(0, 512, 2))}
        self.spec = SimpleNamespace(tensor_to_input_activation_indices=plan)

    def compute(self, inputs: list[torch.Tensor]) -> _Upscale:
        return self


def test_command_writes_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "upscale", SimpleNamespace(PruningManager=_Upscale))
    out = tmp_path / "greedy.md"
    monkeypatch.setattr(sys, "argv", [str(COMMAND), "resnet18", "--out", str(out)])
    threads = torch.get_num_threads()
    try:
        assert benchmark("greedy_vs_upscale").main() == 0
    finally:
        torch.set_num_threads(threads)
    text = out.read_text()
    assert "| resnet18 | 50% | 300 | 256 | 256 | 256 | 256 |" in text
    assert "On 1 of these 1 rows" in text
    assert "resnet18" in capsys.readouterr().err
