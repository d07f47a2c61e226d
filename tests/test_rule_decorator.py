"""Rules that users give: what they say becomes operations, and what is not so is found out."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import assert_lossless, size
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.ir.graph import maskable_axes, slices_of

CHANNELS = 8
IMAGES = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).double()


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    with uo.local_rules():
        yield


class Around(nn.Module):
    """Something in the middle, between convolutions."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, CHANNELS, 1)
        self.middle = middle
        self.last = nn.Conv2d(CHANNELS, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.relu(self.middle(torch.relu(self.first(x)))))
        return y


def around(middle: nn.Module) -> Around:
    return Around(middle).double().eval()


def pruned_at_random(model: nn.Module, seed: int) -> tuple[nn.Module, nn.Module]:
    """The model with random masks on both sides, and its export."""
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(model)
    graph = uo.trace(model, IMAGES)
    kept = {
        name: {
            axis: tuple(torch.nonzero(torch.rand(slices, generator=generator) < 0.6)[:, 0].tolist())
            for axis in axes
            for slices in [slices_of(graph, name, axis)]
        }
        for name, axes in maskable_axes(graph).items()
    }
    uo.apply_masks(model, graph, uo.Masks(kept=kept))
    solution = uo.solve(graph, uo.Masks.from_model(model, graph))
    return model, uo.materialize(model, solution)


def assert_exports(model: nn.Module) -> None:
    for seed in range(5):
        masked, pruned = pruned_at_random(model, seed)
        assert_lossless(masked, pruned, IMAGES)


def opaque(model: nn.Module) -> list[str]:
    graph = uo.trace(model, IMAGES)
    return [op.reason for op in graph.operations if op.kind == "opaque"]


# What is not understood without a rule.


class Power(nn.Module):
    """One exponent for every channel, and a constant that is added."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.channels = channels
        self.exponent = nn.Parameter(torch.rand(1, channels, 1, 1) + 0.5)
        self.gain = nn.Parameter(torch.rand(channels) + 0.5)
        self.offset = nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        x = torch.cummax(x.sign() * x.abs() ** self.exponent, dim=-1).values
        return x * self.gain[:, None, None] + self.offset[:, None, None]


POWER: dict[str, Any] = {"exponent": "neutral", "gain": "scale", "offset": "shift"}


def power(call: uo.Call) -> uo.Claim:
    return call.channelwise(keeps_zero=True, parameters=POWER)


class Competition(nn.Module):
    """Each channel over the sum of all, and a gain."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(CHANNELS) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x.exp() / torch.cumsum(x.exp().sum(1, keepdim=True), 2)
        return y * self.gain[:, None, None]


class Widest(nn.Module):
    """The largest channel minus the smallest, beside the input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.aminmax(x, dim=1, keepdim=True).max


class Mix(nn.Module):
    """A linear layer over channels, written with einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.written = CHANNELS, CHANNELS
        self.matrix = nn.Parameter(torch.randn(CHANNELS, CHANNELS))
        self.offset = nn.Parameter(torch.randn(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.read
        y = torch.einsum("bihw,io->bohw", x, self.matrix) + self.offset[:, None, None]
        assert y.shape[1] == self.written
        return y


class Grouped(nn.Module):
    """A grouped convolution that scales its weight at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = 2
        self.weight = nn.Parameter(torch.randn(CHANNELS, CHANNELS // 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight * 3, groups=self.groups)


class Twice(nn.Module):
    """Two features for every channel."""

    def forward(self, x: Tensor) -> Tensor:
        pair: Tensor = torch.cumsum(torch.stack([x, x * 2], 2), 2).flatten(1, 2)
        return pair[:, ::2] + 0 * pair[:, 1::2]


class Pair(nn.Module):
    """Calls a module of two tensors."""

    def __init__(self, both: nn.Module) -> None:
        super().__init__()
        self.side = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.both = both

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.both(x, self.side(x))
        return y


class Gate(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cummax(x, -1).values * y


class Norms(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.renorm(x, 2, 0, 1.0) * 0 + torch.cummax(x, -1).values + y


CASES: dict[str, tuple[Callable[[], nn.Module], type[nn.Module], Any, Any]] = {
    "channelwise": (Power, Power, power, {"channels": "inputs"}),
    "symmetric": (
        Competition,
        Competition,
        lambda call: call.symmetric(parameters={"gain": "scale"}),
        None,
    ),
    "layer": (
        Mix,
        Mix,
        lambda call: call.layer("matrix", reads=0, writes=1, bias="offset"),
        {"read": "inputs", "written": "outputs"},
    ),
    "groups": (
        Grouped,
        Grouped,
        lambda call: call.layer("weight", reads=1, writes=0, groups=call.module.groups),
        {"groups": "groups"},
    ),
    "product": (lambda: Pair(Gate()), Gate, lambda call: call.elementwise(zero_if="any"), None),
    "sum": (lambda: Pair(Norms()), Norms, lambda call: call.elementwise(zero_if="all"), None),
}


@pytest.mark.parametrize("case", CASES)
def test_claims_become_operations(case: str) -> None:
    make, target, function, resize = CASES[case]
    model = around(make())
    before = [size(pruned_at_random(model, seed)[1]) for seed in range(5)]
    assert opaque(model)

    uo.rule(target, resize=resize)(function)
    assert uo.check_rules(model, IMAGES)
    assert not opaque(model)
    assert_exports(model)
    after = [size(pruned_at_random(model, seed)[1]) for seed in range(5)]
    assert case == "symmetric" or sum(after) < sum(before)


def test_symmetric_orders_are_free() -> None:
    model = around(Competition())
    uo.rule(Competition)(lambda call: call.symmetric(parameters={"gain": "scale"}))
    assert all(space.fixed is None for space in uo.trace(model, IMAGES).spaces[1:-1])


def test_reductions() -> None:
    class Minus(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.widest = Widest()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = x - self.widest(x)
            return y

    model = around(Minus())
    uo.rule(Widest)(lambda call: call.symmetric(reduces=True))
    assert uo.check_rules(model, IMAGES) == ("middle_widest",)
    assert not opaque(model)
    assert_exports(model)


def test_resize_by_function() -> None:
    seen: list[tuple[int, int]] = []

    def tell(module: nn.Module, sizes: Any) -> None:
        seen.append((sizes.inputs, sizes.outputs))
        module.channels = sizes.inputs

    model = around(Power())
    uo.rule(Power, resize=tell)(power)
    masked, pruned = pruned_at_random(model, 0)
    kept: Any = pruned.get_submodule("middle")
    assert seen[-1] == (kept.channels, kept.channels)
    assert kept.channels == len(kept.get_parameter("gain")) < CHANNELS
    assert masked.get_submodule("middle").channels == CHANNELS


# What rules are for.


def lifted(x: Tensor, exponent: Tensor, *, flat: bool = False) -> Tensor:
    """Not understood, for its running maximum."""
    return torch.cummax(x.abs() * exponent[:, None, None].exp(), -1).values if not flat else x


_another_name = lifted
ELSEWHERE = ModuleType("elsewhere_of_test_rule_decorator")
ELSEWHERE.lifted = lifted  # type: ignore[attr-defined]
sys.modules[ELSEWHERE.__name__] = ELSEWHERE


class Lifting(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.exponent = nn.Parameter(torch.rand(CHANNELS) + 0.5)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "here":
            return lifted(x, self.exponent)
        if self.way == "another name":
            return _another_name(x, exponent=self.exponent)
        y: Tensor = ELSEWHERE.lifted(x, self.exponent, flat=False)
        return y


@pytest.mark.parametrize("way", ["here", "another name", "in another module"])
@pytest.mark.parametrize("name", ["exponent", "1"])
def test_functions(way: str, name: str) -> None:
    @uo.rule(lifted)
    def rule(call: uo.Call) -> uo.Claim:
        return call.channelwise(keeps_zero=True, parameters={name: "neutral"})

    model = around(Lifting(way))
    if name == "1" and way == "another name":
        with pytest.raises(uo.RuleError, match=r"parameter '1'; the call has exponent"):
            uo.trace(model, IMAGES)
        return
    assert uo.check_rules(model, IMAGES) == ("lifted",)
    assert not opaque(model)
    assert_exports(model)
    assert ELSEWHERE.lifted is _another_name is lifted
    assert isinstance(lifted(IMAGES, torch.ones(3)), Tensor)


class Rounded(torch.autograd.Function):
    """Has a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.cummax(x.round(), -1).values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 7


class Rounding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = Rounded.apply(x * 9)
        return y


def test_autograd_functions_keep_their_gradient() -> None:
    uo.rule(Rounded)(lambda call: call.channelwise(keeps_zero=True))
    model = around(Rounding())
    assert uo.check_rules(model, IMAGES) == ("rounded_apply",)
    assert not opaque(model)
    assert_exports(model)
    masked, pruned = pruned_at_random(model, 0)
    gradients = []
    for network in (masked, pruned):
        images = IMAGES.clone().requires_grad_()
        network(images).sum().backward()
        gradients.append(images.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0] is not None
    assert bool(gradients[0].any())
    assert "apply" not in vars(Rounded)


class Running(nn.Module):
    def __init__(self, *, method: bool) -> None:
        super().__init__()
        self.method = method

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(2) if self.method else torch.cumsum(x, 2)


@pytest.mark.parametrize("method", [False, True])
def test_functions_and_methods_of_torch(method: bool) -> None:
    target = torch.Tensor.cumsum if method else torch.cumsum
    uo.rule(target)(lambda call: call.channelwise(keeps_zero=True))
    model = around(Running(method=method))
    assert uo.check_rules(model, IMAGES) == ("cumsum",)
    assert not opaque(model)
    assert_exports(model)
    assert opaque(around(Running(method=not method)))


@torch.library.custom_op("test_rule_decorator::sinh", mutates_args=())
def sinh(x: Tensor) -> Tensor:
    return x.sinh()


@sinh.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Custom(nn.Module):
    def __init__(self, *, strict: bool) -> None:
        super().__init__()
        self.strict = strict

    def forward(self, x: Tensor) -> Tensor:
        if self.strict:
            assert x.shape[1] == CHANNELS  # which torch.fx cannot trace
        y: Tensor = sinh(x)
        return y


@pytest.mark.parametrize("target", [sinh, torch.ops.test_rule_decorator.sinh])
@pytest.mark.parametrize("strict", [False, True])
def test_custom_operators(target: Any, strict: bool) -> None:
    model = around(Custom(strict=strict))
    assert opaque(model)
    uo.rule(target)(lambda call: call.channelwise(keeps_zero=True))
    assert uo.trace(model, IMAGES).capture == ("export" if strict else "fx")
    assert len(uo.check_rules(model, IMAGES)) == 1
    assert not opaque(model)
    assert_exports(model)


def test_subclasses_that_inherit_forward() -> None:
    class Same(Power):
        pass

    class Other(Power):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).flip(1).cummax(1).values

    uo.rule(Power, resize={"channels": "inputs"})(power)
    assert not opaque(around(Same()))
    assert opaque(around(Other()))
    assert_exports(around(Other()))


def test_a_forward_of_its_own_is_no_case_for_the_rule() -> None:
    uo.rule(Power, resize={"channels": "inputs"})(power)
    model = around(Power())
    model.middle.forward = lambda x: torch.cummax(x, 1).values
    assert opaque(model)


def test_hooks_are_not_covered() -> None:
    uo.rule(Power, resize={"channels": "inputs"})(power)
    model = around(Power())
    model.middle.register_forward_hook(lambda module, args, output: output.flip(1))
    assert "the module has hooks" in opaque(model)
    assert_exports(model)


def test_a_rule_comes_before_built_in_understanding() -> None:
    model = around(nn.ReLU())
    assert not opaque(model)
    uo.rule(nn.ReLU)(lambda call: call.opaque("because I say so"))
    assert "because I say so" in opaque(model)
    assert_exports(model)


def test_the_last_rule_counts_and_local_rules_go() -> None:
    model = around(Power())
    with uo.local_rules():
        uo.rule(Power)(lambda call: call.opaque("first"))
        uo.rule(Power)(lambda call: call.opaque("second"))
        assert "second" in opaque(model)
        with uo.local_rules():
            uo.rule(Power)(lambda call: call.opaque("third"))
            assert "third" in opaque(model)
        assert "second" in opaque(model)
    assert "second" not in opaque(model)


def test_another_channel_axis_is_left_alone() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.power = Power()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.power(x.movedim(1, -1).contiguous().movedim(-1, 1))
            return y

    uo.rule(Power)(lambda call: call.channelwise(2, keeps_zero=True))
    model = around(Transposed())
    assert any("not its channel axis" in reason for reason in opaque(model))
    assert_exports(model)


def test_parameters_that_the_claim_leaves_out_stay() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.power = Power()
            self.norm = nn.BatchNorm2d(CHANNELS)
            self.norm.weight = self.power.gain

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(self.power(x))
            return y

    unnamed = {name: role for name, role in POWER.items() if name != "gain"}
    uo.rule(Power)(lambda call: call.channelwise(keeps_zero=True, parameters=unnamed))
    model = around(Tied())
    assert "middle.power.gain" not in maskable_axes(uo.trace(model, IMAGES))
    assert any("gain must stay" in reason for reason in opaque(model))


# False claims.


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
        uo.check_rules(around(make()), IMAGES)


def test_verify_finds_false_claims_too() -> None:
    uo.rule(Lifted)(lambda call: call.channelwise(keeps_zero=True))
    model = around(Lifted())
    with torch.no_grad():
        model.first.weight[::2] = 0
        assert model.first.bias is not None
        model.first.bias[::2] = 0
    graph = uo.trace(model, IMAGES)
    pruned = uo.materialize(model, uo.solve(graph, uo.Masks.from_model(model, graph)))
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
    for check in (uo.trace, uo.check_rules):
        with pytest.raises(
            uo.RuleError, match=rf"the rule for Power, at call 'middle': .*{message}"
        ):
            check(around(Power()), IMAGES)


def test_sizes_that_a_module_does_not_have() -> None:
    uo.rule(Power, resize={"chanels": "inputs"})(power)
    with pytest.raises(uo.RuleError, match="resizes 'chanels', which Power does not have"):
        uo.check_rules(around(Power()), IMAGES)


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
    assert uo.check_rules(around(Square()), IMAGES)
    assert_exports(around(Square()))


@pytest.mark.parametrize("target", ["cumsum", 3, Power(), dict])
def test_targets_that_make_no_sense(target: Any) -> None:
    with pytest.raises(uo.RuleError, match="no rule can be given for"):
        uo.rule(target)


def test_rules_that_are_never_met() -> None:
    uo.rule(Power)(power)
    with pytest.raises(uo.RuleError, match="Around makes no call that a rule is for"):
        uo.check_rules(around(nn.ReLU()), IMAGES)


def test_a_saved_model_needs_its_rules(tmp_path: Path) -> None:
    model = around(Power())
    with uo.local_rules():
        uo.rule(Power, resize={"channels": "inputs"})(power)
        _, pruned = pruned_at_random(model, 0)
        uo.save(pruned, tmp_path / "pruned.safetensors")
        again = uo.load(around(Power()), tmp_path / "pruned.safetensors")
        assert_lossless(pruned, again, IMAGES)
    with pytest.raises(uo.MaterializeError, match="rule"):
        uo.load(around(Power()), tmp_path / "pruned.safetensors")
    graph = uo.trace(model, IMAGES)
    solution = uo.solve(graph, uo.Masks.from_model(model, graph))
    uo.rule(Power, resize={"channels": "inputs"})(power)
    # What torch.export captured knows no modules, and no rules for them.
    assert graph.capture == "export"
    assert_lossless(model, uo.materialize(copy.deepcopy(model), solution), IMAGES)


def test_the_code_in_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parent.parent / "docs" / "model-support.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 2
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(block, namespace)
    assert capsys.readouterr().out == "cummax aten.cummax is not understood\n('_1',)\n"
