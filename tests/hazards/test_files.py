"""Files and states: index buffers, everything that changes the function, and names that collide."""

from __future__ import annotations

import copy
import functools
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hazard_networks import Around, drawn, images
from hazards import difference, hazard
from torch import Tensor, nn
from torch.nn import functional

import upscale_opt as uo

SEEDS = range(3)


def _pruned(model: nn.Module, x: Tensor, gone: dict[str, list[int]]) -> Any:
    """The export of a model without some inputs of its layers."""
    with torch.no_grad():
        for name, channels in gone.items():
            layer: Any = model.get_submodule(name)
            layer.weight[:, channels] = 0
    return uo.prune(model, x, check=False).model


# R: index buffers.


class TwoReaders(nn.Module):
    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.width = rng.choice([6, 8])
        self.first = nn.Conv2d(3, self.width, 1)
        self.readers = nn.ModuleList(nn.Conv2d(self.width, 2, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        y = torch.relu(self.first(x))
        return [reader(y) for reader in self.readers]


def _two_prunings(seed: int) -> tuple[Any, Any, Tensor]:
    """Two exports of one model, of equal sizes, by other masks."""
    rng = random.Random(seed)
    x, make = images(rng), drawn(TwoReaders, rng)
    torch.manual_seed(seed)
    model = make().double().eval()
    exports = []
    for _ in range(2):
        masked = make().double().eval()
        masked.load_state_dict(model.state_dict())
        gone = {f"readers.{i}": rng.sample(range(masked.width), 3) for i in range(3)}
        exports.append(_pruned(masked, x, gone))
    return exports[0], exports[1], x


@pytest.mark.parametrize("seed", SEEDS)
@hazard("R", "another pruning")
def test_states_of_another_pruning(seed: int) -> None:
    one, other, x = _two_prunings(seed)
    want = one(x)
    try:
        other.load_state_dict(one.state_dict())
    except (uo.UpscaleError, RuntimeError):  # nn.Module's own error: keys or sizes do not match
        return
    assert not difference(want, other(x), 1e-10)


@pytest.mark.parametrize("seed", SEEDS)
@hazard("R", "to_empty")
def test_states_into_empty_memory(seed: int) -> None:
    one, _, x = _two_prunings(seed)
    want, kept = one(x), {name: value.clone() for name, value in one.state_dict().items()}
    empty = one.to_empty(device="cpu")
    for tensor in empty.buffers():
        with torch.no_grad():
            tensor.zero_()
    empty.load_state_dict(kept)
    try:
        got = empty(x)
    except uo.UpscaleError:
        return
    assert not difference(want, got, 1e-10)


# X: what changes the function is compared on loading.


class Block(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        for name, value in settings.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        act = getattr(self, "act", torch.relu)
        y: Tensor = act(x) * getattr(self, "scale", 1.0) + getattr(self, "shift", 0.0)
        y = y if getattr(self, "_hidden", None) is None else y + self._hidden  # type: ignore[operator]
        options = getattr(self, "options", {})
        if getattr(self, "mode", options.get("mode", "plain")) == "flip":
            y = y.flip(1)
        inner: Any = getattr(self, "inner", None)
        return y if inner is None else y * inner.value


class Inner:
    def __init__(self, value: float) -> None:
        self.value = value

    def act(self, x: Tensor) -> Tensor:
        return x * self.value


class Scaling:
    __slots__ = ("by",)

    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, x: Tensor) -> Tensor:
        return torch.tanh(x) * self.by


def _tensor(value: float) -> Tensor:
    return torch.full((1,), value, dtype=torch.float64)


SETTINGS: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[], dict[str, Any]]]] = {
    "an activation": (lambda: {"act": functional.silu}, lambda: {"act": functional.mish}),
    "a lambda": (lambda: {"act": lambda x: x * 2}, lambda: {"act": lambda x: x * 3}),
    "a partial": (
        lambda: {"act": functools.partial(functional.leaky_relu, negative_slope=0.1)},
        lambda: {"act": functools.partial(functional.leaky_relu, negative_slope=0.5)},
    ),
    "a plain tensor": (lambda: {"scale": _tensor(2)}, lambda: {"scale": _tensor(3)}),
    "a number": (lambda: {"scale": 2.0}, lambda: {"scale": 3.0}),
    "a shift": (lambda: {"shift": 0.0}, lambda: {"shift": 0.5}),
    "a word": (lambda: {"mode": "plain"}, lambda: {"mode": "flip"}),
    "an option": (lambda: {"options": {"mode": "plain"}}, lambda: {"options": {"mode": "flip"}}),
    "an object": (lambda: {"inner": Inner(2.0)}, lambda: {"inner": Inner(4.0)}),
    "an object's object": (
        lambda: {"inner": Inner(Inner(2.0).value)},
        lambda: {"inner": Inner(Inner(3.0).value)},
    ),
    "a method of an object": (lambda: {"act": Inner(2.0).act}, lambda: {"act": Inner(3.0).act}),
    "an object that is called": (lambda: {"act": Scaling(2.0)}, lambda: {"act": Scaling(0.5)}),
    "something hidden": (lambda: {"_hidden": 1.0}, lambda: {"_hidden": 2.0}),
    "a layer": (lambda: {"act": nn.ELU(0.5)}, lambda: {"act": nn.ELU(2.0)}),
    "a layer of another class": (lambda: {"act": nn.SiLU()}, lambda: {"act": nn.Mish()}),
    "a layer of another slope": (
        lambda: {"act": nn.LeakyReLU(0.1)},
        lambda: {"act": nn.LeakyReLU(0.3)},
    ),
}


class Configured(Around):
    """Around a block with settings, which is captured as one call where it has a hook."""

    def __init__(self, rng: random.Random, settings: dict[str, Any], hooked: bool) -> None:
        super().__init__(rng, lambda m, x, y: m.block(y))
        self.block = Block(**settings)
        if hooked:
            self.block.register_forward_hook(lambda module, args, y: y)


@pytest.mark.parametrize("name", [pytest.param(name, marks=hazard("X", name)) for name in SETTINGS])
@pytest.mark.parametrize("hooked", [False, True])
def test_settings_are_compared_on_loading(name: str, hooked: bool, tmp_path: Path) -> None:
    mine, others = SETTINGS[name]
    rng = random.Random(name)
    x, drawn_from = images(rng), rng.getrandbits(32)

    def make(settings: dict[str, Any]) -> Any:
        return Configured(random.Random(drawn_from), settings, hooked).double().eval()

    model = make(mine())
    export = _pruned(model, x, {"reader": [0, 2]})
    path = tmp_path / "file.safetensors"
    try:
        uo.save(export, path)
    except uo.UpscaleError:
        return
    with torch.no_grad():
        want = export(x)
        same = uo.load(make(mine()), path)
        assert not difference(want, same(x), 1e-10)
        try:
            other = uo.load(make(others()), path)
        except uo.UpscaleError:
            return
        assert not difference(want, other(x), 1e-10), "another function was loaded"


class Pool(nn.Module):
    """A module with a rule, called as one, that holds a plain tensor."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.by = _tensor(weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) * self.by


class Pooled(Around):
    def __init__(self, rng: random.Random, weight: float) -> None:
        super().__init__(rng, lambda m, x, y: m.pool(y))
        self.pool = Pool(weight)
        self.pool.register_forward_hook(lambda mod, args, y: y)


@hazard("X", "a called module's tensor")
def test_called_modules_tensors_are_compared(tmp_path: Path) -> None:
    x = images(random.Random(1))

    def make(weight: float) -> Any:
        return Pooled(random.Random(3), weight).double().eval()

    export = _pruned(make(2.0), x, {"reader": [0, 2]})
    path = tmp_path / "file.safetensors"
    try:
        uo.save(export, path)
        want, other = export(x), uo.load(make(5.0), path)
    except uo.UpscaleError:
        return
    assert not difference(want, other(x), 1e-10)


# Names that are ours.

NAMES = (
    "solution",
    "origin",
    "named",
    "earlier",
    "carry",
    "graph",
    "code",
    "meta",
    "class",
    "torch",
    "_graph",
    "print_readable",
    "_upscale_opt_making",
)


class Named(nn.Module):
    def __init__(self, name: str, kind: str) -> None:
        super().__init__()
        self.name, self.kind = name, kind
        self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
        if kind == "module":
            self.add_module(name, nn.Conv2d(6, 6, 1))
        elif kind == "parameter":
            self.register_parameter(name, nn.Parameter(torch.randn(6, 1, 1)))
        elif kind == "buffer":
            self.register_buffer(name, torch.randn(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        one: Any = getattr(self, self.name)
        y = one(y) if self.kind == "module" else y * one
        z: Tensor = self.last(y)
        return z


@pytest.mark.parametrize("kind", ["module", "parameter", "buffer"])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=hazard("names", name)) for name in NAMES],
)
def test_names_of_submodules_do_not_collide(name: str, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Named(name, kind).double().eval()
    x = images(random.Random(2))
    with torch.no_grad():
        model.last.weight[:, ::2] = 0
        want = model(x)
        try:
            export = uo.prune(model, x).model
        except uo.UpscaleError as error:
            raise AssertionError(f"an honest model is refused: {error}") from error
        assert not difference(want, export(x), 1e-10)
        uo.save(export, tmp_path / "file.safetensors")
        loaded = uo.load(Named(name, kind).double().eval(), tmp_path / "file.safetensors")
        assert not difference(want, loaded(x), 1e-10)


class Words(nn.Module):
    """Python's words as names, deep inside, of modules and of a counter."""

    def __init__(self, words: tuple[str, ...]) -> None:
        super().__init__()
        self.words = words
        self.first = nn.ModuleDict({word: nn.Conv2d(3, 6, 1) for word in words})
        self.graph = nn.ModuleList([nn.Sequential(nn.Conv2d(6, 6, 1)) for _ in words])
        self.add_module("lambda", nn.Module())
        self.get_submodule("lambda").register_buffer("def", torch.zeros(()))
        self.graph_ = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Any = 0
        for word, layer in zip(self.words, self.graph, strict=True):
            y = y + layer(torch.relu(self.first[word](x)))
        count: Any = getattr(getattr(self, "lambda"), "def")
        count.add_(1)
        z: Tensor = self.graph_(y) * count
        return z


@pytest.mark.parametrize("words", [("class", "in", "is"), ("None", "class_", "class"), ("import",)])
def test_words_of_python_are_names(words: tuple[str, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Words(words).double().eval()
    x = images(random.Random(len(words)))
    done = uo.prune(model, x, amount=0.5)
    export, masked = done.model, done.masked
    uo.save(export, tmp_path / "file.safetensors")
    copies = [
        copy.deepcopy(export),
        pickle.loads(pickle.dumps(export)),
        uo.load(Words(words).double().eval(), tmp_path / "file.safetensors"),
        uo.prune(export, x).model,
        export,
    ]
    with torch.no_grad():
        want = [masked(x), masked(x), masked(x)]
        assert not torch.equal(want[0], want[2])
        for other in copies:
            assert not difference(want, [other(x), other(x), other(x)], 1e-10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(uo.UpscaleError, match="cannot be pruned in place"):
        uo.PruningManager(model).compute([x], pruned_inputs=[("graph_.weight", 1)]).prune()
    assert type(model) is Words
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Plain(nn.Module):
    """Attributes of its own that are called as those of pruned models."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.__dict__.update(attributes)
        self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.relu(self.first(x)))
        return y


@pytest.mark.parametrize("name", ["solution", "origin", "earlier", "named", "graph", "code"])
def test_attributes_of_models_pruned_in_place_are_theirs(name: str) -> None:
    x = images(random.Random(0))
    model = Plain(**{name: "mine"}).double().eval()
    manager = uo.PruningManager(model).compute([x], pruned_inputs=[("last.weight", 1)])
    if name in ("graph", "code"):  # which every GraphModule has
        with pytest.raises(uo.UpscaleError, match=f"its attribute '{name}'"):
            manager.prune()
        assert type(model) is Plain
    else:
        manager.prune()
        again = uo.prune(model, x, amount=0.4)
        assert not difference(again.masked(x), again.model(x), 1e-10)
    assert getattr(model, name) == "mine"
