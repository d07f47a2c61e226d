"""Rules that users give: what they say becomes operations."""

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
from comparing import assert_lossless, size
from ruled_modules import (
    CHANNELS,
    IMAGES,
    POWER,
    Competition,
    Gate,
    Grouped,
    Mix,
    Norms,
    Pair,
    Power,
    Widest,
    around,
    assert_exports,
    opaque,
    power,
    pruned_at_random,
)
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.ir.graph import maskable_axes


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    with uo.rules.local_rules():
        yield


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
    before = [size(pruned_at_random(model, seed)[1]) for seed in range(2)]
    assert opaque(model)

    uo.rule(target, resize=resize)(function)
    assert uo.rules.check_rules(model, IMAGES)
    assert not opaque(model)
    assert_exports(model)
    after = [size(pruned_at_random(model, seed)[1]) for seed in range(2)]
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
    assert uo.rules.check_rules(model, IMAGES) == ("middle_widest",)
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
    def rule(call: uo.rules.Call) -> uo.rules.Claim:
        return call.channelwise(keeps_zero=True, parameters={name: "neutral"})

    model = around(Lifting(way))
    if name == "1" and way == "another name":
        with pytest.raises(uo.RuleError, match=r"parameter '1'; the call has exponent"):
            uo.trace(model, IMAGES)
        return
    assert uo.rules.check_rules(model, IMAGES) == ("lifted",)
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
    assert uo.rules.check_rules(model, IMAGES) == ("rounded_apply",)
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
    assert uo.rules.check_rules(model, IMAGES) == ("cumsum",)
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
            x = x.clone()
            x.view(x.shape).mul_(1)  # which torch.fx does not capture
        y: Tensor = sinh(x)
        return y


@pytest.mark.parametrize("target", [sinh, torch.ops.test_rule_decorator.sinh])
@pytest.mark.parametrize("strict", [False, True])
def test_custom_operators(target: Any, strict: bool) -> None:
    model = around(Custom(strict=strict))
    assert opaque(model)
    uo.rule(target)(lambda call: call.channelwise(keeps_zero=True))
    assert uo.trace(model, IMAGES).capture == ("export" if strict else "fx")
    assert len(uo.rules.check_rules(model, IMAGES)) == 1
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
    with uo.rules.local_rules():
        uo.rule(Power)(lambda call: call.opaque("first"))
        uo.rule(Power)(lambda call: call.opaque("second"))
        assert "second" in opaque(model)
        with uo.rules.local_rules():
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


def test_a_saved_model_needs_its_rules(tmp_path: Path) -> None:
    model = around(Power())
    with uo.rules.local_rules():
        uo.rule(Power, resize={"channels": "inputs"})(power)
        _, pruned = pruned_at_random(model, 0)
        uo.save(pruned, tmp_path / "pruned.safetensors")
        again = uo.load(around(Power()), tmp_path / "pruned.safetensors")
        assert_lossless(pruned, again, IMAGES)
    with pytest.raises(uo.MaterializeError, match="rule"):
        uo.load(around(Power()), tmp_path / "pruned.safetensors")
    graph = uo.trace(model, IMAGES)
    solution = uo.solve(graph, uo.masks_of(model, graph))
    uo.rule(Power, resize={"channels": "inputs"})(power)
    # What torch.export captured knows no modules, and no rules for them.
    assert graph.capture == "export"
    assert_lossless(model, uo.materialize(copy.deepcopy(model), solution), IMAGES)


def test_the_code_in_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "model-support.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 2
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(block, namespace)
    assert capsys.readouterr().out == "cummax aten.cummax is not understood\n('_1',)\n"
