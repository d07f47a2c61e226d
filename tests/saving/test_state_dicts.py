"""State dicts of pruned models: that of another pruning is refused, whatever its sizes."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.materializing.marks import MARK
from upscale_opt.runtime.indices import Indexed


class Reads(nn.Module):
    """Several layers read channels of one tensor, so that some have to be gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 1)
        self.readers = nn.ModuleList(nn.Conv2d(12, 6, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        total: Tensor = sum(reader(x) for reader in self.readers)
        return total


X = torch.randn(2, 3, 4, 4)


def pruned(seed: int, amount: int = 4) -> nn.Module:
    torch.manual_seed(0)
    network, draw = Reads().eval(), random.Random(seed)
    with torch.no_grad():
        for reader in network.readers:
            for channel in draw.sample(range(12), amount):
                reader.get_parameter("weight")[:, channel] = 0
    return uo.prune(network, X).model


@pytest.mark.parametrize("seed", range(8))
def test_another_pruning_is_refused_or_right(seed: int, tmp_path: Path) -> None:
    one, other = pruned(seed), pruned(seed + 1)
    again = copy.deepcopy(one)
    with torch.no_grad():
        want = one(X)
        again.load_state_dict(one.state_dict())
        assert torch.equal(again(X), want)
        shapes = [tuple(t.shape) for t in one.parameters()]
        if shapes == [tuple(t.shape) for t in other.parameters()]:
            with pytest.raises(RuntimeError, match="another pruning"):
                again.load_state_dict(other.state_dict())
            save_file(other.state_dict(), tmp_path / "other.safetensors")
            with pytest.raises(RuntimeError, match="another pruning"):
                copy.deepcopy(one).load_state_dict(load_file(tmp_path / "other.safetensors"))
            with pytest.raises(RuntimeError, match="another pruning"):
                copy.deepcopy(one).load_state_dict(other.state_dict(), strict=False)


def test_there_are_prunings_of_equal_sizes() -> None:
    """Else the test above would test nothing."""
    sizes = []
    for seed in range(8):
        for label in (seed, seed + 1):
            model = pruned(label)
            sizes.append([tuple(t.shape) for t in model.parameters()])
    assert sum(sizes[i] == sizes[i + 1] for i in range(0, 16, 2)) >= 3


def test_state_dicts_from_before_are_taken() -> None:
    """They have neither indices nor a mark."""
    model = pruned(0)
    indices = {
        f"{name}.{key}"
        for name, module in model.named_modules()
        if isinstance(module, Indexed)
        for key in module.fixed
    }
    assert indices
    state = model.state_dict()
    assert {MARK, *indices} <= state.keys()
    old = {name: value for name, value in state.items() if name not in {MARK, *indices}}
    again = copy.deepcopy(model)
    again.load_state_dict(old)
    assert torch.equal(again(X), model(X))


def test_memory_given_anew_has_the_indices() -> None:
    model = pruned(0)
    want, state = model(X), {name: t.clone() for name, t in model.state_dict().items()}
    for empty in (copy.deepcopy(model).to_empty(device="cpu"), copy.deepcopy(model)):
        empty.load_state_dict(state)
        assert torch.equal(empty(X), want)
    skeleton = copy.deepcopy(model).to("meta")
    skeleton.load_state_dict(state, assign=True)
    assert torch.equal(skeleton(X), want)
    skeleton = copy.deepcopy(model).to("meta").to_empty(device="cpu")
    skeleton.load_state_dict(state)
    assert torch.equal(skeleton(X), want)


def test_averages_written_into_state_dicts_leave_the_indices() -> None:
    """As timm's ModelEmaV2 does, rounding whole numbers down."""
    model = pruned(0)
    want = model(X)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(0.9998 * value + (1 - 0.9998) * value - int(not value.is_floating_point()))
    assert torch.allclose(model(X), want, atol=1e-5)


def test_a_model_without_positions_takes_weights_of_its_sizes() -> None:
    """Weights trained in a class of the user's own that is as narrow, for one."""
    chain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    with torch.no_grad():
        chain[2].weight[:, 3:] = 0  # type: ignore[operator]
    narrow = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 4, 1)).eval()
    model = uo.prune(chain, X).model
    narrow.load_state_dict(model.state_dict())
    assert torch.allclose(narrow(X), model(X), atol=1e-6)
