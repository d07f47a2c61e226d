"""``prune`` to a budget: masks chosen, weights refitted, the export lossless, times measured."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hasty import search_little
from torch import Tensor, fx, nn

import upscale_opt as uo
from upscale_opt.ir.cost_model import KernelCost
from upscale_opt.ir.profiles import COMPILED, CPU
from upscale_opt.measuring.costs import count_costs
from upscale_opt.measuring.in_turn import Times, beside
from upscale_opt.models.small_networks import build_small
from upscale_opt.pruning import by_clock
from upscale_opt.pruning.clocks import Clocks
from upscale_opt.pruning.rounds import prune_in_rounds


class Tiny(nn.Module):
    """A stream with two blocks and three readers; too wide for trying all sets of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 14, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(14, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 14, 1)
            )
            for _ in range(2)
        )
        self.fc = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = torch.relu(x + block(x))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


@pytest.fixture(autouse=True)
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    search_little(monkeypatch)


@cache
def network(name: str = "tiny") -> nn.Module:
    if name != "tiny":
        return build_small(name, image=8, seed=1)
    torch.manual_seed(1)
    return Tiny().eval()


def batches(count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(16, 1, 8, 8, generator=generator) for _ in range(count)]


def shrunk(name: str = "tiny", **more: Any) -> uo.Pruned:
    given: dict[str, Any] = {"budget": uo.Budget(macs=0.3), "data": batches(), "time_limit": 1}
    return uo.prune(network(name), batches()[0][:2], **{**given, **more})


@pytest.mark.parametrize("name", ["tiny", "densenet"])
def test_the_budget_is_met_and_the_export_lossless(name: str) -> None:
    result = shrunk(name, time_limit=10)  # a search that was stalled stops before it is done
    assert result.report is not None
    assert result.report.float64_error < 1e-10
    single = batches()[0][:2]
    before = count_costs(network(name), single).multiply_adds
    after = count_costs(result.model, single).multiply_adds
    assert after <= 0.3 * before
    assert after > 0.25 * before
    assert result.choice is not None
    assert result.refitting is not None
    for parameter, by_axis in result.choice.masks.kept.items():
        for axis, kept in by_axis.items():
            assert set(result.masks.kept[parameter][axis]) <= set(kept)


def test_refitted_outputs_are_nearer_to_the_originals() -> None:
    fresh = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        want = network()(fresh)
        far = [
            float((shrunk(refit=refit).model(fresh) - want).square().mean())
            for refit in (False, True)
        ]
    assert far[1] < far[0]


def test_without_data_weights_decide_and_nothing_is_refitted() -> None:
    result = shrunk(data=None)
    assert result.refitting is None
    assert result.losses is not None
    assert result.losses.samples == 0
    scored = shrunk(data=None, criterion="l1")
    assert scored.choice is not None


def test_known_losses_are_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = shrunk()
    monkeypatch.setattr("upscale_opt.pruning.within.losses_of", None)
    again = shrunk(losses=first.losses, budget=uo.Budget(macs=0.5))
    assert again.choice is not None
    assert first.choice is not None
    assert again.choice.loss <= first.choice.loss


def test_constrained_masks_agree() -> None:
    result = shrunk(method="constrained")
    assert result.solution.objective_value == 0


def test_masks_may_be_refitted_too() -> None:
    graph = uo.trace(network(), batches()[0])
    masks = uo.choose_masks(network(), graph, 0.5)
    result = uo.prune(network(), batches()[0], masks=masks, data=batches())
    assert result.refitting is not None
    assert result.choice is None


def test_steps_are_told_in_order() -> None:
    told: list[str] = []
    shrunk(progress=lambda event: told.append(event.step))
    steps = list(dict.fromkeys(told))
    assert steps == ["trace", "losses", "choose", "refit", "solve", "materialize", "verify"]


def test_times_stand_beside_the_unpruned_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_clock.ByClock, "_agrees", lambda self, draft: False)
    result = shrunk(measure=True)
    assert result.times is not None
    assert set(result.times.milliseconds) == {"unpruned", "pruned", "constrained"}
    assert any("measured" in note for note in result.notes)
    assert set(beside({"a": network()}, batches()[0], seconds=0.1).milliseconds) == {"a"}


@pytest.mark.parametrize(
    ("milliseconds", "name"),
    [
        ((10.0, 11.0, 3.0), "constrained"),
        ((10.0, 9.6, 9.5), "pruned"),
        ((10.0, 11.0, 12.0), "pruned"),
    ],
    ids=["late", "kept", "both late"],
)
def test_the_clock_decides_where_the_budget_is_of_time(
    monkeypatch: pytest.MonkeyPatch, milliseconds: tuple[float, float, float], name: str
) -> None:
    """The budget is 9.7 milliseconds: 11 are too late, by more than clocks err."""
    unpruned, ours, constrained = milliseconds

    def clock(clocks: Clocks, exports: dict[str, nn.Module], seconds: float) -> Times:
        times = {"unpruned": unpruned, "pruned": ours, "constrained": constrained}
        return Times({one: times[one] for one in ("unpruned", *exports)}, 10, 1, "cpu")

    monkeypatch.setattr(Clocks, "beside", clock)
    monkeypatch.setattr(by_clock.ByClock, "_agrees", lambda self, draft: False)
    result = shrunk(budget=uo.Budget(latency=0.97), measure=True, time_limit=1)
    assert result.choice is not None
    assert f"this is the one called {name!r}" in result.notes[-1]
    assert (result.choice.solver == "constrained") == (name == "constrained")


def test_what_is_late_has_a_rival_even_if_its_layers_agree(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def clock(clocks: Clocks, exports: dict[str, nn.Module], seconds: float) -> Times:
        times = {"unpruned": 10.0, "pruned": 11.0, "constrained": 3.0}
        return Times({one: times[one] for one in ("unpruned", *exports)}, 10, 1, "cpu")

    monkeypatch.setattr(Clocks, "beside", clock)
    monkeypatch.setattr(by_clock.ByClock, "_agrees", lambda self, draft: True)
    result = shrunk(budget=uo.Budget(latency=0.97), measure=True, time_limit=1)
    assert "this is the one called 'constrained'" in result.notes[-1]


def test_nothing_is_put_beside_a_choice_on_which_layers_agree() -> None:
    chain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    x = torch.randn(4, 3, 9, 9)
    result = uo.prune(chain.eval(), x, budget=uo.Budget(macs=0.7), data=[x], measure=True)
    assert result.times is not None
    assert result.times.milliseconds.keys() == {"unpruned", "pruned"}
    assert "called" not in result.notes[-1]


def test_compiled_budgets_are_kept_by_the_clock_of_compiled_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = []

    def compile(call: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        compiled.append(call)
        return call

    monkeypatch.setattr(torch, "compile", compile)
    kernels = {kind: KernelCost(launch=1, ns_per_byte=0, ns_per_mac=1) for kind in COMPILED.kernels}
    free = {"kernels": kernels, "block": 1, "align": 1}
    prices = COMPILED.model_copy(update=free)  # a small network is all launches, and one block
    budget = uo.Budget(latency=0.9, cost_model=prices)
    model, inputs = network(), batches()[0][:1]
    result = uo.prune(model, inputs, budget=budget, measure=True, time_limit=1)
    assert result.times is not None
    assert result.times.device == "compiled"
    assert len(compiled) >= 2  # the model and its export
    assert result.solution.cost_model is not None
    assert result.solution.cost_model.runtime == "compiled"

    def fail(*inputs: Tensor) -> Tensor:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda call, **options: fail)
    with pytest.raises(uo.DeployError, match=r"no C\+\+ compiler; without measure"):
        uo.prune(model, inputs, budget=budget, measure=True, time_limit=1)


def test_every_model_is_compiled_however_many_there_were(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counting(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        calls.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    inputs = batches()[0][:1]
    limit = torch._dynamo.config.recompile_limit
    with torch.no_grad():
        for _ in range(limit + 2):
            clocks = Clocks(network(), inputs, COMPILED)
            clocks.beside({}, seconds=0.01)
    assert len(calls) == limit + 2


def test_the_choice_is_made_again_for_as_much_as_the_cost_model_was_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the clock the share of the time is the square root of that of the multiply-adds."""
    kernels = {kind: KernelCost(launch=1, ns_per_byte=0, ns_per_mac=1) for kind in CPU.kernels}
    prices = CPU.model_copy(update={"kernels": kernels})
    model, inputs = network(), batches()[0][:1]
    whole = count_costs(model, inputs).multiply_adds

    def milliseconds(export: nn.Module) -> float:
        share: float = count_costs(export, inputs).multiply_adds / whole
        return float(10 * share**0.5)

    def clock(clocks: Clocks, exports: dict[str, nn.Module], seconds: float) -> Times:
        found = {name: milliseconds(export) for name, export in exports.items()}
        return Times({"unpruned": milliseconds(model), **found}, 10, 1, "cpu")

    monkeypatch.setattr(Clocks, "beside", clock)
    for asked in (
        uo.Budget(latency=0.6, cost_model=prices),
        uo.Budget(milliseconds=6.0, cost_model=prices),
    ):
        result = uo.prune(model, inputs, budget=asked, measure=True, time_limit=0.5)
        assert result.times is not None
        assert 5.6 < result.times.milliseconds["pruned"] < 6.3
        assert "to keep the budget by the clock" in result.notes[-1]
    guess = uo.prune(model, inputs, budget=uo.Budget(latency=0.6, cost_model=prices), time_limit=1)
    assert guess.times is None
    assert milliseconds(guess.model) > 7
    assert guess.solution.objective == "latency"


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "two": ({"amount": 0.5}, "one of amount, budget and masks"),
    "no budget": ({"budget": 0.5}, "Budget(macs=0.5)"),
    "no data": ({"data": None, "refit": True}, "needs data"),
    "empty": ({"data": []}, "no calibration batches"),
    "no batches": ({"data": 3}, "batches of inputs"),
    "both": ({"criterion": "l1"}, "not from a criterion"),
    "not finite": ({"data": [torch.full((2, 1, 8, 8), float("nan"))]}, "NaN"),
    "other shape": ({"data": [torch.zeros(2, 3, 8, 8)]}, ""),
    "impossible": ({"budget": uo.Budget(macs=1e-6)}, "least that can be had"),
    "unknown layer": ({"budget": uo.Budget(macs=0.5, keep=("blokcs.0.*",))}, "blokcs.0.*"),
    "contradiction": (
        {"budget": uo.Budget(macs=0.5, keep=("fc",), shares={"fc": (0.1, 0.5)})},
        "contradict",
    ),
    "round_to": ({"round_to": 8}, "a budget has its own"),
    "losses alone": ({"budget": None, "losses": "unused"}, "losses are for a budget"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_makes_no_sense_is_one_clear_error(name: str) -> None:
    given, said = BAD[name]
    with pytest.raises(uo.UpscaleError) as caught:
        shrunk(**given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "needs a limit"),
        ({"macs": 0}, "more than 0"),
        ({"macs": 1.5}, "at most 1"),
        ({"latency": float("nan")}, "nan"),
        ({"milliseconds": -1}, "-1"),
        ({"macs": 0.5, "round_to": 0}, "round_to"),
        ({"macs": 0.5, "shares": {"a": (0.6, 0.2)}}, "'a'"),
        ({"macs": 0.5, "shares": {"a": None}}, "'a'"),
        ({"macs": 0.5, "shares": {"a": (0.1, 0.2, 0.3)}}, "'a'"),
        ({"macs": 0.5, "cost_model": "cpu"}, "prices latency"),
        ({"macs": 0.5, "macz": 1}, "macz"),
    ],
    ids=range(11),
)
def test_budgets_that_make_no_sense(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(uo.BudgetError) as caught:
        uo.Budget(**fields)
    assert said in str(caught.value)


def asked(folder: Path) -> dict[str, Any]:
    return {
        "budget": uo.Budget(macs=0.25),
        "rounds": 2,
        "data": batches(),
        "folder": folder,
        "time_limit": 1,
    }


def test_rounds_count_from_the_first_model(tmp_path: Path) -> None:
    tuned: list[int] = []

    def tune(model: nn.Module) -> None:
        model.train()
        tuned.append(sum(parameter.numel() for parameter in model.parameters()))

    single = batches()[0][:2]
    done = prune_in_rounds(network(), single, tune=tune, **asked(tmp_path))
    assert len(tuned) == 2
    assert tuned[1] < tuned[0]
    assert not done.model.training
    first = count_costs(network(), single).multiply_adds
    last = count_costs(done.model, single).multiply_adds
    assert 0.2 * first < last <= 0.25 * first
    assert done.left["macs"] == pytest.approx(last / first, rel=1e-6)

    def never(model: nn.Module) -> None:
        raise AssertionError

    again = prune_in_rounds(network(), single, tune=never, **asked(tmp_path))
    with torch.no_grad():
        assert torch.equal(again.model(single), done.model(single))
    with pytest.raises(uo.BudgetError, match="another budget"):
        prune_in_rounds(network(), single, **{**asked(tmp_path), "budget": uo.Budget(macs=0.3)})


def test_an_interrupted_round_is_done_again(tmp_path: Path) -> None:
    single, calls = batches()[0][:2], []

    def tune(model: nn.Module) -> None:
        calls.append(model)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_in_rounds(network(), single, tune=tune, **asked(tmp_path))
    assert (tmp_path / "round-1.safetensors").exists()
    assert not (tmp_path / "round-2.safetensors").exists()
    done = prune_in_rounds(network(), single, tune=tune, **asked(tmp_path))
    assert len(calls) == 3
    assert done.left["macs"] <= 0.25


def refuses(action: Callable[[], Any]) -> None:
    with pytest.raises(uo.BudgetError):
        action()


def test_rounds_that_make_no_sense() -> None:
    single = batches()[0][:2]
    refuses(lambda: prune_in_rounds(network(), single, budget=uo.Budget(macs=0.5), rounds=0))
    refuses(lambda: prune_in_rounds(network(), single, budget=uo.Budget(milliseconds=1), rounds=2))


@pytest.mark.parametrize("data", [batches()[0], {"x": batches()[0]}], ids=["tensor", "dict"])
def test_a_single_batch_need_not_stand_in_a_list(data: Any) -> None:
    """Rounds look at their data several times, and take no batch for a list of images."""
    single: Any = {"x": batches()[0][:2]} if isinstance(data, dict) else batches()[0][:2]
    budget = uo.Budget(macs=0.5)
    done = prune_in_rounds(network(), single, budget=budget, rounds=2, data=data, time_limit=0.5)
    assert done.last is not None
    assert done.last.refitting is not None
    assert done.last.refitting.samples == 16


def test_no_layer_that_may_lose_channels_is_said() -> None:
    model, x = nn.Linear(4, 3).eval(), torch.randn(8, 4)
    with pytest.raises(uo.BudgetError, match="no layer of this network may lose channels"):
        uo.prune(model, x[:2], budget=uo.Budget(macs=0.5), data=[x], time_limit=1)
    assert uo.prune(model, x[:2], budget=uo.Budget(macs=1.0), data=[x]).choice is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype: torch.dtype) -> None:
    model = Tiny().eval().to(dtype)
    data = [one.to(dtype) for one in batches()]
    result = uo.prune(model, data[0][:2], budget=uo.Budget(macs=0.5), data=data, time_limit=0.5)
    assert result.report is not None
    assert result.choice is not None
    assert result.choice.resources[0].share <= 0.5
    assert next(result.model.parameters()).dtype == dtype


@pytest.mark.parametrize("sizes", [(1,), (7, 1), (3, 5)], ids=str)
def test_batches_of_any_size(sizes: tuple[int, ...]) -> None:
    data = [torch.randn(size, 1, 8, 8) for size in sizes]
    result = shrunk(data=data, budget=uo.Budget(macs=0.5), time_limit=0.5)
    assert result.refitting is not None
    assert result.refitting.samples == sum(sizes)


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(uo.TraceError, match="training mode"):
        uo.prune(Tiny().train(), batches()[0][:2], budget=uo.Budget(macs=0.5), data=batches())
