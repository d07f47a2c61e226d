"""Arguments not given at the trace, or no longer given; and containers of another length."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from hazard_networks import Around, drawn, images, resized
from hazards import Builder, Call, Case, holds, variants
from torch import Tensor, nn


class Optional(Around):
    def forward(
        self,
        x: Tensor,
        mask: Any = None,
        flag: bool = False,
        scale: float = 1.0,
        *rest: Any,
        **named: Any,
    ) -> Any:
        assert self.middle is not None
        y = self.enter(x)
        return self.leave(self.middle(self, y, mask, flag, scale, rest, named))


class ByNameOnly(Around):
    def forward(
        self, x: Tensor, *, mask: Any = None, flag: bool = False, scale: float = 1.0
    ) -> Any:
        assert self.middle is not None
        return self.leave(self.middle(self, self.enter(x), mask, flag, scale, (), {}))


def optional(
    middle: Callable[..., Any], *later: dict[str, Any], traced: dict[str, Any] | None = None
) -> Builder:
    """Traced with some optional arguments, called with others."""

    def build(rng: random.Random) -> Case:
        kind = rng.choice([Optional, ByNameOnly])
        if any(set(call) - {"mask", "flag", "scale"} for call in later):
            kind = Optional
        x = images(rng)
        chosen = dict(traced or {})
        calls = [Call("another batch", (resized(rng, x, 3),), chosen, right=True)]
        calls.append(Call("nothing but the image", (x,), right=not traced))
        for given in later:
            words = ", ".join(f"{key}={value!r:.30}" for key, value in given.items())
            calls.append(Call(words, (resized(rng, x, rng.choice([2, 3])),), given))
            if kind is Optional and list(given) == ["mask"]:
                calls.append(Call(f"by place, {words}", (x, given["mask"])))
        inputs: Any = {"x": x, **chosen} if chosen else x
        return Case(drawn(lambda r: kind(r, middle), rng), inputs, calls)

    return build


ONE = torch.ones(1, 1, 1, 1, dtype=torch.float64)
HALF = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)

OPTIONAL: dict[str, Builder] = {
    "a mask": optional(
        lambda m, y, mask, flag, scale, r, n: y if mask is None else y * mask, {"mask": HALF}
    ),
    "a sum with one": optional(
        lambda m, y, mask, flag, scale, r, n: y + (0 if mask is None else mask), {"mask": ONE}
    ),
    "a default mask made": optional(
        lambda m, y, mask, flag, scale, r, n: y * (torch.ones_like(y) if mask is None else mask),
        {"mask": HALF},
    ),
    "a flag": optional(
        lambda m, y, mask, flag, scale, r, n: y.flip(1) if flag else y, {"flag": True}, {"flag": 1}
    ),
    "a flag that returns more": optional(
        lambda m, y, mask, flag, scale, r, n: torch.cat([y, y], 2) if flag else y, {"flag": True}
    ),
    "a scale": optional(
        lambda m, y, mask, flag, scale, r, n: y * scale, {"scale": 2.0}, {"scale": 0.0}
    ),
    "a shift": optional(
        lambda m, y, mask, flag, scale, r, n: y + (scale - 1), {"scale": 2}, {"scale": 0.5}
    ),
    "an unused argument": optional(
        lambda m, y, mask, flag, scale, r, n: y * 2, {"mask": HALF}, {"scale": 3.0}
    ),
    "two at once": optional(
        lambda m, y, mask, flag, scale, r, n: (y if mask is None else y + mask) * scale,
        {"mask": HALF, "scale": 3.0},
        {"scale": 3.0},
    ),
    "a layer behind a flag": optional(
        lambda m, y, mask, flag, scale, r, n: m.more.gate(y) if flag else y + m.more.gate(y) * 0,
        {"flag": True},
    ),
    "given, then not": optional(
        lambda m, y, mask, flag, scale, r, n: y if mask is None else y * mask,
        {"mask": HALF},
        {"mask": None},
        traced={"mask": HALF * 3},
    ),
    "a flag given, then not": optional(
        lambda m, y, mask, flag, scale, r, n: y.flip(1) if flag else y * 2,
        {"flag": False},
        traced={"flag": True},
    ),
    "a scale given, then not": optional(
        lambda m, y, mask, flag, scale, r, n: y + scale, {"scale": 0.5}, traced={"scale": 0.0}
    ),
    "more by name": optional(
        lambda m, y, mask, flag, scale, r, n: y * n["extra"] if "extra" in n else y, {"extra": 2.0}
    ),
    "more by name, counted": optional(
        lambda m, y, mask, flag, scale, r, n: y * (1 + len(n)), {"extra": 2.0}, {"other": HALF}
    ),
    "a name with a default in the code": optional(
        lambda m, y, mask, flag, scale, r, n: y + n.get("shift", 0), {"shift": 1.5}
    ),
}


def _more_by_place(rng: random.Random) -> Case:
    """More arguments by place."""
    x = images(rng)
    calls = [
        Call("another batch", (resized(rng, x, 3),), right=True),
        Call("a fifth argument", (x, None, False, 1.0, HALF)),
        Call("two more", (x, None, False, 1.0, HALF, ONE)),
    ]
    make = drawn(lambda r: Optional(r, lambda m, y, a, f, s, rest, n: y + sum(rest)), rng)
    return Case(make, x, calls)


OPTIONAL["more by place"] = _more_by_place


class Defaulted(nn.Module):
    """A tensor as a default argument."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, rng.randint(2, 4), 1)

    def forward(self, x: Tensor, shift: Tensor = HALF) -> Tensor:
        y: Tensor = self.last(torch.relu(self.first(x) + shift))
        return y


class NamedMe(nn.Module):
    """Arguments under names that the code we write might use itself."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, rng.randint(2, 4), 1)

    def forward(self, me: Tensor, torch: Any = None, math: Any = 1.0) -> Tensor:
        y = self.first(me).relu() * math
        z: Tensor = self.last(y if torch is None else y + torch)
        return z


class NamedOtherwise(NamedMe):
    def forward(self, input: Tensor, device: Any = None, inf: Any = 1.0, nan: Any = 0) -> Tensor:
        y: Tensor = self.last((self.first(input).relu() * inf).roll(1, 1).clamp(max=2.0) + nan)
        return y


class NamedLikeModules(NamedMe):
    def forward(self, first: Tensor, last: Any = None, operator: Any = 0.5) -> Tensor:
        y = self.first(first).relu() * operator
        z: Tensor = self.last(y.view(y.size(0), -1, *y.shape[2:]))
        return z


def _plain(kind: Callable[[random.Random], nn.Module], *more: Any, **named: Any) -> Builder:
    def build(rng: random.Random) -> Case:
        x = images(rng)
        calls = [Call("another batch", (resized(rng, x, 3), *more), right=True)]
        calls += [Call(f"{k} by name", (x,), {k: v}) for k, v in named.items()]
        return Case(drawn(kind, rng), (x, *more) if more else x, calls)

    return build


OPTIONAL |= {
    "a tensor by default": _plain(Defaulted, shift=ONE),
    "a tensor by default, given": _plain(Defaulted, ONE, shift=HALF),
    "called me and torch": _plain(NamedMe, torch=ONE),
    "called me and torch, given": _plain(NamedMe, HALF, 2.0, torch=ONE),
    "called input and device": _plain(NamedOtherwise, inf=2.0),
    "called like modules": _plain(NamedLikeModules, operator=2.0),
}


@variants("arguments not given", OPTIONAL)
def test_arguments_not_given(builder: Builder, seed: int) -> None:
    holds(builder, seed)


# P: containers of another length.


class Contained(Around):
    """Takes a container, and makes one activation of it."""

    def __init__(self, rng: random.Random, gather: Callable[[Any, Any], Tensor]) -> None:
        super().__init__(rng, lambda m, x, y: y)
        self.gather = gather

    def forward(self, xs: Any) -> Any:
        return self.leave(torch.tanh(self.gather(self, xs)))


def contained(
    gather: Callable[[Any, Any], Tensor], pack: Callable[[list[Tensor]], Any], *lengths: int
) -> Builder:
    """Traced with two tensors in a container, called with other numbers of them."""

    def build(rng: random.Random) -> Case:
        x = images(rng)

        def several(count: int, batch: int) -> Any:
            return pack([resized(rng, x, batch) for _ in range(count)])

        calls = [Call("another batch", (several(2, 3),), right=True)]
        calls += [Call(f"{length} tensors", (several(length, 2),)) for length in lengths]
        return Case(drawn(lambda r: Contained(r, gather), rng), (several(2, 2),), calls)

    return build


KEYS = ("a", "b", "c", "d")
CONTAINED: dict[str, Builder] = {
    "a list summed": contained(lambda m, xs: sum(m.enter(x) for x in xs), list, 3, 1),
    "a list's first": contained(lambda m, xs: m.enter(xs[0]), list, 3, 1),
    "a list's last": contained(lambda m, xs: m.enter(xs[-1]), list, 3, 1),
    "a list stacked": contained(lambda m, xs: m.enter(torch.stack(xs).sum(0)), list, 3, 4, 1),
    "a list concatenated": contained(lambda m, xs: m.enter(torch.cat(xs)), list, 3, 1),
    "a list counted": contained(lambda m, xs: m.enter(xs[0]) / len(xs), list, 3, 1),
    "a tuple": contained(lambda m, xs: sum(m.enter(x) for x in xs), tuple, 3, 1),
    "a tuple unpacked": contained(
        lambda m, xs: (lambda first, *rest: m.enter(first) + sum(rest).mean(1, True))(*xs),
        tuple,
        3,
    ),
    "a dict's values": contained(
        lambda m, xs: sum(m.enter(x) for x in xs.values()),
        lambda ts: dict(zip(KEYS, ts, strict=False)),
        3,
        1,
    ),
    "a dict's key": contained(
        lambda m, xs: m.enter(xs["a"]) + m.more.side(xs.get("c", xs["b"])),
        lambda ts: dict(zip(KEYS, ts, strict=False)),
        3,
        1,
    ),
    "a key looked for": contained(
        lambda m, xs: m.enter(xs["a"]) + (m.more.side(xs["c"]) if "c" in xs else 0),
        lambda ts: dict(zip(KEYS, ts, strict=False)),
        3,
    ),
    "an ordered dict": contained(
        lambda m, xs: sum(m.enter(x) * (i + 1) for i, x in enumerate(xs.values())),
        lambda ts: OrderedDict(zip(KEYS, ts, strict=False)),
        3,
    ),
    "a dict in another order": contained(
        lambda m, xs: sum(m.enter(x) * (i + 1) for i, x in enumerate(xs.values())),
        lambda ts: dict(zip(KEYS if len(ts) < 3 else "cba", ts, strict=False)),
        3,
    ),
    "a list in a list": contained(
        lambda m, xs: sum(m.enter(x) for x in xs[0]) * len(xs[1]), lambda ts: [ts, ts[1:]], 3, 1
    ),
    "a list in a dict": contained(
        lambda m, xs: sum(m.enter(x) for x in xs["images"]), lambda ts: {"images": ts}, 3, 1
    ),
    "none among them": contained(
        lambda m, xs: sum(m.enter(x) for x in xs if x is not None),
        lambda ts: [*ts[:1], None, *ts[1:]] if len(ts) == 2 else ts,
        3,
    ),
}


@variants("P", CONTAINED)
def test_containers_of_another_length(builder: Builder, seed: int) -> None:
    holds(builder, seed)
