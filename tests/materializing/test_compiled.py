"""Exports that are compiled, captured and transformed, and the functional form that this takes."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from comparing import EXACT, deviation
from sample_networks import Net, random_masks
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import upscale_opt as uo
from upscale_opt.models import catalogue
from upscale_opt.models.topologies import example_inputs
from upscale_opt.runtime.arena import ArenaRead, ArenaWrite
from upscale_opt.runtime.modules import OURS, PlacedSum


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A tiny network in float64 in which nothing is zero, and two inputs for it."""
    model, given = catalogue.build(catalogue.PREFIX + name, seed=3), example_inputs(name, 2)
    assert isinstance(given, Tensor)
    catalogue.randomize(model, 4, given)
    return model.double().eval(), given.double()


def masked(name: str, side: str) -> tuple[nn.Module, uo.ChannelGraph, Tensor]:
    """A small network, its graph and inputs; masks are on its weights."""
    model, x = network(name)
    graph = uo.trace(model, x)
    axes = {"input": (1,), "output": (0,), "both": (0, 1)}[side]
    drawn = random_masks(graph, seed=5).kept
    kept = {
        weight: {axis: entries for axis, entries in by_axis.items() if axis in axes}
        for weight, by_axis in drawn.items()
    }
    uo.apply_masks(model, graph, uo.Masks(kept={w: by for w, by in kept.items() if by}))
    return model, graph, x


def solved(model: nn.Module, graph: uo.ChannelGraph, how: str) -> uo.Solution:
    """The solution with tensors or arenas in mind, or for the clock."""
    found = uo.masks_of(model, graph)
    if how == "latency":
        return uo.solve(graph, found, objective="latency")
    return uo.solve(graph, found, selection="arena" if how == "arena" else "tensor")


CASES = [
    ("residual_stage", "both", "latency"),
    ("dense_block", "input", "arena"),
    ("squeeze_excite", "both", "latency"),
    ("shuffle_v2", "both", "arena"),
    ("attention", "both", "tensor"),
]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, Tensor]:
    """A masked network, its export and inputs."""
    torch.manual_seed(0)
    name, side, how = request.param
    model, graph, x = masked(name, side)
    return model, uo.materialize(model, solved(model, graph, how)), x


def test_dynamo_breaks_no_more_graphs(case: tuple[nn.Module, nn.Module, Tensor]) -> None:
    model, pruned, x = case
    with torch.no_grad():
        breaks = []
        for either in (model, pruned):
            torch._dynamo.reset()
            breaks.append(torch._dynamo.explain(either)(x).graph_break_count)
    assert breaks[1] <= breaks[0]


def test_compiled(case: tuple[nn.Module, nn.Module, Tensor]) -> None:
    compilations = []
    _, pruned, x = case
    for either in case[:2]:
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(either, backend=counter, dynamic=True)
        with torch.no_grad():
            for batch in (x, torch.cat([x, x.flip(0), x])):
                assert deviation(pruned(batch), compiled(batch)) < EXACT
        compilations.append(counter.frame_count)
    assert compilations[1] <= compilations[0], "compiled anew for another batch"


def test_exported_with_a_dynamic_batch(case: tuple[nn.Module, nn.Module, Tensor]) -> None:
    _, pruned, x = case
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(pruned, (x,), dynamic_shapes=shapes, strict=False)
    captured = program.module()
    with torch.no_grad():
        for batch in (x, x[:1], torch.cat([x, x.flip(0), x])):
            assert deviation(pruned(batch), captured(batch)) < EXACT
    assert modified(program.graph) <= {"relu_", "relu6_", "hardtanh_"}, "from the original"


def test_captured_by_make_fx(case: tuple[nn.Module, nn.Module, Tensor]) -> None:
    _, pruned, x = case
    with torch.no_grad():
        captured = make_fx(pruned)(x)
        assert deviation(pruned(x + 1), captured(x + 1)) < EXACT
    assert modified(captured.graph) <= {"relu_", "relu6_", "hardtanh_"}


def modified(graph: fx.Graph) -> set[str]:
    """The operators that modify what they get, by name; none reads how large data makes it."""
    names = set()
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            assert torch.Tag.data_dependent_output not in node.target.tags
            assert torch.Tag.dynamic_output_shape not in node.target.tags
            names.add(node.target.overloadpacket.__name__)
    return {name for name in names if name.endswith("_") and not name.endswith("__")}


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compiled_by_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # no processes for one kernel
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    model = Net(
        lambda m, x: m.last(m.first(x) + m.second(x)),
        first=nn.Conv2d(3, 8, 1),
        second=nn.Conv2d(3, 8, 1),
        last=nn.Conv2d(8, 2, 1),
    ).double()
    with torch.no_grad():
        for layer, gone in (("first", 3), ("second", slice(5, 8))):
            model.get_parameter(f"{layer}.weight")[gone] = 0
            model.get_parameter(f"{layer}.bias")[gone] = 0
    graph = uo.trace(model, x)
    pruned = uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))
    torch._dynamo.reset()
    with torch.no_grad():
        assert deviation(model(x), torch.compile(pruned)(x)) < EXACT


@pytest.mark.parametrize("how", ["tensor", "arena"])
def test_gradients_are_those_of_the_masked_network(how: str) -> None:
    name = "dense_block" if how == "arena" else "residual_stage"
    model, graph, x = masked(name, "both")
    pruned = uo.materialize(model, solved(model, graph, how))
    grads = []
    for either in (model, pruned):
        given = x.clone().requires_grad_()
        either(given).square().sum().backward()
        assert given.grad is not None
        grads.append(given.grad)
    assert deviation(*grads) < EXACT
    captured = torch.func.vmap(pruned)(x.unsqueeze(1)).squeeze(1)  # no buffers, no sums in place
    assert deviation(model(x), captured) < EXACT


@pytest.mark.parametrize("trainable", ["first", "second", "reader"])
def test_arenas_of_which_one_tensor_is_trained(trainable: str) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        arena = m.write(m.first(x))
        one = m.reader(m.early(arena))
        arena = m.more(m.second(x), earlier=arena)
        out: Tensor = m.late(arena) * one.sum()
        return out

    places = [2, 3, 0, 1]
    sources = [(1, 0), (1, 1), (0, 0), (0, 1)]
    device = torch.device("cpu")
    layers = {name: nn.Conv2d(2, 2, 1) for name in ("first", "second", "reader")}
    x = torch.randn(1, 2, 4, 4)
    results = []
    for in_place in (True, False):
        model = Net(
            run,
            **copy.deepcopy(layers),
            write=ArenaWrite([[(0, 0, 2)]], 4, 1, in_place),
            early=ArenaRead([0, 1], [(0, 0), (0, 1)], [2], 1, device, view=True),
            more=ArenaWrite([[(0, 2, 2)]], 4, 1, in_place),
            late=ArenaRead(places, sources, [2, 2], 1, device, view=True),
        ).requires_grad_(False)
        parameter = model.get_parameter(f"{trainable}.weight").requires_grad_()
        out = model(x)
        out.square().sum().backward()
        results.append((out.detach(), parameter.grad))
    assert deviation(*results) < 1e-5


def test_autocast(case: tuple[nn.Module, nn.Module, Tensor]) -> None:
    model, pruned, x = case
    single, smaller = copy.deepcopy(model).float(), copy.deepcopy(pruned).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want, got = single(x.float()), smaller(x.float())
    assert got.dtype == want.dtype
    assert deviation(want.float(), got.float()) < 0.2


def test_half_precision(case: tuple[nn.Module, nn.Module, Tensor]) -> None:
    _, pruned, x = case
    with torch.no_grad():
        got = copy.deepcopy(pruned).bfloat16()(x.bfloat16())
    assert got.dtype == torch.bfloat16
    assert deviation(pruned(x), got.double()) < 0.2


def test_other_devices(case: tuple[nn.Module, nn.Module, Tensor]) -> None:
    """All indices move with the module, and no shape depends on data."""
    _, pruned, x = case
    moved = copy.deepcopy(pruned).to("meta")
    for module in moved.modules():
        if isinstance(module, OURS):
            assert all(buffer.is_meta for buffer in module.buffers())
    with torch.no_grad():
        assert moved(x.to("meta")).shape == pruned(x).shape


def summed(model: nn.Module, x: Tensor, **options: Any) -> nn.Module:
    """The export of a model, in which a sum has partial summands."""
    graph = uo.trace(model, x)
    solution = uo.solve(graph, uo.masks_of(model, graph))
    pruned = uo.materialize(model, solution, **options)
    assert any(isinstance(module, PlacedSum) for module in pruned.modules())
    return pruned


@pytest.mark.parametrize("read_later", [False, True])
@pytest.mark.parametrize("allowed", [False, True])
def test_sums_are_in_place_where_nobody_else_reads(read_later: bool, allowed: bool) -> None:
    def run(m: Any, x: Tensor) -> list[Tensor]:
        stream = m.first(x)
        total = stream + m.second(x)
        return [m.last(total), *([m.other(stream)] if read_later else [])]

    names = {"first": (3, 8), "second": (3, 8), "last": (8, 2), "other": (8, 2)}
    model = Net(run, **{name: nn.Conv2d(*sizes, 1) for name, sizes in names.items()}).double()
    with torch.no_grad():
        for table in ("weight", "bias"):
            model.get_parameter(f"second.{table}")[5:] = 0
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    pruned = summed(model, x, allow_inplace=allowed)
    placed = next(module for module in pruned.modules() if isinstance(module, PlacedSum))
    assert placed.spare is (allowed and not read_later)
    written = 2 * 5 * 16 * 8 if placed.spare else 2 * (8 + 5) * 16 * 8
    assert uo.measuring.moved_bytes(pruned, x).total == written
    before = x.clone()
    state = {name: value.clone() for name, value in pruned.state_dict().items()}
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            want = model(x)
            for either in (pruned, pruned, copy.deepcopy(pruned)):
                assert deviation(want, either(x)) < EXACT
    assert torch.equal(x, before)
    assert all(torch.equal(value, state[name]) for name, value in pruned.state_dict().items())


def test_what_stands_for_a_sum_may_be_a_view() -> None:
    """Where a summand is gone, the other may be a view, which must not be modified in place."""

    def run(m: Any, x: Tensor) -> list[Tensor]:
        stream = m.first(x)
        total = (stream.permute(0, 1, 3, 2) + m.second(x)).relu_()
        return [m.last(total), m.other(stream)]

    names = {"first": (3, 8), "second": (3, 8), "last": (8, 2), "other": (8, 2)}
    model = Net(run, **{name: nn.Conv2d(*sizes, 1) for name, sizes in names.items()}).double()
    with torch.no_grad():
        for table in ("weight", "bias"):
            model.get_parameter(f"second.{table}").zero_()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    graph = uo.trace(model, x)
    pruned = uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))
    with torch.no_grad():
        assert deviation(model(x), pruned(x)) < EXACT
