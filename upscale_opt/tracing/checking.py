"""Try rules on the calls of a model: a rule that claims too much is found out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from upscale_opt.errors import RuleError
from upscale_opt.tracing.claims import (
    ChannelWiseClaim,
    Claim,
    ElementwiseClaim,
    LayerClaim,
    OpaqueClaim,
    Sizes,
    SymmetricClaim,
    argument,
    check_layer,
    check_sizes,
    held_by,
    resize,
    roles,
)
from upscale_opt.tracing.copying import copied
from upscale_opt.tracing.examples import Inputs, as_call, map_tensors, require_model
from upscale_opt.tracing.program import Program
from upscale_opt.tracing.rules import Call, Rule, to_meta
from upscale_opt.tracing.running import run
from upscale_opt.tracing.unchanged import reseed, same_random_state

_EXACT = 1e-9
"""The relative deviation allowed in float64."""

_SAMPLES = 6
"""The number of channels that are tried one by one."""


def check_rules(model: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """Test what the registered rules claim on every call of their targets that ``model`` makes.

    Each call is repeated in float64 with single channels changed or zero, and with some of the
    channels in another order, parameters and sizes adapted as in a pruned model.

    Args:
        model: any that :func:`upscale_opt.trace` captures. It is not changed.
        inputs: as for :func:`upscale_opt.trace`, but real: the calls are made on what they give.

    Returns:
        The names of the calls that were tested.

    Raises:
        RuleError: naming the first rule, call and claim that does not hold; or if the model makes
            no call that a rule is for.
        TraceError: if the model cannot be captured.
    """
    require_model(model, "trace")
    program = run(model, *as_call(inputs))
    if not program.ruled:
        raise RuleError(
            f"{type(model).__name__} makes no call that a rule is for. Rules for modules and "
            "functions need a model that torch.fx can capture; functions that are kept in closures "
            "or containers are looked into"
        )
    names: list[str] = []
    with torch.no_grad(), same_random_state(model, inputs):
        for trial in _recorded(program, inputs):
            with trial.rule.blamed(trial.name):
                _check(trial)
            names.append(trial.name)
    return tuple(names)


@dataclass
class _Trial:
    """One call as it was made.

    Attributes:
        name: the call's.
        rule: the rule for it.
        target: the module or function.
        args: the positional arguments, in float64.
        kwargs: the keyword arguments.
        parameters: the ids of those tensors among the arguments that are the model's own.
    """

    name: str
    rule: Rule
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    parameters: set[int]
    random: torch.Tensor = field(default_factory=torch.random.get_rng_state)

    @property
    def module(self) -> nn.Module | None:
        return self.target if isinstance(self.target, nn.Module) else None

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The activations among the arguments, each once."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        found = {id(v): v for v in leaves if isinstance(v, torch.Tensor)}
        return [v for key, v in found.items() if key not in self.parameters]

    def parameter(self, name: str) -> torch.Tensor | None:
        """One of its parameters by the name that a claim gives it."""
        if self.module is not None:
            return held_by(self.module, name)
        found = argument(self.target, self.args, self.kwargs, name)
        return found if isinstance(found, torch.Tensor) else None

    def again(
        self,
        tensors: Sequence[torch.Tensor],
        parameters: dict[str, torch.Tensor],
        sizes: Sizes | None = None,
    ) -> torch.Tensor:
        """The result of the same call on other activations and parameters."""
        swapped = {id(old): new.clone() for old, new in zip(self.tensors, tensors, strict=True)}
        target = copied(self.target) if self.module is not None else self.target
        for name, new in parameters.items():
            if isinstance(target, nn.Module):
                owner, _, leaf = name.rpartition(".")
                holder = target.get_submodule(owner)
                old = getattr(holder, leaf)
                setattr(holder, leaf, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
            else:
                swapped[id(self.parameter(name))] = new
        if sizes is not None and isinstance(target, nn.Module):
            resize(target, self.rule.resize, sizes)
        args, kwargs = map_tensors((self.args, self.kwargs), lambda t: swapped.get(id(t), t))
        torch.random.set_rng_state(self.random)
        try:
            result = target(*args, **kwargs)
        except Exception as error:
            what = "in float64" if sizes is None else f"with {sizes.inputs} channels"
            raise RuleError(f"fails {what}: {type(error).__name__}: {error}") from None
        if not isinstance(result, torch.Tensor):
            what = type(result).__name__
            raise RuleError(f"returns no tensor but a {what}; rules are for calls that return one")
        return result


def _recorded(program: Program, inputs: Inputs) -> list[_Trial]:
    """Run the captured program, and note the calls that rules are for, with their arguments."""
    captured = program.captured
    ruled = {node.name: rule for node, rule in program.ruled.items()}
    root: dict[str, Any] = copied({**captured.modules, **captured.tensors})
    for value in root.values():
        if isinstance(value, nn.Module):
            value.double()
        elif value.is_floating_point():
            value.data = value.data.double()
    trials: list[_Trial] = []

    def noting(name: str, target: Callable[..., Any]) -> Callable[..., Any]:
        def note(*args: Any, **kwargs: Any) -> Any:
            given, named = map_tensors((args, kwargs), lambda t: t if id(t) in own else t.clone())
            trials.append(_Trial(name, ruled[name], target, given, named, own))
            return target(*args, **kwargs)

        return note

    own = {id(value) for value in root.values() if isinstance(value, torch.Tensor)}
    graph = copy.deepcopy(captured.graph)
    for node in graph.nodes:
        if node.name in ruled:
            if node.op == "call_module":
                target = root[node.target]
            elif node.op == "call_method":
                target = getattr(torch.Tensor, str(node.target))
            else:
                target = node.target
            node.op, node.target = "call_function", noting(node.name, target)
    args, kwargs = map_tensors(
        as_call(inputs), lambda t: t.double() if t.is_floating_point() else t
    )
    fx.GraphModule(root, graph)(*args, **kwargs)
    return trials


def _check(trial: _Trial) -> None:
    tensors = trial.tensors
    if not tensors:
        return
    result = trial.again(tensors, {})
    if not bool(result.isfinite().all()):
        raise RuleError("cannot be tested: the call gives what is not finite; give other inputs")
    args, kwargs = map_tensors((trial.args, trial.kwargs), to_meta)
    call = Call(trial.module, args, kwargs, tuple(to_meta(t) for t in tensors), to_meta(result))
    claim = trial.rule.claim(call)
    if isinstance(claim, OpaqueClaim):
        return
    check_sizes(claim, [tuple(t.shape) for t in tensors], tuple(result.shape))
    reseed(0)
    if isinstance(claim, LayerClaim):
        _check_layer(trial, claim, result)
    elif isinstance(claim, ElementwiseClaim):
        _check_elementwise(trial, claim, result)
    else:
        _check_per_channel(trial, claim, result)


def _check_per_channel(
    trial: _Trial, claim: ChannelWiseClaim | SymmetricClaim, result: torch.Tensor
) -> None:
    first, *others = trial.tensors
    axis, size = claim.axis, trial.tensors[0].shape[claim.axis]
    reduces = isinstance(claim, SymmetricClaim) and claim.reduces
    written = size if reduces else result.shape[claim.out_axis]
    given = {name: trial.parameter(name) for name in claim.parameters}
    held = {name: value for name, value in given.items() if value is not None}
    shapes = {name: tuple(value.shape) for name, value in held.items()}
    uses = roles(claim.parameters, shapes, written)
    each = written // size

    def narrowed(channels: list[int]) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        elements = _elements(channels, each)
        parts = {name: _pick(held[name], uses[name][1], elements) for name in held}
        return [_pick(first, axis, channels), *others], parts

    for channels in _orders(size, claim):
        groups = claim.groups if isinstance(claim, SymmetricClaim) else 1
        sizes = Sizes(len(channels), len(channels) * each, groups)
        expected = result if reduces else _pick(result, claim.out_axis, _elements(channels, each))
        got = trial.again(*narrowed(channels), sizes)
        what = "in another order" if len(channels) == size else "alone"
        _same(expected, got, f"{_of(claim)}, but treats channels {channels} {what} differently")
    for channel in _sample(size):
        elements = _elements([channel], each)
        if isinstance(claim, ChannelWiseClaim):
            changed = trial.again([_noisy(first, axis, channel), *others], {})
            rest = [i for i in range(written) if i not in elements]
            out = claim.out_axis
            _same(
                _pick(result, out, rest),
                _pick(changed, out, rest),
                f"{_of(claim)}, but channel {channel} moves others",
            )
        _check_zeros(trial, claim, channel, elements, held, uses)


def _check_zeros(
    trial: _Trial,
    claim: ChannelWiseClaim | SymmetricClaim,
    channel: int,
    elements: list[int],
    held: dict[str, torch.Tensor],
    uses: dict[str, tuple[Any, int]],
) -> None:
    """Zero channels, and zero scales, make zeros where shifts are zero."""
    if isinstance(claim, SymmetricClaim) and claim.reduces:
        return
    first, *others = trial.tensors

    def without(*gone: str) -> dict[str, torch.Tensor]:
        return {
            name: _zeroed(held[name], axis, elements)
            for name, (role, axis) in uses.items()
            if role in gone
        }

    if isinstance(claim, ChannelWiseClaim) and claim.keeps_zero:
        zeroed = _zeroed(first, claim.axis, [channel])
        for parameters in (without("shift", "mean"), without("shift", "mean", "neutral")):
            got = trial.again([zeroed, *others], parameters)
            which = "" if len(parameters) < len(uses) else " where its parameters are zero, too"
            what = f"claims to keep zeros, but channel {channel} is none afterwards"
            _zero(_pick(got, claim.out_axis, elements), what + (which if parameters else ""))
    scales = [name for name, (role, _) in uses.items() if role == "scale"]
    if isinstance(claim, ChannelWiseClaim) and not claim.keeps_zero:
        scales = []
    for scale in scales:
        parameters = without("shift")
        parameters[scale] = _zeroed(held[scale], uses[scale][1], elements)
        got = trial.again(trial.tensors, parameters)
        _zero(
            _pick(got, claim.out_axis, elements),
            f"claims that {scale!r} is a scale, but where it is zero, channel {channel} is not",
        )


def _check_layer(trial: _Trial, claim: LayerClaim, result: torch.Tensor) -> None:
    first, *others = trial.tensors
    weight = trial.parameter(claim.weight)
    bias = None if claim.bias is None else trial.parameter(claim.bias)
    if weight is None:
        raise RuleError(f"names the weight {claim.weight!r}, which is None")
    size, written = first.shape[claim.axis], result.shape[claim.out_axis]
    shape = None if bias is None else tuple(bias.shape)
    check_layer(claim, tuple(weight.shape), shape, size, written)

    def some(rows: list[int], value: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {claim.weight: value}
        if bias is not None and claim.bias is not None:
            found[claim.bias] = _pick(bias, 0, rows)
        return found

    for columns, rows in zip(
        _within(size, claim.groups), _within(written, claim.groups), strict=True
    ):
        value = weight
        for along, kept in ((claim.reads, columns), (claim.writes, rows)):
            if claim.groups > 1 and along == 1:  # the same slices of every group
                kept = kept[: len(kept) // claim.groups]
            value = _pick(value, along, kept)
        there = torch.zeros(size, dtype=torch.bool)
        there[columns] = True
        masked = _zeroed(first, claim.axis, (~there).nonzero().flatten().tolist())
        full = trial.again([masked, *others], {})
        got = trial.again(
            [_pick(first, claim.axis, columns), *others],
            some(rows, value),
            Sizes(len(columns), len(rows), claim.groups),
        )
        _same(
            _pick(full, claim.out_axis, rows),
            got,
            f"{_of(claim)}, but with channels {columns} to {rows} alone it computes something else",
        )
    if claim.groups > 1:
        return
    for row in _sample(written):
        emptied = {claim.weight: _zeroed(weight, claim.writes, [row])}
        if bias is not None and claim.bias is not None:
            emptied[claim.bias] = _zeroed(bias, 0, [row])
        _zero(
            _pick(trial.again(trial.tensors, emptied), claim.out_axis, [row]),
            f"{_of(claim)}, but where weight and bias are zero, channel {row} is not",
        )
    for channel in _sample(size):
        deaf = {claim.weight: _zeroed(weight, claim.reads, [channel])}
        want = trial.again(trial.tensors, deaf)
        got = trial.again([_noisy(first, claim.axis, channel), *others], deaf)
        _same(want, got, f"{_of(claim)}, but reads channel {channel} where its weight is zero")


def _check_elementwise(trial: _Trial, claim: ElementwiseClaim, result: torch.Tensor) -> None:
    tensors, axis = trial.tensors, claim.axis
    size = tensors[0].shape[axis]
    for channels in _orders(size, claim):
        got = trial.again(
            [_pick(t, axis, channels) for t in tensors], {}, Sizes(len(channels), len(channels))
        )
        what = f"{_of(claim)}, but treats channels {channels} alone differently"
        _same(_pick(result, axis, channels), got, what)
    for channel in _sample(size):
        rest = [i for i in range(size) if i != channel]
        for number, tensor in enumerate(tensors):
            changed = list(tensors)
            changed[number] = _noisy(tensor, axis, channel)
            _same(
                _pick(result, axis, rest),
                _pick(trial.again(changed, {}), axis, rest),
                f"{_of(claim)}, but channel {channel} of tensor {number} moves others",
            )
        tried: list[list[int]] = {
            "any": [[number] for number in range(len(tensors))],
            "all": [list(range(len(tensors)))],
            "never": [],
        }[claim.zero_if]
        for zero in tried:
            zeroed = [
                _zeroed(t, axis, [channel]) if n in zero else t for n, t in enumerate(tensors)
            ]
            got = trial.again(zeroed, {})
            which = f"that of tensor {zero[0]}" if claim.zero_if == "any" else "all are"
            _zero(
                _pick(got, axis, [channel]),
                f"claims zeros if {claim.zero_if} are, but channel {channel} is not if {which}",
            )


# Helpers.


def _of(claim: Claim) -> str:
    names = {
        ChannelWiseClaim: "be channelwise",
        SymmetricClaim: "be symmetric",
        LayerClaim: "be a layer",
        ElementwiseClaim: "be elementwise",
    }
    return f"claims to {names[type(claim)]}"


def _orders(size: int, claim: Claim) -> list[list[int]]:
    """Channels to try, in this order: some of them, if some may go; else all."""
    if isinstance(claim, SymmetricClaim):
        return _within(size, claim.groups, every=True)
    return _within(size, 1)


def _within(size: int, groups: int, *, every: bool = False) -> list[list[int]]:
    """Random channels, as many and the same ones of every group (or all), group after group."""
    width = size // groups
    found = []
    for _ in range(2):
        count = width if every else max(1, (2 * width) // 3)
        chosen = torch.randperm(width)[:count].tolist()
        found.append([group * width + channel for group in range(groups) for channel in chosen])
    return found


def _sample(size: int) -> list[int]:
    return sorted(torch.randperm(size)[:_SAMPLES].tolist())


def _elements(channels: Sequence[int], each: int) -> list[int]:
    return [channel * each + i for channel in channels for i in range(each)]


def _pick(tensor: torch.Tensor, axis: int, indices: Sequence[int]) -> torch.Tensor:
    return tensor.index_select(axis, _index(tensor, indices))


def _zeroed(tensor: torch.Tensor, axis: int, indices: Sequence[int]) -> torch.Tensor:
    return tensor.index_fill(axis, _index(tensor, indices), 0)


def _index(tensor: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
    return torch.tensor(list(indices), dtype=torch.long, device=tensor.device)


def _noisy(tensor: torch.Tensor, axis: int, channel: int) -> torch.Tensor:
    """``tensor`` with something else in one channel."""
    changed = tensor.clone()
    part = changed.select(axis, channel)
    part.copy_(part + torch.rand_like(part) + 0.5)
    return changed


def _same(want: torch.Tensor, got: torch.Tensor, what: str) -> None:
    if want.shape != got.shape:
        raise RuleError(f"{what}: the shape is {tuple(got.shape)} instead of {tuple(want.shape)}")
    if want.numel() == 0:
        return
    scale = max(float(want.abs().max()), 1e-30)
    error = float((want - got).abs().max()) / scale
    if not error <= _EXACT:
        raise RuleError(f"{what} (by {error:.1e})")


def _zero(tensor: torch.Tensor, what: str) -> None:
    if bool((tensor != 0).any()):
        raise RuleError(what)
