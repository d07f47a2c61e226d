"""What torch.export captured takes inputs as it was captured for, and says so of others."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import upscale_opt as uo


class Assigns(nn.Module):
    """What torch.fx does not capture: it modifies a tensor in place through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 8), nn.Linear(8, 4)

    def body(self, x: Tensor) -> Tensor:
        y = self.first(x).clone()
        y[:, 0].zero_()
        return self.last(y.relu())  # type: ignore[no-any-return]


class One(Assigns):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) / x.shape[1]


class Several(Assigns):
    def forward(self, *xs: Tensor) -> Tensor:
        return self.body(xs[0])


class Named(Assigns):
    def forward(self, **given: Tensor) -> Tensor:
        return self.body(given["x"])


class Nested(Assigns):
    def forward(self, x: dict[str, Tensor], more: list[Tensor]) -> Tensor:
        return self.body(x["x"] + more[0])


class Sum(Assigns):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.body(x + y)


class Even(Assigns):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if x.shape[0] % 2 == 0 else self.body(2 * x)


class Large(Assigns):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if x.shape[0] > 2 else self.body(2 * x)


class Scaled(Assigns):
    def forward(self, x: Tensor, scale: float, flag: bool) -> Tensor:
        return self.body(x) * scale if flag else self.body(x)


def tokens(batch: int, length: int = 7) -> Tensor:
    return torch.randn(batch, length, 16)


def exported(model: nn.Module, inputs: Any) -> tuple[nn.Module, nn.Module]:
    done = uo.prune(model.eval(), inputs, amount=0.5)
    assert done.solution.capture == "export"
    return done.masked, done.model


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(uo.ArgumentError, match=r"torch\.export captured this model for") as caught:
        call()
    return str(caught.value)


def test_other_sizes_are_refused_and_other_batches_are_right() -> None:
    masked, pruned = exported(One(), tokens(2))
    for batch in (1, 5):
        x = tokens(batch)
        torch.testing.assert_close(pruned(x), masked(x))
    message = refusal(lambda: pruned(tokens(2, 9)))
    assert message == (
        "input 'x' has size 9 along axis 1, but torch.export captured this model for 7 alone; "
        "trace the model with inputs of these sizes"
    )
    assert "'x' has 4 axes" in refusal(lambda: pruned(torch.randn(2, 7, 1, 16)))
    with pytest.raises(uo.VerificationError, match="pruned model does not run on these inputs"):
        uo.verify(masked, pruned, tokens(2, 9))


def test_a_batch_of_one_is_explained() -> None:
    _, pruned = exported(One(), tokens(1))
    message = refusal(lambda: pruned(tokens(3)))
    assert "size 3 along axis 0" in message
    assert "for 1 alone" in message
    assert "batch of two or more for a model that takes any batch" in message


@pytest.mark.parametrize(
    ("model", "inputs", "good", "bad", "name"),
    [
        (Several(), (tokens(2),), (tokens(5),), (tokens(2, 8),), "xs[0]"),
        (Named(), {"x": tokens(2)}, {"x": tokens(5)}, {"x": tokens(2, 8)}, "given['x']"),
        (
            Nested(),
            ({"x": tokens(2)}, [tokens(2)]),
            ({"x": tokens(5)}, [tokens(5)]),
            ({"x": tokens(5)}, [tokens(5, 8)]),
            "more[0]",
        ),
        (Sum(), (tokens(2), tokens(2)), (tokens(3), tokens(3)), (tokens(3), tokens(1)), "y"),
        (Sum(), (tokens(2), tokens(1)), (tokens(3), tokens(1)), (tokens(3), tokens(3)), "y"),
        (Even(), (tokens(2),), (tokens(2),), (tokens(3),), "x"),
        (Large(), (tokens(4),), (tokens(4),), (tokens(2),), "x"),
        (
            Scaled(),
            (tokens(2), 2.0, True),
            (tokens(3), 2.0, True),
            (tokens(3), 3.0, True),
            "scale",
        ),
        (
            Scaled(),
            {"x": tokens(2), "scale": 2.0, "flag": True},
            {"x": tokens(3), "scale": 2.0, "flag": True},
            {"x": tokens(3), "scale": 2.0, "flag": False},
            "flag",
        ),
    ],
    ids=[
        "args",
        "kwargs",
        "nested",
        "equal batches",
        "broadcast",
        "even batch",
        "large batch",
        "number",
        "flag",
    ],
)
def test_what_inputs_may_be(model: nn.Module, inputs: Any, good: Any, bad: Any, name: str) -> None:
    masked, pruned = exported(model, inputs)

    def call(module: nn.Module, given: Any) -> Tensor:
        return module(**given) if isinstance(given, dict) else module(*given)  # type: ignore[no-any-return]

    torch.testing.assert_close(call(pruned, good), call(masked, good))
    assert f"input {name!r} " in refusal(lambda: call(pruned, bad))


def test_copies_files_and_traces_refuse_the_same(tmp_path: Path) -> None:
    model = One()
    _, pruned = exported(model, tokens(2))
    uo.save(pruned, tmp_path / "pruned.safetensors")
    likes = {
        "copy": copy.deepcopy(pruned),
        "pickle": pickle.loads(pickle.dumps(pruned)),
        "file": uo.load(One().eval(), tmp_path / "pruned.safetensors"),
        "fx": fx.symbolic_trace(pruned),
        "compiled": torch.compile(pruned, backend="eager"),
    }
    x = tokens(3)
    for like in likes.values():
        torch.testing.assert_close(like(x), pruned(x))
        assert "size 9 along axis 1" in refusal(partial(like, tokens(3, 9)))
    program = torch.export.export(
        pruned, (tokens(2),), dynamic_shapes=({0: torch.export.Dim.AUTO},)
    )
    torch.testing.assert_close(program.module()(x), pruned(x))


def test_pruned_again_and_within_another_model(tmp_path: Path) -> None:
    _, pruned = exported(One(), tokens(2))
    again = uo.prune(pruned, tokens(2), amount=0.3)
    assert again.solution.capture == "fx"
    assert "size 9 along axis 1" in refusal(lambda: again.model(tokens(3, 9)))
    torch.testing.assert_close(again.model(x := tokens(3)), again.masked(x))
    uo.save(again.model, tmp_path / "again.safetensors")
    loaded = uo.load(One().eval(), tmp_path / "again.safetensors")
    assert "size 9 along axis 1" in refusal(lambda: loaded(tokens(3, 9)))

    around = nn.Sequential(nn.Linear(5, 16), pruned, nn.Linear(4, 3)).eval()
    whole = uo.prune(around, torch.randn(2, 7, 5), amount=0.5)
    assert "size 9 along axis 1" in refusal(lambda: whole.model(torch.randn(2, 9, 5)))
    x = torch.randn(3, 7, 5)
    torch.testing.assert_close(whole.model(x), whole.masked(x))


def test_what_fx_captured_takes_any_size() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    done = uo.prune(model, tokens(1), amount=0.5)
    torch.testing.assert_close(done.model(x := tokens(3, 9)), done.masked(x))
