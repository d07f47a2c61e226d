"""Losses against least squares by NumPy, and what the documents promise."""

from __future__ import annotations

import itertools

import pytest
import torch
from fitted_layers import KINDS, Kind, least_loss, made
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.errors import BudgetError, TraceError
from upscale_opt.ir.losses import Losses, Reader
from upscale_opt.models.small_networks import build_small
from upscale_opt.reconstruction import grams
from upscale_opt.reconstruction.losses import WEIGHTINGS, Oracle, Weighting, losses_of, measure

NO_RIDGE = 1e-11


def measured(kind: Kind, weighting: Weighting = "variance") -> tuple[Oracle, Reader, Tensor]:
    """The oracle of a layer, its reader, and the total that shares are of."""
    network, x = made(kind)
    graph = uo.trace(network, x)
    oracle = measure(network, graph, [x[:5], x[5:]], weighting=weighting, ridge=NO_RIDGE)
    losses = oracle.losses()
    losses.check(graph)
    (reader,) = (r for r in losses.readers if r.parameter == f"layer.{kind.weight}")
    whole = torch.tensor(least_loss(network, kind, x, ()), dtype=torch.float64)
    return oracle, reader, whole


@pytest.mark.parametrize("name", KINDS)
def test_losses_are_those_of_least_squares(name: str) -> None:
    kind = KINDS[name]
    torch.manual_seed(1)
    network, x = made(kind)
    torch.manual_seed(1)
    oracle, reader, whole = measured(kind)
    assert reader.unit == kind.unit * kind.groups
    assert reader.axis == kind.in_axis
    for chain in reader.chains:
        assert chain.losses[0] == 0
        assert len(chain.steps) == reader.sizes
        for size, loss in enumerate(chain.losses):
            kept = chain.kept(size, reader.slices)
            want = least_loss(network, kind, x, kept) / whole
            assert loss == pytest.approx(float(want), abs=1e-6, rel=1e-6)
            assert oracle.loss(reader.operation, kept) == pytest.approx(loss, abs=1e-7, rel=1e-7)
    assert reader.chains[0].losses[-1] == pytest.approx(1)


def choices(reader: Reader, groups: int, size: int) -> list[tuple[int, ...]]:
    """The slices that are left by every choice of as many entries of each group."""
    each = reader.unit // groups  # slices of an entry
    width = len(reader.slices) // each // groups
    picks = itertools.product(itertools.combinations(range(width), size), repeat=groups)
    found = []
    for pick in picks:
        gone = {
            (group * width + entry) * each + k
            for group, own in enumerate(pick)
            for entry in own
            for k in range(each)
        }
        found.append(tuple(s for s in reader.slices if s not in gone))
    return found


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("name", ["conv2d", "grouped", "linear", "flat", "transposed"])
def test_floors_are_below_every_set(name: str, weighting: Weighting) -> None:
    kind = KINDS[name]
    oracle, reader, _ = measured(kind, weighting)
    assert len(reader.floors) == reader.sizes + 1
    for size, floor in enumerate(reader.floors):
        every = [oracle.loss(reader.operation, kept) for kept in choices(reader, kind.groups, size)]
        assert floor <= min(every) * (1 + 1e-9)
        assert floor == pytest.approx(min(every), rel=1e-5, abs=1e-9)  # as all are tried


def test_bounds_of_many_units_are_below_what_is_found() -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 1)).double().eval()
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    graph = uo.trace(network, x)
    oracle = measure(network, graph, [x], weighting="variance", ridge=NO_RIDGE)
    (reader,) = oracle.losses().readers
    assert max(reader.floors[:-1]) > 0.1  # by rank: there are four outputs
    for size in (1, 2, 8, 13, 14):
        for _ in range(60):
            gone = set(torch.randperm(16)[:size].tolist())
            loss = oracle.loss(reader.operation, [s for s in range(16) if s not in gone])
            assert loss >= reader.floors[size] * (1 - 1e-9)


def test_own_chains_are_better_than_those_by_norms() -> None:
    network = build_small("resnet", image=8)
    x = torch.randn(64, 1, 8, 8)
    losses = losses_of(network, uo.trace(network, x[:2]), [x], weighting="variance")
    own = norm = 0.0
    for reader in losses.readers:
        by = {chain.origin: chain for chain in reader.chains}
        own += sum(by["own"].losses)
        norm += sum(by["norm"].losses)
    assert own < 0.9 * norm


def test_readers_of_a_space_have_one_order() -> None:
    network = build_small("resnet", image=8)
    x = torch.randn(32, 1, 8, 8)
    graph = uo.trace(network, x[:2])
    losses = losses_of(network, graph, [x])
    readers = {r.parameter: r for r in losses.readers}
    spaces = {
        name: [chain.steps for chain in reader.chains if chain.origin == "space"]
        for name, reader in readers.items()
    }
    first = [spaces[f"blocks.{block}.first.0.weight"] for block in (0, 1, 2)]
    assert len(first[0]) == 1
    assert first[0] == first[1] == first[2]
    assert spaces["blocks.0.second.0.weight"] == []  # it is alone


def test_attention_drops_one_channel_of_every_head() -> None:
    network = nn.TransformerEncoderLayer(8, 2, 12, dropout=0, batch_first=True).double().eval()
    x = torch.randn(6, 5, 8, dtype=torch.float64)
    graph = uo.trace(network, x)
    losses = losses_of(network, graph, [x])
    by_weight = {reader.parameter: reader for reader in losses.readers}
    values = by_weight["self_attn.out_proj.weight"]
    assert values.unit == 2
    assert values.sizes == 4
    for chain in values.chains:
        assert all(one < 4 <= other for one, other in chain.steps)
    assert by_weight["linear2.weight"].sizes == 12  # the hidden width


def test_shared_weights_are_one_reader() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again = nn.Linear(3, 4), nn.Linear(4, 4)
            self.last = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.again(torch.tanh(self.first(x)))
            z: Tensor = self.last(torch.tanh(self.again(torch.tanh(y))))
            return z

    network = Twice().double().eval()
    x = torch.randn(20, 3, dtype=torch.float64)
    losses = losses_of(network, uo.trace(network, x), [x])
    assert [reader.parameter for reader in losses.readers] == ["again.weight", "last.weight"]


def test_gram_matrices_may_lie_on_disk() -> None:
    network, x = made(KINDS["conv2d"])
    graph = uo.trace(network, x)
    here = losses_of(network, graph, [x])
    assert losses_of(network, graph, [x], memory=0) == here


def test_wide_layers_are_refitted_by_one_factor_per_channel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind = KINDS["flat"]
    network, x = made(kind)
    graph = uo.trace(network, x)
    monkeypatch.setattr(grams, "WIDE", 2)
    oracle = measure(network, graph, [x], weighting="variance", ridge=NO_RIDGE)
    (reader,) = oracle.losses().readers
    read = network.read(x).detach().flatten(1).reshape(len(x), 3, 2)
    weight = network.layer.get_parameter("linear.weight").detach().reshape(-1, 3, 2)
    parts = torch.einsum("ncf,ocf->cno", read, weight).flatten(1).T  # what each channel adds
    target = parts.sum(1)
    for channel in range(3):
        kept = [s for s in range(6) if s // 2 != channel]
        own = parts[:, [c for c in range(3) if c != channel]]
        rest = target - own @ torch.linalg.lstsq(own, target).solution
        loss = oracle.loss(reader.operation, kept)
        assert loss == pytest.approx(float(rest @ rest / (target @ target)))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_emptying_a_layer_is_dear(weighting: Weighting) -> None:
    network = build_small("mobilenet", image=8)
    x = torch.randn(32, 1, 8, 8)
    losses = losses_of(network, uo.trace(network, x[:2]), [x], weighting=weighting)
    assert Losses.model_validate_json(losses.model_dump_json()) == losses
    if weighting == "effect" or weighting.endswith("log"):
        for reader in losses.readers:
            for chain in reader.chains:
                assert chain.losses[-1] > 10 * chain.losses[len(chain.losses) // 2]


def test_chains_can_be_added() -> None:
    kind = KINDS["grouped"]
    network, x = made(kind)
    graph = uo.trace(network, x)
    oracle = measure(network, graph, [x])
    losses = oracle.losses(["own"])
    (reader,) = losses.readers
    more = oracle.with_chain(losses, reader.operation, "mine", [(1, 5), (0, 7)])
    chain = more.readers[0].chains[-1]
    assert chain.origin == "mine"
    assert len(chain.losses) == 3
    none = oracle.with_chain(losses, reader.operation, "none", []).readers[0].chains[-1]
    assert none.losses == (0,)
    assert chain.losses[2] == pytest.approx(oracle.loss(reader.operation, [2, 3, 4, 6]))
    for wrong in ([(0, 1)], [(0,)], [(0, 9)]):
        with pytest.raises(BudgetError, match="must drop one channel of every group"):
            oracle.with_chain(losses, reader.operation, "mine", wrong)
    with pytest.raises(BudgetError, match="no losses of 'nobody'"):
        oracle.loss("nobody", [])
    with pytest.raises(BudgetError, match="equally many"):
        oracle.loss(reader.operation, [0, 1, 2, 3])


@pytest.mark.parametrize("criterion", [None, "l1", "lamp"])
def test_losses_without_data_add_up(criterion: str | None) -> None:
    network = build_small("resnet", image=8)
    graph = uo.trace(network, torch.zeros(2, 1, 8, 8))
    losses = losses_of(network, graph, criterion=criterion, weighting="variance")
    assert losses.samples == 0
    assert len(losses.readers) == 21
    for reader in losses.readers:
        own = reader.chains[0].losses
        steps = [after - before for before, after in itertools.pairwise(own)]
        assert (
            steps == sorted(steps) or max(a - b for a, b in itertools.pairwise(steps)) < 1e-9
        )  # the least first
        assert own[-1] == pytest.approx(1)


def test_bad_data_are_refused() -> None:
    network = build_small("resnet", image=8)
    x = torch.randn(4, 1, 8, 8)
    graph = uo.trace(network, x)
    with pytest.raises(TraceError, match="no calibration batches"):
        losses_of(network, graph, [])
    with pytest.raises(TraceError, match="batch 1 holds NaN"):
        losses_of(network, graph, [x, x / 0])
    with pytest.raises(TraceError, match="does not run on the calibration data"):
        losses_of(network, graph, [torch.randn(4, 3, 8, 8)])
    with pytest.raises(TraceError, match="batch 0 does not fit"):
        losses_of(network, graph, [(x, x)])
    with pytest.raises(TraceError, match="not int"):
        losses_of(network, graph, 3)  # type: ignore[arg-type]
    with pytest.raises(TraceError, match="inputs are a str"):
        losses_of(network, graph, ["images"])
    with pytest.raises(TraceError, match="training mode"):
        losses_of(network.train(), graph, [x])
    network.eval()
    with pytest.raises(TraceError, match="not finite"):
        losses_of(network, graph, [x.sign() * 3e38])
    with pytest.raises(TraceError, match="another model"):
        losses_of(
            network, uo.trace(build_small("resnet", image=28), torch.zeros(2, 1, 28, 28)), [x]
        )
    with pytest.raises(BudgetError, match="weighting must be one of"):
        losses_of(network, graph, [x], weighting="mean")  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="a ridge is a share"):
        losses_of(network, graph, [x], ridge=-1)
    with pytest.raises(BudgetError, match="one of them"):
        losses_of(network, graph, [x], criterion="l1")
    with pytest.raises(BudgetError, match="chains are own, norm, space"):
        losses_of(network, graph, [x], origins=["other"])


def test_the_model_is_left_alone() -> None:
    network = build_small("densenet", image=8)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    x = torch.randn(8, 1, 8, 8)
    kept = x.clone()
    losses_of(network, uo.trace(network, x[:2]), [x])
    assert torch.equal(x, kept)
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
