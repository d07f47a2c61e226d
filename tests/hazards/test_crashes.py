"""What crashed with a confusing error, and what was not removed without a word."""

from __future__ import annotations

import copy
import random
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparing import size
from hazard_networks import Around, around, drawn, images, other_sizes
from hazards import Builder, Call, Case, difference, hazard, holds, variants
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune as torch_prune

import upscale_opt as uo

DynamicLinear: Any = torch.ao.nn.quantized.dynamic.Linear
prune_structured: Any = torch_prune.ln_structured
prune_unstructured: Any = torch_prune.l1_unstructured


class Frozen(dict[str, Any]):
    """As the configurations of diffusers' models: not to be changed once made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for key, value in self.items():
            object.__setattr__(self, key, value)
        object.__setattr__(self, "done", True)

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise Exception("You cannot use this on a frozen dict.")

    update = setdefault = pop = __delitem__ = clear = popitem = _refuse

    def __setitem__(self, name: str, value: Any) -> None:
        if hasattr(self, "done"):
            self._refuse()
        super().__setitem__(name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        self._refuse()


class FrozenList(list[Any]):
    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("frozen")

    append = extend = clear = insert = pop = remove = __setitem__ = _refuse


class ReadOnly(Around):
    """Attributes that cannot be written."""

    @property
    def config(self) -> Any:
        return self._config

    def __init__(self, rng: random.Random, middle: Callable[..., Any], config: Any) -> None:
        super().__init__(rng, middle)
        self._config = config


def _with_attribute(config: Callable[[], Any], middle: Callable[..., Any]) -> Builder:
    def build(rng: random.Random) -> Case:
        x = images(rng)
        make = drawn(lambda r: ReadOnly(r, middle, config()), rng)
        return Case(make, x, other_sizes(rng, x, sizes=True))

    return build


def _copied(m: Any, x: Any, y: Any) -> Any:
    kept = copy.copy(y)
    return torch.relu(y) + kept


def _copied_in_place(m: Any, x: Any, y: Any) -> Any:
    kept = copy.copy(y)
    kept += 1
    return m.more.gate(y) + kept


class Split(nn.Module):
    """Blocks that split, filter some parts depthwise and join them again; see TRIALS."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        width = 8
        self.sizes = rng.choice([[4, 2, 2], [2, 2, 4], [3, 3, 2]])
        self.first = nn.Conv2d(3, width, 1)
        self.parts = nn.ModuleList()
        for _ in range(rng.randint(2, 3)):
            filters = [
                nn.Conv2d(size, size, 3, padding=1, groups=size) if rng.random() < 0.6 else None
                for size in self.sizes
            ]
            block = nn.Module()
            for index, layer in enumerate(filters):
                block.add_module(f"filter{index}", layer or nn.Identity())
            block.norm = nn.BatchNorm2d(width)
            block.wide, block.narrow = nn.Conv2d(width, 12, 1), nn.Conv2d(12, width, 1)
            block.scale = nn.Parameter(torch.rand(width, 1, 1))
            self.parts.append(block)
        self.last = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.first(x)
        for block in self.parts:
            one, two, three = torch.split(y, self.sizes, 1)
            z = torch.cat([block.filter0(one), block.filter1(two), block.filter2(three)], 1)  # type: ignore[operator]
            z = block.narrow(torch.relu(block.wide(block.norm(z))))  # type: ignore[operator]
            y = y + z * block.scale
        return self.last(y)


def _split(rng: random.Random) -> Case:
    x = images(rng)
    return Case(drawn(Split, rng), x, other_sizes(rng, x, sizes=True))


class Segments(nn.Module):
    """A check of input sizes, as in segmentation models."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.inner = Around(rng, lambda m, x, y: y)
        self.stride = 2

    def forward(self, x: Tensor) -> Any:
        h, w = x.shape[-2:]
        if h % self.stride or w % self.stride:
            raise RuntimeError(f"height and width must be divisible by {self.stride}")
        return self.inner(x)


def _checked(rng: random.Random) -> Case:
    x = images(rng, side=6)
    calls = [
        Call("another size", (images(rng, 2, 8),)),
        Call("another batch", (images(rng, 3, 6),), right=True),
        Call("an odd size", (images(rng, 2, 7),)),
    ]
    return Case(drawn(Segments, rng), x, calls)


CRASHES: dict[str, Builder] = {
    "copy.copy": around(_copied, sizes=True),
    "copy.copy, then in place": around(_copied_in_place, honest=False),
    "copy.deepcopy": around(lambda m, x, y: torch.relu(copy.deepcopy(y)) + y, honest=False),
    "a frozen dict": _with_attribute(lambda: Frozen(scale=2.0), lambda m, x, y: y * 2),
    "a frozen dict, read": _with_attribute(
        lambda: Frozen(scale=2.0), lambda m, x, y: y * m.config["scale"]
    ),
    "a frozen dict, read as attributes": _with_attribute(
        lambda: Frozen(scale=2.0), lambda m, x, y: y * m.config.scale
    ),
    "a frozen list": _with_attribute(lambda: FrozenList([1, 2]), lambda m, x, y: y * m.config[1]),
    "frozen in a dict": _with_attribute(
        lambda: {"a": Frozen(scale=3.0)}, lambda m, x, y: y * m.config["a"].scale
    ),
    "parts that go different ways": _split,
    "a check of sizes": _checked,
    "an assertion": around(lambda m, x, y: _asserted(x, y)),
    "torch's assertion": around(lambda m, x, y: _torch_asserted(x, y)),
}


def _asserted(x: Tensor, y: Tensor) -> Tensor:
    assert x.shape[1] == 3, "three channels"
    return torch.relu(y)


def _torch_asserted(x: Tensor, y: Tensor) -> Tensor:
    torch._assert(x.shape[2] < 8, "too high")
    return torch.relu(y)


@variants("crashes", CRASHES)
def test_crashes(builder: Builder, seed: int) -> None:
    holds(builder, seed)


@hazard("crashes", "an assertion dropped")
def test_a_users_own_assertion_is_kept() -> None:
    case = CRASHES["torch's assertion"](random.Random(0))
    model = case.make().double().eval()
    x = case.inputs
    export = uo.prune(model, x).model
    high = torch.zeros(2, 3, 9, x.shape[3], dtype=torch.float64)
    with pytest.raises(AssertionError):
        model(high)
    with pytest.raises((AssertionError, uo.UpscaleError)):
        export(high)


# Wrappings of other tools: right, or refused by an error that names them.


def _ln(model: Any) -> Any:
    prune_structured(model.reader, "weight", amount=0.5, n=2, dim=1)
    return model


def _unstructured(model: Any) -> Any:
    prune_unstructured(model.reader, "weight", amount=0.5)
    return model


def _old_weight_norm(model: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(model.reader)
    return model


def _weight_norm(model: Any) -> Any:
    nn.utils.parametrizations.weight_norm(model.reader)
    return model


def _old_spectral(model: Any) -> Any:
    nn.utils.spectral_norm(model.reader)
    return model


class Quantised(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model
        self.head = DynamicLinear(4, 2)

    def forward(self, x: Tensor) -> Any:
        return self.inner(x).mean(), self.head(torch.ones(1, 4))


WRAPPINGS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "ln_structured": (_ln, "prune|mask|ln_structured|weight_orig|reader"),
    "l1_unstructured": (_unstructured, "prune|mask|weight_orig|reader"),
    "the old weight_norm": (_old_weight_norm, "weight_norm|reader"),
    "weight_norm": (_weight_norm, "weight_norm|reader|parametri"),
    "the old spectral_norm": (_old_spectral, "spectral_norm|reader"),
    "data parallel": (lambda model: nn.DataParallel(model), "DataParallel"),
    "quantised": (Quantised, "quanti"),
    "compiled": (lambda model: torch.compile(model, backend="eager"), "compile"),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=hazard("wrappings", n)) for n in WRAPPINGS])
def test_wrappings_of_other_tools(name: str) -> None:
    wrap, words = WRAPPINGS[name]
    rng = random.Random(name)
    x = images(rng).float()
    torch.manual_seed(0)
    inner: Any = drawn(lambda r: Around(r, lambda m, x, y: y), rng)().eval()
    model = wrap(inner)
    try:
        pruned = uo.prune(model, x, amount=0.5)
    except uo.UpscaleError as error:
        message = str(error)
        assert any(word.lower() in message.lower() for word in words.split("|")), message
        assert "please report" not in message
        assert "deviates" not in message
        return
    with torch.no_grad():
        assert not difference(pruned.masked(x), pruned.model(x), 1e-3)


@pytest.mark.parametrize("axis", [0, 1])
def test_masks_by_torch_are_masks(axis: int) -> None:
    rng = random.Random(axis)
    x = images(rng).float()
    model: Any = drawn(lambda r: Around(r, lambda m, x, y: torch.relu(y)), rng)().eval()
    layer = model.reader if axis else model.writer
    prune_structured(layer, "weight", amount=0.5, n=2, dim=axis)
    prune_unstructured(layer, "bias", amount=1.0)
    names = {name for name, _ in model.named_parameters()}
    done = uo.prune(model, x)
    assert names == {name for name, _ in model.named_parameters()}
    assert size(done.model) < size(model)
    assert any("torch.nn.utils.prune.remove" in note for note in done.notes)
    assert not difference(model(x), done.model(x), 1e-4)


# Training mode by mistake.


class Dropping(Around):
    def __init__(self, rng: random.Random, drop: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__(rng, lambda m, x, y: drop(m, y))


DROPS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "functional": lambda m, y: functional.dropout(y, 0.5, m.training),
    "always": lambda m, y: functional.dropout(y, 0.5),
    "of channels": lambda m, y: functional.dropout2d(y, 0.5, m.training),
    "a branch": lambda m, y: y * torch.rand_like(y) if m.training else y,
    "noise": lambda m, y: y + torch.randn_like(y) * m.training,
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=hazard("training", n)) for n in DROPS])
def test_training_mode_by_mistake(name: str) -> None:
    """The message, if there is one, says that the model trains."""
    rng = random.Random(name)
    x = images(rng).float()
    model = drawn(lambda r: Dropping(r, DROPS[name]), rng)().train()
    error = ""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            uo.prune(model, x, amount=0.5)
        except uo.UpscaleError as refusal:
            error = str(refusal)
    assert "please report" not in error
    words = [error] if error else [str(one.message) for one in said]
    assert any("train" in one or "eval" in one for one in words), words


@hazard("training", "fixed")
def test_a_fixed_dropout_says_so_in_train() -> None:
    model = drawn(lambda r: Dropping(r, DROPS["functional"]), random.Random(0))().eval()
    x = images(random.Random(1)).float()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        export = uo.prune(model, x, amount=0.5).model
        torch.manual_seed(0)
        try:
            first, second = export.train()(x), export.train()(x)
        except uo.UpscaleError:
            return
    assert not torch.equal(first, second) or any("train" in str(s.message) for s in said)


# Masks and solutions of another graph.


def _another(rng: random.Random) -> tuple[Any, uo.ChannelGraph, Any, uo.ChannelGraph]:
    x = images(rng).float()
    found: list[Any] = []
    for _ in range(2):
        model = Around(rng, lambda m, x, y: y, rng.choice([4, 6, 8]))
        found += [model.eval(), uo.trace(model, x)]
    return found[0], found[1], found[2], found[3]


@pytest.mark.parametrize("seed", range(6))
@hazard("another graph", "masks")
def test_masks_of_another_graph(seed: int) -> None:
    mine, graph, _, other = _another(random.Random(seed))
    if graph.fingerprint == other.fingerprint:
        pytest.skip("the same graph")
    masks = uo.choose_masks(mine, graph, 0.5)
    with pytest.raises(uo.UpscaleError, match=r"another (model|graph)"):
        uo.solve(other, masks)


@pytest.mark.parametrize("seed", range(6))
@hazard("another graph", "solutions")
def test_solutions_of_another_graph(seed: int) -> None:
    mine, graph, other, _ = _another(random.Random(seed))
    if str(mine) == str(other):
        pytest.skip("the same model")
    solution = uo.solve(graph, uo.choose_masks(mine, graph, 0.5))
    with pytest.raises(uo.UpscaleError, match=r"another (model|graph)"):
        uo.materialize(other, solution)


@hazard("crashes", "a mistyped network")
def test_a_mistyped_network_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from upscale_opt.models import catalogue

    monkeypatch.setitem(sys.modules, "timm", None)  # whose import would fail, and takes seconds
    with pytest.raises(uo.UpscaleError, match=r"resnett50.*resnet50"):
        catalogue.build("resnett50")


# Nothing is removed, and nobody says so.


class Shifted(nn.Module):
    """A batch norm with a shift behind a layer whose filters are gone."""

    def __init__(self, rng: random.Random, act: nn.Module) -> None:
        super().__init__()
        width = rng.choice([4, 6, 8])
        self.first = nn.Conv2d(3, width, 1, bias=rng.random() < 0.5)
        self.norm, self.act = nn.BatchNorm2d(width), act
        self.last = nn.Conv2d(width, 3, 1)
        statistics: list[Any] = [self.norm.bias, self.norm.running_mean]
        for tensor in statistics:
            with torch.no_grad():
                tensor.uniform_(0.1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.act(self.norm(self.first(x))))
        return y


ACTS: dict[str, Callable[[], nn.Module]] = {
    "a relu": nn.ReLU,
    "nothing": nn.Identity,
    "a sigmoid": nn.Sigmoid,
    "a gelu": nn.GELU,
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=hazard("nothing", n)) for n in ACTS])
def test_nothing_removed_is_said(name: str) -> None:
    rng = random.Random(name)
    model = Shifted(rng, ACTS[name]()).eval()
    with torch.no_grad():
        model.first.weight[::2] = 0
        if model.first.bias is not None:
            model.first.bias[::2] = 0
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pruned = uo.prune(model, images(rng).float())
    before = sum(p.numel() for p in model.parameters())
    after = sum(p.numel() for p in pruned.model.parameters())
    words = [str(one.message) for one in said]
    assert after < before or any("remove" in one and "constant" in one for one in words), words


def test_nothing_is_said_where_enough_is_removed() -> None:
    rng = random.Random(0)
    model = Shifted(rng, nn.ReLU()).eval()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        uo.prune(model, images(rng).float(), amount=0.5, side="both")
    assert not [one for one in said if "remove" in str(one.message)]
