"""Rules that users give: what is not so is found out, and what makes no sense is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from ruled_modules import (
    CHANNELS,
    IMAGES,
    POWER,
    Gate,
    Mix,
    Norms,
    Pair,
    Power,
    around,
    assert_exports,
    power,
)
from torch import Tensor, nn

import upscale_opt as uo


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    with uo.rules.local_rules():
        yield


class Mixing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cummax(x, 1).values


class Numbered(nn.Module):
    """What it does to a channel depends on where that stands."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cummax(x * torch.arange(1, x.shape[1] + 1)[:, None, None], -1).values


class Lifted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cummax(x, -1).values + 1


class Zeroth(nn.Module):
    """Where its exponent is zero, zeros become ones."""

    def __init__(self) -> None:
        super().__init__()
        self.exponent = nn.Parameter(torch.rand(CHANNELS) + 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cummax(x.abs() ** self.exponent[:, None, None], -1).values


class Cosine(nn.Module):
    """Its gain is not a scale: where it is zero, the result is one."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(CHANNELS) + 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cummax(x * torch.cos(self.gain)[:, None, None], -1).values


FALSE: dict[str, tuple[Callable[[], nn.Module], type[nn.Module], Any, str]] = {
    "mixes": (Mixing, Mixing, lambda c: c.channelwise(keeps_zero=True), "claims to be channelwise"),
    "position": (
        Numbered,
        Numbered,
        lambda c: c.channelwise(keeps_zero=True),
        "claims to be channelwise, but treats channels",
    ),
    "position, symmetric": (
        Numbered,
        Numbered,
        lambda c: c.symmetric(),
        "claims to be symmetric, but treats channels .* in another order differently",
    ),
    "zero": (
        Lifted,
        Lifted,
        lambda c: c.channelwise(keeps_zero=True),
        "claims to keep zeros, but channel",
    ),
    "zero to the power of zero": (
        Zeroth,
        Zeroth,
        lambda c: c.channelwise(keeps_zero=True, parameters={"exponent": "neutral"}),
        "claims to keep zeros, .* where its parameters are zero",
    ),
    "scale": (
        Cosine,
        Cosine,
        lambda c: c.channelwise(keeps_zero=True, parameters={"gain": "scale"}),
        "'gain' is a scale, but where it is zero",
    ),
    "left out": (
        Power,
        Power,
        lambda c: c.channelwise(keeps_zero=True, parameters={**POWER, "offset": "neutral"}),
        "claims to keep zeros, but channel",
    ),
    "sizes": (Power, Power, power, r"fails with \d channels: AssertionError"),
    "swapped": (
        Mix,
        Mix,
        lambda c: c.layer("matrix", reads=1, writes=0, bias="offset"),
        "claims to be a layer",
    ),
    "no bias": (
        Mix,
        Mix,
        lambda c: c.layer("matrix", reads=0, writes=1),
        "fails with|claims to be a layer",
    ),
    "any": (
        lambda: Pair(Norms()),
        Norms,
        lambda c: c.elementwise(zero_if="any"),
        "claims zeros if any are, but",
    ),
    "second only": (
        lambda: Pair(Gate()),
        Gate,
        lambda c: c.channelwise(keeps_zero=True),
        "fails with|channelwise",
    ),
}


@pytest.mark.parametrize("case", FALSE)
def test_false_claims_are_found(case: str) -> None:
    make, target, function, message = FALSE[case]
    sizes: dict[type[nn.Module], Any] = {
        Mix: {"read": "inputs", "written": "outputs"},
        Power: {"channels": "inputs"},
    }
    uo.rule(target, resize=None if case == "sizes" else sizes.get(target))(function)
    with pytest.raises(uo.RuleError, match=rf"the rule for {target.__name__}, at call .*{message}"):
        uo.rules.check_rules(around(make()), IMAGES)


def test_verify_finds_false_claims_too() -> None:
    uo.rule(Lifted)(lambda call: call.channelwise(keeps_zero=True))
    model = around(Lifted())
    with torch.no_grad():
        model.first.weight[::2] = 0
        assert model.first.bias is not None
        model.first.bias[::2] = 0
    graph = uo.trace(model, IMAGES)
    pruned = uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))
    with pytest.raises(uo.VerificationError):
        uo.verify(model, pruned, IMAGES)


SENSELESS: dict[str, tuple[Any, str]] = {
    "no claim": (lambda c: None, "returned a NoneType; return call.channelwise"),
    "no such parameter": (
        lambda c: c.channelwise(keeps_zero=True, parameters={"gian": "scale"}),
        "names the parameter 'gian'; there are exponent, gain, offset",
    ),
    "wrong axis": (
        lambda c: c.channelwise(keeps_zero=True, parameters={"exponent": ("neutral", 0)}),
        r"'exponent', whose shape \(1, 8, 1, 1\) has no axis of 8 channels",
    ),
    "no such axis": (
        lambda c: c.channelwise(4, keeps_zero=True),
        "names the axis 4 of a tensor wi",
    ),
    "groups": (lambda c: c.symmetric(groups=3), "claims 3 groups of 8 channels"),
    "one tensor": (lambda c: c.elementwise(zero_if="all"), "was given one"),
    "weight": (
        lambda c: c.layer("exponent", reads=0, writes=1),
        "claims 8 channels along axis 0 of the weight 'exponent'",
    ),
}


@pytest.mark.parametrize("case", SENSELESS)
def test_senseless_rules_are_refused(case: str) -> None:
    function, message = SENSELESS[case]
    uo.rule(Power)(function)
    for check in (uo.trace, uo.rules.check_rules):
        with pytest.raises(
            uo.RuleError, match=rf"the rule for Power, at call 'middle': .*{message}"
        ):
            check(around(Power()), IMAGES)


def test_sizes_that_a_module_does_not_have() -> None:
    uo.rule(Power, resize={"chanels": "inputs"})(power)
    with pytest.raises(uo.RuleError, match="resizes 'chanels', which Power does not have"):
        uo.rules.check_rules(around(Power()), IMAGES)


def test_ambiguous_axes_are_asked_for() -> None:
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.rand(CHANNELS, CHANNELS))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cummax(x * self.table.mean(1)[:, None, None], -1).values

    uo.rule(Square)(lambda c: c.channelwise(keeps_zero=True, parameters={"table": "scale"}))
    with pytest.raises(uo.RuleError, match=r"give 'table': \('scale', axis\)"):
        uo.trace(around(Square()), IMAGES)

    uo.rule(Square)(lambda c: c.channelwise(keeps_zero=True, parameters={"table": ("scale", 0)}))
    assert uo.rules.check_rules(around(Square()), IMAGES)
    assert_exports(around(Square()))


@pytest.mark.parametrize("target", ["cumsum", 3, Power(), dict])
def test_targets_that_make_no_sense(target: Any) -> None:
    with pytest.raises(uo.RuleError, match="no rule can be given for"):
        uo.rule(target)


def test_rules_that_are_never_met() -> None:
    uo.rule(Power)(power)
    with pytest.raises(uo.RuleError, match="Around makes no call that a rule is for"):
        uo.rules.check_rules(around(nn.ReLU()), IMAGES)


def test_calls_that_return_several_tensors() -> None:
    class Maximum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            values: Tensor = torch.cummax(x, -1)[0]
            return values

    uo.rule(torch.cummax)(lambda call: call.channelwise(keeps_zero=True))
    with pytest.raises(uo.RuleError, match="call 'cummax': returns no tensor but a "):
        uo.rules.check_rules(around(Maximum()), IMAGES)
