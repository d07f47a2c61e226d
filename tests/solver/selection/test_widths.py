"""Widths and resources under picks, against the layout that the same masks get."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from network_strategies import SEEDS, networks
from synthetic_losses import synthetic_losses
from tiny_budgets import in_blocks
from torch import nn

import upscale_opt as uo
from upscale_opt.ir.budget import Budget
from upscale_opt.ir.cost_model import CostModel, KernelCost
from upscale_opt.ir.graph import shared_parameters
from upscale_opt.ir.profiles import CPU, ONNXRUNTIME
from upscale_opt.models import catalogue
from upscale_opt.models.generated.networks import RandomNetwork
from upscale_opt.solver.network.segments import find_segments
from upscale_opt.solver.selection.accounts import account
from upscale_opt.solver.selection.pickers import (
    Picker,
    Picks,
    dropped_by,
    single_pickers,
    space_pickers,
)
from upscale_opt.solver.selection.rates import Rates
from upscale_opt.solver.selection.setting import Setting
from upscale_opt.solver.selection.state import State
from upscale_opt.solver.selection.widths import Widths

EVERYTHING = Budget(macs=0.5, parameters=0.5, latency=0.5)
IN_BLOCKS = EVERYTHING.model_copy(update={"cost_model": in_blocks(CPU, 16, 1.5)})
WRITTEN_IN_BLOCKS = EVERYTHING.model_copy(update={"cost_model": in_blocks(CPU, 16, 1.5, False)})


def random_picks(pickers: list[Picker], rng: random.Random) -> Picks:
    """Any picks that do not drop nearly all of a reader."""
    picks = []
    for picker in pickers:
        family = rng.randrange(len(picker.families))
        levels = len(picker.families[family].losses)
        picks.append((family, rng.randrange(max(levels * 3 // 4, 1))))
    return picks


@settings(max_examples=25, deadline=None)
@given(networks(max_ops=10), SEEDS)
def test_accounts_count_what_solve_counts(network: RandomNetwork, seed: int) -> None:
    graph = uo.trace(network, network.example_inputs())
    setting = Setting(graph, synthetic_losses(graph, seed), EVERYTHING)
    pickers = single_pickers(setting)
    picks = random_picks(pickers, random.Random(seed))
    dropped = dropped_by(setting, pickers, picks)
    assert setting.account(dropped).macs == uo.solve(graph, setting.masks(dropped)).macs


@settings(max_examples=25, deadline=None)
@given(networks(max_ops=10, kinds="basic"), SEEDS)
def test_widths_never_promise_what_the_layout_does_not_keep(
    network: RandomNetwork, seed: int
) -> None:
    """In general position they are exact; where sets are equal by chance it takes less.

    Weights that several layers share are cut alike, which the exact count alone knows.
    """
    graph = uo.trace(network, network.example_inputs())
    assume(not shared_parameters(graph))
    setting = Setting(graph, synthetic_losses(graph, seed), EVERYTHING)
    pickers = single_pickers(setting)
    picks = random_picks(pickers, random.Random(seed))
    used = State(Widths(setting, pickers), picks).used
    account = setting.account(dropped_by(setting, pickers, picks))
    for limit, amount in zip(setting.limits, used, strict=True):
        if limit.resource != "latency":
            assert account.of(limit.resource) <= amount * (1 + 1e-9)


class Excited(nn.Module):
    """Squeeze and excite, and a pooling of parts of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.mean, self.part = nn.AdaptiveAvgPool2d(1), nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of shape (N, 4, H / 2, W / 2)."""
        x = self.a(x)
        y: torch.Tensor = self.c(self.part(x * torch.sigmoid(self.b(self.mean(x)))))
        return y


@pytest.mark.parametrize(
    ("prices", "kinds"), [(CPU, ["reduce", "pool"]), (ONNXRUNTIME, ["pool"] * 2)]
)
def test_global_poolings_cost_what_they_call(prices: CostModel, kinds: list[str]) -> None:
    """It is ``mean`` in PyTorch, and a pooling in onnxruntime."""
    graph = uo.trace(Excited().eval(), torch.zeros(1, 3, 16, 16))
    free = {kind: KernelCost(launch=0, ns_per_byte=0) for kind in prices.kernels}
    charged = []
    for kind in ("reduce", "pool"):
        dear = prices.model_copy(
            update={"kernels": {**free, kind: KernelCost(launch=1, ns_per_byte=0)}}
        )
        sets, segments = find_segments(graph, uo.Masks(kept={}))
        charged += [kind] * round(account(graph, sets, segments, Rates(graph, dear)).latency)
    assert charged == kinds


class Shortcuts(nn.Module):
    """Halves, and sums with the second half: one segment holds channels and their twins."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.d = nn.Conv2d(3, 12, 1), nn.Conv2d(24, 4, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(6, 6, 1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of shape (N, 4, H, W)."""
        parts = list(torch.chunk(self.a(x), 2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + torch.relu(block(parts[-1])))
        y: torch.Tensor = self.d(torch.cat(parts, 1))
        return y


def test_readers_of_twins_are_seen_once_at_every_edge() -> None:
    """And not as readers of what they are seen as: their number grew without end."""
    graph = uo.trace(Shortcuts().eval(), torch.zeros(1, 3, 8, 8))
    assert len(graph.renamed) == 3
    setting = Setting(graph, synthetic_losses(graph), EVERYTHING)
    widths = Widths(setting, single_pickers(setting))
    assert max(widths.families) == len(setting.places) - 1 + len(graph.renamed)


class JoinsTheInput(nn.Module):
    """The input's channels are joined to others, of which few are returned."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 1, bias=False), nn.Conv2d(5, 5, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of shape (N, 1, H, W)."""
        joined = torch.cat([self.a(x), x], 1)
        y: torch.Tensor = (joined + self.b(joined))[:, 1:2]
        return y


def test_what_is_joined_by_some_picks_is_joined() -> None:
    """By one draw of three it is not, where all of the input's channels are dropped."""
    graph = uo.trace(JoinsTheInput().eval(), torch.zeros(1, 2, 5, 5))
    setting = Setting(graph, synthetic_losses(graph, 194), EVERYTHING)
    segment = Widths(setting, single_pickers(setting)).joints.segment
    assert segment["x"] == segment["cat"]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "topology/unet"])
@pytest.mark.parametrize("make", [single_pickers, space_pickers])
@pytest.mark.parametrize("budget", [EVERYTHING, IN_BLOCKS, WRITTEN_IN_BLOCKS])
def test_widths_are_exact_on_real_networks(name: str, make: object, budget: Budget) -> None:
    graph = uo.trace(catalogue.build(name), catalogue.example_inputs(name))
    setting = Setting(graph, synthetic_losses(graph), budget)
    pickers = make(setting)  # type: ignore[operator]
    widths = Widths(setting, pickers)
    rng = random.Random(0)
    for _ in range(2):
        picks = random_picks(pickers, rng)
        account = setting.account(dropped_by(setting, pickers, picks))
        wanted = [account.of(limit.resource) for limit in setting.limits]
        state = State(widths, picks)
        assert state.used - state.copies == pytest.approx(wanted)


@settings(max_examples=25, deadline=None)
@given(
    SEEDS,
    st.sampled_from([single_pickers, space_pickers]),
    st.sampled_from([EVERYTHING, IN_BLOCKS, WRITTEN_IN_BLOCKS]),
)
def test_alternatives_are_what_picking_them_gives(seed: int, make: object, budget: Budget) -> None:
    graph = _unet()
    setting = Setting(graph, synthetic_losses(graph, seed), budget)
    pickers = make(setting)  # type: ignore[operator]
    widths, rng = Widths(setting, pickers), random.Random(seed)
    state = State(widths, random_picks(pickers, rng))
    for _ in range(4):
        picker = rng.randrange(len(pickers))
        family = rng.randrange(len(pickers[picker].families))
        level = rng.randrange(len(pickers[picker].families[family].losses))
        wanted = state.alternatives(picker)[family][:, level]
        state.pick(picker, family, level)
        fresh = State(widths, state.picks)
        assert np.allclose(state.used, wanted)
        assert np.allclose(fresh.used, wanted)


_KNOWN: list[uo.ChannelGraph] = []


def _unet() -> uo.ChannelGraph:
    if not _KNOWN:
        name = "topology/unet"
        _KNOWN.append(uo.trace(catalogue.build(name), catalogue.example_inputs(name)))
    return _KNOWN[0]
