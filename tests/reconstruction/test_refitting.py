"""Refitting: never worse, masks stay, and the export is lossless."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from comparing import call
from fitted_layers import KINDS, least_loss, made, stir_norms
from torch import Tensor, fx, nn

import upscale_opt as uo
from upscale_opt.errors import ArgumentError, TraceError
from upscale_opt.ir.graph import maskable_axes
from upscale_opt.models.small_networks import SMALL_NETWORKS, build_small
from upscale_opt.reconstruction.counting import LayerWork
from upscale_opt.reconstruction.least_squares import Sums, fitted, ridge
from upscale_opt.reconstruction.stepping import Stepper


def lively(name: str) -> nn.Module:
    """A small network with batch norms that do something."""
    network = build_small(name, image=8).double()
    stir_norms(network)
    return network


def images(count: int = 64) -> Tensor:
    return torch.randn(count, 1, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize("method", ["unconstrained", "constrained"])
@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_refitting_never_raises_errors_and_masks_stay(name: str, method: str) -> None:
    network, x = lively(name), images()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    graph = uo.trace(network, x[:2])
    masks = uo.choose_masks(network, graph, 0.5)
    if method == "constrained":
        masks = uo.constrain(graph, masks)
    masked = copy.deepcopy(network)
    uo.apply_masks(masked, graph, masks)
    refitted, report = uo.refit(network, masks, [x[:32], x[32:]], graph=graph)
    assert report.layers
    assert report.samples == 64
    for layer in report.layers:
        assert layer.after <= layer.before
    assert sum(one.after for one in report.layers) < 0.8 * sum(one.before for one in report.layers)
    assert uo.masks_of(refitted, graph) == uo.masks_of(masked, graph)
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    want = call(network, x)
    spread = (want - want.mean(0)).square().sum()
    far, near = ((call(m, x) - want).square().sum() / spread for m in (masked, refitted))
    assert near < 0.5 * far


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_exports_equal_the_refitted_model(name: str) -> None:
    network, x = lively(name), images(32)
    graph = uo.trace(network, x[:2])
    masks = uo.choose_masks(network, graph, 0.4, side="both")
    refitted, _ = uo.refit(network, masks, [x], graph=graph)
    solution = uo.solve(graph, uo.masks_of(refitted, graph))
    pruned = uo.materialize(refitted, solution)
    uo.verify(refitted, pruned, x[:4])
    assert sum(p.numel() for p in pruned.parameters()) < sum(
        p.numel() for p in network.parameters()
    )


@pytest.mark.parametrize("name", KINDS)
def test_one_layer_gets_the_least_squares_solution(name: str) -> None:
    """With next to no ridge: the deviation left is the least that there can be."""
    kind = KINDS[name]
    network, x = made(kind, 40 if name in ("linear", "flat", "product") else 12)
    graph = uo.trace(network, x[:3])
    weight = f"layer.{kind.weight}"
    half = len(range(network.layer.get_parameter(kind.weight).shape[kind.in_axis])) // 2
    size = half * 2 * (kind.groups if kind.in_axis == 1 else 1)
    each = size // kind.groups
    kept = [
        group * each + k for group in range(kind.groups) for k in range(each) if k % each < each / 2
    ]
    masks = uo.Masks(kept={weight: {kind.in_axis: tuple(kept)}})
    assert set(maskable_axes(graph)[weight]) == {0, 1}
    # Each batch's last quarter is held out, so that what is fitted to is both batches' rest.
    refitted, report = uo.refit(network, masks, [x], graph=graph, ridge=1e-12, norms=False)
    (layer,) = report.layers
    assert layer.after <= layer.before
    if name == "normed":
        return  # whose constant is left to the norm
    want = call(network, x)
    left = float((call(refitted, x) - want).detach().square().sum())
    assert left == pytest.approx(least_loss(network, kind, x, kept), rel=1e-6)


def test_depthwise_filters_and_biases_are_fitted() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 1),
    )
    network = network.double().eval()
    x = torch.randn(16, 3, 6, 6, dtype=torch.float64)
    graph = uo.trace(network, x[:2])
    masks = uo.Masks(kept={"2.weight": {1: (0, 2, 3)}, "4.weight": {0: (0, 1, 2, 4, 5)}})
    refitted, report = uo.refit(network, masks, [x], graph=graph)
    assert [layer.weight for layer in report.layers] == ["2.weight", "4.weight", "6.weight"]
    filters = report.layers[1]
    assert filters.after < filters.before
    depthwise = refitted.get_parameter("4.weight")
    assert not depthwise[3].any()
    assert not refitted.get_parameter("4.bias")[3]
    assert not torch.equal(depthwise, network.get_parameter("4.weight"))


def test_attention_and_hidden_widths_are_fitted() -> None:
    network = nn.TransformerEncoderLayer(8, 2, 12, dropout=0, batch_first=True).double().eval()
    x = torch.randn(40, 5, 8, dtype=torch.float64)
    masks = uo.Masks(
        kept={
            "self_attn.out_proj.weight": {1: (0, 1, 3, 4, 5, 6)},
            "linear2.weight": {1: tuple(range(6))},
        }
    )
    refitted, report = uo.refit(network, masks, [x])
    after = {layer.weight: layer for layer in report.layers}
    for weight in ("self_attn.out_proj.weight", "linear2.weight"):
        assert after[weight].after < after[weight].before
    far = (call(refitted, x) - call(network, x)).square().mean()
    assert far < 0.3


def test_nothing_changes_where_nothing_is_masked() -> None:
    network, x = lively("resnet"), images(16)
    refitted, report = uo.refit(network, uo.Masks(kept={}), [x])
    assert not report.layers
    assert not report.norms
    for key, tensor in refitted.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[key])


def test_shared_weights_are_left_alone_and_named() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again = nn.Linear(3, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.again(torch.tanh(self.first(x)))
            z: Tensor = self.again(torch.tanh(y))
            return z

    network = Twice().double().eval()
    masks = uo.Masks(kept={"again.weight": {1: (0, 2)}})
    refitted, report = uo.refit(network, masks, [torch.randn(9, 3, dtype=torch.float64)])
    assert report.left == {"again.weight": "several layers use it"}
    assert "several layers use it" in str(report)
    assert torch.equal(refitted.get_parameter("again.weight")[:, 0], network.again.weight[:, 0])


def test_in_place_operations_are_done_once() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
            self.c = nn.Conv2d(6, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.a(x)
            y += 1
            z: Tensor = self.b(y.relu_())
            z += y
            w: Tensor = self.c(z.mul_(2))
            return w

    network = InPlace().double().eval()
    x = images(16)
    masks = uo.Masks(kept={"b.weight": {1: (0, 1, 2, 3)}})
    refitted, report = uo.refit(network, masks, [x])
    want = call(network, x)
    far = (call(refitted, x) - want).square().sum() / (want - want.mean()).square().sum()
    # What the report says of the last layer is so: both programs ran as the model does.
    assert far == pytest.approx(report.layers[-1].after, rel=1.0)
    assert far < 0.2


def test_a_fit_is_never_worse_than_what_was() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        weights = torch.randn(1, 9, 3, dtype=torch.float64)
        prior = weights + 0.1 * torch.randn_like(weights)
        sums = []
        for rows in (6, 4):  # fewer than columns: fits may be bad
            x = torch.randn(1, rows, 9, dtype=torch.float64)
            one = Sums.zeros(1, 9, 3)
            one.add(x, x @ weights + 3 * torch.randn(1, rows, 3, dtype=torch.float64))
            sums.append(one)
        for bias in (False, True):
            fit = fitted(sums[0], sums[1], prior, bias=bias, centred=False)
            assert fit.after <= fit.before
            error = float(sums[1].error(fit.weights, fit.constant).sum())
            assert error <= float(sums[1].error(prior).sum()) * (1 + 1e-12)


def test_ridge_regression_is_that_of_the_normal_equations() -> None:
    x, y = torch.randn(1, 30, 5, dtype=torch.float64), torch.randn(1, 30, 2, dtype=torch.float64)
    prior = torch.randn(1, 5, 2, dtype=torch.float64)
    sums = Sums.zeros(1, 5, 2)
    sums.add(x, y)
    added = 0.3 * float((x[0].T @ x[0]).diagonal().mean())
    stacked = torch.cat([x[0], added**0.5 * torch.eye(5, dtype=torch.float64)])
    target = torch.cat([y[0], added**0.5 * prior[0]])
    want = torch.linalg.lstsq(stacked, target).solution
    assert torch.allclose(ridge(sums, prior, 0.3)[0], want)


def test_bad_data_are_refused() -> None:
    network, x = build_small("resnet", image=8), torch.randn(8, 1, 8, 8)
    masks = uo.choose_masks(network, uo.trace(network, x), 0.5)
    for data, why in (
        ([], "no calibration batches"),
        ([x, x * float("inf")], "batch 1 holds NaN"),
        ([x, torch.randn(4, 3, 8, 8)], "does not run on the calibration data"),
        ([x.sign() * 3e38], "not finite"),
    ):
        with pytest.raises(TraceError, match=why):
            uo.refit(network, masks, data)
    with pytest.raises(ArgumentError, match="a ridge is 'auto'"):
        uo.refit(network, masks, [x], ridge="much")
    with pytest.raises(TraceError, match="training mode"):
        uo.refit(network.train(), masks, [x])


def test_only_what_is_still_to_be_read_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a chain, one tensor for each batch and model, and the result of one call."""
    model = nn.Sequential(*[nn.Conv2d(4, 4, 1) if i % 2 else nn.ReLU() for i in range(9)]).eval()
    batches = [torch.randn(2, 4, 5, 5) for _ in range(5)]
    graph = uo.trace(model, batches[0])
    held: dict[int, Mapping[fx.Node, Any]] = {}
    most = 0
    plain = Stepper.call

    def counted(
        self: Stepper, node: fx.Node, values: Mapping[fx.Node, Any], *, apart: bool = False
    ) -> Any:
        nonlocal most
        if not apart:  # else what stands behind a layer is tried on numbers
            held[id(values)] = values
            most = max(most, sum(map(len, held.values())) + 1)
        return plain(self, node, values, apart=apart)

    monkeypatch.setattr(Stepper, "call", counted)
    uo.refit(model, uo.choose_masks(model, graph, 0.5), batches, graph=graph)
    assert len(held) == 2 * len(batches)
    assert most == 2 * len(batches) + 1


def test_layers_that_are_too_wide_are_left_and_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upscale_opt.reconstruction.counting.WIDEST", 20)
    model = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 5), nn.ReLU(), nn.Linear(5, 2))
    masks = uo.Masks(kept={"2.weight": {1: tuple(range(12))}})
    refitted, report = uo.refit(model.eval(), masks, [torch.randn(30, 4)])
    assert list(report.left) == ["2.weight"]
    assert [layer.weight for layer in report.layers] == ["4.weight"]
    kept = refitted.get_parameter("2.weight")[:, :12]
    assert torch.equal(kept, model.get_parameter("2.weight")[:, :12])
    assert LayerWork("2.weight", torch.zeros(5, 24), 1, 1, intact=False).prior.numel() == 0


@pytest.mark.parametrize("kept", ["none", "one", "all"])
@pytest.mark.parametrize("count", [1, 7])
def test_masks_and_batches_of_every_size(kept: str, count: int) -> None:
    network = lively("resnet")
    graph = uo.trace(network, images(2))
    weight = "blocks.1.second.0.weight"
    number = {"none": 0, "one": 1, "all": graph.parameters[weight][1]}[kept]
    masks = uo.Masks(kept={weight: {1: tuple(range(number))}})
    masked = copy.deepcopy(network)
    uo.apply_masks(masked, graph, masks)
    refitted, report = uo.refit(network, masks, [images(count), images(count)], graph=graph)
    assert all(layer.after <= layer.before for layer in report.layers)
    assert uo.masks_of(refitted, graph) == uo.masks_of(masked, graph)
    solution = uo.solve(graph, uo.masks_of(refitted, graph))
    uo.verify(refitted, uo.materialize(refitted, solution), images(3))
