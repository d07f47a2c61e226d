"""What tracing claims of calls is so: every rule, on real data, for random shapes and arguments."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from comparing import EXACT, call, deviation
from drawn_calls import Draws, Shape, Tried
from perturbation import FalseClaim, check_claims
from torch import Tensor, nn
from tried_calls import CALLS

import upscale_opt as uo
from upscale_opt.ir import graph as ir
from upscale_opt.solver.algorithms.identity import heuristic_outcome
from upscale_opt.solver.algorithms.registry import SOLVERS
from upscale_opt.solver.problem.instance import Instance, Outcome
from upscale_opt.tracing.recent import remember
from upscale_opt.tracing.running import run_as
from upscale_opt.tracing.unchanged import reseed


class Around(nn.Module):
    """Calls with layers before and behind, so that all channels between are free."""

    def __init__(self, tried: Tried) -> None:
        super().__init__()
        self.run = tried.run
        self.parts = nn.Module()
        for name, part in tried.parts.items():
            if isinstance(part, (nn.Module, nn.Parameter)):
                setattr(self.parts, name, part)
            else:
                self.parts.register_buffer(name, part)
        self.stems = nn.ModuleList(_layer(shape, tried.axis, before=True) for shape in tried.shapes)
        self.heads = nn.ModuleList()
        self.double()
        with torch.no_grad():
            found = self._calls([torch.randn(s, dtype=torch.float64) for s in tried.shapes])
        self.train(tried.training)
        self.headed = [_takes_a_head(leaf) for leaf in found]
        self.heads = nn.ModuleList(
            _layer(tuple(leaf.shape), tried.axis, before=False)
            for leaf, headed in zip(found, self.headed, strict=True)
            if headed
        ).double()

    def _calls(self, tensors: list[Tensor]) -> list[Tensor]:
        result = self.run(self.parts, *tensors)
        return list(result) if isinstance(result, (list, tuple)) else [result]

    def forward(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        found = self._calls([stem(inputs[i]) for i, stem in enumerate(self.stems)])
        heads = iter(self.heads)
        return [
            next(heads)(leaf) if headed else leaf
            for leaf, headed in zip(found, self.headed, strict=True)
        ]


CONV = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
IN, OUT = 3, 2
"""Channels of the network's inputs and outputs."""


def _layer(shape: Shape, axis: int, before: bool) -> nn.Module:
    if len(shape) in CONV and axis == 1:
        sizes = (IN, shape[1]) if before else (shape[1], OUT)
        return CONV[len(shape)](*sizes, 1)
    return nn.Linear(IN, shape[-1]) if before else nn.Linear(shape[-1], OUT)


def _takes_a_head(leaf: Tensor) -> bool:
    return leaf.dtype == torch.float64 and 2 <= leaf.ndim <= 5 and leaf.numel() > 0


def describe(graph: ir.ChannelGraph) -> str:
    """The kinds of the operations between stems and heads, and what they claim besides."""
    found = []
    for op in graph.operations:
        if op.kind in ("input", "output") or op.name.startswith(("stems_", "heads_")):
            continue
        text: str = op.kind
        if isinstance(op, ir.ChannelWise):
            text += ", zero" if op.keeps_zero else ""
            roles = " ".join(use.role for use in op.parameters)
            text += f": {roles}" if roles else ""
        elif isinstance(op, ir.Elementwise):
            text = "sum" if op.additive else f"elementwise {op.zero_if}"
        found.append(text)
    return "; ".join(found)


# The tests.


def built(name: str, d: Draws, seed: int) -> tuple[Around, tuple[Any, ...], str]:
    """A model around some calls, inputs for it, and what tracing should find."""
    reseed(seed)
    kinds, tries = CALLS[name]
    tried = tries(d)
    model = Around(tried)
    randomize(model)
    shapes = [(s[0], IN, *s[2:]) if tried.axis == 1 else (*s[:-1], IN) for s in tried.shapes]
    args = ([torch.randn(shape, dtype=torch.float64) for shape in shapes],)
    return model, args, kinds if tried.kinds is None else tried.kinds


def randomize(model: nn.Module) -> None:
    """No zeros, no ones; variances are positive."""
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5)
                if not name.endswith("_var"):
                    value.mul_(torch.randint_like(value, 0, 2) * 2 - 1)


def zero(model: nn.Module, graph: ir.ChannelGraph, rng: random.Random) -> None:
    """Zero some slices of parameters, along either of their first two axes."""
    uses = (use for op in graph.operations for use in getattr(op, "parameters", ()))
    divisors = {use.name for use in uses if use.role == "neutral"}
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if not value.is_floating_point() or name in divisors:
                continue
            for axis in range(min(value.ndim, 2)):
                size = value.shape[axis]
                gone = [i for i in range(size) if rng.random() < 0.4]
                if axis == 1 < size and not gone:  # let no reader want everything
                    gone = [rng.randrange(size)]
                value.index_fill_(axis, torch.tensor(gone, dtype=torch.long), 0)


def shuffled(instance: Instance, **options: Any) -> Outcome:
    """A solver that finds other orders than any sensible one: random ones."""
    rng = random.Random(len(instance.reads))
    orders = tuple(
        space.channels if space.fixed else tuple(rng.sample(space.channels, len(space.channels)))
        for space in instance.spaces
    )
    return heuristic_outcome(instance, orders)


DRAWING = ("dropout() in training", "dropout of channels in training", "alpha dropout")
"""What draws random numbers, and others for fewer channels: there is nothing to compare."""


def tries_of(name: str) -> Iterator[tuple[Around, tuple[Any, ...], str, random.Random, bool]]:
    """Three models around the calls of that name, the same ones every time.

    The last may have axes of size one, which tracing could mistake for others, and then need
    not understand.
    """
    seeds = random.Random(name)
    for plain in (True, True, False):
        seed = seeds.randrange(1 << 20)
        print(f"seed {seed}, plain {plain}")  # for whoever looks into a failure
        rng = random.Random(seed)
        yield (*built(name, Draws(rng, 2 if plain else 1), seed), rng, plain)


@pytest.mark.parametrize("name", CALLS)
def test_claims_and_exports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims hold, and so do exports, whatever is zero, and in whatever order channels are."""
    monkeypatch.setitem(SOLVERS, "shuffled", shuffled)
    rows_gone = 0
    for number, (model, args, kinds, rng, plain) in enumerate(tries_of(name)):
        if number == 1 and rows_gone:
            continue  # the first shows enough
        program = run_as(model, args, {}, "fx")
        if plain:
            assert describe(program.graph) == kinds
        check_claims(model, program, args)
        remember(model, program)
        solvers = ("cp-sat", "shuffled") if number == 0 else ("shuffled",)
        rows_gone += check_exports(name, model, program.graph, args, rng, solvers)
    if not set(CALLS[name][0].split("; ")) & {"opaque", "symmetric"}:
        assert rows_gone > 0


def check_exports(
    name: str,
    model: nn.Module,
    graph: uo.ChannelGraph,
    args: tuple[Any, ...],
    rng: random.Random,
    solvers: Sequence[str],
) -> int:
    """Compare exports with the model, some of which is zero now; how many rows are gone?"""
    zero(model, graph, rng)
    want = outputs(model, args)
    if not all(bool(leaf.isfinite().all()) for leaf in want):
        return 0  # 1 / 0: nothing to compare with
    masks = uo.masks_of(model, graph)
    for solver in solvers:
        pruned = uo.materialize(model, uo.solve(graph, masks, solver=solver))
        got = outputs(pruned, args)
        assert name in DRAWING or deviation(want, got) < EXACT
    rows = {key: len(weight) for key, weight in model.named_parameters() if "stems" in key}
    left = {key: len(weight) for key, weight in pruned.named_parameters() if "stems" in key}
    return sum(rows[key] - left[key] for key in left)


def outputs(model: nn.Module, args: tuple[Any, ...]) -> list[Tensor]:
    """What the model computes, in the mode it is in."""
    reseed(0)
    return list(call(copy.deepcopy(model), args))


# Claims that are not so must be found out.


def with_(**changes: Any) -> Callable[[Any], Any]:
    return lambda op: op.model_copy(update=changes)


def as_channelwise(op: Any) -> Any:
    return ir.ChannelWise(name=op.name, inputs=op.inputs, outputs=op.outputs, keeps_zero=False)


def as_symmetric(op: Any) -> Any:
    axes = {"inputs": op.inputs, "outputs": op.outputs}
    return ir.Symmetric(name=op.name, reduces=True, **axes)


def as_concat(op: Any) -> Any:
    return ir.Concat(name=op.name, inputs=op.inputs, outputs=op.outputs)


def with_roles(role: str) -> Callable[[Any], Any]:
    return lambda op: op.model_copy(
        update={"parameters": tuple(use.model_copy(update={"role": role}) for use in op.parameters)}
    )


def backwards(key: str) -> Callable[[Any], Any]:
    return lambda op: op.model_copy(update={key: tuple(reversed(getattr(op, key)))})


LIES: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "a sigmoid keeps zeros": ("x.sigmoid()", with_(keeps_zero=True), "is zero if"),
    "adding one keeps zeros": ("x + 1", with_(keeps_zero=True), "is zero if"),
    "a roll leaves channels alone": ("roll of channels", as_channelwise, "moves that channel"),
    "a softmax does not mix": ("softmax over channels", as_channelwise, "moves that channel"),
    "a join is the other way round": ("cat of channels", backwards("inputs"), "joins its inputs"),
    "a join without positions": ("cat and shuffle", as_concat, "joins its inputs"),
    "a flip the other way round": ("flip of channels", backwards("positions"), "takes these"),
    "a difference is a sum": ("x - y", with_(additive=True), "it is the sum"),
    "a sum of different shapes": (
        "x + y of a channel's mean",
        with_(additive=True),
        "of one shape",
    ),
    "a sum is zero where one term is": ("x + y", with_(zero_if="any"), "is zero if"),
    "a quotient is zero where both are": ("x / y", with_(zero_if="all"), "is zero if"),
    "a shift is a scale": ("tokens + (C,)", with_roles("scale"), "is zero if"),
    "a scale is a shift": ("x * (C,)", with_(parameters=()), "in the order"),
    "a mean is neutral": ("batch norm", with_roles("neutral"), "is zero if"),
    "a norm without parameters": ("layer norm", with_(parameters=()), "in the order"),
    "a norm in one group": ("group norm", with_(groups=1), "in the order"),
    "a cumulative sum has no order": ("cumsum over channels", as_symmetric, "in the order"),
    "a layer without bias": ("linear", with_(bias=None), "is zero if"),
    "a convolution in one group": ("grouped convolution", with_(groups=1), "one slice per channel"),
    "a depthwise convolution's bias is a scale": (
        "depthwise convolution",
        with_roles("scale"),
        "is zero if",
    ),
}
"""What to say of which call, and what the checker should answer."""


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_found_out(lie: str) -> None:
    name, change, answer = LIES[lie]
    found = 0
    for seed in range(12):
        model, args, _ = built(name, Draws(random.Random(seed), 2), seed)
        program = run_as(model, args, {}, "fx")
        check_claims(model, program, args)
        operations = [
            op
            if op.kind in ("input", "output") or op.name.startswith(("stems_", "heads_"))
            else change(op)
            for op in program.graph.operations
        ]
        if operations == list(program.graph.operations):
            continue  # there is no bias to leave out
        lying = program.graph.model_copy(update={"operations": tuple(operations)})
        with pytest.raises(FalseClaim, match=re.escape(answer)):
            check_claims(model, program, args, lying)
        found += 1
        if found == 2:
            return
    pytest.fail("there was nothing to lie about")


def test_orders_that_must_be_kept_are_not_free() -> None:
    model, args, _ = built("cumsum over channels", Draws(random.Random(0), 2), 0)
    program = run_as(model, args, {}, "fx")
    free = tuple(space.model_copy(update={"fixed": None}) for space in program.graph.spaces)
    with pytest.raises(FalseClaim, match="is said to be free"):
        check_claims(model, program, args, program.graph.model_copy(update={"spaces": free}))
