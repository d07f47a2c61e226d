"""Modules that pruned models look up where they are: always those that they have at the time."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from comparing import assert_lossless, call
from sample_networks import pruned_of
from torch import Tensor, fx, nn

import upscale_opt as uo
from upscale_opt.materializing.direct_lookups import with_direct_lookups
from upscale_opt.materializing.pruned_module import PrunedModule

X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Nested(nn.Module):
    """Modules within modules, some with names that are no identifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
            nn.ModuleDict({"0": nn.Conv2d(8, 8, 3)}),
        )
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body[0](x)
        y: Tensor = self.head(self.body[1]["0"](x) * self.scale)  # type: ignore[index]
        return y


class First(nn.Sequential):
    """What stands in for the first layers."""

    def __init__(self, written: int) -> None:
        super().__init__(nn.Conv2d(3, written, 3), nn.Identity(), nn.Identity())


def export() -> tuple[nn.Module, PrunedModule]:
    torch.manual_seed(0)
    result = pruned_of(Nested().double().eval(), X)
    assert isinstance(result.model, PrunedModule)
    return result.masked, result.model


def names(model: PrunedModule) -> tuple[str, ...]:
    """The names that the compiled code of ``forward`` reads."""
    return type(model).forward.__code__.co_names


def test_modules_are_looked_up_directly_and_tensors_as_they_were() -> None:
    masked, pruned = export()
    assert_lossless(masked, pruned, X)
    assert "_modules" in names(pruned)
    assert "body" not in names(pruned)
    assert "scale" in names(pruned)
    assert "_modules" not in pruned.code, "it reads as before"


def test_what_is_replaced_later_is_called() -> None:
    _, pruned = export()
    pruned.head = nn.Identity()
    second = pruned.get_submodule("body.1.0")
    assert isinstance(second, nn.Conv2d)
    pruned.get_submodule("body").add_module("0", First(second.in_channels).double())
    ran: list[nn.Module] = []
    for module in (pruned.head, pruned.get_submodule("body.0.0")):
        module.register_forward_hook(lambda module, args, result: ran.append(module))
    call(pruned, X)
    assert ran == [pruned.get_submodule("body.0.0"), pruned.head]
    del pruned.head
    with pytest.raises((AttributeError, KeyError), match="head"):
        call(pruned, X)


def test_copies_call_their_own_modules() -> None:
    masked, pruned = export()
    file = io.BytesIO()
    torch.save(pruned, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(pruned), copy.copy(pruned), loaded):
        assert_lossless(masked, other, X)
        assert "_modules" in names(other)
    deep = copy.deepcopy(pruned)
    with torch.no_grad():
        for parameter in deep.get_submodule("head").parameters():
            parameter.zero_()
    assert not call(deep, X).any()
    assert_lossless(masked, pruned, X)


def test_in_place_and_pruned_again() -> None:
    torch.manual_seed(0)
    model = Nested().double().eval()
    uo.MaskingManager(model).importance().mask(amount=0.5)
    want = call(model, X)
    uo.PruningManager(model).compute([X]).prune()
    torch.testing.assert_close(call(model, X), want, rtol=1e-10, atol=1e-12)
    again = pruned_of(model, X, 0.3)
    assert_lossless(again.masked, again.model, X)


def test_tracers_see_the_same() -> None:
    masked, pruned = export()
    traced = fx.symbolic_trace(pruned)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == [
        n.target for n in pruned.graph.nodes if n.op == "call_module"
    ]
    assert_lossless(masked, traced, X)
    exported = torch.export.export(pruned, (X,))
    assert_lossless(masked, exported.module(), X)


class Shadowed(nn.Module):
    """Its class has an attribute called as one of its modules, and another one is a tensor's."""

    other: nn.Module | None = None

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 3, 1)
        self._modules["other"] = nn.Conv2d(3, 3, 1)  # which nobody gets by its name


def test_only_what_is_a_module_is_looked_up_directly() -> None:
    source = (
        "def forward(self, x):\n"
        "    a = self.one(x); b = getattr(self, 'one')(x)\n"
        "    c = self.other(x); d = self.missing(x); e = self.one.forward(x)\n"
        "    f = self(x); g = getattr(x, 'one')(x); h = getattr(self, x)(x)\n"
        "    return self.one.weight\n"
    )
    found = with_direct_lookups(source, Shadowed()).splitlines()
    assert found[1:] == [
        "    a = self._modules['one'](x)",
        "    b = self._modules['one'](x)",
        "    c = self.other(x)",
        "    d = self.missing(x)",
        "    e = self.one.forward(x)",
        "    f = self(x)",
        "    g = getattr(x, 'one')(x)",
        "    h = getattr(self, x)(x)",
        "    return self.one.weight",
    ]
