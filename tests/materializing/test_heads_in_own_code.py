"""Narrower heads in the code of models that keep a head's width as a number, as libraries do."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import upscale_opt as uo

WORDS, WIDTH, HEADS, SIZE = 31, 32, 4, 8
IDS = torch.arange(10).reshape(2, 5)


def renamed(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator, as libraries have them for arguments that got other names."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Cache:
    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if layer in self.layers:
            before = self.layers[layer]
            keys, values = torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)
        self.layers[layer] = keys, values
        return keys, values


class Angles(nn.Module):
    """Cosines and sines for all layers."""

    inv_freq: Tensor

    def __init__(self) -> None:
        super().__init__()
        speeds = 1 / 100 ** (torch.arange(0, SIZE, 2) / SIZE)
        self.register_buffer("inv_freq", speeds, persistent=False)

    def forward(self, x: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        angles = places[..., None].float() * self.inv_freq.to(device=x.device, dtype=torch.float)
        both = torch.cat((angles, angles), dim=-1)
        return (both.cos() * 1.0).to(dtype=x.dtype), (both.sin() * 1.0).to(dtype=x.dtype)


def rotate_half(x: Tensor) -> Tensor:
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def turned(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = (angle.unsqueeze(1) for angle in angles)
    return (x * cos) + (rotate_half(x) * sin)


class Turning(nn.Module):
    """Two heads of queries for each of keys and values, turned, with a cache."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.head_dim, self.groups = number, SIZE, 2
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(WIDTH, HEADS * SIZE, bias=False)
        self.k_proj = nn.Linear(WIDTH, HEADS * SIZE // 2, bias=False)
        self.v_proj = nn.Linear(WIDTH, HEADS * SIZE // 2, bias=False)
        self.o_proj = nn.Linear(HEADS * SIZE, WIDTH, bias=False)

    @renamed
    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], cache: Cache | None) -> Tensor:
        shape = (*x.shape[:-1], -1, self.head_dim)
        q = turned(self.q_proj(x).view(shape).transpose(1, 2), angles)
        k = turned(self.k_proj(x).view(shape).transpose(1, 2), angles)
        v = self.v_proj(x).view(shape).transpose(1, 2)
        if cache is not None:
            k, v = cache.update(k, v, self.number)
        k, v = (
            part[:, :, None]
            .expand(-1, -1, self.groups, -1, -1)
            .reshape(part.shape[0], part.shape[1] * self.groups, part.shape[2], part.shape[3])
            for part in (k, v)
        )
        places = torch.arange(k.shape[2], device=x.device)
        mask = places <= places[k.shape[2] - q.shape[2] :, None]
        seen = functional.scaled_dot_product_attention(q, k, v, mask, scale=self.scaling)
        result: Tensor = self.o_proj(seen.transpose(1, 2).reshape(*x.shape[:-1], -1))
        return result


class Decoder(nn.Module):
    """A language model that generates, with a cache or without."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.angles = nn.Embedding(WORDS, WIDTH), Angles()
        self.layers = nn.ModuleList(Turning(number) for number in range(2))
        self.down = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in self.layers)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS)

    def forward(self, ids: Tensor, start: int = 0, cache: Cache | None = None) -> Tensor:
        x = self.embed(ids)
        places = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0) + start
        angles = self.angles(x, places)
        for layer, down in zip(self.layers, self.down, strict=True):
            x = x + layer(self.norm(x), angles, cache)
            x = x + down(x).relu()
        result: Tensor = self.head(x)
        return result

    @torch.no_grad()
    def generate(self, ids: Tensor, count: int, cached: bool) -> Tensor:
        cache = Cache() if cached else None
        for step in range(count):
            new = ids[:, -1:] if cached and step else ids
            logits = self(new, ids.shape[1] - new.shape[1], cache)
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
        return ids


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder().eval()


@pytest.fixture(scope="module")
def pruned(decoder: Decoder) -> uo.Pruned:
    return uo.prune(decoder, (IDS,), amount=0.5, side="both", method="constrained")


def test_a_decoder_with_turned_heads_generates_the_masked_models_tokens(
    decoder: Decoder, pruned: uo.Pruned, tmp_path: Path
) -> None:
    masked = pruned.masked
    assert isinstance(masked, Decoder)
    wanted = masked.generate(IDS, 12, cached=True)
    assert len(set(wanted.flatten().tolist())) > 5
    uo.save(pruned.model, tmp_path / "decoder.safetensors")
    models = [copy.deepcopy(decoder), Decoder().eval()]
    assert pruned.into(models[0]) == {f"layers.{n}.head_dim": SIZE // 2 for n in range(2)}
    uo.load(models[1], tmp_path / "decoder.safetensors", in_place=True)
    for model in models:
        sizes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        for layer in range(2):
            left = [sizes[f"layers.{layer}.{n}_proj.weight"] for n in "qkvo"]
            half = WIDTH // 2
            assert left == [(half, WIDTH), (half // 2, WIDTH), (half // 2, WIDTH), (WIDTH, half)]
            assert vars(model.layers[layer])["scaling"] == SIZE**-0.5
        assert len(model.angles.inv_freq) == SIZE // 4
        for cached in (True, False):
            assert torch.equal(model.generate(IDS, 12, cached), wanted)


def test_the_program_computes_only_the_angles_that_are_left(pruned: uo.Pruned) -> None:
    names = [name for name, _ in pruned.model.named_modules()]
    assert not any("gather" in name for name in names)
    kept = pruned.model.get_buffer("angles.inv_freq")
    original = Angles().inv_freq
    assert len(kept) == len(original) // 2
    assert set(kept.tolist()) <= set(original.tolist())


@pytest.mark.parametrize("what", ["angles", "frequencies", "update"])
def test_angles_that_are_not_for_heads_alone_stay_whole(what: str) -> None:
    class Telling(Decoder):
        last: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("last", torch.zeros(1, IDS.shape[1], SIZE))

        def forward(self, ids: Tensor, start: int = 0, cache: Cache | None = None) -> Any:
            x = self.embed(ids)
            angles = self.angles(x, torch.arange(ids.shape[1]).unsqueeze(0))
            for layer in self.layers:
                x = x + layer(x, angles, cache)
            if what == "update":
                self.last.copy_(angles[0])
                return self.head(x)
            return self.head(x), angles[0] if what == "angles" else self.angles.inv_freq

    torch.manual_seed(0)
    model = Telling().eval()
    result = uo.prune(model, (IDS,), amount=0.5, side="both", method="constrained")
    assert result.model.get_parameter("layers.0.q_proj.weight").shape[0] == WIDTH // 2
    torch.testing.assert_close(result.model(IDS), result.masked(IDS))
    if what == "update":
        got, want = (m.get_buffer("last") for m in (result.model, result.masked))
        torch.testing.assert_close(got, want)


def test_heads_that_keep_other_pairs_are_lossless_but_keep_no_code(decoder: Decoder) -> None:
    kept: dict[str, dict[int, tuple[int, ...]]] = {}
    for layer, pairs in enumerate([(0, 1), (1, 2)]):
        own = [*pairs, *(pair + SIZE // 2 for pair in pairs)]
        for name, heads in (("q_proj", HEADS), ("k_proj", HEADS // 2)):
            rows = tuple(head * SIZE + channel for head in range(heads) for channel in own)
            kept[f"layers.{layer}.{name}.weight"] = {0: rows}
    model = copy.deepcopy(decoder)
    result = uo.prune(model, (IDS,), masks=uo.Masks(kept=kept), method="constrained")
    assert result.model.get_parameter("layers.1.q_proj.weight").shape == (WIDTH // 2, WIDTH)
    assert len(result.model.get_buffer("angles.inv_freq")) == SIZE // 2
    longer = torch.arange(21).reshape(3, 7)
    torch.testing.assert_close(result.model(longer), result.masked(longer))
    with pytest.raises(uo.MaterializeError, match="cannot stay as it is"):
        result.into(model)
    assert vars(model.layers[0])["head_dim"] == SIZE
    assert len(model.angles.inv_freq) == SIZE // 2
    assert torch.equal(model(IDS), decoder(IDS))


class Columns(nn.Module):
    """A layer whose weight is (in, out), as GPT-2 has it."""

    def __init__(self, out: int, width: int) -> None:
        super().__init__()
        self.nf, self.nx = out, width
        self.weight, self.bias = (
            nn.Parameter(torch.randn(width, out)),
            nn.Parameter(torch.randn(out)),
        )

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.size()[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


class Fused(nn.Module):
    """One layer for all three, cut by a number that the width of the tokens equals."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.split_size, self.head_dim, self.scaling = WIDTH, SIZE, SIZE**-0.5
        self.c_attn, self.c_proj = Columns(3 * WIDTH, WIDTH), Columns(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.c_attn(x).split(self.split_size, dim=2)
        shape = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = (part.view(shape).transpose(1, 2) for part in parts)
        seen = functional.scaled_dot_product_attention(q, k, v, scale=self.scaling)
        seen = seen.permute(0, 2, 1, 3)
        result: Tensor = self.c_proj(seen.reshape(*seen.shape[:-2], -1).contiguous())
        return result


class Projected(nn.Module):
    """Four layers, and what makes heads of three of them."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.q, self.k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.v, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def shape(self, x: Tensor) -> tuple[int, ...]:
        raise NotImplementedError

    def scale(self) -> float | None:
        return 1 / math.sqrt(SIZE)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).view(self.shape(x)).transpose(1, 2) for p in (self.q, self.k, self.v))
        seen = functional.scaled_dot_product_attention(q, k, v, scale=self.scale())
        seen = seen.transpose(1, 2).contiguous()
        result: Tensor = self.o(seen.reshape(*self.joined(seen)))
        return result

    def joined(self, seen: Tensor) -> tuple[int, ...]:
        return (*seen.shape[:-2], -1)


class Numbers(Projected):
    """All numbers by name, and as many heads as a head has channels, when a head has half."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.num_heads, self.head_size, self.all_head_size = HEADS, SIZE, WIDTH

    def shape(self, x: Tensor) -> tuple[int, ...]:
        return (*x.shape[:-1], self.num_heads, self.head_size)

    def joined(self, seen: Tensor) -> tuple[int, ...]:
        return (*seen.shape[:-2], self.all_head_size)


class Configured(Projected):
    """Numbers of an object that all layers hold."""

    def shape(self, x: Tensor) -> tuple[int, ...]:
        return (*x.shape[:-1], -1, self.config.head_dim)


class Scaling(Projected):
    """Scales by the width that a head has when it is called."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.head_dim = SIZE

    def shape(self, x: Tensor) -> tuple[int, ...]:
        return (*x.shape[:-1], -1, self.head_dim)

    def scale(self) -> float | None:
        return 1 / math.sqrt(self.head_dim)


class ScalingItself(Scaling):
    """Leaves the scale to attention, which takes the width of what it is given."""

    def scale(self) -> None:
        return None


class Layers(nn.Module):
    """Two layers of attention over tokens."""

    def __init__(self, kind: Callable[[Any], nn.Module]) -> None:
        super().__init__()
        self.config = SimpleNamespace(head_dim=SIZE, hidden_size=WIDTH)
        self.stem, self.head = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 4)
        self.norm = nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(kind(self.config) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(self.norm(x))
        result: Tensor = self.head(x)
        return result


def encoder(kind: Callable[[Any], nn.Module]) -> Layers:
    torch.manual_seed(1)
    return Layers(kind).double().eval()


X = torch.randn(2, 5, 6, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (Fused, {"head_dim": 4, "split_size": 16, "c_attn.nf": 48}),
        (Numbers, {"head_size": 4, "all_head_size": 16}),
    ],
)
def test_numbers_are_found(
    kind: Callable[[Any], nn.Module], found: dict[str, int], tmp_path: Path
) -> None:
    model = encoder(kind)
    result = uo.prune(model, X, amount=0.5, side="both", method="constrained")
    uo.save(result.model, tmp_path / "pruned")
    wanted = {f"layers.{n}.{name}": value for n in range(2) for name, value in found.items()}
    assert result.into(model) == wanted
    loaded = uo.load(encoder(kind), tmp_path / "pruned", in_place=True)
    assert vars(model)["config"] == SimpleNamespace(head_dim=SIZE, hidden_size=WIDTH)
    for x in (X, torch.randn(3, 9, 6, dtype=torch.float64)):
        torch.testing.assert_close(model(x), result.masked(x))
        torch.testing.assert_close(loaded(x), result.masked(x))


def test_numbers_that_tell_heads_from_their_channels() -> None:
    """Eight heads of eight channels, of which four stay: one of two numbers changes."""

    class Square(Numbers):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.num_heads = self.head_size = 8
            self.all_head_size = 64
            self.q, self.k = nn.Linear(WIDTH, 64), nn.Linear(WIDTH, 64)
            self.v, self.o = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)

    model = encoder(Square)
    result = uo.prune(model, X, amount=0.5, side="both", method="constrained")
    assert set(result.into(model)) == {
        f"layers.{n}.{name}" for n in range(2) for name in ("head_size", "all_head_size")
    }
    torch.testing.assert_close(model(X), result.masked(X))


def test_a_configuration_that_layers_share_is_changed_for_all() -> None:
    model, other = encoder(Configured), encoder(Configured)
    for module in other.modules():
        if "config" in vars(module):
            module.__dict__["config"] = vars(model)["config"]
    config, before = vars(model)["config"], other(X)
    result = uo.prune(model, X, amount=0.5, side="both", method="constrained")
    assert result.into(model) == {"layers.0.config.head_dim": 4}
    assert vars(model)["config"] == SimpleNamespace(head_dim=4, hidden_size=WIDTH)
    assert all(vars(layer)["config"] is vars(model)["config"] for layer in model.layers)
    torch.testing.assert_close(model(X), result.masked(X))
    assert config == SimpleNamespace(head_dim=SIZE, hidden_size=WIDTH)
    assert torch.equal(other(X), before)


class Singleton(SimpleNamespace):
    def __copy__(self) -> Singleton:
        return self


class Uncopied(SimpleNamespace):
    def __copy__(self) -> Uncopied:
        raise RuntimeError("no copy of this")


@pytest.mark.parametrize("kind", [Singleton, Uncopied])
def test_a_configuration_without_a_copy_stays(kind: type[SimpleNamespace]) -> None:
    model, config = encoder(Configured), kind(head_dim=SIZE, hidden_size=WIDTH)
    for module in model.modules():
        if "config" in vars(module):
            module.__dict__["config"] = config
    before = model(X)
    result = uo.prune(model, X, amount=0.5, side="both", method="constrained")
    with pytest.raises(uo.MaterializeError, match="cannot stay as it is"):
        result.into(model)
    assert config.head_dim == SIZE
    assert all(vars(layer)["config"] is config for layer in model.layers)
    assert torch.equal(model(X), before)


def test_a_configuration_that_layers_do_not_agree_on_stays() -> None:
    model = encoder(Configured)
    graph = uo.trace(model, X)
    masks = uo.choose_masks(model, graph, 0.5, side="both", method="constrained")
    first = {name: kept for name, kept in masks.kept.items() if name.startswith("layers.0")}
    result = uo.prune(model, X, masks=uo.Masks(kept=first), method="constrained")
    assert result.model.get_parameter("layers.0.q.weight").shape[0] == WIDTH // 2
    with pytest.raises(uo.MaterializeError, match="cannot stay as it is"):
        result.into(model)
    assert vars(model)["config"].head_dim == SIZE
    assert model.get_parameter("layers.0.q.weight").shape[0] == WIDTH


@pytest.mark.parametrize("kind", [Scaling, ScalingItself])
def test_a_scale_of_the_width_that_is_left_is_refused(kind: Callable[[Any], nn.Module]) -> None:
    model = encoder(kind)
    before = model(X)
    result = uo.prune(model, X, amount=0.5, side="both", method="constrained")
    torch.testing.assert_close(result.model(X), result.masked(X))
    with pytest.raises(uo.MaterializeError, match="cannot stay as it is"):
        result.into(model)
    assert vars(model.layers[0])["head_dim"] == SIZE
    assert torch.equal(model(X), before)
