"""State: what calls leave in attributes, what hooks leave, and what a trace leaves in a model."""

from __future__ import annotations

import collections
import copy
import functools
import pickle
import random
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hazard_networks import Around, drawn, images, resized
from hazards import Builder, Call, Case, difference, holds, variants
from torch import nn

import upscale_opt as uo


class Stateful(Around):
    """Something in the middle, with attributes to work on."""

    counter = 0

    def __init__(
        self,
        rng: random.Random,
        middle: Callable[..., Any],
        prepare: Callable[[Any], object] = lambda m: None,
    ) -> None:
        super().__init__(rng, middle)
        self.feats: dict[Any, Any] = {}
        self.seen: list[Any] = []
        self.nothing: Any = None
        prepare(self)


def stateful(
    middle: Callable[..., Any],
    prepare: Callable[[Any], object] = lambda m: None,
    *,
    honest: bool = False,
    warm: bool = False,
) -> Builder:
    """Called again and again; with ``warm``, once before the trace, too."""

    def build(rng: random.Random) -> Case:
        x = images(rng)
        seed = rng.getrandbits(32)

        def make() -> nn.Module:
            kind = type("Stateful", (Stateful,), {"counter": 0})
            model: nn.Module = kind(random.Random(seed), middle, prepare)
            if warm:
                with torch.no_grad():
                    model.double().eval()(x)
            return model

        calls = [
            Call("again", (x,), right=honest),
            Call("another batch", (resized(rng, x, 3),), right=honest),
            Call("another size", (resized(rng, x, 2, (1, 2)),)),
            Call("the first again", (x,), right=honest),
        ]
        return Case(make, x, calls, honest, stateful=True)

    return build


# K: state in attributes.


def _number(m: Any, x: Any, y: Any) -> Any:
    m.n = getattr(m, "n", 0) + 1
    return y * m.n


def _has(m: Any, x: Any, y: Any) -> Any:
    if hasattr(m, "last"):
        return y + m.last
    m.last = 1.0
    return y * 2


def _none(m: Any, x: Any, y: Any) -> Any:
    if m.nothing is None:
        m.nothing = 3.0
        return y
    return y * m.nothing


def _entry(m: Any, x: Any, y: Any) -> Any:
    m.feats["n"] = m.feats.get("n", 0) + 1
    return y + m.feats["n"]


def _appended(m: Any, x: Any, y: Any) -> Any:
    m.seen.append(1)
    return y * len(m.seen)


def _dict(m: Any, x: Any, y: Any) -> Any:
    m.__dict__["k"] = m.__dict__.get("k", 0) + 1
    return y - m.__dict__["k"]


def _class(m: Any, x: Any, y: Any) -> Any:
    type(m).counter += 1
    return y * type(m).counter


def _inner(m: Any, x: Any, y: Any) -> Any:
    m.space.n += 1
    return y * m.space.n


def _of_layer(m: Any, x: Any, y: Any) -> Any:
    m.writer.calls = getattr(m.writer, "calls", 0) + 1
    return y * m.writer.calls


def _flag(m: Any, x: Any, y: Any) -> Any:
    m.flag = not getattr(m, "flag", False)
    return y.flip(1) if m.flag else y * 2


def _tensor(m: Any, x: Any, y: Any) -> Any:
    before = getattr(m, "before", None)
    m.before = y.mean()
    return y if before is None else y + before


def _sized_cache(m: Any, x: Any, y: Any) -> Any:
    key = x.shape[2]
    if key not in m.feats:
        m.feats[key] = torch.linspace(-1, 1, key, dtype=torch.float64).view(1, 1, -1, 1)
    return y + m.feats[key]


def _buffer(m: Any, x: Any, y: Any) -> Any:
    m.count += 1
    return y * m.count


def _buffer_anew(m: Any, x: Any, y: Any) -> Any:
    m.count = m.count + 1
    return y + m.count


def _buffers(m: Any, x: Any, y: Any) -> Any:
    m.inner.count *= 2
    m.inner.count += 1
    m.mean *= 0.9
    m.mean += 0.1 * y.mean((0, 2, 3))
    return y * m.inner.count - m.mean[:, None, None]


def _after(m: Any, x: Any, y: Any) -> Any:
    y = y * m.count
    m.count -= 1
    return y


def _statistics(m: Any) -> None:
    m.inner = nn.Module()
    m.inner.register_buffer("count", torch.zeros((), dtype=torch.int64))
    m.register_buffer("mean", torch.zeros(m.width))


def _counter(m: Any) -> None:
    m.register_buffer("count", torch.zeros(()))


def _generated(m: Any, x: Any, y: Any) -> Any:
    return y * next(m.numbers)


def _popped(m: Any, x: Any, y: Any) -> Any:
    return y * m.rest.pop()


def _deleted(m: Any, x: Any, y: Any) -> Any:
    if hasattr(m, "once"):
        del m.once
        return y.flip(1)
    return y * 2


def _closure(m: Any) -> None:
    calls = [0]

    def tick() -> int:
        calls[0] += 1
        return calls[0]

    m.tick = tick


def _set(name: str, value: Callable[[], Any]) -> Callable[[Any], object]:
    return lambda m: setattr(m, name, value())


ATTRIBUTES: dict[str, Builder] = {
    "a number": stateful(_number),
    "an attribute that is there later": stateful(_has),
    "none": stateful(_none),
    "an entry": stateful(_entry),
    "a list": stateful(_appended),
    "the dict itself": stateful(_dict),
    "the class": stateful(_class),
    "an object": stateful(_inner, _set("space", lambda: types.SimpleNamespace(n=0))),
    "a layer's": stateful(_of_layer),
    "a flag": stateful(_flag),
    "a tensor": stateful(_tensor),
    "a cache by size": stateful(_sized_cache),
    "a cache by size, warm": stateful(_sized_cache, warm=True),
    "a buffer in place": stateful(_buffer, _counter, honest=True),
    "buffers in place": stateful(_buffers, _statistics, honest=True),
    "a buffer in place, read before": stateful(_after, _counter, honest=True),
    "a buffer anew": stateful(_buffer_anew, _counter),
    "a generator": stateful(_generated, _set("numbers", lambda: iter(range(1, 99)))),
    "a stack": stateful(_popped, _set("rest", lambda: [5.0, 4.0, 3.0, 2.0, 1.0, 7.0, 8.0, 9.0])),
    "deleted": stateful(_deleted, _set("once", lambda: 1)),
    "a closure": stateful(lambda m, x, y: y * m.tick(), _closure),
    "a number, warm": stateful(_number, warm=True),
    "a counter": stateful(
        lambda m, x, y: y * _counted(m.counts), _set("counts", collections.Counter)
    ),
}


def _counted(counts: Any) -> int:
    counts["calls"] += 1
    return int(counts["calls"])


@variants("K", ATTRIBUTES)
def test_state_in_attributes(builder: Builder, seed: int) -> None:
    holds(builder, seed)


@pytest.mark.parametrize("middle", [(_buffer, _counter), (_buffers, _statistics)])
def test_copies_update_buffers(middle: Any, tmp_path: Path) -> None:
    x = images(random.Random(0))
    make = drawn(lambda rng: Stateful(rng, *middle), random.Random(1))
    model = make().double().eval()
    export = uo.prune(model, x, amount=0.4).model
    uo.save(export, tmp_path / "file.safetensors")
    pickled = pickle.loads(pickle.dumps(export))
    uo.save(pickled, tmp_path / "again.safetensors")
    copies = [
        copy.deepcopy(export),
        pickled,
        uo.load(make().double().eval(), tmp_path / "file.safetensors"),
        uo.prune(export, x).model,
    ]
    want = [export(x), export(x), export(x)]
    assert not torch.equal(want[0], want[2])
    for other in copies:
        assert not difference(want, [other(x), other(x), other(x)], 1e-10)


# L: features left by hooks.


def _keep(key: Any) -> Callable[[Any], object]:
    def prepare(m: Any) -> None:
        m.writer.register_forward_hook(lambda mod, args, y: m.feats.__setitem__(key, y))

    return prepare


def _keep_input(m: Any) -> None:
    m.reader.register_forward_pre_hook(lambda mod, args: m.feats.__setitem__("y", args[0]))


def _keep_attribute(m: Any) -> None:
    m.writer.register_forward_hook(lambda mod, args, y: setattr(m, "kept", y))


def _keep_on_layer(m: Any) -> None:
    m.writer.register_forward_hook(lambda mod, args, y: setattr(mod, "kept", y))


def _keep_list(m: Any) -> None:
    m.writer.register_forward_hook(lambda mod, args, y: m.seen.append(y))


def _keep_mean(m: Any) -> None:
    m.writer.register_forward_hook(lambda mod, args, y: m.feats.__setitem__("n", y.mean()))


FEATURES: dict[str, Builder] = {
    f"{name}, {'warm' if warm else 'cold'}": stateful(middle, prepare, warm=warm)
    for name, (middle, prepare) in {
        "an entry": (lambda m, x, y: y + m.feats["y"].flip(1), _keep("y")),
        "an entry of another key": (lambda m, x, y: torch.cat([y, m.feats[0]], 2), _keep(0)),
        "an attribute": (lambda m, x, y: y * m.kept.mean(), _keep_attribute),
        "a layer's attribute": (lambda m, x, y: y - m.writer.kept, _keep_on_layer),
        "the last of a list": (lambda m, x, y: y + m.seen[-1], _keep_list),
        "taken out of a list": (lambda m, x, y: y + m.seen.pop(), _keep_list),
        "a mean": (lambda m, x, y: y * m.feats["n"], _keep_mean),
        "only if there": (lambda m, x, y: y + m.feats.get("y", 0), _keep("y")),
        "of the call before": (
            lambda m, x, y: y * m.feats["y"].mean() if m.feats else y * 2,
            _keep_input,
        ),
    }.items()
    for warm in (True, False)
}


@variants("L", FEATURES)
def test_features_left_by_hooks(builder: Builder, seed: int) -> None:
    holds(builder, seed)


# U: the trace changes the model.


def _history(m: Any, x: Any, y: Any) -> Any:
    m.history.append(y)
    return y


def _grouped(m: Any, x: Any, y: Any) -> Any:
    m.groups["y"].append(y.shape)
    return y


def _tally(m: Any, x: Any, y: Any) -> Any:
    m.tally["calls"] += 1
    return y


def _weak(m: Any, x: Any, y: Any) -> Any:
    m.weak[m.writer] = y
    return y


def _logged(m: Any, x: Any, y: Any) -> Any:
    m.log.add(str(tuple(y.shape)))
    return y


def _helper(cache: Callable[[Any], Any]) -> Callable[[Any], object]:
    """A helper that remembers the tensors it made."""

    def prepare(m: Any) -> None:
        m.table = cache(
            lambda size: torch.linspace(0, 1, size, dtype=torch.float64).view(1, 1, 1, -1)
        )

    return prepare


def _by_dict(make: Callable[[int], Any]) -> Callable[[int], Any]:
    made: dict[int, Any] = {}

    def get(size: int) -> Any:
        if int(size) not in made:
            made[int(size)] = make(size)
        return made[int(size)]

    return get


def _by_list(make: Callable[[int], Any]) -> Callable[[int], Any]:
    made: list[Any] = []

    def get(size: int) -> Any:
        if not made:
            made.append(make(7))
        return made[0][..., :1]

    return get


CHANGED: dict[str, Builder] = {
    "a deque": stateful(_history, _set("history", lambda: collections.deque(maxlen=3))),
    "a default dict": stateful(_grouped, _set("groups", lambda: collections.defaultdict(list))),
    "a counter": stateful(_tally, _set("tally", collections.Counter)),
    "a weak dict": stateful(_weak, _set("weak", weakref.WeakKeyDictionary)),
    "a set": stateful(_logged, _set("log", set)),
    "a cached helper": stateful(
        lambda m, x, y: y * m.table(x.shape[3]), _helper(functools.lru_cache(maxsize=None))
    ),
    "a cached helper of a constant": stateful(
        lambda m, x, y: y + m.table(1), _helper(functools.lru_cache(maxsize=None)), honest=True
    ),
    "a dict in a closure": stateful(lambda m, x, y: y * m.table(x.shape[3]), _helper(_by_dict)),
    "a dict in a closure, of a constant": stateful(
        lambda m, x, y: y + m.table(1), _helper(_by_dict), honest=True
    ),
    "a list in a closure": stateful(lambda m, x, y: y * m.table(5), _helper(_by_list)),
    "a cached helper, warm": stateful(
        lambda m, x, y: y * m.table(x.shape[3]),
        _helper(functools.lru_cache(maxsize=None)),
        warm=True,
    ),
    "a counting hook": stateful(
        lambda m, x, y: y,
        lambda m: m.writer.register_forward_hook(lambda *a: m.seen.append(1)),
    ),
    "a hook on the root": stateful(
        lambda m, x, y: y, lambda m: m.register_forward_hook(lambda *a: m.seen.append(1))
    ),
}


@variants("U", CHANGED)
def test_the_trace_leaves_the_model_alone(builder: Builder, seed: int) -> None:
    holds(builder, seed)
