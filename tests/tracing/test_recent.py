"""Traces are made once, also for masked copies, and made anew where the model is another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import upscale_opt as uo
from upscale_opt.masking.zeros import masked_copy
from upscale_opt.tracing import running
from upscale_opt.tracing.recent import recall


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The models that were captured, in order."""
    found: list[nn.Module] = []
    build = running._build

    def counted(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        found.append(model)
        return build(model, *args, **kwargs)

    monkeypatch.setattr(running, "_build", counted)
    return found


class Reader(nn.Module):
    """Convolutions, a recurrent layer, which holds weak references, and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.recurrent = nn.LSTM(8, 4, batch_first=True)
        self.offset = torch.arange(8.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu()).relu().mean(2).transpose(1, 2)
        return torch.as_tensor(self.recurrent(x + self.offset)[0])


def exported(model: nn.Module, x: Tensor) -> tuple[nn.Module, nn.Module]:
    """A masked copy, and its export."""
    graph = uo.trace(model, x)
    kept: dict[str, dict[int, tuple[int, ...]]] = {"second.weight": {1: (0, 2, 3, 7)}}
    masked = masked_copy(model, graph, uo.Masks(kept=kept))
    masks = uo.masks_of(masked, graph)
    return masked, uo.materialize(masked, uo.solve(graph, masks))


def test_a_masked_copy_is_not_captured_again(builds: list[nn.Module]) -> None:
    model, x = Reader().eval(), torch.rand(2, 1, 6, 5)
    masked, pruned = exported(model, x)
    assert builds == [model]
    report = uo.verify(masked, pruned, x)
    assert report.float64_error < 1e-10
    own = {id(t) for m in (model, masked) for t in (*m.parameters(), *m.buffers())}
    assert not own & {id(t) for t in (*pruned.parameters(), *pruned.buffers())}
    weights = dict(masked.named_parameters())
    with torch.no_grad():
        for parameter in model.parameters():  # the original's are not those of the copy
            parameter.fill_(float("nan"))
    assert all(bool(weight.isfinite().all()) for weight in weights.values())
    assert uo.verify(masked, pruned, x).float64_error < 1e-10


def test_weights_that_change_afterwards_are_those_exported(builds: list[nn.Module]) -> None:
    model, x = Reader().eval(), torch.rand(2, 1, 6, 5)
    graph = uo.trace(model, x)
    masks = uo.Masks(kept={"second.weight": {1: (0, 2, 3, 7)}})
    masked = masked_copy(model, graph, masks)
    with torch.no_grad():
        for parameter in masked.parameters():
            parameter.mul_(2)
    pruned = uo.materialize(masked, uo.solve(graph, uo.masks_of(masked, graph)))
    assert uo.verify(masked, pruned, x).float64_error < 1e-10
    assert builds == [model]


class OwnCopy(nn.Sequential):
    """Decides itself how it is copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnCopy:
        return OwnCopy(nn.Conv2d(1, 8, 1), nn.Tanh(), nn.Conv2d(8, 8, 1))


class Bound(nn.Module):
    """Has a method in an attribute, which belongs to this one, and not to a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 1)
        self.then: Callable[[Tensor], Tensor] = self.second_of

    def second_of(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.second(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.first(x).relu())


def test_copies_by_a_hand_of_their_own_are_captured_again(builds: list[nn.Module]) -> None:
    model, x = (
        OwnCopy(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1)).eval(),
        torch.rand(2, 1, 4, 4),
    )
    graph = uo.trace(model, x)
    masked = masked_copy(model, graph, uo.Masks(kept={"2.weight": {1: (0, 1, 2)}}))
    assert recall(masked, graph.example, graph.capture) is None
    assert builds == [model]


def test_methods_that_belong_to_the_original() -> None:
    model, x = Bound().eval(), torch.rand(2, 1, 4, 4)
    graph = uo.trace(model, x)
    masked = masked_copy(model, graph, uo.Masks(kept={"second.weight": {1: (0, 1, 2)}}))
    solution = uo.solve(graph, uo.masks_of(masked, graph))
    assert uo.verify(masked, uo.materialize(masked, solution), x).float64_error < 1e-10


def test_a_changed_attribute_is_another_model() -> None:
    model, x = Reader().eval(), torch.rand(2, 1, 6, 5)
    graph = uo.trace(model, x)
    model.second.padding = (0, 0)
    masked = masked_copy(model, graph, uo.Masks(kept={}))
    assert recall(masked, graph.example, graph.capture) is None


def test_a_pruned_model_is_captured_once(builds: list[nn.Module]) -> None:
    x = torch.rand(2, 1, 6, 5)
    _, once = exported(Reader().eval(), x)
    builds.clear()
    graph = uo.trace(once, x)
    masked = masked_copy(once, graph, uo.Masks(kept={"second.weight": {1: (0, 2)}}))
    twice = uo.materialize(masked, uo.solve(graph, uo.masks_of(masked, graph)))
    assert builds == [once]
    assert uo.verify(masked, twice, x).float64_error < 1e-10


def test_an_edited_program_is_another_model() -> None:
    def doubled(x: Tensor) -> Tensor:
        return x * 2

    x = torch.rand(2, 1, 6, 5)
    _, once = exported(Reader().eval(), x)
    assert isinstance(once, fx.GraphModule)
    graph = uo.trace(once, x)
    assert recall(once, graph.example, graph.capture) is not None
    node = next(node for node in once.graph.nodes if node.op == "output")
    with once.graph.inserting_before(node):
        result = once.graph.call_function(doubled, node.args)
    node.args = (result,)
    once.recompile()
    assert recall(once, graph.example, graph.capture) is None


def test_an_edited_function_of_the_same_name_is_another_model() -> None:
    def make(by: int) -> Callable[[Tensor], Tensor]:
        def scaled(x: Tensor) -> Tensor:
            return x * by

        return scaled

    made = fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)))
    node = next(node for node in made.graph.nodes if node.op == "output")
    with made.graph.inserting_before(node):
        node.args = (made.graph.call_function(make(2), node.args),)
    made.recompile()
    made.eval()
    graph = uo.trace(made, torch.rand(2, 1, 3, 3))
    assert recall(made, graph.example, graph.capture) is not None
    next(node for node in made.graph.nodes if node.op == "call_function").target = make(3)
    made.recompile()
    assert recall(made, graph.example, graph.capture) is None


@dataclass
class Settings:
    """Of a model, and perhaps those that hold them."""

    scale: float
    outer: Settings | None = None


class Configured(nn.Module):
    """A model that keeps its settings, as those of libraries do."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.first, self.second = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.second(self.first(x).relu()) * self.settings.scale)


def test_settings_are_compared() -> None:
    model, x = Configured(Settings(2.0)).eval(), torch.rand(2, 1, 4, 4)
    graph = uo.trace(model, x)
    assert recall(model, graph.example, graph.capture) is not None
    model.settings.scale = 3.0
    assert recall(model, graph.example, graph.capture) is None


def test_settings_that_hold_themselves() -> None:
    settings = Settings(2.0)
    settings.outer = settings
    model, x = Configured(settings).eval(), torch.rand(2, 1, 4, 4)
    graph = uo.trace(model, x)
    assert recall(model, graph.example, graph.capture) is None  # one cannot tell
    assert uo.prune(model, x, amount=0.5).report is not None
