"""Models as frameworks write them, pruned and used by the frameworks' own means.

Small stand-ins of our own: a decoder that generates with a cache, as ``transformers`` writes it, a
module that trains itself, as Lightning has it, and a U-net in a loop of denoising, as in diffusers.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.masking.segments import Method

WORDS, WIDTH, HEADS, INNER = 31, 16, 2, 24


class Cache:
    """The keys and values of the tokens before, by layer."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if layer in self.layers:
            before = self.layers[layer]
            keys, values = torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)
        self.layers[layer] = keys, values
        return keys, values


@dataclass
class Output:
    logits: Tensor
    cache: Cache | None = None


class Block(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.head_dim = WIDTH // HEADS
        self.norm, self.second_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q_proj, self.k_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.v_proj, self.o_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.gate, self.up = nn.Linear(WIDTH, INNER), nn.Linear(WIDTH, INNER)
        self.down = nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor, cache: Cache | None) -> Tensor:
        y = self.norm(x)
        shape = (*y.shape[:-1], -1, self.head_dim)
        q, k, v = (
            p(y).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        if cache is not None:
            k, v = cache.update(k, v, self.number)
        first = k.shape[2] - q.shape[2]
        places = torch.arange(k.shape[2], device=x.device)
        mask = places <= places[first:, None]
        scores = (q @ k.transpose(2, 3)).masked_fill(~mask, float("-inf")) * self.head_dim**-0.5
        seen = (scores.softmax(-1) @ v).transpose(1, 2).reshape(*y.shape[:-1], -1)
        x = x + self.o_proj(seen)
        z = self.second_norm(x)
        inner: Tensor = self.down(nn.functional.silu(self.gate(z)) * self.up(z))
        return x + inner


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(Block(number) for number in range(2))
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(
        self, ids: Tensor, cache: Cache | None = None, use_cache: bool = False, **kwargs: Any
    ) -> Output:
        if use_cache and cache is None:
            cache = Cache()
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, cache)
        return Output(self.head(x), cache)

    @torch.no_grad()
    def generate(self, ids: Tensor, count: int, use_cache: bool) -> Tensor:
        cache = None
        for _ in range(count):
            given = ids if cache is None else ids[:, -1:]
            out = self(given, cache=cache, use_cache=use_cache)
            cache = out.cache
            ids = torch.cat([ids, out.logits[:, -1:].argmax(-1)], 1)
        return ids


IDS = torch.arange(10).reshape(2, 5)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(3)
    return Decoder().eval()


def test_a_decoder_generates_the_masked_models_tokens(decoder: Decoder, tmp_path: Path) -> None:
    model = copy.deepcopy(decoder)
    chosen = uo.choose_masks(model, uo.trace(model, {"ids": IDS}), 0.5, method="constrained")
    inner = {name: kept for name, kept in chosen.kept.items() if "_proj" not in name}
    result = uo.prune(model, {"ids": IDS}, masks=uo.Masks(kept=inner), method="constrained")
    result.into(model)
    assert type(model) is Decoder
    assert model.get_parameter("layers.0.down.weight").shape == (WIDTH, INNER // 2)
    assert isinstance(result.masked, Decoder)
    wanted = result.masked.generate(IDS, 12, use_cache=True)
    assert len(set(wanted.flatten().tolist())) > 5
    for use_cache in (True, False):
        assert torch.equal(model.generate(IDS, 12, use_cache), wanted)
    uo.save(result.model, tmp_path / "decoder.safetensors")
    loaded = uo.load(Decoder().eval(), tmp_path / "decoder.safetensors", in_place=True)
    assert torch.equal(loaded.generate(IDS, 12, True), wanted)


def test_attention_whose_values_alone_shrink_keeps_no_code(decoder: Decoder) -> None:
    model = copy.deepcopy(decoder)
    result = uo.prune(model, {"ids": IDS}, amount=0.5, method="constrained")
    assert result.model.get_parameter("layers.0.o_proj.weight").shape == (WIDTH, WIDTH // 2)
    with pytest.raises(uo.MaterializeError, match=r"in forward: x = x \+ self.o_proj"):
        result.into(model)
    assert model.get_parameter("layers.0.o_proj.weight").shape == (WIDTH, WIDTH)


def test_a_program_of_ones_own_refuses_the_cache_by_name(decoder: Decoder) -> None:
    masked = uo.prune(decoder, {"ids": IDS}, amount=0.5, side="both").masked
    assert isinstance(masked, Decoder)
    model = copy.deepcopy(masked)
    uo.PruningManager(model).compute({"ids": IDS}).prune()
    assert isinstance(model, Decoder)
    assert torch.equal(model.generate(IDS, 12, False), masked.generate(IDS, 12, False))
    with pytest.raises(uo.ArgumentError, match="use_cache"):
        model.generate(IDS, 2, True)


def test_who_traces_with_a_cache_is_told_the_way_out(decoder: Decoder) -> None:
    with pytest.raises(uo.TraceError, match="use_cache=False"):
        uo.trace(decoder, {"ids": IDS, "use_cache": True})


class Trained(nn.Module):
    """A module as Lightning has it: it says how it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU()
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.net(x).mean((2, 3)))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


@pytest.mark.parametrize("own_code", [True, False])
def test_a_module_trains_itself(own_code: bool) -> None:
    torch.manual_seed(0)
    model, x = Trained().eval(), torch.rand(4, 3, 10, 10)
    uo.MaskingManager(model, method="constrained").importance().mask(amount=0.5)
    masked = copy.deepcopy(model)
    uo.PruningManager(model).compute([x], constrained=True).prune(own_code=own_code)
    losses = []
    for one in (masked, model):
        one.train()
        batch, optimizer = (x, torch.arange(4)), one.configure_optimizers()
        first = one.training_step(batch, 0)
        optimizer.zero_grad()
        torch.autograd.backward(first)
        optimizer.step()
        losses.append((first.item(), one.training_step(batch, 1).item()))
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-4)
    assert losses[1][1] < losses[1][0]


class Denoiser(nn.Module):
    """A U-net that is told the time, and returns an object."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, 2, 1)
        self.time = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 12))
        self.norm = nn.GroupNorm(4, 12)
        self.up = nn.Conv2d(20, 3, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> Any:
        steps = timestep.reshape(-1, 1) * torch.tensor([1.0, 0.1, 0.01, 0.001])
        skip = self.enter(sample)
        low = self.down(skip) + self.time(steps.sin())[:, :, None, None]
        low = nn.functional.interpolate(self.norm(low).relu(), scale_factor=2.0)
        out = self.up(torch.cat([skip, low], 1))
        return Output(out) if return_dict else (out,)


@pytest.mark.parametrize("own_code", [True, False])
def test_a_denoiser_goes_through_its_loop(own_code: bool) -> None:
    torch.manual_seed(0)
    model, noise = Denoiser().eval(), torch.rand(2, 3, 12, 12)
    method: Method = "constrained" if own_code else "unconstrained"
    result = uo.prune(model, (noise, torch.tensor(5)), amount=0.5, method=method)
    if own_code:
        result.into(model)
    denoiser = model if own_code else result.model
    images = {}
    for name, one in (("masked", result.masked), ("pruned", denoiser)):
        sample = torch.rand(3, 3, 16, 8, generator=torch.manual_seed(1))
        for step in range(4, 0, -1):
            with torch.no_grad():
                sample = sample - 0.1 * one(sample, torch.tensor(step)).logits
        images[name] = sample
    assert torch.allclose(images["pruned"], images["masked"], atol=1e-5)
    assert denoiser.get_parameter("time.2.weight").shape[1] == 8
