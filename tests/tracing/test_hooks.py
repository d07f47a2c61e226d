"""Modules with hooks, or with hooks for all modules, are exported with what the hooks do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from unusual_middles import (
    IMAGES,
    Around,
    assert_exports,
    reasons,
)

import upscale_opt as uo


def _changes(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.flip(1) * 2 + output


def _changes_by_keyword(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
    return output.flip(1) * 2 + output


def _prepares(module: nn.Module, args: Any) -> tuple[Tensor]:
    return (args[0].flip(1) + args[0],)


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "forward": lambda m: m.register_forward_hook(_changes),
    "forward with keywords": lambda m: m.register_forward_hook(
        _changes_by_keyword, with_kwargs=True
    ),
    "before": lambda m: m.register_forward_pre_hook(_prepares),
    "observer": lambda m: m.register_forward_hook(lambda module, args, output: None),
    "backward": lambda m: m.register_full_backward_hook(lambda module, gi, go: None),
    "before backward": lambda m: m.register_full_backward_pre_hook(lambda module, go: None),
}
PLAIN = ("forward", "before")
PLACES = ["", "first", "norm", "middle", "second", "last"]


@pytest.mark.parametrize(
    ("place", "hook"),
    [
        *((place, hook) for place in PLACES for hook in PLAIN),
        *((place, hook) for place in ("", "middle") for hook in HOOKS if hook not in PLAIN),
    ],
)
def test_hooks_on_leaves_and_on_the_model(place: str, hook: str) -> None:
    def make() -> nn.Module:
        model = Around()
        HOOKS[hook](model.get_submodule(place))
        return model

    assert_exports(make, smaller=place not in ("second", "last") or "backward" in hook)


@pytest.mark.parametrize(
    ("place", "hook"), [(("", "first")[number % 2], hook) for number, hook in enumerate(HOOKS)]
)
def test_hooks_on_a_model_that_only_export_captures(place: str, hook: str) -> None:
    class Checked(Around):
        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            x[:, :1].mul_(2)  # through a view
            return super().forward(x)

    def make() -> nn.Module:
        model = Checked()
        HOOKS[hook](model.get_submodule(place))
        return model

    assert uo.trace(make().double(), IMAGES).capture == "export"
    assert_exports(make)


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_on_containers(hook: str) -> None:
    def make() -> nn.Module:
        model = nn.Sequential(Around(), nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
        HOOKS[hook](model[0])
        return model

    assert_exports(make)
    hidden = "the module has hooks" in reasons(make())
    assert hidden is ("backward" not in hook)


def test_hooks_for_all_modules() -> None:
    def triple(module: nn.Module, args: Any, output: Any) -> Any:
        return output * 3 if isinstance(module, nn.Conv2d) else None

    handle = nn.modules.module.register_module_forward_hook(triple)
    try:
        assert_exports(Around)
    finally:
        handle.remove()


class _WithExtraState(nn.Conv2d):
    def get_extra_state(self) -> Tensor:
        return torch.zeros(3)

    def set_extra_state(self, state: Tensor) -> None:
        pass


def test_a_hooked_module_may_have_state_that_is_no_parameter() -> None:
    def make() -> nn.Module:
        hooked = _WithExtraState(8, 8, 1)
        hooked.register_buffer("table", torch.zeros(2), persistent=False)
        hooked.register_forward_hook(_changes)
        return Around(hooked)

    assert_exports(make)
