"""What stands behind a layer: norms, sums and rectifiers, and fits to what is read."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from comparing import call
from fitted_layers import stir_norms
from torch import Tensor, nn
from torch.nn import functional

import upscale_opt as uo
from upscale_opt.reconstruction import refitting
from upscale_opt.reconstruction.behind import Behind, behind
from upscale_opt.reconstruction.counting import Judge
from upscale_opt.reconstruction.refitting import RefitReport
from upscale_opt.rules import local_rules


class Block(nn.Module):
    """A residual block, whose parts are settled by the tests."""

    def __init__(self, last: nn.Module, act: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.first = nn.Conv2d(6, 8, 3, padding=1)
        self.last = last
        self.shortcut = shortcut or nn.Identity()
        self.act = act
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = self.last(torch.relu(self.first(x)))
        y = y + self.shortcut(x)
        result: Tensor = self.head(self.act(y))
        return result


def norm_of(model: nn.Module) -> nn.BatchNorm2d:
    """The norm behind the last layer of a block."""
    norm = model.get_submodule("last.1")
    assert isinstance(norm, nn.BatchNorm2d)
    return norm


def lively(model: Block) -> Block:
    stir_norms(model)
    return model.double().eval()


def batches() -> list[Tensor]:
    """Smooth images, whose channels say much of each other."""
    small = (torch.randn(24, 2, 3, 3, dtype=torch.float64) for _ in range(2))
    return [functional.interpolate(x, scale_factor=2, mode="bilinear") for x in small]


def found_in(
    model: nn.Module, masks: uo.Masks, data: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Behind | None], nn.Module, RefitReport]:
    """What is found behind each layer, and what comes of refitting."""
    found: dict[str, Behind | None] = {}
    plain = behind

    def noted(node, *rest):  # type: ignore[no-untyped-def]
        found[str(node.target)] = plain(node, *rest)
        return found[str(node.target)]

    monkeypatch.setattr("upscale_opt.reconstruction.refitting.behind", noted)
    refitted, report = uo.refit(model, masks, data)
    return found, refitted, report


def normed() -> nn.Sequential:
    """A convolution and its norm; weights of the test's seed."""
    return nn.Sequential(nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))


RECTIFIERS = {
    "relu": (nn.ReLU(inplace=True), 0.0, float("inf")),
    "relu6": (nn.ReLU6(), 0.0, 6.0),
    "hardtanh": (nn.Hardtanh(0.1, 0.6), 0.1, 0.6),
    "none": (nn.Identity(), -float("inf"), float("inf")),
    "silu": (nn.SiLU(), -float("inf"), float("inf")),
    "leaky": (nn.LeakyReLU(0.1), -float("inf"), float("inf")),
}


@pytest.mark.parametrize("name", RECTIFIERS)
def test_what_stands_behind_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    act, low, high = RECTIFIERS[name]
    model = lively(Block(normed(), copy.deepcopy(act)))
    masks = uo.Masks(kept={"first.weight": {1: (0, 2, 3)}, "last.0.weight": {1: (0, 1, 4, 5, 6)}})
    found, _, report = found_in(model, masks, batches(), monkeypatch)
    last = found["last.0"]
    assert last is not None
    assert (last.low, last.high) == (low, high)
    assert last.mean == "last.1.running_mean"
    assert [node.name for node in last.calls] == ["last_1"]
    assert last.other is not None
    assert last.other.name == "relu"
    norm = norm_of(model)
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(last.scale, scale.detach())
    first = found["first"]
    assert first is not None
    assert (first.low, first.other, first.mean) == (0.0, None, None)
    assert found["head"] is None
    assert [layer.weight for layer in report.layers][:2] == ["first.weight", "last.0.weight"]


def read_of(model: Block, x: Tensor) -> Tensor:
    """What the head reads."""
    kept: list[Tensor] = []
    hook = model.head.register_forward_hook(lambda _, args, __: kept.append(args[0]))
    call(model, x)
    hook.remove()
    return kept[0].detach()


def test_a_sum_makes_good_what_the_other_summand_lacks() -> None:
    """The deviation of the sum is the least that there is, and not merely that of the branch."""
    model = lively(Block(nn.Conv2d(8, 6, 3, padding=1), nn.Identity(), nn.Conv2d(6, 6, 1)))
    data = batches()
    graph = uo.trace(model, data[0])
    masks = uo.Masks(kept={"shortcut.weight": {1: (0, 1, 2)}, "last.weight": {1: (0, 1, 4, 6, 7)}})
    refitted, report = uo.refit(model, masks, data, graph=graph, ridge=1e-12)
    weights = [layer.weight for layer in report.layers]
    assert weights == ["last.weight", "shortcut.weight", "head.weight"]
    assert isinstance(refitted, Block)
    x = torch.cat(data)
    want, have = read_of(model, x), read_of(refitted, x)
    # The shortcut comes last: no other weights of it would do better.
    relu = torch.relu(refitted.stem(x)).detach()[:, (0, 1, 2)]
    columns = relu.movedim(1, 0).flatten(1).T
    columns = torch.cat([columns, torch.ones(len(columns), 1, dtype=torch.float64)], 1)
    left = (want - have).movedim(1, 0).flatten(1).T
    again = torch.linalg.lstsq(columns, left).solution
    assert float((left - columns @ again).square().sum()) == pytest.approx(
        float(left.square().sum()), rel=1e-6
    )


@pytest.mark.parametrize("name", ["relu", "relu6", "hardtanh"])
def test_rounds_come_closer_to_what_is_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(Block(normed(), copy.deepcopy(RECTIFIERS[name][0])))
    norm = norm_of(model)
    nn.init.constant_(norm.bias, -1.0)  # much is cut off
    data = batches()
    graph = uo.trace(model, data[0])
    masks = uo.Masks(kept={"last.0.weight": {1: (0, 1, 4)}})
    x = torch.cat([batch[18:] for batch in data])
    errors = []
    for rounds in (1, refitting._ROUNDS):
        monkeypatch.setattr(refitting, "_ROUNDS", rounds)
        refitted, report = uo.refit(model, masks, data, graph=graph)
        assert isinstance(refitted, Block)
        want = read_of(model, x)
        error = (read_of(refitted, x) - want).square().sum()
        spread = (want - want.mean((0, 2, 3), keepdim=True)).square().sum()
        errors.append(float(error / spread))
        assert report.layers[0].after == pytest.approx(errors[-1], rel=1e-9)
        assert report.layers[0].after < report.layers[0].before
    assert errors[1] < 0.98 * errors[0]


def test_transformers_make_good_what_their_stream_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(4, 8)
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
            self.scale = nn.Parameter(torch.rand(8) + 0.5)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            x = x + self.scale * self.down(functional.gelu(self.up(x)))
            result: Tensor = self.head(x)
            return result

    model = Stream().double().eval()
    data = [torch.randn(20, 5, 4, dtype=torch.float64)]
    masks = uo.Masks(kept={"embed.weight": {1: (0, 1, 2)}, "down.weight": {1: tuple(range(9))}})
    found, refitted, report = found_in(model, masks, data, monkeypatch)
    down = found["down"]
    assert down is not None
    assert down.other is not None
    assert not down.cuts
    torch.testing.assert_close(down.scale, model.scale.detach())
    assert found["up"] is None
    for layer in report.layers:
        assert layer.after <= layer.before
    graph = uo.trace(model, data[0])
    masked = copy.deepcopy(model)
    uo.apply_masks(masked, graph, masks)
    assert uo.masks_of(refitted, graph) == uo.masks_of(masked, graph)


def test_norms_that_are_to_stay_stay() -> None:
    model = lively(Block(normed(), nn.ReLU()))
    masks = uo.Masks(kept={"last.0.weight": {1: (0, 1, 4)}})
    data = batches()
    refitted, report = uo.refit(model, masks, data, norms=False)
    assert report.norms == 0
    for name, value in model.named_buffers():
        assert torch.equal(refitted.get_buffer(name), value), name
    refitted, report = uo.refit(model, masks, data)
    assert report.norms == 1
    assert not torch.equal(
        refitted.get_buffer("last.1.running_mean"), model.get_buffer("last.1.running_mean")
    )


def test_channels_that_a_norm_silences_keep_their_weights() -> None:
    model = lively(Block(normed(), nn.ReLU()))
    norm = norm_of(model)
    with torch.no_grad():
        norm.weight[2] = 1e-9
    masks = uo.Masks(kept={"last.0.weight": {1: (0, 1, 4)}})
    refitted, _ = uo.refit(model, masks, batches())
    weight = refitted.get_parameter("last.0.weight")
    assert torch.equal(weight[2, (0, 1, 4)], model.get_parameter("last.0.weight")[2, (0, 1, 4)])
    assert bool(weight.isfinite().all())


class Net(nn.Module):
    """A layer ``b`` behind a rectifier, of whose output a function makes what the head reads."""

    def __init__(self, b: nn.Module, then: Callable[[Net, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.b = b
        self.w = nn.Linear(8, 8)
        self.slope = nn.Parameter(torch.tensor([0.0, 0, 0, 0, 0.5, 0.5, 0.5, 0.5]))
        self.h = nn.Linear(8, 4)
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.a(x))
        result: Tensor = self.h(self.then(self, z, self.b(z)))
        return result


ZEROS = torch.zeros(8, dtype=torch.float64)
TRIED: dict[str, Callable[[Net, Tensor, Tensor], Tensor]] = {
    "hard gate": lambda net, z, y: (y > 0) * net.w(z),
    "half": lambda net, z, y: y.to(torch.float16).to(z),
    "whole numbers": lambda net, z, y: y.to(torch.int64).to(z),
    "logarithm": lambda net, z, y: torch.log(y.clamp(-4, 4) * 0.1 + 5),
    "root": lambda net, z, y: (y.clamp(-4, 4) + 5).sqrt(),
    "gate": lambda net, z, y: torch.relu(y * net.w(z).sigmoid()),
    "slopes": lambda net, z, y: functional.prelu(y, net.slope),
    "another slope below": lambda net, z, y: torch.relu(functional.leaky_relu(y + 9, 0.1)),
    "norm with weights that are computed": lambda net, z, y: torch.relu(
        functional.batch_norm(y, ZEROS, ZEROS + 1, net.w(z).mean(0))
    ),
    "twice": lambda net, z, y: torch.relu(y + y),
    "difference": lambda net, z, y: torch.relu(z - y),
}


@pytest.mark.parametrize("name", TRIED)
@pytest.mark.parametrize("first", [1, 20])
def test_calls_that_are_something_else_are_not_mistaken(
    name: str, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Net(nn.Linear(8, 8), TRIED[name]).double().eval()
    data = [torch.randn(n, 6, dtype=torch.float64) for n in (first, 20, 20)]
    found, refitted, report = found_in(
        model, uo.Masks(kept={"b.weight": {1: (0, 1, 2, 5, 6)}}), data, monkeypatch
    )
    read = found["b"]
    if name == "twice":
        assert read is not None
        assert (read.low, read.scale.tolist()) == (0.0, [2.0] * 8)
    elif name in ("logarithm", "root"):  # which are behind a clamp
        assert read is not None
        assert (read.low, read.high) == (-4, 4)
    else:
        assert read is None
    for layer in report.layers:
        assert layer.after <= layer.before
    assert bool(call(refitted, data[1]).isfinite().all())


def test_inputs_without_a_batch_axis() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))
    data = [torch.randn(6) for _ in range(20)]
    masks = uo.Masks(kept={"2.weight": {1: (0, 1, 2, 3)}})
    _, report = uo.refit(model.eval(), masks, data)
    assert report.layers
    assert all(layer.after <= layer.before for layer in report.layers)


def test_a_summand_that_is_spread_over_later_batches() -> None:
    class Spread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.place = nn.Parameter(torch.randn(1, 5, 8))
            self.h = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            added = self.a(x)
            y = self.b(torch.relu(self.c(self.place)))
            result: Tensor = self.h(torch.relu(y + added))
            return result

    data = [torch.randn(1, 5, 6), torch.randn(8, 5, 6)]
    _, report = uo.refit(Spread().eval(), uo.Masks(kept={"b.weight": {1: (0, 1, 2)}}), data)
    assert all(layer.after <= layer.before for layer in report.layers)


def test_what_only_looks_like_the_summand_for_the_first_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rectifier hands on what is positive in the first batch, and not in the second."""

    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.h = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = self.a(x)
            y = self.b(z)
            result: Tensor = self.h(y + torch.relu(z))
            return result

    model = Late().double().eval()
    nn.init.constant_(model.a.bias, 3.0)
    data = [0.1 * torch.rand(20, 6, dtype=torch.float64), 9 * torch.randn(20, 6).double()]
    masks = uo.Masks(kept={"b.weight": {1: (0, 1, 2)}})
    found, _, _ = found_in(model, masks, data, monkeypatch)
    assert found["b"] is None
    found, _, _ = found_in(model, masks, data[:1], monkeypatch)
    assert found["b"] is not None


def test_a_norm_of_a_dead_channel_does_not_silence_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = lively(Block(normed(), nn.ReLU()))
    norm = norm_of(model)
    assert norm.running_var is not None
    with torch.no_grad():
        model.get_parameter("last.0.weight").mul_(300)[0] = 0
        norm.running_var.mul_(300**2)[0] = 0
    masks = uo.Masks(kept={"last.0.weight": {1: (0, 1, 2, 4)}})
    found, _, report = found_in(model, masks, batches(), monkeypatch)
    read = found["last.0"]
    assert read is not None
    assert read.scale.count_nonzero() == 5
    (layer,) = (layer for layer in report.layers if layer.weight == "last.0.weight")
    assert layer.after < 0.9 * layer.before


def test_calls_with_a_rule_are_not_tried_on_numbers() -> None:
    """They may write down what they see."""

    class Range(nn.Module):
        most: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("most", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.most = torch.maximum(self.most, x.abs().max())
            return x * 1

    with local_rules():
        uo.rule(Range)(lambda call: call.channelwise(axis=1, keeps_zero=True))
        model = Block(nn.Sequential(nn.Conv2d(8, 6, 1), Range()), nn.ReLU()).double().eval()
        data = batches()
        masks = uo.Masks(kept={"last.0.weight": {1: (0, 1, 2, 4)}})
        refitted, _ = uo.refit(model, masks, data)
    assert float(refitted.get_buffer("last.1.most")) < 50


def test_what_is_no_better_is_fitted_to_what_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(Block(normed(), nn.ReLU()))
    masks = uo.Masks(kept={"last.0.weight": {1: (0, 1, 4)}})
    data = batches()
    monkeypatch.setattr(Judge, "end", lambda self: 1.0)
    refitted, report = uo.refit(model, masks, data)
    monkeypatch.setattr("upscale_opt.reconstruction.refitting.behind", lambda *_: None)
    plain, other = uo.refit(model, masks, data)
    assert report == other
    for name, value in plain.state_dict().items():
        assert torch.equal(refitted.state_dict()[name], value), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = lively(Block(normed(), nn.ReLU())).to(dtype)
    masks = uo.Masks(kept={"last.0.weight": {1: (0, 1, 2, 4)}})
    _, report = uo.refit(model, masks, [batch.to(dtype) for batch in batches()])
    assert report.layers[0].after < report.layers[0].before
