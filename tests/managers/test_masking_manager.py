"""MaskingManager and choose_masks: segments, sides, methods, amounts, and inputs found."""

from __future__ import annotations

import copy

import pytest
import torch
from comparing import call, same_state, state
from sample_networks import built, images
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.masking.segments import find_segments
from upscale_opt.measuring.costs import count_costs
from upscale_opt.models import catalogue
from upscale_opt.models.small_networks import build_small


def zeros(weight: Tensor, axis: int) -> list[int]:
    """The slices along ``axis`` that are zero."""
    others = [a for a in range(weight.ndim) if a != axis]
    return torch.nonzero(~(weight != 0).any(dim=others)).flatten().tolist()


class Stream(nn.Module):
    """Two blocks on one residual stream; the second normalises the sum first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.one = nn.Conv2d(8, 8, 1)
        self.between = nn.BatchNorm2d(8)
        self.two = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.one(x)
        x = torch.relu(self.between(x))
        x = self.two(x)
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


@pytest.fixture
def stream() -> Stream:
    torch.manual_seed(0)
    model = Stream().eval()
    for norm in (model.norm, model.between):
        nn.init.uniform_(norm.bias, 0.5, 1)
        nn.init.uniform_(norm.get_buffer("running_mean"), 0.5, 1)
    return model


def test_every_layer_decides_for_itself(stream: Stream) -> None:
    before = copy.deepcopy(stream)
    manager = uo.MaskingManager(stream).importance().mask(0.25)
    assert [segment.layers[0] for segment in manager.segments()] == [stream.one, stream.two]
    for layer, old in ((stream.one, before.one), (stream.two, before.two)):
        norms = old.weight.flatten(2).norm(dim=(0, 2))
        assert zeros(layer.weight, 1) == sorted(norms.argsort()[:2].tolist())
    assert torch.equal(stream.stem.weight, before.stem.weight)
    assert torch.equal(stream.head.weight, before.head.weight)  # convolutions only


def test_all_layers(stream: Stream) -> None:
    uo.MaskingManager(stream, layers="all").importance().mask(0.25)
    assert len(zeros(stream.head.weight, 1)) == 2
    assert zeros(stream.head.weight, 0) == []


def test_layers_of_a_stream_agree_with_constraints(stream: Stream) -> None:
    manager = uo.MaskingManager(stream, method="constrained", layers="all").importance().mask(0.5)
    assert all(zeros(layer.weight, 1) for layer in (stream.one, stream.two, stream.head))
    shared = [segment for segment in manager.segments() if len(segment.layers) > 1]
    for segment in shared:
        gone = [zeros(share_weight, 1) for share_weight in _weights(segment.layers)]
        assert all(one == gone[0] for one in gone)
    assert any(stream.one in segment.layers for segment in manager.segments())


def _weights(layers: list[nn.Module]) -> list[Tensor]:
    return [layer.get_parameter("weight") for layer in layers]


def test_an_output_channel_masked_is_zero_behind_its_batch_norm(stream: Stream) -> None:
    uo.MaskingManager(stream, side="output").importance().mask(0.5)
    gone = zeros(stream.stem.weight, 0)
    assert len(gone) == 4
    assert stream.stem.bias is not None
    assert not stream.stem.bias[gone].any()
    behind = stream.norm(stream.stem(torch.randn(2, 3, 4, 4)))
    assert not behind[:, gone].any()
    others = [channel for channel in range(8) if channel not in gone]
    assert bool(stream.norm.bias[others].all())


def test_a_sum_is_zero_where_all_its_layers_are(stream: Stream) -> None:
    with torch.no_grad():
        stream.stem.weight[[0, 1]] = 1e-6
        stream.one.weight[[1, 2]] = 1e-6
    uo.MaskingManager(stream, side="output").importance().mask(0.25)
    assert zeros(stream.stem.weight, 0) == [0, 1]
    assert zeros(stream.one.weight, 0) == [1, 2]
    assert torch.nonzero(stream.between.bias == 0).flatten().tolist() == [1]
    x = torch.relu(stream.norm(stream.stem(torch.randn(2, 3, 4, 4))))
    assert not stream.between(x + stream.one(x))[:, 1].any()


def test_dense_streams_are_zero_behind_every_readers_batch_norm() -> None:
    model = copy.deepcopy(built("densenet121")[0])
    uo.MaskingManager(model, side="output").importance().mask(0.5)
    block = model.get_submodule("features.denseblock1")
    gone = zeros(block.get_parameter("denselayer1.conv2.weight"), 0)
    assert len(gone) == 16
    for reader in ("denselayer2", "denselayer6"):
        shift = block.get_parameter(f"{reader}.norm1.bias")
        assert not shift[[64 + channel for channel in gone]].any()
    assert not model.get_parameter("features.transition1.norm.bias")[[64 + c for c in gone]].any()


def test_all_channels_ranked_together(stream: Stream) -> None:
    with torch.no_grad():
        stream.one.weight.mul_(0.01)
    uo.MaskingManager(stream, is_global=True).importance().mask(0.5)
    assert zeros(stream.one.weight, 1) == list(range(8))
    assert zeros(stream.two.weight, 1) == []


def test_both_sides(stream: Stream) -> None:
    uo.MaskingManager(stream, side="both").importance().mask(0.5)
    assert len(zeros(stream.one.weight, 0)) >= 4
    assert len(zeros(stream.one.weight, 1)) >= 4


def test_equal_channels_go_from_the_first(stream: Stream) -> None:
    nn.init.ones_(stream.two.weight)
    uo.MaskingManager(stream).importance().mask(0.5)
    assert zeros(stream.two.weight, 1) == [0, 1, 2, 3]


def test_a_users_own_criterion(stream: Stream) -> None:
    manager = uo.MaskingManager(stream)
    manager.importance(heuristic=lambda weights: -weights.abs().amax(1))
    largest = stream.two.weight.abs().amax((0, 2, 3)).argsort(descending=True)
    manager.mask(0.25)
    assert zeros(stream.two.weight, 1) == sorted(largest[:2].tolist())


def test_a_users_own_loop(stream: Stream) -> None:
    for segment in uo.MaskingManager(stream).segments():
        for layer in segment.layers:
            assert isinstance(layer, nn.Conv2d)
        weights = segment.weights()
        assert tuple(weights.shape) == (8, 8)
        segment.drop([0, 7])
    assert zeros(stream.one.weight, 1) == zeros(stream.two.weight, 1) == [0, 7]
    segment.importance().mask(0.5)
    gone = zeros(stream.two.weight, 1)
    assert len(gone) == 4
    segment.mask(torch.tensor([0, 1, 1, 1, 0, 0, 0, 0]))
    assert zeros(stream.two.weight, 1) == sorted({0, 4, 5, 6, 7} | set(gone))


def test_choosing_leaves_the_model_alone(stream: Stream) -> None:
    graph = uo.trace(stream, images(1, 4))
    before = state(stream)
    masks = uo.choose_masks(stream, graph, 0.5, side="both")
    assert same_state(before, state(stream))
    managed = copy.deepcopy(stream)
    uo.MaskingManager(managed, side="both", layers="all", inputs=images(1, 4)).importance().mask()
    uo.apply_masks(stream, graph, masks)
    assert same_state(state(stream), state(managed))


@pytest.mark.parametrize(("name", "train"), [("googlenet", True), ("mobilenet_v3_small", False)])
def test_it_finds_inputs_itself(name: str, train: bool) -> None:
    model = catalogue.build(name).train(train)
    before = state(model)
    manager = uo.MaskingManager(model, layers="all")
    assert manager.segments()
    assert model.training == train
    assert same_state(before, state(model))


class FixedSize(nn.Module):
    """Takes images of 28 x 28 and nothing else, of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.more = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4 * 28 * 28, 10)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.more(self.conv(x)).flatten(1))
        return scores


def test_it_finds_the_only_size_that_fits() -> None:
    assert uo.MaskingManager(FixedSize()).graph.example.items[0].shape[1:] == (1, 28, 28)


class TwoInputs(nn.Module):
    """Takes a dict and a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(3, 6, 1)
        self.mask = nn.Conv2d(1, 6, 1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, batch: dict[str, Tensor], more: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x = self.image(batch["image"]) + self.mask(more[0]) * more[1]
        return {"out": self.head(x)}


def test_models_with_other_inputs() -> None:
    model = TwoInputs().eval()
    with pytest.raises(uo.MaskError, match=r"TwoInputs.*inputs="):
        uo.MaskingManager(model)
    image, mask = torch.randn(1, 3, 4, 4), torch.randn(1, 1, 4, 4)
    inputs = ({"image": image}, (mask, mask))
    uo.MaskingManager(model, side="both", inputs=inputs).importance().mask(0.5)
    manager = uo.PruningManager(model).compute(inputs)
    want = call(manager.get_mock_model(), inputs)
    manager.prune()
    assert torch.allclose(call(model, inputs)["out"], want["out"], atol=1e-6)
    assert model.head.in_channels <= 3


def test_the_networks_inputs_and_outputs_are_left_alone(stream: Stream) -> None:
    graph = uo.trace(stream, images(1, 4))
    segments = find_segments(stream, graph, "both", "unconstrained", "all")
    pruned = {(share.weight, share.side) for segment in segments for share in segment.shares}
    assert ("stem.weight", "input") not in pruned
    assert ("head.weight", "output") not in pruned
    assert len(pruned) == 6


def test_errors(stream: Stream) -> None:
    with pytest.raises(uo.MaskError, match="side must be"):
        uo.MaskingManager(stream, side="left")  # type: ignore[arg-type]
    with pytest.raises(uo.MaskError, match="method must be"):
        uo.MaskingManager(stream, method="free")  # type: ignore[arg-type]
    with pytest.raises(uo.MaskError, match="cannot mask a int"):
        uo.MaskingManager(3)  # type: ignore[arg-type]
    manager = uo.MaskingManager(stream)
    with pytest.raises(uo.MaskError, match="importance"):
        manager.mask()
    with pytest.raises(uo.MaskError, match="importance"):
        manager.segments()[0].mask()
    with pytest.raises(uo.MaskError, match="amount"):
        manager.importance().mask(1.5)
    with pytest.raises(uo.MaskError, match="one score per channel"):
        manager.importance(lambda weights: weights)
    with pytest.raises(uo.MaskError, match="not a number"):
        manager.importance(lambda weights: weights.sum(1) * float("nan")).mask()
    with pytest.raises(uo.MaskError, match="amount must be"):
        manager.mask("0.5")  # type: ignore[arg-type]
    with pytest.raises(uo.MaskError, match="has the shape"):
        manager.segments()[0].mask(torch.zeros(3))
    with pytest.raises(uo.MaskError, match="no channel 8"):
        manager.segments()[0].drop([8])
    with pytest.raises(uo.MaskError, match="no criterion 'l3'"):
        manager.importance("l3")


class Mirrored(nn.Module):
    """A channel times its mirror image: two elements that are one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2, 1)
        self.norm = nn.BatchNorm2d(2)
        self.head = nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        y: Tensor = self.head(x * x.flip(1))
        return y


def test_rows_of_one_channel_go_together() -> None:
    model = Mirrored().eval()
    nn.init.ones_(model.norm.bias)
    manager = uo.MaskingManager(model, side="output")
    stem = manager.segments()[0]
    rows = stem.shares[0].slices
    assert sorted(rows.flatten().tolist()) == [0, 1]
    stem.drop(range(len(stem.channels)))
    assert zeros(model.stem.weight, 0) == [0, 1]
    assert not model.norm.bias.any()
    x = images(2, 4)
    want = call(model, x)
    uo.PruningManager(model).compute([x]).prune()
    assert torch.allclose(call(model, x), want, atol=1e-6)


def test_a_budget_chooses_and_refits_in_place() -> None:
    torch.manual_seed(0)
    model = build_small("resnet", image=8, seed=1)
    before = copy.deepcopy(model)
    batches = [torch.randn(16, 1, 8, 8) for _ in range(2)]
    fresh = torch.randn(32, 1, 8, 8)
    manager = uo.MaskingManager(model, inputs=batches[0][:1])
    assert manager.mask(budget=uo.Budget(macs=0.4), data=batches, time_limit=1).model is model
    assert manager.choice is not None
    assert manager.choice.resources[0].share <= 0.4
    assert all(len(manager.graph.parameters[one.parameter]) > 2 for one in manager.choice.layers)
    zeroed = uo.masks_of(model, manager.graph)
    for name, by_axis in manager.choice.masks.kept.items():
        for axis, kept in by_axis.items():
            assert set(zeroed.kept[name][axis]) <= set(kept)
    unfitted = copy.deepcopy(before)
    uo.apply_masks(unfitted, manager.graph, manager.choice.masks)
    with torch.no_grad():
        wanted = before(fresh)
        errors = [float((one(fresh) - wanted).norm()) for one in (model, unfitted)]
        masked = model(fresh)
    assert errors[0] < errors[1]
    uo.PruningManager(model).compute([batches[0][:1]]).prune()
    assert count_costs(model, batches[0][:1]).multiply_adds < 0.5 * (
        count_costs(before, batches[0][:1]).multiply_adds
    )
    with torch.no_grad():
        assert torch.allclose(model(fresh), masked, atol=1e-4)


def test_a_budget_without_data_goes_by_scores() -> None:
    model = build_small("resnet", image=8, seed=1)
    manager = uo.MaskingManager(
        model, method="constrained", inputs=torch.zeros(1, 1, 8, 8), layers="all"
    )
    manager.importance("l1").mask(budget=uo.Budget(parameters=0.5), time_limit=1)
    assert manager.choice is not None
    assert manager.choice.solver == "constrained"
    assert uo.solve(manager.graph, uo.masks_of(model, manager.graph)).objective_value == 0


def test_budgets_that_make_no_sense_for_a_manager() -> None:
    model, x = build_small("resnet", image=8), torch.zeros(1, 1, 8, 8)
    with pytest.raises(uo.UpscaleError, match="side='output'"):
        uo.MaskingManager(model, "output", inputs=x).mask(budget=uo.Budget(macs=0.5))
    with pytest.raises(uo.UpscaleError, match="data are for a budget"):
        uo.MaskingManager(model, inputs=x).importance().mask(0.5, data=[x])
