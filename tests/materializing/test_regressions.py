"""Networks that once were exported wrongly, or made something crash: each stays lossless."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparing import assert_lossless
from torch import Tensor, nn
from torch.nn import functional

import upscale_opt as uo
from upscale_opt.tracing.unchanged import reseed

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()


class Net(nn.Module):
    """A network given as a function of its layers and the input."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            if type(part) is Tensor:
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.function = function
        self.double()

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def conv(inputs: int, outputs: int, seed: int = 0, **options: Any) -> nn.Conv2d:
    with torch.random.fork_rng([]):
        reseed(100 * inputs + 10 * outputs + seed)
        return nn.Conv2d(inputs, outputs, 1, **options)


def drop(layer: nn.Module, columns: list[int]) -> None:
    with torch.no_grad():
        layer.get_parameter("weight")[:, columns] = 0


def export(model: nn.Module, inputs: Tensor = X) -> nn.Module:
    graph = uo.trace(model, inputs)
    return uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))


def out_argument(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    torch.add(y, m.b(x), out=y)
    return m.c(y)


def out_new_tensor(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    result = torch.empty_like(y)
    torch.add(y, m.b(x), out=result)
    return m.c(result)


def foreach(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    torch._foreach_add_([y], [m.b(x)])
    return m.c(y)


def transposed_in_place(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    y.transpose_(2, 3)
    return m.c(y)


def equality(m: Any, x: Tensor) -> Any:
    return m.c((m.a(x) == m.b(x)).to(x.dtype))


def parameter_twice(m: Any, x: Tensor) -> Any:
    return m.c(m.a(x) * m.p.view(1, -1, 1, 1) + m.p.view(1, -1, 1, 1))


@pytest.mark.parametrize(
    "function",
    [out_argument, out_new_tensor, foreach, transposed_in_place, equality, parameter_twice],
)
@pytest.mark.parametrize("dropped", [[], [2], [0, 2, 3]])
def test_calls(function: Callable[[Any, Tensor], Any], dropped: list[int]) -> None:
    parameter = nn.Parameter(torch.rand(4) + 1)
    model = Net(
        function, a=conv(3, 4, bias=False), b=conv(3, 4, 1, bias=False), c=conv(4, 5), p=parameter
    )
    drop(model.get_submodule("c"), dropped)
    with torch.no_grad():
        for name in "ab":
            model.get_parameter(f"{name}.weight")[0] = 0
    assert_lossless(model, export(model), X)


@pytest.mark.parametrize(
    ("function", "width"),
    [
        (lambda m, x: m.c(m.a(x).flip(1)), 6),
        (lambda m, x: m.c(functional.channel_shuffle(m.a(x), 2)), 6),
        (lambda m, x: m.c(m.a(x)[:, [2, 0, 1, 5, 4, 3]]), 6),
        (lambda m, x: m.c(m.a(x).repeat(1, 2, 1, 1)), 12),
        (lambda m, x: m.c(torch.cat([m.a(x)] * 2, 1)[:, ::3]), 4),
        (lambda m, x: m.c(torch.cat([m.a(x)] * 2, 1)[:, [0, 1, 10, 11]]), 4),
        (lambda m, x: m.c(torch.cat([m.a(x)] * 2, 1)[:, 3:9]), 6),
    ],
    ids=["flip", "shuffle", "permuted", "repeat", "strided", "listed", "sliced"],
)
@pytest.mark.parametrize("dropped", [[], [1], [0, 2], [0, 1, 3]])
def test_rearranged_channels(
    function: Callable[[Any, Tensor], Any], width: int, dropped: list[int]
) -> None:
    model = Net(function, a=conv(3, 6), c=conv(width, 5))
    drop(model.get_submodule("c"), dropped)
    assert_lossless(model, export(model), X)


def instance_norm(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    b, c = y.shape[:2]
    return m.c(y - y.reshape(b * c, -1).mean(1).reshape(b, c, 1, 1))


def merged_batches(m: Any, x: Tensor) -> Any:
    parts = [m.a(x).flatten(0, 1), m.b(x).flatten(0, 1)]
    return m.d(torch.cat(parts).view(x.shape[0], -1, 4, 4))


@pytest.mark.parametrize("function", [instance_norm, merged_batches])
@pytest.mark.parametrize(("traced", "run"), [(1, 2), (2, 1), (1, 1)])
def test_a_batch_of_one_is_not_mistaken_for_channels(
    function: Callable[[Any, Tensor], Any], traced: int, run: int
) -> None:
    model = Net(function, a=conv(3, 6), b=conv(3, 6, 1), c=conv(6, 5), d=conv(12, 5))
    drop(model.get_submodule("c"), [1, 4])
    drop(model.get_submodule("d"), [1, 4, 7])
    assert_lossless(model, export(model, X[:traced]), X[:run])


def test_a_split_that_cuts_through_features() -> None:
    def function(m: Any, x: Tensor) -> Any:
        pieces = torch.split(functional.adaptive_avg_pool2d(m.a(x), 2).flatten(1), [4, 6, 6], 1)
        return tuple(layer(piece) for layer, piece in zip((m.l, m.m, m.n), pieces, strict=True))

    model = Net(function, a=conv(3, 4), l=nn.Linear(4, 5), m=nn.Linear(6, 5), n=nn.Linear(6, 2))
    drop(model.get_submodule("m"), [0, 1])
    pruned = export(model)
    for got, want in zip(pruned(X), model(X), strict=True):
        assert torch.allclose(got, want, rtol=0, atol=1e-12)


def ema_assigned(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    m.n = m.n * 0.9 + y.mean((0, 2, 3)) * 0.1
    return m.c(y + m.n.view(1, -1, 1, 1))


def ema_in_place(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    m.n.mul_(0.9).add_(y.mean((0, 2, 3)) * 0.1)
    return m.c(y + m.n.view(1, -1, 1, 1))


def ema_unread(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    m.n.add_(y.mean((0, 2, 3)) * 0.1)
    return m.c(y)


def ema_through_a_view(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    m.n.view(2, 2)[0].add_(1)
    return m.c(y + m.n.view(1, -1, 1, 1))


@pytest.mark.parametrize("function", [ema_assigned, ema_in_place, ema_unread, ema_through_a_view])
def test_buffers_that_forward_updates(function: Callable[[Any, Tensor], Any]) -> None:
    model = Net(function, a=conv(3, 4), c=conv(4, 2), n=torch.zeros(4))
    drop(model.get_submodule("c"), [0, 2])
    pruned, reference = export(model), copy.deepcopy(model)
    assert torch.equal(model.get_buffer("n"), torch.zeros(4).double())
    with torch.no_grad():
        for _ in range(3):
            assert torch.allclose(pruned(X), reference(X), rtol=0, atol=1e-12)
    assert torch.allclose(pruned.get_buffer("n"), reference.get_buffer("n"), rtol=0, atol=1e-12)


def test_what_the_code_stores_in_the_model_is_removed() -> None:
    def function(m: Any, x: Tensor) -> Any:
        y = m.a(x)
        m.cache["mean"] = y.mean()
        m.history.append(y)
        return m.c(y)

    model = Net(function, a=conv(3, 4), c=conv(4, 2), cache={}, history=[])
    reference, pruned = copy.deepcopy(model), None
    with contextlib.suppress(uo.TraceError):  # torch.export in torch 2.6 cannot capture it
        pruned = export(model)
    if pruned is not None:
        assert_lossless(reference, pruned, X)
    assert model.cache == {}
    assert model.history == []


def test_tracing_leaves_no_fake_tensors_in_the_model() -> None:
    model = nn.Sequential(conv(3, 4), nn.utils.weight_norm(conv(4, 4))).double().eval()
    with torch.no_grad():
        model(X)
    uo.trace(model, X)
    assert type(model.get_submodule("1").weight) is Tensor


def test_parametrizations_are_not_run() -> None:
    spectral = nn.utils.parametrizations.spectral_norm(conv(16, 16))
    model = nn.Sequential(conv(3, 16), spectral, nn.ReLU(), conv(16, 2)).double().train()
    pruned = export(model)
    assert_lossless(model.eval(), pruned.eval(), X)


def test_names_that_the_export_would_use_are_taken() -> None:
    model = Net(
        lambda m, x: m.c(m.sum_add(x) + m.gather_c_0(x)),
        sum_add=conv(3, 6),
        gather_c_0=conv(3, 6, 1),
        c=conv(6, 2),
    )
    drop(model.get_submodule("c"), [1, 3])
    with torch.no_grad():
        model.get_parameter("sum_add.weight")[::2] = 0
        model.get_parameter("sum_add.bias")[::2] = 0
    assert_lossless(model, export(model), X)


def test_a_bias_of_two_axes() -> None:
    model = Net(
        lambda m, x: functional.linear(m.a(x).mean((2, 3)), m.w, m.b),
        a=conv(3, 4),
        w=nn.Parameter(torch.randn(5, 4)),
        b=nn.Parameter(torch.randn(1, 5)),
    )
    assert_lossless(model, export(model), X)


def test_verify_leaves_the_inputs_alone() -> None:
    def function(m: Any, x: Tensor) -> Any:
        x.sub_(0.5)
        return m.c(functional.relu_(m.a(x)))

    model = Net(function, a=conv(3, 4), c=conv(4, 2))
    before = X.clone()
    assert uo.verify(model, export(model), X).float64_error < 1e-10
    assert torch.equal(X, before)


def test_a_sum_whose_summands_are_zero_although_the_masks_do_not_say_so() -> None:
    model = Net(
        lambda m, x: m.c(torch.exp(m.a(x) + m.b(x))), a=conv(3, 4), b=conv(3, 4), c=conv(4, 2)
    )
    for part in ("a.weight", "a.bias", "b.weight", "b.bias"):
        nn.init.zeros_(model.get_parameter(part))
    graph = uo.trace(model, X)
    solution = uo.solve(graph, uo.Masks(kept={"a.weight": {0: ()}, "a.bias": {0: ()}}))
    assert_lossless(model, uo.materialize(model, solution), X)
