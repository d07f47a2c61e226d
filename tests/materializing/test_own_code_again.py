"""Models of one's own class that are pruned in place again, and learn in between."""

from __future__ import annotations

import copy
import pickle
import zlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import upscale_opt as uo
from upscale_opt.materializing.names import STAGES
from upscale_opt.materializing.origin import Stage
from upscale_opt.materializing.stages import packed

WIDTH, HEADS, SIZE = 16, 2, 8


class Columns(nn.Module):
    """A layer that keeps the number of its outputs, as GPT-2 has it."""

    def __init__(self, out: int, width: int) -> None:
        super().__init__()
        self.nf = out
        self.weight, self.bias = (
            nn.Parameter(torch.randn(width, out) / 8),
            nn.Parameter(torch.zeros(out)),
        )

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.size()[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head_dim, self.scaling = SIZE, SIZE**-0.5
        self.q, self.k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.v, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = (part(x).view(shape).transpose(1, 2) for part in (self.q, self.k, self.v))
        seen = functional.scaled_dot_product_attention(q, k, v, scale=self.scaling)
        result: Tensor = self.o(seen.transpose(1, 2).reshape(*x.shape[:-1], -1))
        return result


class Layer(nn.Module):
    """Pruned once, its MLP is as wide as the tokens, which stay as wide as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.up, self.down = Columns(2 * WIDTH, WIDTH), Columns(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        result: Tensor = x + self.down(self.up(x).relu())
        return result


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = (
            nn.Linear(4, WIDTH),
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 3),
        )
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(self.norm(x))
        result: Tensor = self.head(x)
        return result


X = torch.randn(3, 5, 4)
LONGER = torch.randn(2, 9, 4)


def learn(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()


def halved(model: nn.Module) -> uo.Pruned:
    return uo.prune(model, X, amount=0.5, side="both", method="constrained")


@pytest.fixture(scope="module")
def twice() -> tuple[list[uo.Pruned], Model]:
    """A model that was made narrower twice, and what pruning said each time."""
    torch.manual_seed(0)
    model = Model().eval()
    results: list[uo.Pruned] = []
    for size in (4, 2):
        results.append(halved(model))
        width = HEADS * size
        assert results[-1].into(model) == {
            f"layers.{n}.{name}": value
            for n in range(2)
            for name, value in (("attention.head_dim", size), ("up.nf", 2 * width))
        }
        torch.testing.assert_close(model(LONGER), results[-1].masked(LONGER))
        learn(model)
    return results, model


def saved(result: uo.Pruned, learnt: nn.Module, path: Path) -> Path:
    pruned = copy.deepcopy(result.model)
    pruned.load_state_dict(learnt.state_dict())
    uo.save(pruned, path)
    return path


def test_what_is_left_after_two_times(twice: tuple[list[uo.Pruned], Model]) -> None:
    model = twice[1]
    shapes = {name: tuple(p.shape) for name, p in model.layers[1].named_parameters()}
    assert shapes["attention.q.weight"] == shapes["attention.v.weight"] == (4, WIDTH)
    assert shapes["attention.o.weight"] == (WIDTH, 4)
    assert shapes["up.weight"] == (WIDTH, 8)
    assert shapes["down.weight"] == (8, WIDTH)
    assert vars(model.layers[0])["_modules"]["attention"].scaling == SIZE**-0.5
    assert b"upscale_opt." not in pickle.dumps(model)


def test_the_second_file_goes_into_a_new_model(
    twice: tuple[list[uo.Pruned], Model], tmp_path: Path
) -> None:
    results, model = twice
    path = saved(results[1], model, tmp_path / "twice.safetensors")
    for definition in (Model(), Model().double()):
        loaded = uo.load(definition, path, in_place=True)
        assert type(loaded) is Model
        assert torch.equal(loaded(LONGER), model(LONGER))
    program = uo.load(Model(), path)
    torch.testing.assert_close(program(LONGER), model(LONGER))


@pytest.mark.parametrize("by", ["copy", "pickle"])
def test_copies_remember_what_they_went_through(
    twice: tuple[list[uo.Pruned], Model], tmp_path: Path, by: str
) -> None:
    model = copy.deepcopy(twice[1]) if by == "copy" else pickle.loads(pickle.dumps(twice[1]))
    masks = {"layers.0.up.weight": torch.arange(8).lt(6).expand(WIDTH, 8)}
    third = uo.prune(model, X, masks=masks, method="constrained")
    assert third.into(model) == {"layers.0.up.nf": 6}
    path = saved(third, model, tmp_path / "third.safetensors")
    loaded = uo.load(Model(), path, in_place=True)
    assert torch.equal(loaded(LONGER), model(LONGER))


def test_the_second_pruning_goes_into_a_new_model_or_one_in_between(
    twice: tuple[list[uo.Pruned], Model],
) -> None:
    results, model = twice
    new, between = Model().eval(), Model().eval()
    results[0].into(between)
    assert results[1].into(new) == results[1].into(between)
    for other in (new, between):
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(LONGER), model(LONGER))


def test_the_manager_prunes_twice() -> None:
    torch.manual_seed(0)
    model = Model().eval()
    for width in (16, 8):
        graph = uo.trace(model, X)
        masks = uo.choose_masks(model, graph, 0.5, side="both", method="constrained")
        uo.apply_masks(model, graph, masks)
        masked = copy.deepcopy(model)
        uo.PruningManager(model).compute([X], constrained=True).prune(own_code=True)
        assert type(model) is Model
        assert model.get_parameter("layers.1.up.weight").shape[1] == width
        torch.testing.assert_close(model(LONGER), masked(LONGER))
        learn(model)


def test_a_model_that_went_another_way_is_refused_and_stays(
    twice: tuple[list[uo.Pruned], Model],
) -> None:
    results, model = twice
    other = Model().eval()
    halved(other).into(other)
    before = other(X)
    for result, given in ((results[1], other), (results[0], copy.deepcopy(model))):
        sizes = {name: tuple(p.shape) for name, p in given.state_dict().items()}
        with pytest.raises(uo.MaterializeError, match=r"new instance|another model"):
            result.into(given)
        assert {name: tuple(p.shape) for name, p in given.state_dict().items()} == sizes
    assert torch.equal(other(X), before)


def test_a_new_model_stays_whole_if_the_second_step_fails(
    twice: tuple[list[uo.Pruned], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(stages: tuple[Stage, ...]) -> bytes:
        if len(stages) == 2:
            raise uo.MaterializeError("the second step fails")
        return packed(stages)

    monkeypatch.setattr("upscale_opt.materializing.own_code.packed", failing)
    model = Model().eval()
    before, known = model(X), dict(model.named_parameters())
    with pytest.raises(uo.MaterializeError, match="second step fails"):
        twice[0][1].into(model)
    assert torch.equal(model(X), before)
    assert all(known[name] is p for name, p in model.named_parameters())
    assert vars(model).keys() == vars(Model()).keys()


def test_what_was_changed_in_between_is_an_original_of_its_own(
    twice: tuple[list[uo.Pruned], Model], tmp_path: Path
) -> None:
    model = copy.deepcopy(twice[1])
    model.head = nn.Linear(WIDTH, 7)
    masks = {"layers.0.up.weight": torch.arange(8).lt(6).expand(WIDTH, 8)}
    result = uo.prune(model, X, masks=masks, method="constrained")
    uo.save(result.model, tmp_path / "changed.safetensors")
    with pytest.raises(uo.MaterializeError, match="another model than its original"):
        uo.load(Model(), tmp_path / "changed.safetensors", in_place=True)
    loaded = uo.load(copy.deepcopy(model), tmp_path / "changed.safetensors", in_place=True)
    torch.testing.assert_close(loaded(LONGER), result.masked(LONGER))


def test_what_a_model_says_of_itself_may_be_damaged_or_newer(
    twice: tuple[list[uo.Pruned], Model],
) -> None:
    model = copy.deepcopy(twice[1])
    newer = zlib.compress(b'[{"solution": {"schema_version": 999}}]')
    for kept in (b"damaged", vars(model)[STAGES][:50], newer):
        vars(model)[STAGES] = kept
        with pytest.raises(uo.MaterializeError, match=f"{STAGES}.*delete the attribute"):
            uo.prune(model, X, amount=0.2)
    del vars(model)[STAGES]
    assert uo.prune(model, X, amount=0.2).report is not None
