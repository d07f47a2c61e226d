"""PruningManager: what it is told, and the mock model."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
import torchvision
from comparing import assert_lossless, call, deviation, same_state, size, state
from sample_networks import built, images, masked_resnet18
from torch import Tensor, nn
from torch.nn import functional

import upscale_opt as uo
from upscale_opt.importance import LAMP
from upscale_opt.masking.segments import Side
from upscale_opt.models import catalogue
from upscale_opt.runtime.modules import Gather

X = images(2, 32)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"constrained": True},
    {"reorder_producer": False},
    {"reorder_consumer": False},
    {"solver": "greedy"},
    {"objective": "gathers"},
]
SIDES: list[Side] = ["input", "output", "both"]


@pytest.mark.parametrize(
    ("options", "side", "baseline"),
    [
        (options, SIDES[(number + baseline) % 3], baseline)
        for number, options in enumerate(OPTIONS)
        for baseline in (False, True)[: 2 if number < 2 else 1]
    ],
    ids=str,
)
def test_the_pruned_model_is_the_masked_one(
    options: dict[str, Any], side: Side, baseline: bool
) -> None:
    model = masked_resnet18(side)
    before, old = size(model), copy.deepcopy(model)
    manager = uo.PruningManager(model).compute([X.double()], **options)
    mock = manager.get_mock_model()
    want = call(mock, X.double())
    if "constrained" not in options:
        assert deviation(call(old, X.double()), want) == 0
    manager.prune(baseline=baseline)
    assert deviation(want, call(model, X.double())) < 1e-10
    assert manager.report is not None
    assert manager.report.float64_error < 1e-10
    assert deviation(want, call(mock, X.double())) == 0  # as before, though the model has changed
    assert size(model) < before
    gathers = [module for module in model.modules() if isinstance(module, Gather)]
    assert not ("constrained" in options and not baseline and gathers)


def test_baseline_gathers_everything() -> None:
    ours, baseline = masked_resnet18(), masked_resnet18()
    uo.PruningManager(ours).compute([X]).prune()
    uo.PruningManager(baseline).compute([X]).prune(baseline=True)
    counts = [sum(isinstance(m, Gather) for m in model.modules()) for model in (ours, baseline)]
    assert counts[0] < counts[1]


def test_the_order_stays_without_reordering() -> None:
    model = masked_resnet18()
    manager = uo.PruningManager(model).compute([X], reorder_producer=False)
    assert manager.solution is not None
    assert manager.solution.solver == "identity"
    assert all(list(order) == sorted(order) for order in manager.solution.orders)


def test_explicit_channels() -> None:
    model = copy.deepcopy(built("resnet18")[0]).double()
    old = copy.deepcopy(model)
    manager = uo.PruningManager(model).compute(
        [X.double()],
        pruned_inputs=[("layer1.1.conv1.weight", 5), ("layer1.1.conv1", 7)],
        pruned_outputs=[("layer2.0.conv1.weight", 3)],
    )
    masked = copy.deepcopy(old)
    with torch.no_grad():
        masked.get_parameter("layer1.1.conv1.weight")[:, [5, 7]] = 0
        masked.get_parameter("layer2.0.conv1.weight")[3] = 0
        masked.get_parameter("layer2.0.bn1.weight")[3] = 0
        masked.get_parameter("layer2.0.bn1.bias")[3] = 0
    mock = manager.get_mock_model()
    assert deviation(call(masked, X.double()), call(mock, X.double())) < 1e-14
    assert same_state(state(model), state(old))
    manager.prune()
    assert_lossless(masked, model, X.double())
    assert model.get_submodule("layer1.1.conv1").in_channels == 62
    assert model.get_submodule("layer2.0.conv1").out_channels == 127


def test_zeros_are_found_beside_explicit_channels() -> None:
    model = masked_resnet18()
    channels = [("fc.weight", 1)]
    manager = uo.PruningManager(model).compute([X], pruned_inputs=channels)
    assert manager.masks is not None
    assert len(manager.masks.kept["layer1.0.conv1.weight"][1]) == 32
    assert 1 not in manager.masks.kept["fc.weight"][1]


def test_depthwise_filters_can_be_named() -> None:
    model = copy.deepcopy(built("mobilenet_v2")[0]).double()
    manager = uo.PruningManager(model).compute(
        [X.double()], pruned_outputs=[("features.2.conv.1.0.weight", 4)]
    )
    want = call(manager.get_mock_model(), X.double())
    assert manager.prune().report is not None
    assert deviation(want, call(model, X.double())) < 1e-10
    assert model.get_parameter("features.2.conv.1.0.weight").shape[0] == 95  # of 96
    assert model.get_parameter("features.2.conv.0.0.weight").shape[0] == 95
    assert model.get_parameter("features.2.conv.2.weight").shape[1] == 95


class Tied(nn.Module):
    """One weight of two names, of which only one is used; and one that no layer uses as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 1)
        self.second = nn.Conv2d(6, 6, 1)
        self.other = nn.Conv2d(6, 6, 1)
        self.other.weight = self.second.weight
        self.odd = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(self.second(self.first(x)), self.odd.weight.abs())


@pytest.mark.parametrize("name", ["second", "other.weight"])
def test_tied_weights_can_be_named_either_way(name: str) -> None:
    model = Tied().double().eval()
    manager = uo.PruningManager(model).compute([X.double()], pruned_inputs=[(name, 4)])
    want = call(manager.get_mock_model(), X.double())
    manager.prune()
    assert deviation(want, call(model, X.double())) < 1e-10
    assert model.first.out_channels == 5


def test_weights_that_are_not_understood_say_so() -> None:
    with pytest.raises(uo.MaskError, match="not understood"):
        uo.PruningManager(Tied()).compute([X], pruned_inputs=[("odd.weight", 0)])


def test_explicit_channels_grow_with_constraints() -> None:
    model = copy.deepcopy(built("resnet18")[0])
    manager = uo.PruningManager(model).compute(
        [X], pruned_inputs=[("layer1.1.conv1.weight", 5)], constrained=True
    )
    assert manager.masks is not None
    for weight, axis in (("layer1.0.conv1", 1), ("layer1.1.conv2", 0), ("conv1", 0)):
        assert 5 not in manager.masks.kept[f"{weight}.weight"][axis]
    assert manager.prune().report is not None
    assert model.get_submodule("conv1").out_channels == 63


def test_computing_again() -> None:
    manager = uo.PruningManager(masked_resnet18())
    first = manager.compute([X]).solution
    assert manager.compute([X]).solution is first
    assert manager.compute([X], force=True).solution is not first
    assert manager.compute([X], constrained=True).solution != first
    again = manager.compute([X]).solution
    with torch.no_grad():
        manager.net.get_parameter("fc.weight")[:, 3] = 0
    assert manager.compute([X]).solution is not again  # there is more to prune now
    other = manager.compute([images(1, 48)]).graph
    assert other is not None
    assert other.example.items[0].shape == (1, 3, 48, 48)


def test_the_mock_model_trains_the_model() -> None:
    model = masked_resnet18()
    manager = uo.PruningManager(model).compute([X.double()])
    mock = manager.get_mock_model().train()
    before = state(model)
    optimizer = torch.optim.SGD(mock.parameters(), lr=0.01, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        mock(X.double()).square().mean().backward()
        optimizer.step()
    assert not same_state(before, state(model))
    mock.eval()
    want = call(mock, X.double())
    manager.prune()
    assert deviation(want, call(model, X.double())) < 1e-10


def test_the_mock_model_of_a_fresh_network_trains_all_that_is_left() -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5).double().eval()
    uo.MaskingManager(model, side="both").importance().mask(0.25)
    manager = uo.PruningManager(model).compute([X.double()])
    mock = manager.get_mock_model().train()
    optimizer = torch.optim.SGD(mock.parameters(), lr=0.05, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        loss: Any = nn.functional.cross_entropy(mock(X.double()), torch.tensor([1, 3]))
        loss.backward()
        optimizer.step()
    mock.eval()
    shift = model.get_parameter("layer1.0.bn1.bias")
    assert bool(shift.any())  # zero at first, but not masked
    assert not bool(shift.all())
    want = call(mock, X.double())
    manager.prune()
    assert deviation(want, call(model, X.double())) < 1e-10


def test_a_manager_is_a_module_that_computes_what_the_model_does() -> None:
    model = built("resnet18")[0]
    manager = uo.PruningManager(model)
    assert torch.equal(call(manager, X), call(model, X))
    graph = manager.trace([X])
    assert manager.trace([X]) is graph
    assert manager.trace([X], force=True) is not graph


def test_errors() -> None:
    model = copy.deepcopy(built("resnet18")[0])
    manager = uo.PruningManager(model)
    for too_early in (manager.prune, manager.get_mock_model):
        with pytest.raises(uo.MaterializeError, match="call compute"):
            too_early()
    for wrong, message in (
        ([("layer9.weight", 1)], "'layer9.weight' is not the name"),
        ([(17, 1)], "(17, 1) is no pair"),
        (["conv1.weight"], "'conv1.weight' is no pair"),
        ([("conv1.weight", 1.5)], "('conv1.weight', 1.5) is no pair"),
        ([("bn1.running_var", 1, 2)], "is no pair"),
        ([("conv1.weight", 3)], "no input channel 3; it has 3"),
        ([("conv1.weight", -1)], "no input channel -1"),
    ):
        with pytest.raises(uo.MaskError, match=re.escape(message)):
            manager.compute([X], pruned_inputs=wrong)  # type: ignore[arg-type]
    manager.compute([X]).prune()
    with pytest.raises(uo.MaterializeError, match="call compute"):
        manager.prune()
    with pytest.raises(uo.MaskError, match="cannot prune a str"):
        uo.PruningManager("resnet18")  # type: ignore[arg-type]


def test_nothing_to_prune_is_worth_a_warning() -> None:
    model = torchvision.models.resnet18().eval()
    with pytest.warns(UserWarning, match="nothing to prune in this ResNet"):
        uo.PruningManager(model).compute([X])


def test_options_without_effect_are_refused() -> None:
    model = torchvision.models.resnet18().eval()
    with pytest.raises(uo.MaskError, match="give the amount"):
        uo.prune(model, X, criterion=LAMP())
    with pytest.raises(uo.MaskError, match="force is True or False"):
        uo.PruningManager(model).compute([X], [("conv1.weight", 1)])  # type: ignore[arg-type]


def test_inference_mode_is_no_obstacle() -> None:
    model = torchvision.models.resnet18().eval()
    with torch.inference_mode():
        uo.MaskingManager(model).importance().mask(0.5)
        want = model(X)
        uo.PruningManager(model).compute([X]).prune()
        assert torch.allclose(model(X), want, atol=1e-5)
    assert all(not parameter.is_inference() for parameter in model.parameters())
    model(X).sum().backward()


def test_masks_that_were_undone_are_noticed() -> None:
    model = masked_resnet18()
    manager = uo.PruningManager(model).compute([X])
    with torch.no_grad():
        model.get_parameter("layer1.0.conv1.weight").fill_(1)
    with pytest.raises(uo.MaterializeError, match="not zero in this model"):
        manager.prune()


def test_the_catalogue_knows_no_surprises() -> None:
    model = catalogue.build("topology/dict_input")
    inputs = catalogue.example_inputs("topology/dict_input")
    uo.MaskingManager(model, inputs=inputs).importance().mask()
    want = call(model, inputs)
    uo.PruningManager(model).compute(inputs).prune()
    assert deviation(want, call(model, inputs)) < 1e-4
