"""Tracing: what it accepts, what it refuses, and that it changes nothing."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from comparing import EXACT, assert_lossless, call, cast, deviation, same_state, state
from sample_networks import pruned_of
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.models import catalogue
from upscale_opt.models.topologies import UNTRACEABLE, example_inputs


class Small(nn.Module):
    """A stem, a batch norm and a head; enough for most of what tracing could change."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        stream = torch.relu(self.norm(self.stem(x)))
        y: Tensor = self.head(stream + self.block(stream))
        return y


def small(seed: int = 0) -> Small:
    model = Small().eval()
    catalogue.randomize(model, seed)
    return model


def image(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8)


# Tracing leaves the model alone.


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that tracing could leave behind, apart from the tensors' values."""
    return {
        name: (
            module.training,
            sorted(module.__dict__),
            {k: id(v) for k, v in module._parameters.items()},
            {k: id(v) for k, v in module._buffers.items()},
            list(module._modules),
            {k: (id(p.grad), p.requires_grad) for k, p in module.named_parameters()},
            dict(module._forward_hooks),
            dict(module._forward_pre_hooks),
            module.__dict__.get("forward"),
        )
        for name, module in model.named_modules(remove_duplicate=False)
    }


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    "name", ["residual_stage", "layer_scale", "inplace_on_slice", "tied_weights", "dropout"]
)
def test_tracing_and_materializing_change_nothing(name: str, train: bool) -> None:
    model = catalogue.build(catalogue.PREFIX + name).train(train)
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
        parameter.grad = torch.ones_like(parameter) if number % 4 == 0 else None
    inputs = example_inputs(name, 2)
    assert isinstance(inputs, Tensor)
    values, before, given = state(model), snapshot(model), inputs.clone()
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    random_state = torch.get_rng_state()
    graph = uo.trace(model, inputs)
    solution = uo.solve(graph, uo.masks_of(model, graph))
    uo.materialize(model, solution)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert same_state(values, state(model))
    assert snapshot(model) == before
    assert torch.equal(inputs, given)
    for grad, parameter in zip(grads, model.parameters(), strict=True):
        assert (grad is None) == (parameter.grad is None)
        assert grad is None or (parameter.grad is not None and torch.equal(grad, parameter.grad))


def test_tensors_in_the_code_leave_no_attributes_behind() -> None:
    class WithConstant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.head = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Any:
            y = self.stem(x) * torch.tensor([2.0, 3.0]).repeat(4).reshape(8, 1, 1)
            return self.head(y)

    model = WithConstant().eval()
    before = set(vars(model))
    pruned_of(model, image())
    assert set(vars(model)) == before
    assert not [name for name in dir(model) if name.startswith("_tensor_constant")]


def test_a_trace_does_not_keep_its_model_alive() -> None:
    model = small()
    uo.trace(model, image())
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_what_changed_since_the_trace_is_noticed() -> None:
    """An attribute that FX baked into the graph changes between trace and materialize."""

    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.take = [0, 4]
            self.stem = nn.Conv2d(3, 8, 1)
            self.head = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.stem(x)[:, self.take[0] : self.take[1]])

    model = Sliced().double().eval()
    x = image().double()
    graph = uo.trace(model, x)
    solution = uo.solve(graph, uo.masks_of(model, graph))
    model.take[:] = [4, 8]
    with pytest.raises(uo.MaterializeError, match="another model"):
        uo.materialize(model, solution)


@pytest.mark.parametrize("where", ["", "stem", "block", "block.0", "head"])
@pytest.mark.parametrize("kind", ["forward", "pre"])
def test_hooks_stay_and_still_count(where: str, kind: str) -> None:
    model = small().double()
    module = model.get_submodule(where)
    calls: list[str] = []

    def after(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        calls.append(where)
        return output * 3 + 1

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        calls.append(where)
        return (args[0] * 2 - 1,)

    if kind == "forward":
        module.register_forward_hook(after)
    else:
        module.register_forward_pre_hook(before)
    x = image().double()
    pruned = pruned_of(model, x)
    assert len(module._forward_hooks) + len(module._forward_pre_hooks) == 1
    plain = copy.deepcopy(pruned.masked)
    plain.get_submodule(where)._forward_hooks.clear()
    plain.get_submodule(where)._forward_pre_hooks.clear()
    assert deviation(call(plain, x), call(pruned.masked, x)) > 1e-3  # the hook matters
    assert_lossless(pruned.masked, pruned.model, x)
    calls.clear()
    call(pruned.model, x)
    assert calls == [where]


def test_random_state_is_as_before_even_if_tracing_fails() -> None:
    model, x = UNTRACEABLE["data_dependent"](), image()
    before = torch.get_rng_state()
    with pytest.raises(uo.TraceError):
        uo.trace(model, x)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_effect_on_a_buffer_happens_in_the_pruned_model_not_in_the_trace() -> None:
    class Counting(nn.Module):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))
            self.stem = nn.Conv2d(3, 8, 1)
            self.head = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Any:
            self.seen.add_(1)
            return self.head(torch.relu(self.stem(x)))

    model = Counting().eval()
    uo.trace(model, image())
    assert model.seen == 0
    pruned = pruned_of(model, image())
    assert model.seen == 0
    start = float(pruned.model.get_buffer("seen"))
    call(pruned.model, image())
    call(pruned.model, image())
    assert pruned.model.get_buffer("seen") == start + 2


# Train mode.


@pytest.mark.parametrize("name", ["residual_stage", "preactivation", "dense_block", "conv1d"])
def test_a_model_in_train_mode_trains_on_as_the_masked_model_would(name: str) -> None:
    inputs = cast(example_inputs(name, 4), torch.float64)
    model = catalogue.randomize(catalogue.build(catalogue.PREFIX + name), 1).double().train()
    values = state(model)
    graph = uo.trace(model, inputs)
    assert same_state(values, state(model))
    uo.apply_masks(model, graph, uo.choose_masks(model, graph, 0.5, side="both"))
    solution = uo.solve(graph, uo.masks_of(model, graph))
    pruned = uo.materialize(model, solution)
    assert pruned.training
    assert all(m.training for m in pruned.modules())
    for _ in range(2):  # the second time with what the first made of the running statistics
        assert_lossless(model, pruned, inputs)
    _same_statistics(model, pruned, solution)
    model.eval()
    pruned.eval()
    assert_lossless(model, pruned, inputs)


def _same_statistics(model: nn.Module, pruned: nn.Module, solution: uo.Solution) -> None:
    old = dict(model.named_buffers())
    new = dict(pruned.named_buffers())
    checked = 0
    for name in old:
        if name in new:
            kept = solution.parameters.get(name, {}).get(0)
            want = old[name] if kept is None else old[name][list(kept)]
            assert torch.allclose(want, new[name], rtol=1e-12, atol=1e-12), name
            checked += 1
    assert checked >= 3


def test_eval_and_train_graphs_agree_for_networks_without_dropout() -> None:
    model = small()
    one = uo.trace(model, image())
    two = uo.trace(model.train(), image())
    assert [t.channels for t in one.tensors.values()] == [t.channels for t in two.tensors.values()]


# Dtypes and inputs.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["residual_stage", "flatten", "tied_weights"])
def test_every_float_dtype(dtype: torch.dtype, name: str) -> None:
    inputs = example_inputs(name, 2)
    model = catalogue.randomize(catalogue.build(catalogue.PREFIX + name), 1).to(dtype)
    pruned = pruned_of(model, cast(inputs, dtype))
    assert {p.dtype for p in pruned.model.parameters()} == {dtype}
    assert pruned.report is not None
    assert pruned.report.float64_error < EXACT
    assert pruned.report.dtype == str(dtype).removeprefix("torch.")
    assert pruned.graph.fingerprint == uo.trace(model.float(), inputs).fingerprint


class Interface(nn.Module):
    """Positional and keyword arguments, collections of tensors, numbers, strings, None."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 1)
        self.right = nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(
        self,
        pair: Any,
        scale: float = 2.0,
        mode: str = "add",
        extra: Tensor | None = None,
    ) -> dict[str, Any]:
        one, two = (pair["one"], pair["two"]) if isinstance(pair, dict) else pair
        left, right = self.left(one), self.right(two)
        stream = left + right if mode == "add" else left * right
        if extra is not None:
            stream = stream + extra
        return {"out": self.head(stream) * scale, "parts": [self.head(left), (right,)]}


@pytest.mark.parametrize(
    "inputs",
    [
        ((image(), image()),),
        [[image(), image()]],
        ({"one": image(), "two": image()},),
        {"pair": (image(), image())},
        {"pair": [image(), image()], "scale": 3.0},
        {"mode": "mul", "pair": (image(), image())},
        ((image(), image()), 0.5, "mul"),
        ((image(), image()), 0.5, "add", torch.ones(8, 1, 1)),
        {"pair": (image(), image()), "extra": torch.randn(2, 8, 8, 8)},
        {"pair": {"two": image(), "one": image()}, "extra": None},
    ],
    ids=[f"form{i}" for i in range(10)],
)
def test_every_form_of_inputs(inputs: Any) -> None:
    model = Interface().double().eval()
    inputs = cast(inputs, torch.float64)
    pruned = pruned_of(model, inputs, 0.25)
    out = call(pruned.model, inputs)
    assert isinstance(out, dict)
    assert isinstance(out["parts"], list)
    assert_lossless(pruned.masked, pruned.model, inputs)


def test_defaults_that_were_left_out_stay_defaults() -> None:
    model = Interface().double().eval()
    x = (image().double(), image().double())
    pruned = pruned_of(model, {"pair": x})
    assert_lossless(pruned.masked, pruned.model, {"pair": x})
    assert_lossless(pruned.masked, pruned.model, (x,))


def test_integer_inputs() -> None:
    model = nn.Sequential(nn.Embedding(10, 12), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    tokens = torch.randint(0, 10, (2, 5))
    pruned = pruned_of(model, tokens)
    assert pruned.report is not None
    assert pruned.report.float64_error < EXACT
    weight = pruned.model.get_parameter("1.weight")
    assert weight.shape[0] < 8


@pytest.mark.parametrize("inputs", [3, None, "text", {1: torch.ones(1)}])
def test_other_inputs_are_refused(inputs: Any) -> None:
    with pytest.raises(uo.TraceError, match="inputs are a"):
        uo.trace(small(), inputs)


def test_an_array_among_the_inputs_is_refused() -> None:
    with pytest.raises(uo.TraceError, match="ndarray"):
        uo.trace(small(), (np.zeros((2, 3, 8, 8), np.float32),))


@pytest.mark.parametrize(
    "inputs",
    [
        torch.ones(2, 4, 8, 8),
        torch.ones(2, 3),
        (image(), image()),
        {"y": image()},
        (),
    ],
)
def test_inputs_that_the_model_does_not_take_are_a_trace_error(inputs: Any) -> None:
    with pytest.raises(uo.TraceError) as caught:
        uo.trace(small(), inputs)
    assert "Small" in str(caught.value)
    assert "\n" not in str(caught.value)


# What FX cannot trace.


class Loop(nn.Module):
    """Iterates over a tensor's rows: how many there are is part of the program."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        rows = [torch.relu(self.stem(row)) for row in x.unbind(0)]
        if x.shape[0] > 100:
            rows = rows[:100]
        return {"all": [self.head(row) for row in rows], "first": self.head(rows[0])}


def test_loops_over_rows() -> None:
    model = Loop().double().eval()
    x = torch.randn(3, 2, 6, dtype=torch.float64)
    pruned = pruned_of(model, x)
    assert pruned.graph.capture == "fx"
    out = call(pruned.model, x)
    assert isinstance(out, dict)
    assert isinstance(out["all"], list)
    assert_lossless(pruned.masked, pruned.model, x)
    assert_lossless(pruned.masked, pruned.model, torch.randn(3, 5, 6).double())
    with pytest.raises(uo.ArgumentError, match=r"x\.shape\[0\]' is 4"):
        call(pruned.model, torch.randn(4, 2, 6).double())


def test_an_exported_model_shrinks_and_takes_other_batches() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.norm = nn.BatchNorm2d(8)
            self.head = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Any:
            if x.shape[1] != 3:
                raise ValueError("three channels, please")
            stream = self.norm(self.stem(x))
            stream[:, 2:5].relu_()
            return self.head(stream)

    model = catalogue.randomize(Branching().eval(), 1).double()
    x = image().double()
    pruned = pruned_of(model, x)
    assert pruned.graph.capture == "export"
    assert isinstance(call(pruned.model, x), Tensor)
    assert_lossless(pruned.masked, pruned.model, x)
    assert_lossless(pruned.masked, pruned.model, torch.randn(5, 3, 8, 8).double())
    assert sum(p.numel() for p in pruned.model.parameters()) < sum(
        p.numel() for p in model.parameters()
    )


def test_an_untraceable_model_is_one_error_that_says_what_to_do() -> None:
    with pytest.raises(uo.TraceError) as caught:
        uo.trace(UNTRACEABLE["data_dependent"](), image())
    message = str(caught.value)
    assert message.startswith("DataDependent cannot be traced")
    assert "torch.fx" in message
    assert "torch.export" in message
    assert "Control flow" in message
    assert "\n" not in message
    assert len(message) < 1000


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript_is_refused() -> None:
    scripted = torch.jit.trace(small(), image())  # type: ignore[no-untyped-call]
    with pytest.raises(uo.TraceError, match="TorchScript"):
        uo.trace(scripted, image())
