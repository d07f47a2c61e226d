"""Models in wrappings, tensors that are computed before every call, and masks from elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import assert_lossless
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel

import upscale_opt as uo

X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A residual block, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        out: Tensor = self.head((x + self.block(x)).mean((2, 3)))
        return out


def net() -> Net:
    torch.manual_seed(1)
    return Net().eval()


def compiled(model: nn.Module) -> nn.Module:
    found: Any = torch.compile(model, backend="eager")
    assert isinstance(found, nn.Module)
    return found


WRAPPINGS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "average": AveragedModel,
    "compiled": compiled,
    "both": lambda model: nn.DataParallel(AveragedModel(model)),
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_wrappings_are_looked_into(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    model = wrap(net()).eval()
    graph = uo.trace(model, X)
    assert "stem.weight" in graph.parameters
    assert graph == uo.trace(net(), X)
    result = uo.prune(model, X, amount=0.5)
    assert result.solution.parameters == uo.prune(net(), X, amount=0.5).solution.parameters
    masks = uo.choose_masks(model, graph, 0.5)
    uo.apply_masks(model, graph, masks)
    pruned = uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))
    uo.verify(model, wrap(pruned), X)
    uo.save(wrap(pruned), tmp_path / "pruned.safetensors")
    loaded = uo.load(wrap(net()), tmp_path / "pruned.safetensors")
    assert torch.equal(loaded(X), pruned(X))


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_managers_prune_what_is_inside(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = wrap(net()).eval()
    model(X)  # compiled, if it is
    uo.MaskingManager(model, layers="all").importance().mask(amount=0.5)
    masked = copy.deepcopy(model)
    want = masked(X)
    size = sum(map(torch.numel, model.parameters()))
    uo.PruningManager(model).compute([X]).prune()
    assert sum(map(torch.numel, model.parameters())) < 0.7 * size
    torch.testing.assert_close(model(X), want)


def test_wrappings_with_hooks_are_refused() -> None:
    model = nn.DataParallel(net())
    model.register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(uo.TraceError, match="DataParallel that has forward hooks"):
        uo.trace(model, X)


def normed(make: Callable[..., Any]) -> nn.Module:
    model = net()
    for layer in (model.block[0], model.block[2]):
        make(layer)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))
    model(X)  # old norms compute their weights here
    return model.eval()


NORMS: dict[str, Callable[..., Any]] = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "the old weight norm": weight_norm,
    "the old spectral norm": spectral_norm,
}


@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_computed_weights_become_parameters(make: Callable[..., Any], tmp_path: Path) -> None:
    model = normed(make)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    want = model(X)
    result = uo.prune(model, X, amount=0.5)
    assert result.model.get_submodule("block.2").in_channels == 4
    assert any("'block.0.weight', 'block.2.weight', computed" in note for note in result.notes)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(model(X), want)
    whole = uo.prune(model, X)
    assert_lossless(model, whole.model, X)  # the original's numbers, not only the copy's
    uo.save(result.model, tmp_path / "pruned.safetensors")
    blank = normed(make)
    for tensor in blank.parameters():
        tensor.detach().fill_(torch.nan)  # the weights of definitions do not matter
    for definition in (normed(make).train(), blank):
        loaded = uo.load(definition, tmp_path / "pruned.safetensors")
        assert torch.equal(loaded(X), result.model(X))


class Noisy(nn.Module):
    """A parametrization that computes something else each time."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + torch.randn_like(weight)


def test_what_differs_each_time_stays_computed() -> None:
    model = net()
    nn.utils.parametrize.register_parametrization(model.block[0], "weight", Noisy())
    result = uo.prune(model, X, amount=0.5)
    assert result.model.get_submodule("stem").out_channels == 8
    assert not any("computed" in note for note in result.notes)


KEPT = [c for c in range(8) if c not in (1, 4)]


def mask() -> Tensor:
    found = torch.ones(8, 8, 1, 1, dtype=torch.bool)
    found[:, [1, 4]] = False
    return found


def pruned_state() -> dict[str, Tensor]:
    model = net()
    prune.custom_from_mask(model.block[2], "weight", mask())  # type: ignore[no-untyped-call]
    return dict(nn.DataParallel(model).state_dict())


def zeroed_state() -> dict[str, Tensor]:
    state = net().state_dict()
    state["block.2.weight"] *= mask()
    return dict(state)


TENSORS: dict[str, Callable[[], dict[str, Any]]] = {
    "by parameter": lambda: {"block.2.weight": mask()},
    "by module": lambda: {"block.2": mask().float()},
    "as NNI keeps them": lambda: {"block.2": {"weight": mask().float(), "bias": None}},
    "buffers of torch.nn.utils.prune": pruned_state,
    "another state dict": zeroed_state,
}


@pytest.mark.parametrize("tensors", TENSORS.values(), ids=TENSORS)
def test_masks_are_read_off_tensors(tensors: Callable[[], dict[str, Any]]) -> None:
    graph = uo.trace(net(), X)
    masks = uo.masks_of(tensors(), graph)
    assert list(masks.kept["block.2.weight"][1]) == KEPT
    assert masks.graph_fingerprint == graph.masks_fingerprint
    result = uo.prune(net(), X, masks=tensors())
    assert result.model.get_submodule("block.2").in_channels == 6
    assert result.model.get_submodule("block.0").out_channels == 6


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"block.3.weight": mask()}, "called 'block.3.weight'"),
        ({"block.2.weight": mask(), "blocks": mask()}, "called 'blocks'"),
        ({"block.2": mask()[:4]}, r"'block.2' has the shape \(4, 8, 1, 1\)"),
        ({"block.2": 0.5}, "is a float, not a tensor"),
        ({"block.2": mask() * torch.nan}, "'block.2' holds NaN"),
        ({}, "there are no masks"),
        ({"block.2.bias": None}, "there are no masks"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tensors: dict[str, Any], message: str) -> None:
    graph = uo.trace(net(), X)
    with pytest.raises(uo.MaskError, match=message):
        uo.masks_of(tensors, graph)
