"""The one contract of all hazards: an export is right at every later call, or refused by us.

A *kind* of hazard has variants; a variant draws a network and calls of its own from each seed.
`hazards_not_yet.NOT_YET` lists the variants that still break the contract: mending one removes it
from there (or `python benchmarks/hazard_table.py --write` does).
"""

from __future__ import annotations

import copy
import os
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from comparing import EXACT, state, storages
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import upscale_opt as uo
from upscale_opt.models.generated.masks import apply_weight_masks, random_weight_masks
from upscale_opt.tracing.unchanged import reseed

SEEDS = int(os.environ.get("UPSCALE_OPT_HAZARD_SEEDS", "1"))
"""How many networks are drawn of every variant."""


class Broken(AssertionError):  # noqa: N818 - findings, not errors of ours
    """The contract is broken."""


class SilentlyWrong(Broken):
    """The export computes something else, and nobody says so."""


class Crashed(Broken):
    """An error that is not ours."""


class Refused(Broken):
    """An error of ours where the export has to be right."""


class Changed(Broken):
    """The trace did something to the model, or the export lives on its memory."""


@dataclass(frozen=True)
class Call:
    """A later call.

    Attributes:
        what: what is other about it.
        args: positional arguments.
        kwargs: keyword arguments.
        right: it must not be refused.
    """

    what: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    right: bool = False


@dataclass(frozen=True)
class Case:
    """A model to prune, and how it is called afterwards.

    Attributes:
        make: makes the model, the same each time.
        inputs: what it is traced with.
        calls: the later calls; the traced one, which must be right, comes before them.
        honest: nothing depends on data or on state, so that refusing the whole model breaks the
            contract, too.
        late: apply the masks between the trace and the solution always, not for some seeds only.
        dead: layers whose weights are all zero.
        gradients: compare those of the inputs, too.
        allowed: the relative deviation.
        dtype: of the model.
        stateful: a call that is refused leaves other state, so that later ones cannot be compared.
    """

    make: Callable[[], nn.Module]
    inputs: Any
    calls: Sequence[Call] = ()
    honest: bool = True
    late: bool = False
    dead: tuple[str, ...] = ()
    gradients: bool = False
    allowed: float = EXACT
    dtype: torch.dtype = torch.float64
    stateful: bool = False


@dataclass
class Outcome:
    """What came of a case: why it was refused, as a whole or at which calls, or "" and none."""

    refused: str = ""
    at_calls: dict[str, str] = field(default_factory=dict)
    compared: int = 0


Builder = Callable[[random.Random], Case]


def right_or_refused(case: Case, seed: int = 0) -> Outcome:
    """Prune, call, compare.

    Raises:
        Broken: the contract does not hold; the class says how.
    """
    late = case.late or seed % 2 == 1
    model, reference = _built(case, seed, masked=not late), _built(case, seed)
    first = Call("the traced inputs", *_split(case.inputs), right=case.honest)
    before = Snapshot.of(model)
    outcome = Outcome()
    try:
        graph = uo.trace(model, _copied(case.inputs))
    except uo.UpscaleError as error:
        before.require_same(model)
        runs = not isinstance(_ran(reference, first, 0, case), Exception)
        if case.honest and runs:
            raise Refused(f"an honest model, at the trace: {_line(error)}") from error
        outcome.refused = _named(error)
        return outcome
    except Exception as error:
        raise Crashed(f"the trace: {_line(error)}") from error
    before.require_same(model)
    if late:
        _mask(model, case, seed)
    try:
        solution = uo.solve(graph, uo.masks_of(model, graph))
        pruned = uo.materialize(model, solution)
    except uo.UpscaleError as error:
        if case.honest:
            raise Refused(f"an honest model, after the trace: {_line(error)}") from error
        outcome.refused = _named(error)
        return outcome
    except Exception as error:
        raise Crashed(f"after the trace: {_line(error)}") from error
    if storages(model) & storages(pruned):
        raise Changed("the export shares memory with the model")
    wrong: list[Broken] = []
    for number, call in enumerate((first, *case.calls)):
        want = _ran(reference, call, number, case)
        if isinstance(want, Exception):
            continue
        own = _ran(model, call, number, case)
        apart = difference(want, own, 1e-12)
        if apart:
            raise Changed(f"the original at {call.what}: {apart}")
        got = _ran(pruned, call, number, case)
        if isinstance(got, uo.UpscaleError):
            outcome.at_calls[call.what] = _named(got)
            if call.right:
                wrong.append(Refused(f"at {call.what}: {_line(got)}"))
        elif isinstance(got, Exception):
            wrong.append(Crashed(f"at {call.what}: {_line(got)}"))
        if isinstance(got, Exception):
            if case.stateful:
                break
        else:
            outcome.compared += 1
            apart = difference(want, got, case.allowed)
            apart = apart or _other_buffers(before, reference, pruned, case)
            if apart:
                wrong.append(SilentlyWrong(f"at {call.what}: {apart}"))
    if not wrong and not (case.stateful and outcome.at_calls):  # else their states are others
        _require_own_memory(model, reference, pruned, first, case)
    order = (SilentlyWrong, Changed, Crashed, Refused)
    for broken in sorted(wrong, key=lambda one: order.index(type(one))):
        raise broken
    if not outcome.compared and not outcome.at_calls:
        raise AssertionError("the model itself runs at no call: the variant tests nothing")
    return outcome


def variants(
    kind: str, builders: Mapping[str, Builder], seeds: int = SEEDS
) -> pytest.MarkDecorator:
    """Parametrise a test by the variants of a kind; it gets a function that makes the case."""
    parameters = [
        pytest.param(
            builder,
            zlib.crc32(f"{name} {number}".encode()),
            id=f"{kind}: {name}-{number}".replace(" ", "_"),
            marks=hazard(kind, name),
        )
        for name, builder in builders.items()
        for number in range(seeds)
    ]
    return pytest.mark.parametrize(("builder", "seed"), parameters)


def hazard(kind: str, name: str) -> pytest.MarkDecorator:
    """The mark of a variant: while it is `NOT_YET` mended, its tests may fail."""
    return pytest.mark.hazard(kind, name)


def holds(builder: Builder, seed: int) -> Outcome:
    """The contract, for what a variant draws from a seed."""
    return right_or_refused(builder(random.Random(seed)), seed)


# The pieces.


@dataclass
class Snapshot:
    """Everything that a trace must leave as it is."""

    tensors: dict[str, Tensor]
    attributes: dict[str, Any]
    random: tuple[Any, ...]

    @staticmethod
    def of(model: nn.Module) -> Snapshot:
        attributes: dict[str, Any] = {}
        for name, module in model.named_modules():
            for key, value in vars(module).items():
                if key not in ("_modules", "_parameters", "_buffers"):
                    attributes[f"{name}.{key}"] = _frozen(value)
            for key, value in (*module._parameters.items(), *module._buffers.items()):
                attributes[f"{name}.{key} itself"] = id(value)
            attributes[f"{name} itself"] = (id(module), type(module), tuple(module._modules))
        states = (torch.get_rng_state(), random.getstate(), repr(np.random.get_state()))
        return Snapshot(state(model), attributes, states)

    def require_same(self, model: nn.Module) -> None:
        """Raise Changed if anything differs now."""
        now = Snapshot.of(model)
        if not torch.equal(self.random[0], now.random[0]) or self.random[1:] != now.random[1:]:
            raise Changed("the random state")
        for name in self.tensors.keys() | now.tensors.keys():
            mine, other = self.tensors.get(name), now.tensors.get(name)
            if mine is None or other is None or not torch.equal(mine, other):
                raise Changed(f"the tensor {name}")
        for name in self.attributes.keys() | now.attributes.keys():
            if self.attributes.get(name, "absent") != now.attributes.get(name, "absent"):
                raise Changed(f"the attribute {name}: {now.attributes.get(name, 'absent')}"[:200])


def _frozen(value: Any, depth: int = 0) -> Any:
    """What can be compared later: containers by what they hold, the rest by who it is."""
    if value is None or isinstance(value, (str, bytes, int, float, complex)):
        return value
    if isinstance(value, (torch.fx.Proxy, FakeTensor)):
        return f"a {type(value).__name__}"
    if isinstance(value, Tensor):
        return (id(value), type(value).__name__, value.detach().clone().numpy().tobytes())
    if depth < 5 and isinstance(value, Mapping):
        return (
            type(value).__name__,
            tuple((repr(k)[:80], _frozen(v, depth + 1)) for k, v in value.items()),
        )
    if depth < 5 and isinstance(value, Iterable) and hasattr(value, "__len__"):
        return (type(value).__name__, tuple(_frozen(v, depth + 1) for v in value))
    inner = getattr(value, "__dict__", None)
    if depth < 2 and isinstance(inner, dict) and not isinstance(value, (type, nn.Module)):
        return (id(value), _frozen(inner, depth + 1))
    return id(value)


def difference(want: Any, got: Any, allowed: float, where: str = "the result") -> str:
    """Where two results differ, in words, or nothing."""
    if isinstance(want, Tensor):
        return _apart(want, got, allowed, where)
    if type(want) is not type(got):
        return f"{where} is a {type(got).__name__} instead of a {type(want).__name__}"
    if isinstance(want, Mapping):
        if list(want) != list(got):
            return f"{where} has the keys {list(got)} instead of {list(want)}"
        return _first(difference(want[key], got[key], allowed, f"{where}[{key!r}]") for key in want)
    if isinstance(want, (str, bytes, int, float, complex, bool)) or want is None:
        return "" if want == got else f"{where} is {got!r} instead of {want!r}"
    if isinstance(want, (list, tuple)):
        if len(want) != len(got):
            return f"{where} has {len(got)} entries instead of {len(want)}"
        return _first(
            difference(left, right, allowed, f"{where}[{index}]")
            for index, (left, right) in enumerate(zip(want, got, strict=True))
        )
    if hasattr(want, "__dict__"):
        return difference(vars(want), vars(got), allowed, where)
    return "" if want == got else f"{where} is {got!r} instead of {want!r}"


def _apart(want: Tensor, got: Any, allowed: float, where: str) -> str:
    if not isinstance(got, Tensor) or isinstance(got, FakeTensor):
        return f"{where} is a {type(got).__name__} instead of a tensor"
    if want.shape != got.shape or want.dtype != got.dtype:
        return f"{where} is {tuple(got.shape)}, {got.dtype}, not {tuple(want.shape)}, {want.dtype}"
    if not want.numel():
        return ""
    left, right = (t.detach().to(torch.complex128).nan_to_num(0.123) for t in (want, got))
    scale, apart = float(left.abs().max()), float((left - right).abs().max())
    error = apart / scale if scale > 0 else apart
    return "" if error <= allowed else f"{where} deviates by {error:.1e}"


def _first(words: Iterator[str]) -> str:
    return next((one for one in words if one), "")


def _built(case: Case, seed: int, masked: bool = True) -> nn.Module:
    """The model, masked unless that is to come later; the random state is as always afterwards."""
    reseed(seed)
    random.seed(seed)
    model = case.make().eval().to(case.dtype)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("bias") and not bool(tensor.any()):
                tensor.uniform_(-0.5, 0.5)
        for name in case.dead:
            for parameter in model.get_submodule(name).parameters():
                parameter.zero_()
    if masked:
        _mask(model, case, seed)
    reseed(seed)
    return model


def _mask(model: nn.Module, case: Case, seed: int) -> None:
    masks = random_weight_masks(model, random.Random(seed), "both", styles=("coin", "half"))
    apply_weight_masks(model, masks, biases=True)
    network: Any = model
    if hasattr(network, "kill"):
        network.kill(random.Random(seed).randrange(network.width))


def _split(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, dict):
        return (), inputs
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def _copied(inputs: Any) -> Any:
    return copy.deepcopy(inputs)


def _ran(model: nn.Module, call: Call, number: int, case: Case) -> Any:
    """The results of a call, with the inputs as they are then (and gradients), or the error."""
    args, kwargs = _copied((call.args, dict(call.kwargs)))
    reseed(number)
    random.seed(number)
    np.random.seed(number)
    try:
        if case.gradients:
            leaves = [a.requires_grad_() for a in args if isinstance(a, Tensor)]
            result = model(*args, **kwargs)
            loss = result.square().sum() + 0 * sum(leaf.sum() for leaf in leaves)
            return result, torch.autograd.grad(loss, leaves)
        with torch.no_grad():
            return model(*args, **kwargs), args, kwargs
    except Exception as error:
        return error


def _other_buffers(before: Snapshot, reference: nn.Module, pruned: nn.Module, case: Case) -> str:
    """Which counter among the buffers differs."""
    others = dict(pruned.named_buffers())
    changed = [
        (name, buffer)
        for name, buffer in reference.named_buffers()
        if name in before.tensors and not torch.equal(buffer, before.tensors[name])
    ]
    return _first(
        difference(buffer, others.get(name), case.allowed, f"the buffer {name}")
        for name, buffer in changed
    )


def _require_own_memory(
    model: nn.Module, reference: nn.Module, pruned: nn.Module, first: Call, case: Case
) -> None:
    """Change the model's weights: the export stays as it was.

    Raises:
        Changed: if it does not.
    """
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor += 1
    want, got = (_ran(one, first, 0, case) for one in (reference, pruned))
    both_run = not isinstance(want, Exception) and not isinstance(got, Exception)
    if both_run and difference(want, got, case.allowed):
        raise Changed("the export lives on the model's weights")


def _named(error: uo.UpscaleError) -> str:
    """The message of an error of ours, which has to be one that people can read."""
    text = str(error)
    if len(text) < 10 or text.endswith(": "):
        raise Crashed(f"{type(error).__name__} without words: {text!r}")
    return _line(error)


def _line(error: object) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
