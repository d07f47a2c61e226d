"""A captured program is believed if it does what the model does; nothing happens to the model."""

from __future__ import annotations

import collections
import dataclasses
import functools
import random
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.materializing.pruned_module import replace
from upscale_opt.tracing.differences import differing
from upscale_opt.tracing.numbering import Numbering, Numbers
from upscale_opt.tracing.running import run
from upscale_opt.tracing.unchanged import unchanged

Middle = Callable[[Any, Tensor, Tensor], Any]


class Around(nn.Module):
    """Something between two convolutions, of drawn widths."""

    feats: Any
    pos: Any

    def __init__(self, middle: Middle, seed: int) -> None:
        super().__init__()
        width = 2 * random.Random(seed).randint(3, 5)
        self.enter, self.leave = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 4, 1)
        self.middle = middle

    def forward(self, x: Tensor) -> Any:
        y = self.middle(self, x, self.enter(x).relu())
        return self.leave(y) if isinstance(y, Tensor) or hasattr(y, "node") else y


def images(batch: int = 2, size: int = 8) -> Tensor:
    return torch.randn(batch, 3, size, size)


def right_or_refused(model: nn.Module, prepare: Callable[[nn.Module], None] | None = None) -> str:
    """Prune and compare on other batches and sizes; how the model was captured, or why not."""
    model.eval()
    try:
        done = uo.prune(model, images(), amount=0.4)
    except uo.UpscaleError as error:
        return str(error)
    for batch, size in [(2, 8), (3, 8), (2, 12), (1, 16), (2, 8)]:
        x = images(batch, size)
        want = done.masked(x)
        try:
            got = done.model(x)
        except uo.UpscaleError:
            continue
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    return done.solution.capture


def _tried(x: Any) -> int:
    try:
        return int(x.shape[2])
    except Exception:
        return 1


LOOKS: dict[str, Middle] = {
    "isinstance": lambda m, x, y: y * 2 if isinstance(x, Tensor) else y,
    "is_tensor": lambda m, x, y: y.flip(1) if torch.is_tensor(y) else y,
    "type": lambda m, x, y: y * 2 if type(x) is Tensor else y,
    "hasattr": lambda m, x, y: y if hasattr(x, "no_such_thing") else y * 2,
    "identity": lambda m, x, y: y * 2 if y.shape[1] is y.shape[1] else y,
    "dict": lambda m, x, y: y * {8: 2.0, 12: 3.0}.get(x.shape[2], 1.0),
    "set": lambda m, x, y: y * 2 if x.dim() in {4} else y,
    "text": lambda m, x, y: y * 2 if str(x.device) == "cpu" else y,
    "part of a text": lambda m, x, y: y * {"8x": 2.0}.get(f"{x.shape[2]}x", 1.0),
    "part of a text, later": lambda m, x, y: y * {"4x": 2.0}.get(f"{x.shape[2]}x", 1.0),
    "try": lambda m, x, y: y * _tried(x),
    "gradients": lambda m, x, y: y * 2 if torch.is_grad_enabled() else y,
    "compiling": lambda m, x, y: y * 2 if torch.compiler.is_compiling() else y,
    "number of axes": lambda m, x, y: y * 2 if isinstance(x.ndim, int) else y,
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", LOOKS)
def test_looks_at_values(name: str, seed: int) -> None:
    right_or_refused(Around(LOOKS[name], seed))


def _counts(m: Any, x: Tensor, y: Tensor) -> Any:
    m.n = getattr(m, "n", 0) + 1
    return y * m.n


def _last(m: Any, x: Tensor, y: Tensor) -> Any:
    z = y + m.last if hasattr(m, "last") else y
    m.last = y
    return z


def _entry(m: Any, x: Tensor, y: Tensor) -> Any:
    z = y * 2 if "k" in m.state else y
    m.state["k"] = 1
    return z


def _none(m: Any, x: Tensor, y: Tensor) -> Any:
    z = y if m.once is None else y * 2
    m.once = 1
    return z


def _of_the_class(m: Any, x: Tensor, y: Tensor) -> Any:
    Around.calls = getattr(Around, "calls", 0) + 1  # type: ignore[attr-defined]
    return y * Around.calls  # type: ignore[attr-defined]


def _queue(m: Any, x: Tensor, y: Tensor) -> Any:
    m.queue.append(y)
    return y * len(m.queue)


def _object(m: Any, x: Tensor, y: Tensor) -> Any:
    m.space.n += 1
    return y * m.space.n


STATES: dict[str, tuple[Middle, dict[str, Any]]] = {
    "absent": (_counts, {}),
    "the last": (_last, {}),
    "an entry": (_entry, {"state": {}}),
    "none": (_none, {"once": None}),
    "a class": (_of_the_class, {}),
    "a queue": (_queue, {"queue": collections.deque(maxlen=3)}),
    "an object": (_object, {"space": types.SimpleNamespace(n=0)}),
    "a generator": (lambda m, x, y: y * next(m.numbers), {"numbers": iter(range(1, 99))}),
    "python's chance": (lambda m, x, y: y * random.random(), {}),
    "numpy's chance": (lambda m, x, y: y * float(np.random.rand()), {}),
}


@pytest.mark.parametrize("name", STATES)
def test_state_that_makes_a_difference_is_refused(name: str) -> None:
    middle, attributes = STATES[name]
    model = Around(middle, 0).eval()
    vars(model).update(attributes)
    before = {key: repr(value) for key, value in vars(model).items()}
    chance = random.getstate(), repr(np.random.get_state())
    with pytest.raises(uo.TraceError, match="cannot be traced"):
        uo.trace(model, images())
    if name != "a generator":  # which nobody can put back
        assert {key: repr(value) for key, value in vars(model).items()} == before
    assert (random.getstate(), repr(np.random.get_state())) == chance
    assert not hasattr(Around, "calls")


def _cached(m: Any, x: Tensor, y: Tensor) -> Any:
    if m.pos is None:
        m.pos = torch.arange(float(m.enter.out_channels)).reshape(1, -1, 1, 1)
    return y + m.pos


def test_a_cache_makes_no_difference() -> None:
    model = Around(_cached, 1)
    model.pos = None
    assert right_or_refused(model) == "fx"
    assert model.pos is None


@functools.lru_cache
def helper(count: int) -> Tensor:
    return torch.ones(count)


def test_cached_helpers_keep_nothing() -> None:
    helper.cache_clear()

    def middle(m: Any, x: Tensor, y: Tensor) -> Any:
        z = torch.zeros_like(y)
        z[:, 0].fill_(1)  # only torch.export can follow this, on fake tensors
        return y + z * helper(m.enter.out_channels).reshape(1, -1, 1, 1)

    assert right_or_refused(Around(middle, 0)) == "export"
    assert type(helper(7)) is Tensor
    assert type(helper(8)) is Tensor


@pytest.mark.parametrize("warm", [False, True])
def test_features_left_by_hooks(warm: bool) -> None:
    class Hooked(Around):
        def __init__(self) -> None:
            super().__init__(lambda m, x, y: m.feats["y"].relu(), 0)
            self.feats = {}
            self.enter.register_forward_hook(
                lambda module, given, result: self.feats.__setitem__("y", result)
            )

    model = Hooked().eval()
    if warm:
        with torch.no_grad():
            model(images())
    left = dict(model.feats)
    try:
        graph = uo.trace(model, images())
    except uo.TraceError:
        pass
    else:
        pruned = uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))
        x = images()
        torch.testing.assert_close(pruned(x), model(x))
        model.feats.clear()
        model.feats.update(left)
    assert model.feats == left


def _patched(model: Around) -> None:
    old = model.enter.forward
    model.enter.forward = lambda x: 2 * old(x)  # type: ignore[method-assign, assignment]


def _low_rank(model: Around) -> None:
    more, old = nn.Conv2d(3, model.enter.out_channels, 1), model.enter.forward
    model.enter.forward = lambda x: old(x) + more(x)  # type: ignore[method-assign, assignment]


def _at_the_root(model: Around) -> None:
    old = model.forward
    model.forward = lambda x: old(x) * 3  # type: ignore[method-assign]


@pytest.mark.parametrize("patch", [_patched, _low_rank, _at_the_root])
def test_patched_forwards_share_nothing(patch: Callable[[Around], None]) -> None:
    model = Around(lambda m, x, y: y, 0).eval()
    patch(model)
    x = images()
    graph = uo.trace(model, x)
    pruned = uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))
    want = model(x)
    torch.testing.assert_close(pruned(x), want)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(pruned(x), want)


def test_a_call_of_its_own() -> None:
    class Doubling(Around):
        def __call__(self, x: Tensor) -> Any:
            return super().__call__(x + 1) * 2

    assert right_or_refused(Doubling(lambda m, x, y: y, 0)) == "fx"
    model = Doubling(lambda m, x, y: y, 0).eval()
    x = images()
    want = model(x)
    graph = uo.trace(model, x)
    replace(model, uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph))))
    assert isinstance(model, Doubling)
    torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5)


def test_parameters_that_torch_fx_does_not_see_are_followed() -> None:
    model = Around(lambda m, x, y: y * sum(p.abs().sum() for p in m.parameters()), 0).eval()
    x = images()
    graph = uo.trace(model, x)
    assert graph.capture == "export"
    with torch.no_grad():
        model.enter.weight[:2] = 0
        model.enter.bias[:2] = 0  # type: ignore[index]
    pruned = uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))
    torch.testing.assert_close(pruned(x), model(x), rtol=1e-4, atol=1e-5)


def test_random_numbers_are_drawn_at_each_call() -> None:
    model = Around(lambda m, x, y: y + torch.randn(1, m.enter.out_channels, 1, 1), 0).eval()
    x = images()
    graph = uo.trace(model, x)
    pruned = uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))
    outputs: list[Tensor] = []
    for one in (model, pruned, model, pruned):
        torch.manual_seed(len(outputs) // 2)
        outputs.append(one(x))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs[3], outputs[2], rtol=1e-4, atol=1e-5)
    assert not torch.equal(outputs[0], outputs[2])


class Frozen(dict[str, int]):
    """Like the configurations of diffusers."""

    frozen = False

    def update(self, *given: Any, **named: Any) -> None:
        raise TypeError("frozen")

    clear = pop = update  # type: ignore[assignment]

    def __setitem__(self, key: str, value: int) -> None:
        if self.frozen:
            raise TypeError("frozen")
        super().__setitem__(key, value)


def test_frozen_attributes_are_left_alone() -> None:
    model = Around(lambda m, x, y: y * m.config["factor"], 0).eval()
    model.config = Frozen(factor=2)  # type: ignore[assignment]
    model.config.frozen = True  # type: ignore[union-attr]
    assert uo.trace(model, images()).capture == "fx"


@dataclasses.dataclass
class Output:
    y: Tensor
    count: int


class Special(collections.OrderedDict[str, Tensor]):
    pass


def test_results_keep_their_structure() -> None:
    model = Around(lambda m, x, y: Output(m.leave(y), 3), 0).eval()
    graph = uo.trace(model, images())
    pruned = uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))
    found = pruned(images())
    assert type(found) is Output
    assert found.count == 3
    with pytest.raises(uo.TraceError, match="Special"):
        uo.trace(Around(lambda m, x, y: Special(y=m.leave(y)), 0).eval(), images())


def test_numbers_tell_computations_apart() -> None:
    table: dict[Any, int] = {}

    def numbered(function: Callable[[Tensor], Tensor]) -> int:
        numbers, x = Numbers(table), torch.randn(2, 3)
        numbers.name(x, "x")
        with Numbering(numbers):
            result = function(x)
        return numbers.of(result)

    def in_place(x: Tensor) -> Tensor:
        y = x * 2
        y[0].add_(1)
        return y

    functions: list[Callable[[Tensor], Tensor]] = [
        lambda x: x * 2,
        lambda x: x * 2.0,
        lambda x: x * 3,
        lambda x: x.sum(-1),
        lambda x: x.sum(-2),
        lambda x: x + torch.tensor(2.0),
        lambda x: x + torch.tensor(3.0),
        lambda x: x + torch.randn(3),
        lambda x: x + torch.randn(3) + torch.randn(3),
        in_place,
    ]
    found = [numbered(function) for function in functions]
    assert len(set(found)) == len(found)
    assert [numbered(function) for function in functions] == found


def test_differences_are_named() -> None:
    def same(a: Tensor, b: Tensor) -> bool:
        return torch.equal(a, b)

    x = torch.ones(2)
    assert differing({"a": [x, 1, None]}, {"a": [x.clone(), 1, None]}, same) is None
    assert differing({"a": [x, 1]}, {"a": [x + 1, 1]}, same) == "the result['a'][0]"
    assert differing({"a": [x, 1]}, {"a": [x, 2]}, same) == "the result['a'][1]"
    assert "a tuple instead of a list" in str(differing([x], (x,), same))
    assert "keys are ['b']" in str(differing({"a": x}, {"b": x}, same))
    assert differing(Output(x, 1), Output(x, 2), same) == "the result.count"
    assert differing(float("nan"), float("nan"), same) is None


def test_everything_is_put_back() -> None:
    held: dict[str, Any] = {
        "queue": collections.deque([1, 2]),
        "space": types.SimpleNamespace(held=[1]),
        "table": {"a": {1, 2}},
    }
    model = Around(lambda m, x, y: y, 0)
    vars(model).update(held)
    with unchanged(model) as snapshot:
        assert snapshot.touched() == []
        held["queue"].append(3)
        held["space"].held.clear()
        held["table"]["a"].add(3)
        vars(model)["new"] = 1
        assert sorted(snapshot.touched()) == ["new", "queue", "space.held", "table.a"]
    assert list(held["queue"]) == [1, 2]
    assert held["space"].held == [1]
    assert held["table"] == {"a": {1, 2}}
    assert not hasattr(model, "new")


def test_attention_is_compared_whole() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    program = run(model, (torch.randn(2, 5, 8),), {})
    assert program.captured.kind == "fx"
    assert program.captured.apart
