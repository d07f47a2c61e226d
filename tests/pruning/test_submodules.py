"""Pruning submodules of models that cannot be traced as a whole."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparing import EXACT, call, cast, deviation, size
from sample_networks import keep
from torch import Tensor, nn

from upscale_opt.errors import TraceError, VerificationError
from upscale_opt.models import catalogue
from upscale_opt.pruning import replaying
from upscale_opt.pruning.submodules import prune_submodules


class Features(nn.Module):
    """Feature maps by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.second(self.first(x).relu()).relu()
        return OrderedDict([("large", self.third(x)), ("small", self.third(x[..., ::2, ::2]))])


class Detector(nn.Module):
    """Takes a list of images, and decides by their values how many answers there are."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Features()
        self.tower = nn.Sequential(nn.Conv2d(6, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1))
        self.score = nn.Conv2d(6, 1, 1)
        self.unused = nn.Sequential(nn.Linear(2, 2))

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        maps = self.backbone(torch.stack(images))
        assert isinstance(maps, OrderedDict)
        found = []
        for features in maps.values():
            scores = self.score(self.tower(features)).flatten()
            if bool(scores.max() > scores.mean()):
                found.append(scores[scores > scores.mean()])
        return found


def detector() -> tuple[Detector, tuple[list[Tensor]]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Detector().eval()
    catalogue.randomize(model, 1)
    return model, ([torch.randn(3, 8, 8), torch.randn(3, 8, 8)],)


def masked_detector() -> tuple[Detector, tuple[list[Tensor]]]:
    model, inputs = detector()
    keep(model.backbone.second.weight, 1, [0, 2, 5])
    keep(model.get_parameter("tower.2.weight"), 1, [1, 6, 7])
    return model, inputs


def test_the_largest_submodules_are_found() -> None:
    model, inputs = masked_detector()
    before = copy.deepcopy(model).double()
    identity, parts = id(model.backbone), size(model)
    done = prune_submodules(model, inputs)
    assert [part.name for part in done.pruned] == ["backbone", "tower"]
    assert [part.calls for part in done.pruned] == [1, 2]
    assert "" in done.whole
    assert "not called" in done.whole["unused"]
    assert isinstance(model.backbone, Features)
    assert id(model.backbone) == identity
    assert model.backbone.first.out_channels == 3
    assert model.get_parameter("tower.0.weight").shape[0] == 3
    assert parts - size(model) == sum(part.before - part.after for part in done.pruned)
    assert all(part.error is not None and part.error < EXACT for part in done.pruned)
    assert done.error is not None
    assert done.error < EXACT
    exact = cast(inputs, torch.float64)
    assert deviation(call(before, exact), call(model.double(), exact)) < EXACT


def test_named_submodules_alone_are_pruned() -> None:
    model, inputs = masked_detector()
    kept = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    done = prune_submodules(model, inputs, ["tower"])
    assert [part.name for part in done.pruned] == ["tower"]
    assert done.whole == {}
    assert all(
        torch.equal(kept[name], value) for name, value in model.backbone.state_dict().items()
    )


def test_an_amount_masks_each() -> None:
    model, inputs = detector()
    done = prune_submodules(model, inputs, amount=0.5)
    assert [part.name for part in done.pruned] == ["backbone", "tower"]
    assert model.backbone.first.out_channels == 4
    assert model.backbone.second.in_channels == 4


def test_nothing_to_remove_is_left_alone() -> None:
    model, inputs = detector()
    done = prune_submodules(model, inputs, ["tower"])
    assert done.pruned == ()
    assert done.whole == {"tower": "nothing in it can be removed"}
    assert type(model.tower) is nn.Sequential


def test_a_model_that_can_be_traced_is_pruned_as_a_whole() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)).eval()
    keep(model.get_parameter("1.weight"), 1, [3])
    done = prune_submodules(model, torch.randn(2, 3, 4, 4))
    assert [part.name for part in done.pruned] == [""]
    assert model.get_parameter("0.weight").shape[0] == 1


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["bakcbone"], "did you mean 'backbone'"),
        (["unused"], "'unused' is not called"),
        (["tower", "tower.0"], "lies within"),
        ([""], "cannot be traced"),
    ],
)
def test_wrong_names(names: list[str], words: str) -> None:
    model, inputs = masked_detector()
    before = size(model)
    with pytest.raises(TraceError, match=words):
        prune_submodules(model, inputs, names)
    assert size(model) == before


def test_parameters_shared_with_the_rest_are_an_obstacle() -> None:
    model, inputs = masked_detector()
    model.unused.weight = model.tower[0].weight
    with pytest.raises(TraceError, match="used outside of it"):
        prune_submodules(model, inputs, ["tower"])


class Reaching(nn.Module):
    """Calls a layer of its submodule directly."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1))

    def forward(self, x: Tensor) -> Any:
        return self.body(x), self.body[0](x)


def test_what_is_called_from_outside_is_an_obstacle() -> None:
    with pytest.raises(TraceError, match=r"body.0 is called from outside"):
        prune_submodules(Reaching().eval(), torch.randn(2, 3, 4, 4), ["body"])


def test_nothing_traceable_is_said() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x)
            return out if bool(out.sum() > 0) else -out

    with pytest.raises(TraceError, match="nothing in Alone can be traced"):
        prune_submodules(Alone().eval(), torch.randn(2, 2))


def test_a_deviation_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = masked_detector()
    before = size(model)
    monkeypatch.setattr(replaying, "deviation", lambda want, got: 1e-3)
    with pytest.raises(VerificationError, match="deviates by 1"):
        prune_submodules(model, inputs)
    assert size(model) == before
    assert type(model.backbone) is Features


def _weight(inner: nn.Module) -> Tensor:
    return inner.get_submodule("0").get_parameter("weight").abs().sum()


def _channels(inner: nn.Module) -> int:
    found = inner.get_submodule("0").out_channels
    assert isinstance(found, int)
    return found


def _size_of(inner: nn.Module) -> int:
    return size(inner)


@pytest.mark.parametrize("read", [_weight, _channels, _size_of])
def test_what_the_model_reads_inside_is_found(read: Callable[[nn.Module], Any]) -> None:
    """The submodule by itself is right, and the whole is not."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.inner(x))
            return y * read(self.inner)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Reader().eval()
    with torch.no_grad():
        model.inner[2].get_parameter("weight")[:, 4:] = 0
    x = torch.randn(2, 3, 8, 8)
    before = size(model)
    with pytest.raises(VerificationError, match="reads inside of the pruned submodules"):
        prune_submodules(model, x, ["inner"])
    assert size(model) == before
