"""What a trace assumed of a call is checked by the pruned model, whichever way it goes."""

from __future__ import annotations

import copy
import io
import pickle
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import upscale_opt as uo
from upscale_opt.materializing.pruned_module import PrunedModule, replace
from upscale_opt.tracing.running import run_as

SHIFT = torch.tensor(2.0)


class Around(nn.Module):
    """Two convolutions, of drawn widths."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        width = random.Random(seed).randint(5, 9)
        self.enter, self.leave = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 4, 1)


class Optional(Around):
    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        flag: bool = False,
        scale: float = 1.0,
        size: tuple[int, int] = (2, 2),
        *rest: Tensor,
        shift: Tensor = SHIFT,
        how: Any = torch.relu,
        **named: Tensor,
    ) -> Tensor:
        y = how(self.enter(x)) + shift
        if mask is not None:
            y = y * mask
        if flag:
            y = y.flip(1)
        for other in (*rest, *named.values()):
            y = y + other
        y = functional.avg_pool2d(y, size) * scale
        z: Tensor = self.leave(y)
        return z


class Held(Around):
    def forward(self, xs: list[Tensor], more: dict[str, Tensor]) -> Tensor:
        y = sum(self.enter(x) for x in xs)
        for value in more.values():
            y = y * value
        z: Tensor = self.leave(y.relu() / len(xs))
        return z


def images(batch: int = 2, size: int = 8) -> Tensor:
    return torch.randn(batch, 3, size, size)


def pruned(model: nn.Module, inputs: Any) -> tuple[nn.Module, nn.Module]:
    done = uo.prune(model.eval(), inputs, amount=0.4)
    assert done.solution.capture == "fx"
    return done.masked, done.model


ONE = torch.ones(1, 1, 1, 1)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"mask": ONE}, "'mask' is a tensor"),
        ({"flag": True}, "'flag' is True"),
        ({"flag": 1}, "'flag' is 1"),
        ({"scale": 0.5}, "'scale' is 0.5"),
        ({"size": (2, 4)}, r"'size\[1\]' is 4"),
        ({"size": (2,)}, "'size' is a tuple of 1"),
        ({"shift": ONE}, "'shift' is a tensor"),
        ({"how": torch.sigmoid}, "'how' is a"),
        ({"extra": ONE}, r"'\*\*named' is a dict with 'extra'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else str(value),
)
def test_what_was_left_out_must_be_left_out(given: dict[str, Any], word: str, seed: int) -> None:
    masked, model = pruned(Optional(seed), images())
    torch.testing.assert_close(model(images(3, 12) * 0), masked(images(3, 12) * 0))
    with pytest.raises(ValueError, match=word) as caught:
        model(images(), **given)
    assert isinstance(caught.value, uo.UpscaleError)
    assert "trace the model" in str(caught.value)


def test_what_was_given_must_be_given_so() -> None:
    inputs: dict[str, Any] = {
        "x": images(),
        "mask": torch.rand(2, 1, 8, 8),
        "flag": True,
        "scale": 2.0,
    }
    masked, model = pruned(Optional(0), inputs)
    later = {**inputs, "mask": torch.rand(2, 1, 8, 8), "scale": 0.0}
    torch.testing.assert_close(model(**later), masked(**later))  # a factor may be any number
    changes: list[tuple[dict[str, Any], str]] = [
        ({"mask": None}, "'mask' is None, but .* for a tensor"),
        ({"mask": torch.rand(8, 8)}, "'mask' has 2 axes"),
        ({"flag": False}, "'flag' is False, but .* for True"),
    ]
    for change, word in changes:
        with pytest.raises(uo.UpscaleError, match=word):
            model(**{**later, **change})
    with pytest.raises(uo.UpscaleError, match="'mask' is None"):
        model(images())


def test_containers_have_the_same_length_and_keys() -> None:
    x = images()
    masked, model = pruned(Held(1), ([x, x + 1], {"a": ONE * 2}))
    torch.testing.assert_close(model([x, x], {"a": ONE * 3}), masked([x, x], {"a": ONE * 3}))
    for call, word in [
        (([x, x, x], {"a": ONE}), "'xs' is a list of 3, but .* a sequence of 2"),
        (([x], {"a": ONE}), "'xs' is a list of 1"),
        (([x, x], {"a": ONE, "b": ONE}), "'more' is a dict with 'a', 'b'"),
        (([x, x], {"b": ONE}), "'more' is a dict with 'b'"),
        (([x, x[0]], {"a": ONE}), r"'xs\[1\]' has 3 axes"),
    ]:
        with pytest.raises(uo.UpscaleError, match=word):
            model(*call)


def test_more_by_place_and_by_name() -> None:
    x = images()
    given = (x, None, False, 1.0, (2, 2), ONE, ONE)
    masked, model = pruned(Optional(2), given)
    torch.testing.assert_close(model(*given), masked(*given))
    with pytest.raises(uo.UpscaleError, match=r"'\*rest' is a tuple of 1"):
        model(*given[:-1])


def test_guards_survive_all_that_models_go_through(tmp_path: Path) -> None:
    original = Optional(3).eval()
    done = uo.prune(original, images(), amount=0.4)
    uo.save(done.model, tmp_path / "pruned.safetensors")
    buffer = io.BytesIO()
    torch.save(done.model, buffer)
    buffer.seek(0)
    in_place, export = copy.deepcopy(done.masked), copy.deepcopy(done.model)
    assert isinstance(export, PrunedModule)
    replace(in_place, export)
    again = uo.prune(done.model, images(), amount=0.3)
    models = {
        "copied": copy.deepcopy(done.model),
        "pickled": pickle.loads(pickle.dumps(done.model)),
        "torch.save": torch.load(buffer, weights_only=False),
        "loaded": uo.load(Optional(3).eval(), tmp_path / "pruned.safetensors"),
        "in place": in_place,
        "twice": again.model,
        "compiled": torch.compile(done.model, backend="eager"),
    }
    for model in models.values():
        model(images(3))
        with pytest.raises(uo.UpscaleError, match="'flag' is True"):
            model(images(), flag=True)


@pytest.mark.parametrize(
    ("name", "where"),
    [("graph", "enter"), ("solution", "enter"), ("meta", "weight"), ("class", "weight")],
)
def test_names_that_are_taken(name: str, where: str) -> None:
    class Named(Around):
        def __init__(self) -> None:
            super().__init__(0)
            if where == "enter":
                self.add_module(name, nn.Conv2d(3, 3, 1))
            else:
                self.register_parameter(name, nn.Parameter(torch.rand(3, 1, 1)))

        def forward(self, x: Tensor) -> Tensor:
            own = getattr(self, name)
            y: Tensor = self.leave(self.enter(own(x) if where == "enter" else own * x).relu())
            return y

    done = uo.prune(Named().eval(), images(), amount=0.4)
    x = images(3)
    torch.testing.assert_close(done.model(x), done.masked(x))
    names = {key.partition(".")[0] for key in done.model.state_dict()}
    assert (name if name == "solution" else f"{name}_") in names


def _called(*arguments: str) -> nn.Module:
    """A model whose arguments have these names; all but the first are factors by default."""
    rest = "".join(f", {name}=1.0" for name in arguments[1:])
    more = "".join(f" * {name}" for name in arguments[1:])
    space: dict[str, Any] = {"Around": Around}
    exec(
        f"def forward(me, {arguments[0]}{rest}):\n"
        f"    y = me.enter({arguments[0]}).relu(){more}\n"
        f"    return me.leave(y[:, :, 1:].clamp(max=9.0).roll(1, 1))",
        space,
    )
    return type("Called", (Around,), {"forward": space["forward"]})(0)  # type: ignore[no-any-return]


@pytest.mark.parametrize("capture", ["fx", "export"])
@pytest.mark.parametrize(
    "names",
    [
        ("torch",),
        ("x", "torch"),
        ("device", "inf", "nan"),
        ("pytree", "fx_pytree", "NoneType"),
        ("getattr", "slice", "max"),
        ("me_", "torch_", "torch"),
        ("operator", "math", "forward"),
        ("args", "device", "program"),
    ],
)
def test_arguments_called_as_the_code_calls_others(
    names: tuple[str, ...], capture: Literal["fx", "export"]
) -> None:
    model: Any = _called(*names).eval()
    x, more = images(), dict.fromkeys(names[1:], 2.0)
    with torch.no_grad():
        model.leave.weight[:, 1] = 0
    program = run_as(model, (x,), more, capture)
    solution = uo.solve(program.graph, uo.masks_of(model, program.graph))
    first = uo.materialize(model, solution)
    again = uo.prune(first, {names[0]: x, **more}).model
    for export in (first, copy.deepcopy(first), pickle.loads(pickle.dumps(first)), again):
        torch.testing.assert_close(export(x, **more), model(x, **more))
        torch.testing.assert_close(export(**{names[0]: x}, **more), model(x, **more))
        if more and capture == "export":
            with pytest.raises(
                uo.UpscaleError,
                match=f"input '{names[1]}' is left at its default|input '{names[1]}' is 1.0",
            ):
                export(x)


def test_own_assertions_are_kept() -> None:
    class Asserting(Around):
        def forward(self, x: Tensor) -> Tensor:
            torch._assert(x.shape[2] < 20, f"too high: {x.shape[2]}")
            y: Tensor = self.leave(self.enter(x).relu())
            return y

    masked, model = pruned(Asserting(0), images())
    x = images(1, 16)
    torch.testing.assert_close(model(x), masked(x))
    with pytest.raises(AssertionError, match="too high"):
        model(images(1, 24))


def _dropout(model: Any, x: Tensor) -> Tensor:
    return functional.dropout(x, 0.5, model.training)


def _harmless(model: Any, x: Tensor) -> Tensor:
    return functional.dropout(x, model.p if model.training else 0.0)


@pytest.mark.parametrize(("middle", "said"), [(_dropout, True), (_harmless, False)])
def test_a_fixed_mode_is_said(middle: Callable[[Any, Tensor], Tensor], said: bool) -> None:
    class Middle(Around):
        p = 0.0

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.leave(middle(self, self.enter(x).relu()))
            return y

    _, model = pruned(Middle(0), images())
    for own in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            own.eval()
            assert not caught
            own.train()
        assert [str(w.message).partition(",")[0] for w in caught] == said * [
            "the code of Middle asks for its mode (as functional dropout does)"
        ]


def test_wrapped_and_quantised_models_are_named() -> None:
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    spread = nn.DataParallel(plain)
    spread.device_ids = [0, 1]
    with pytest.raises(uo.TraceError, match=r"'0' is a DataParallel.*give its \.module"):
        uo.trace(nn.Sequential(spread, nn.Linear(8, 8)), torch.randn(2, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantise: Any = torch.ao.quantization.quantize_dynamic
        quantised = quantise(plain, {nn.Linear}, torch.qint8)
    with pytest.raises(uo.TraceError, match=r"module '0' is quantised.*before quantising"):
        uo.trace(quantised, torch.randn(2, 8))
