"""Concatenations that share a buffer: lossless in every mode, and none where none fits."""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from arena_networks import OTHERS, RUNS, X, chain, exported, network, with_arena
from cat_networks import cat_network, image
from comparing import EXACT, assert_lossless, call, cast, deviation
from sample_networks import random_masks
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.models import catalogue
from upscale_opt.models.generated.masks import (
    Side,
    apply_weight_masks,
    random_weight_masks,
)
from upscale_opt.models.topologies import example_inputs
from upscale_opt.runtime.arena import ArenaRead, ArenaWrite
from upscale_opt.solver.algorithms.registry import solve_instance
from upscale_opt.solver.problem.instance import Instance, Outcome, cost

SIDES: tuple[Side, ...] = ("in", "out", "both")

TOPOLOGIES = (
    *("dense_block", "nested_cat", "add_and_cat", "unet", "cat_twice", "split_reordered"),
    *("shuffle_v2", "channel_shuffle", "grouped_cat", "windows", "shared_block"),
)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_topologies(name: str) -> None:
    model = catalogue.build(catalogue.PREFIX + name, seed=3)
    catalogue.randomize(model, 4, example_inputs(name, 4)).double()
    inputs = cast(example_inputs(name, 2), torch.float64)
    others = cast(example_inputs(name, 3), torch.float64)
    original = {key: value.clone() for key, value in model.state_dict().items()}
    graph = uo.trace(model, inputs)
    for number in range(6):
        rng = random.Random(number)
        model.load_state_dict(original)
        drawn = random_weight_masks(model, rng, SIDES[number % 3])
        apply_weight_masks(model, drawn, biases=rng.random() < 0.5)
        masks = uo.masks_of(model, graph)
        solution = uo.solve(graph, masks, selection="arena")
        assert uo.check(solution, graph, masks).optimal
        assert uo.Solution.from_json(solution.to_json()) == solution
        pruned = uo.materialize(model, solution)
        assert_lossless(model, pruned, inputs)
        assert_lossless(model, pruned, others)


# Every way to concatenate.


@pytest.mark.parametrize("name", RUNS)
def test_every_way_to_concatenate(name: str) -> None:
    for seed in range(6):
        case = exported(name, seed)
        uo.check(case.solution, case.graph, case.masks)
        assert uo.Solution.from_json(case.solution.to_json()) == case.solution
        more = torch.randn(7, 3, 6, 5, dtype=torch.float64)
        for x in (X, more, X.contiguous(memory_format=torch.channels_last)):
            want = call(case.model, x)
            assert deviation(want, call(case.pruned, x)) < EXACT
            assert deviation(want, call(case.pruned, x)) < EXACT, "at the second call"
            assert deviation(want, case.pruned(x).detach()) < EXACT, "with gradients"
        held = {name for arena in case.solution.arenas for name in arena.tensors}
        planned = sum(r.plan == "gather" and r.tensor in held for r in case.solution.reads)
        reads = [m for m in case.pruned.modules() if isinstance(m, ArenaRead)]
        assert sum(not m.view for m in reads) == planned, "copies that nobody counted"


@pytest.mark.parametrize("name", ["chain", "dead_operand", "osa"])
def test_arenas_are_found(name: str) -> None:
    assert with_arena(name).solution.arenas


@pytest.mark.parametrize("name", ["inception", "twice_activated"])
def test_no_space_is_a_part_of_two_arenas(name: str) -> None:
    for seed in range(6):
        arenas = exported(name, seed).solution.arenas
        channels = [channel for arena in arenas for channel in arena.channels]
        assert len(set(channels)) == len(channels)


def test_no_worse_than_without() -> None:
    for seed in range(6):
        case = exported("chain", seed)
        alone = uo.solve(case.graph, case.masks)
        assert case.solution.objective_value <= alone.objective_value


def test_an_operand_of_which_nothing_is_left() -> None:
    """It stands between others whose channels are interleaved nevertheless."""

    def between(m: Any, x: Tensor) -> Tensor:
        joined = torch.cat([m.a(x), m.b(x), m.c(x)], 1)
        y: Tensor = m.h(joined) + m.i(joined) + m.o(joined)
        return y

    model = network(between, 0, o=lambda: nn.Conv2d(15, 3, 1))
    graph = uo.trace(model, X)
    kept = {"h": (0, 12), "i": (1, 13), "o": (0, 1, 13)}
    uo.apply_masks(model, graph, uo.Masks(kept={f"{n}.weight": {1: c} for n, c in kept.items()}))
    masks = uo.masks_of(model, graph)
    solution = uo.solve(graph, masks, selection="arena")
    uo.check(solution, graph, masks)
    assert solution.arenas
    assert solution.objective_value == 0 < uo.solve(graph, masks).objective_value
    assert_lossless(model, uo.materialize(model, solution), X)


# Modes.


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_training_is_that_of_the_functional_form() -> None:
    case = with_arena()
    functional_form = uo.materialize(case.model, case.solution)
    for module in functional_form.modules():
        if isinstance(module, ArenaWrite):
            module.in_place = False
    with torch.no_grad():
        assert torch.equal(functional_form(X), case.pruned(X))
    pruned = copy.deepcopy(case.pruned).train()
    want, got = gradients(functional_form.train(), X), gradients(pruned, X)
    assert want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)
    state = {name: p.detach().clone() for name, p in pruned.named_parameters()}
    for model in (functional_form, pruned):
        torch.optim.SGD(model.parameters(), 0.1).step()
    assert any(not torch.equal(p, state[name]) for name, p in pruned.named_parameters())
    with torch.no_grad():
        assert torch.equal(functional_form(X), pruned(X))


@pytest.mark.parametrize("frozen", [("a", "b"), ("a",), ("c",), ("a", "b", "c", "r")])
def test_some_layers_are_frozen(frozen: tuple[str, ...]) -> None:
    """A buffer may be begun before the first tensor that needs a gradient."""
    case = with_arena()
    model, pruned = copy.deepcopy(case.model), copy.deepcopy(case.pruned)
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
        pruned.get_submodule(name).requires_grad_(False)
    assert deviation(model(X).detach(), pruned(X).detach()) < EXACT
    want, got = gradients(model, X), gradients(pruned, X)
    assert want.keys() >= got.keys()
    biases = [name for name in got if name.endswith("bias") and got[name].shape == want[name].shape]
    assert biases
    for name in biases:
        assert deviation(want[name], got[name]) < 1e-9


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes_of_autograd(mode: Callable[[], Any]) -> None:
    case = with_arena()
    want = call(case.model, X)
    with mode():
        assert deviation(want, case.pruned(X).detach().clone()) < EXACT


def test_autocast() -> None:
    """As the functional form, bit by bit: nothing is rounded in the buffer."""
    case = with_arena()
    plain = uo.materialize(case.model, case.solution).float()
    for module in plain.modules():
        if isinstance(module, ArenaWrite):
            module.in_place = False
    pruned = copy.deepcopy(case.pruned).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want, got = plain(X.float()), pruned(X.float())
    assert want.dtype == got.dtype
    assert torch.equal(want, got)


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_buffers_hold_what_is_most_precise(dtypes: tuple[str, str]) -> None:
    """As torch.cat under autocast; also if the first tensor written is not precise."""
    one, two = (torch.randn(1, 2, 3, 3).to(getattr(torch, dtype)) for dtype in dtypes)
    first = ArenaWrite([[(0, 0, 2)]], 4, 1)
    second = ArenaWrite([[(0, 2, 2)]], 4, 1)
    reads = ArenaRead(
        [0, 1, 2, 3], [(0, 0), (0, 1), (1, 0), (1, 1)], [2, 2], 1, X.device, view=True
    )
    with torch.no_grad():
        got = reads(second(two, earlier=first(one)))
    assert torch.equal(got, torch.cat([one.float(), two.float()], 1))
    assert got.dtype == torch.float32


def test_transformed() -> None:
    case = with_arena()
    want = call(case.model, X)
    with torch.no_grad():
        got = torch.func.vmap(lambda x: case.pruned(x.unsqueeze(0)).squeeze(0))(X)
    assert deviation(want, got) < EXACT


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(backend: str) -> None:
    case = with_arena()
    torch.compiler.reset()
    compiled = torch.compile(case.pruned, backend=backend)
    assert deviation(call(case.model, X), compiled(X).detach()) < EXACT


def test_exported_program() -> None:
    case = with_arena()
    with torch.no_grad():
        program = torch.export.export(case.pruned, (X,)).module()
    assert deviation(call(case.model, X), call(program, X)) < EXACT


def test_copies_and_files(tmp_path: Path) -> None:
    case = with_arena()
    want = call(case.pruned, X)
    stream = io.BytesIO()
    torch.save(case.pruned, stream)
    stream.seek(0)
    uo.save(case.pruned, tmp_path / "pruned.uo")
    others = [
        copy.deepcopy(case.pruned),
        copy.copy(case.pruned),
        torch.load(stream, weights_only=False),
        uo.load(network(chain, 0, **OTHERS["chain"]), tmp_path / "pruned.uo"),
    ]
    for other in others:
        assert torch.equal(want, call(other, X))
    assert others[-1].solution == case.solution


def test_pruned_again() -> None:
    case = with_arena()
    again = copy.deepcopy(case.pruned)
    graph = uo.trace(again, X)
    uo.apply_masks(again, graph, random_masks(graph, 1))
    masks = uo.masks_of(again, graph)
    for selection in ("arena", "tensor"):
        solution = uo.solve(graph, masks, selection=selection)
        assert_lossless(again, uo.materialize(again, solution), X)


# Random networks.


@pytest.mark.parametrize("dense", [False, True])
def test_random_networks(dense: bool) -> None:
    arenas = 0
    for seed in range(8):
        model = cat_network(seed, 5, dense=dense, frozen=seed % 3 == 0)
        graph = uo.trace(model, image())
        uo.apply_masks(model, graph, random_masks(graph, seed))
        masks = uo.masks_of(model, graph)
        options: dict[str, Any] = {} if seed % 2 else {"max_extra_macs": 0.5}
        solution = uo.solve(graph, masks, selection="arena", time_limit=1, **options)
        uo.check(solution, graph, masks)
        pruned = uo.materialize(model, solution)
        for x in (image(2), image(7, 1), image(2, last=True)):
            want = call(model, x)
            assert deviation(want, call(pruned, x)) < EXACT
            assert deviation(want, pruned(x).detach()) < EXACT
        arenas += len(solution.arenas)
    assert arenas >= 4 or not dense


def test_tensors_are_written_in_few_pieces_whatever_order_a_solver_finds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    solving = import_module("upscale_opt.solver.api")  # not the function

    def pieces(graph: uo.ChannelGraph, masks: uo.Masks, model: nn.Module) -> int:
        rng = random.Random(0)

        def shuffled(instance: Instance, *arguments: Any, **options: Any) -> Outcome:
            outcome = solve_instance(instance, *arguments, **options)
            pairs = zip(instance.spaces, outcome.orders, strict=True)
            orders = tuple(o if s.fixed else tuple(rng.sample(o, len(o))) for s, o in pairs)
            return replace(outcome, orders=orders, objective=cost(instance, orders))

        with monkeypatch.context() as patched:
            patched.setattr(solving, "solve_instance", shuffled)
            solution = uo.solve(graph, masks, selection="arena")
        pruned = uo.materialize(model, solution)
        assert_lossless(model, pruned, X)
        writes = [m for m in pruned.modules() if isinstance(m, ArenaWrite)]
        assert writes
        return sum(len(runs) for write in writes for runs in write.runs)

    tidy = untidy = 0
    for seed in range(4):
        model = network(chain, seed, **OTHERS["chain"])
        graph = uo.trace(model, X)
        uo.apply_masks(model, graph, random_masks(graph, seed))
        masks = uo.masks_of(model, graph)
        tidy += pieces(graph, masks, model)
        with monkeypatch.context() as patched:
            patched.setattr(solving, "tidied", lambda *given: given[2])
            untidy += pieces(graph, masks, model)
    assert tidy < 0.75 * untidy


@pytest.mark.parametrize("objective", ["copied_channels", "blocks"])
@pytest.mark.parametrize("solver", ["identity", "greedy"])
def test_what_is_written_in_fewer_pieces_costs_what_the_solution_says(
    solver: str, objective: str
) -> None:
    """Solvers that are no optimisers leave orders in which tidying can make views."""
    for seed in range(6):
        model = network(chain, seed, **OTHERS["chain"])
        graph = uo.trace(model, X)
        uo.apply_masks(model, graph, random_masks(graph, seed))
        masks = uo.masks_of(model, graph)
        solution = uo.solve(graph, masks, solver=solver, objective=objective, selection="arena")
        assert uo.check(solution, graph, masks).objective_value == solution.objective_value
