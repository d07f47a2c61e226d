"""What changes of layers cost at the output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.reconstruction.columns import from_matrix
from upscale_opt.reconstruction.data import calls_of, program_of
from upscale_opt.reconstruction.effects import Change, effects, halved
from upscale_opt.reconstruction.elimination import Quadratic
from upscale_opt.reconstruction.losses import measure
from upscale_opt.tracing.unchanged import reseed


class Pooled(nn.Module):
    """Linear from end to end, so that first order is exact; a mean over many positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.second(self.first(x)).mean((2, 3)))
        return y


def pooled() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    smooth = torch.randn(128, 3, 1, 1) + 0.3 * torch.randn(128, 3, 10, 10)
    return Pooled().eval(), smooth


def test_errors_of_the_same_sign_add_up() -> None:
    model, x = pooled()
    graph = uo.trace(model, x[:2])
    program = program_of(model, graph)
    found = {}
    for name, layer in (("second", model.second), ("head", model.head)):
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        added = 0.1 * torch.randn(1, layer.weight[0].numel(), len(layer.weight))
        change = Change(added, torch.zeros(1, len(layer.weight)), 1.0)
        weight = f"{name}.weight"
        (cost,) = effects(model, program, calls_of(program, [x]), {weight: change}).values()
        with torch.no_grad():
            before = model(x)
            kept = layer.weight.clone()
            layer.weight.add_(from_matrix(added, layer.weight, 1))
            moved = model(x) - before
            layer.weight.copy_(kept)
        truth = moved.square().sum(1).mean() / before.var(0).sum()
        found[name] = cost / float(truth)
    assert 0.5 < found["second"] < 2  # 0.01, were positions taken for independent
    assert 0.5 < found["head"] < 2


def test_half_of_the_units_go_and_the_rest_makes_good_what_it_can() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 8, generator=generator, dtype=torch.float64)
    x[:, 4:] = x[:, :4] + 0.5 * x[:, 4:]  # much alike
    weights = torch.randn(1, 8, 3, generator=generator, dtype=torch.float64)
    gram = (x.T @ x)[None]
    quadratic = Quadratic(gram, weights, 1, 1)
    change = halved(quadratic, gram, weights, torch.ones(8, dtype=torch.bool), None)
    assert change is not None
    new = weights[0] + change.weights[0].double()
    gone = new.abs().amax(1) < 1e-6
    assert int(gone.sum()) == 4
    moved = float((x @ change.weights[0].double()).square().sum())
    assert abs(moved - change.loss) < 1e-3 * moved
    refit = torch.linalg.lstsq(x[:, ~gone], x @ weights[0]).solution
    assert torch.allclose(new[~gone], refit, atol=1e-4)


def test_dead_units_tell_nothing_of_what_those_that_live_are_worth() -> None:
    """Half of the units may be dead; a loss that is all but none says nothing of a real one."""

    class Hidden(nn.Module):
        def __init__(self, dead: int) -> None:
            super().__init__()
            self.up = nn.Linear(6, 8 + dead)
            self.down = nn.Linear(8 + dead, 6)
            self.head = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.down(self.up(x).relu()))
            return y

    reseed(0)
    living, x = Hidden(0), torch.randn(256, 6)
    costs = []
    for dead in (0, 24):
        model = Hidden(dead).eval()
        with torch.no_grad():
            model.up.weight.normal_(std=1e-7)
            model.up.bias.zero_()
            model.up.weight[:8] = living.up.weight
            model.up.bias[:8] = living.up.bias
            model.down.weight[:, :8] = living.down.weight
            model.down.bias.copy_(living.down.bias)
            model.head.load_state_dict(living.head.state_dict())
        found = measure(model, uo.trace(model, x[:2]), [x])
        (one,) = (one for one in found.measured if one.site.weight == "down.weight")
        costs.append(one.scale)
    assert 0.5 < costs[1] / costs[0] < 2  # 1e-6 and less, were half of the dead ones to tell


def test_losses_know_which_layer_matters() -> None:
    """The same layer twice; what the second one says is hardly listened to."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(6, 12)
            self.loud, self.quiet = nn.Linear(12, 4), nn.Linear(12, 4)
            self.quiet.load_state_dict(self.loud.state_dict())

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.stem(x))
            return torch.tanh(self.loud(y)) + 0.01 * torch.tanh(self.quiet(y))

    torch.manual_seed(2)
    model, x = Twice().eval(), torch.randn(128, 6)
    oracle = measure(model, uo.trace(model, x[:2]), [x], weighting="effect")
    loud, quiet = (
        next(one for one in oracle.losses(["own"]).readers if one.parameter == f"{name}.weight")
        for name in ("loud", "quiet")
    )
    ratio = loud.chains[0].losses[6] / quiet.chains[0].losses[6]
    assert 3e3 < ratio < 3e4


def test_how_images_come_in_batches_does_not_set_the_scale() -> None:
    """In one batch, outputs that differ little between images lost 500 times as much and more."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).eval()
    x = torch.randn(128, 3, 8, 8)
    graph = uo.trace(model, x[:2])
    whole, single = (
        measure(model, graph, list(torch.split(x, size))).losses() for size in (128, 1)
    )
    for one, other in zip(whole.readers, single.readers, strict=True):
        assert 0.4 < one.chains[0].losses[-2] / other.chains[0].losses[-2] < 2.5


def test_a_program_that_writes_into_its_inputs_leaves_the_data_alone() -> None:
    class Scaling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 12)
            self.second = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(torch.relu(self.first(x.mul_(2))))
            return y

    torch.manual_seed(0)
    model, x = Scaling().eval(), torch.randn(64, 6)
    before = x.clone()
    uo.prune(model, x, budget=uo.Budget(macs=0.5), data=[x], measure=True)
    assert torch.equal(x, before)
