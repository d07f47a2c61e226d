"""Pruning in place: the model stays the object, the class and the modules that it was."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torchvision
from comparing import assert_lossless, call, deviation, same_state, size, state
from hypothesis import given, settings
from hypothesis import strategies as st
from network_strategies import network_and_masks
from sample_networks import images, masked_resnet18
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

import upscale_opt as uo
from upscale_opt.models.generated.masks import WeightMasks, apply_weight_masks
from upscale_opt.models.generated.networks import RandomNetwork

X = images(2, 32)


@pytest.fixture(scope="module")
def pruned() -> tuple[nn.Module, nn.Module, nn.Module]:
    """A masked network, the same pruned in place, and one of its modules from before."""
    model = masked_resnet18("both").float()
    vars(model)["note"] = {"trained": "never"}
    masked = copy.deepcopy(model)
    convolution = model.get_submodule("layer1.0.conv1")
    uo.PruningManager(model).compute([X]).prune()
    return masked, model, convolution


def test_in_place_it_stays_what_it_was(pruned: tuple[nn.Module, nn.Module, nn.Module]) -> None:
    masked, model, convolution = pruned
    assert isinstance(model, torchvision.models.ResNet)
    assert type(model).__name__ == "ResNet"
    assert vars(model)["note"] == {"trained": "never"}
    assert vars(model)["inplanes"] == vars(masked)["inplanes"]
    block = model.layer1[0]
    assert isinstance(block, BasicBlock)
    assert block.conv1 is convolution
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.weight.shape[:2] == (convolution.out_channels, convolution.in_channels)
    assert convolution.in_channels < 64
    assert {name for name, _ in model.named_parameters()} <= {
        name for name, _ in masked.named_parameters()
    }
    assert "BasicBlock" in repr(model)
    assert deviation(call(masked, X), call(model, X)) < 1e-5


def test_in_place_it_can_be_copied_and_pickled(
    pruned: tuple[nn.Module, nn.Module, nn.Module],
) -> None:
    _, model, _ = pruned
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert isinstance(other, torchvision.models.ResNet)
        assert isinstance(other.layer1[0], BasicBlock)
        assert vars(other)["note"] == {"trained": "never"}
        assert torch.equal(call(other, X), call(model, X))
        assert same_state(state(other), state(model))
        assert {id(p) for p in other.parameters()}.isdisjoint(id(p) for p in model.parameters())
        assert other.solution == model.solution
        with torch.no_grad():
            other.layer1[0].conv1.weight.zero_()
        assert not torch.equal(call(other, X), call(model, X))


class Own(nn.Module):
    """Has a method, a hook, an argument it cannot do without, and a child that it owns."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 1)
        self.second = nn.Conv2d(width, 2, 1)
        self.scale = nn.Parameter(torch.full((1, width, 1, 1), 2.0))

    def forward(self, x: Tensor, flip: bool = False) -> Tensor:
        x = self.first(x) * self.scale
        scores: Tensor = self.second(x.flip(3) if flip else x)
        return scores

    def classes(self, x: Tensor) -> Tensor:
        """A method that calls the model."""
        answer: Tensor = self(x).mean((2, 3)).argmax(1)
        return answer


def test_methods_and_hooks_go_on() -> None:
    model = Own(6).eval()
    holder = nn.ModuleList([model])
    calls: list[str] = []
    handle = model.register_forward_hook(lambda *_: calls.append("called"))
    uo.MaskingManager(model, inputs=X).importance().mask(0.5)
    want = model.classes(X)
    uo.PruningManager(model).compute([X]).prune(check=False)
    calls.clear()
    assert torch.equal(model.classes(X), want)
    assert calls == ["called"]
    handle.remove()
    assert torch.equal(model.classes(X), want)
    assert calls == ["called"]
    assert holder[0] is model
    assert size(model) == 6 * 3 // 2 + 3 + 3 + 3 * 2 + 2
    twice = copy.deepcopy(model)
    assert torch.equal(twice.classes(X), want)


class Trainer(nn.Module):
    """A network with all that its training needs, a second name for a part, and own ``meta``."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Own(8)
        self.again = self.net
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(2))
        self.temperature = nn.Parameter(torch.full((1,), 2.0))
        self.register_buffer("steps", torch.zeros(()), persistent=False)
        self.meta = {"epoch": 3}

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x).mean((2, 3))
        return scores

    def training_step(self, x: Tensor, labels: Tensor) -> Tensor:
        """What a training loop calls."""
        self.get_buffer("steps").add_(1)
        loss: Tensor = self.criterion(self(x) / self.temperature, labels)
        return loss


def test_what_forward_does_not_use_stays() -> None:
    model = Trainer().eval()
    uo.MaskingManager(model, inputs=X, side="both").importance().mask(0.5)
    labels = torch.tensor([0, 1])
    want = model.training_step(X, labels)
    uo.PruningManager(model).compute([X]).prune()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for other in (model, copy.deepcopy(model), copy.copy(model), loaded):
        assert isinstance(other, Trainer)
        assert torch.allclose(other.training_step(X, labels), want, atol=1e-5)
        assert other.again is other.net
        assert other.meta == {"epoch": 3}
        assert {"temperature", "criterion.weight"} <= other.state_dict().keys()
        assert "steps" not in other.state_dict()
    assert float(model.get_buffer("steps")) == 2 + 1  # shared with the shallow copy
    assert size(model.net) < size(Own(8))


class Picky(nn.Module):
    """Wants more of its subclasses than bases."""

    def __init_subclass__(cls, *, purpose: str) -> None:
        super().__init_subclass__()

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 1)
        self.two = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(self.one(x))
        return y


def test_a_class_that_cannot_be_inherited_from() -> None:
    model = Picky().eval()
    uo.MaskingManager(model, inputs=X).importance().mask(0.5)
    want = call(model, X)
    uo.PruningManager(model).compute([X]).prune()
    assert torch.allclose(call(model, X), want, atol=1e-6)
    assert model.two.in_channels == 2


def test_a_pruned_model_can_be_trained_and_pruned_again() -> None:
    model = masked_resnet18("both").float()
    uo.PruningManager(model).compute([X]).prune()
    first = size(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()
    model(X).square().mean().backward()
    optimizer.step()
    model.eval()
    uo.MaskingManager(model).importance().mask(0.3)
    masked = copy.deepcopy(model).double()
    uo.PruningManager(model).compute([X]).prune()
    assert size(model) < first
    assert isinstance(model, torchvision.models.ResNet)
    assert isinstance(model.layer1[0], BasicBlock)
    assert_lossless(masked, copy.deepcopy(model).double(), X.double())


@given(network_and_masks(), st.booleans())
@settings(max_examples=12, deadline=None)
def test_any_network_in_place(case: tuple[RandomNetwork, WeightMasks], constrained: bool) -> None:
    network, weight_masks = case
    model = apply_weight_masks(copy.deepcopy(network), weight_masks).double()
    inputs = network.example_inputs(dtype=torch.float64)
    manager = uo.PruningManager(model).compute(inputs, constrained=constrained)
    want = call(manager.get_mock_model(), inputs)
    if not all(t.isfinite().all() for t in (want if isinstance(want, tuple) else (want,))):
        return
    manager.prune()
    assert isinstance(model, RandomNetwork)
    assert deviation(want, call(model, inputs)) < 1e-10
    assert deviation(want, call(copy.deepcopy(model), inputs)) < 1e-10


def test_a_model_that_fails_to_verify_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = masked_resnet18()
    before = state(model)

    def fail(*_: object) -> None:
        raise uo.VerificationError("deviates")

    monkeypatch.setattr("upscale_opt.managers.pruning.verify", fail)
    manager = uo.PruningManager(model).compute([X])
    with pytest.raises(uo.VerificationError):
        manager.prune()
    assert same_state(before, state(model))
    assert type(model) is torchvision.models.ResNet
