"""Believe a captured program only if it does what its model does.

The model is run on tensors without data, and all that it computes is numbered; the program has been
numbered while its graph was built. Sizes are proxies, and so this holds for others, too. Where the
numbers differ, as where :mod:`torch.export` has written other operations, both are run on random
values, and again on another batch and on smaller images.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from upscale_opt.errors import ArgumentError, TraceError
from upscale_opt.tracing.capture import Captured, KeepsState, StoresResults, by_fx, without_hooks
from upscale_opt.tracing.differences import close, differing
from upscale_opt.tracing.executing import execute, placed
from upscale_opt.tracing.numbering import Numbering, Numbers
from upscale_opt.tracing.questions import answering, gradients_watched
from upscale_opt.tracing.unchanged import (
    CONTAINERS,
    Snapshot,
    composed_attention,
    reseed,
    same_random_state,
    unchanged,
)


class Differs(TraceError):  # noqa: N818 - caught in `running`: try the other tracer
    """A captured program does not do what its model does."""


def validate(
    trial: Trial, captured: Captured, result: Any, numbers: Numbers, *, on_values: bool = True
) -> None:
    """Compare a captured program with its model.

    Args:
        trial: the model and its example. It is as before afterwards.
        captured: the program.
        result: what the program returned on fake tensors.
        numbers: the numbers of these.
        on_values: compare on random values where numbers do not say that they are the same; else
            the caller is going to.

    Raises:
        Differs: if they compute something else.
        KeepsState: if the model computes something else when it is called again.
        StoresResults: if it may do so, as it stores what it computes.
    """
    if captured.kind == "fx":
        found = trial.numbered(numbers)
        if captured.stored and (found is None or not trial.remembers_nothing(captured, numbers)):
            _require_no_memory(trial, captured.stored[0])
            raise StoresResults(captured.stored)
        if found is not None:
            same = not captured.apart and found.difference(result, numbers) is None
            if same or trial.agrees(captured, found):
                if captured.wrote:
                    _try_other_sizes(trial, captured, numbers)
                return
    if on_values:
        compare(trial, captured)
    if captured.kind == "export" and trial.switches_gradients:
        captured.notes.append(
            "forward switches gradients off or on (torch.no_grad), which torch.export does not "
            "keep: outputs are the same, but gradients flow everywhere in the pruned model"
        )


def _try_other_sizes(trial: Trial, captured: Captured, numbers: Numbers) -> None:
    """Number both again for other inputs, as sizes written as text may have decided something.

    Raises:
        Differs: if they compute something else.
    """
    args, kwargs = _changed((trial.args, trial.kwargs), sizes=True, filled=False)
    other = Trial(trial.model, args, kwargs)
    found = other.numbered(numbers)
    if found is not None and not other.agrees(captured, found):
        raise Differs("the program differs from the model for other sizes of inputs")


@dataclasses.dataclass
class Outcome:
    """The results of a call of a model, with its values numbered."""

    result: Any
    numbers: Numbers

    def difference(self, other: Any, numbers: Numbers) -> str | None:
        """Find how the result of another run differs, which has ``numbers``."""

        def same(a: torch.Tensor, b: torch.Tensor) -> bool:
            return self.numbers.of(a) == numbers.of(b) and a.dtype == b.dtype

        found = differing(self.result, other, same)
        if found is None and self.numbers.state() != numbers.state():
            return "its parameters, buffers or inputs afterwards"
        return found


class Trial:
    """A model and the call that it was captured with.

    Attributes:
        model: the model.
        args: the call's positional arguments.
        kwargs: and its keyword arguments.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.model = model
        self.args = args
        self.kwargs = kwargs
        self.switches_gradients = False
        """True if its code switches gradients on or off, as far as it has run on values."""
        self._copies: dict[int, torch.Tensor] = {}

    def numbered(self, beside: Numbers) -> Outcome | None:
        """The results of a call; ``None`` if the model cannot be run on fake tensors.

        Raises:
            KeepsState: if the next call gives something else, or changes the model again.
        """
        numbers = beside.beginning()
        with unchanged(self.model) as snapshot, composed_attention():
            try:
                without_hooks(self.model)
                with self._on_meta(numbers) as (args, kwargs):
                    before = set(snapshot.touched())
                    with answering(True) as asked, Numbering(numbers):
                        result = self.model(*args, **kwargs)
                    first = Outcome(result, numbers)
                    left = snapshot.touched(besides=before)
                    again = [True] if left else []
                    again += [False] if asked else []
                    for answer in again:
                        known = first.numbers.copied()
                        warm = Snapshot(self.model)
                        with answering(answer), Numbering(known):
                            second = self.model(*args, **kwargs)
                        question = [] if answer else asked
                        self._compare_calls(first, second, known, warm, question, left)
            except (KeepsState, Differs):
                raise
            except Exception:  # any code may run in a forward pass, and fail on such tensors
                return None
        return first

    def remembers_nothing(self, captured: Captured, beside: Numbers) -> bool:
        """Tell whether calls after the first give what they would give without it.

        They must also store the same in the model's attributes: what is kept for inputs of the same
        sizes, say, but no averages over calls.
        """

        def called(args: Any, kwargs: Any) -> Any:
            result = self.model(*args, **kwargs)
            owners = [name.rpartition(".") for name in captured.stored]
            held = [vars(self.model.get_submodule(o)).get(key) for o, _, key in owners]
            return result, pytree.tree_map(lambda leaf: leaf, held)  # containers as they are now

        example = self.args, self.kwargs
        others = [
            pytree.tree_map_only(torch.Tensor, torch.clone, example),
            _changed(example, sizes=True, filled=False),
        ]
        numbers = beside.beginning()
        with unchanged(self.model), composed_attention(), answering(True):
            without_hooks(self.model)
            with self._on_meta(numbers) as first:
                calls = [self._entered(call, numbers) for call in others]
                alone: list[Outcome | None] = []
                for args, kwargs in calls:
                    own = numbers.copied()
                    with unchanged(self.model), Numbering(own):
                        try:
                            alone.append(Outcome(called(args, kwargs), own))
                        except Exception:  # of any kind, where the model takes no such inputs
                            alone.append(None)
                known = numbers.copied()
                with Numbering(known):
                    self.model(*first[0], **first[1])
                for (args, kwargs), outcome in zip(calls, alone, strict=True):
                    if outcome is None:
                        continue
                    known = known.copied()
                    with Numbering(known):
                        result = called(args, kwargs)
                    if outcome.difference(result, known) is not None:
                        return False
        return alone[0] is not None

    def kept_for_sizes(self, captured: Captured) -> list[str]:
        """The attributes that earlier calls have left, and that calls of other sizes write anew."""
        if captured.kind != "fx" or not (captured.constants or captured.stored):
            return []
        other = _changed((self.args, self.kwargs), sizes=True, filled=False)
        with unchanged(self.model) as snapshot, composed_attention(), answering(True):
            try:
                with self._on_meta(Numbers({})):
                    args, kwargs = self._entered(other, Numbers({}))
                    before = set(snapshot.touched())
                    self.model(*args, **kwargs)
                    touched = snapshot.touched(besides=before)
            except Exception:  # of any kind, where the model takes no such inputs
                return []
        found: dict[str, None] = {}
        modules = dict(self.model.named_modules())
        for name in touched:
            parts = name.split(".")
            owner = max(n for n in range(len(parts)) if ".".join(parts[:n]) in modules)
            left = vars(modules[".".join(parts[:owner])]).get(parts[owner])
            if left is not None and not (isinstance(left, CONTAINERS) and not left):
                found[".".join(parts[: owner + 1])] = None
        return list(found)

    def agrees(self, captured: Captured, found: Outcome) -> bool:
        """Tell whether the program, on such tensors, gives what the model gave, or refuses them."""
        try:
            again = self._program_numbered(captured, found.numbers)
        except ArgumentError:
            return True
        return again is not None and found.difference(*again) is None

    def _program_numbered(self, captured: Captured, beside: Numbers) -> tuple[Any, Numbers] | None:
        """The program's results, and their numbers; attention is not taken apart here.

        PyTorch has other operations on other devices, so the numbers of a program on fake tensors
        of the CPU may be others.
        """
        numbers = beside.beginning()
        try:
            if captured.apart:
                captured = by_fx(self.model, self.args, self.kwargs, takes_apart=False)
                captured.leaves = pytree.tree_leaves((self.args, self.kwargs))
            with unchanged(self.model), composed_attention(), self._on_meta(numbers) as call:
                tensors = {name: self._on_it(t) for name, t in captured.tensors.items()}
                given = placed(captured, call)
                if given is None:
                    return None
                program = dataclasses.replace(captured, tensors=tensors)
                with Numbering(numbers):
                    return execute(program, given), numbers
        except ArgumentError:
            raise
        except Exception:  # as above
            return None

    def _on_it(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor that the model registers on the meta device, and others as they are."""
        return self._copies.get(id(tensor), tensor)

    @contextmanager
    def _on_meta(self, numbers: Numbers) -> Iterator[Any]:
        """The call on the meta device; so is the model, until what is around it ends.

        Fake tensors would be found out by code that asks for the type of a tensor.
        """
        self._copies = {}
        own: list[tuple[torch.Tensor, torch.Tensor]] = []
        for module in self.model.modules():
            tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for table in tables:
                for name, tensor in table.items():
                    if tensor is not None:
                        table[name] = copied = self._to_meta(tensor)
                        own.append((tensor, copied))
        numbers.name_own(own)

        yield self._entered((self.args, self.kwargs), numbers)

    def _entered(self, call: Any, numbers: Numbers) -> Any:
        """A call with tensors on the meta device, as inputs with numbers of their own."""

        def enter(tensor: torch.Tensor) -> torch.Tensor:
            copied = self._to_meta(tensor)
            numbers.name(copied, ("input", id(tensor)))
            return copied

        return pytree.tree_map_only(torch.Tensor, enter, call)

    def _to_meta(self, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in self._copies:
            if type(tensor) not in (torch.Tensor, nn.Parameter):
                raise TypeError(type(tensor))
            like = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
            )
            learns = tensor.requires_grad
            parameter = isinstance(tensor, nn.Parameter)
            self._copies[id(tensor)] = nn.Parameter(like, learns) if parameter else like
        return self._copies[id(tensor)]

    def _compare_calls(
        self,
        first: Outcome,
        second: Any,
        known: Numbers,
        warm: Snapshot,
        asked: list[str],
        left: list[str],
    ) -> None:
        found = first.difference(second, known)
        if found is not None and asked:
            raise Differs(f"the model computes something else if {asked[0]}() is False")
        changed = _besides_hooks(warm.changed(tensors=False))
        if found is not None or changed:
            raise _state((*changed, *left)[0])


def _besides_hooks(names: list[str]) -> list[str]:
    """Those that are not within hooks, which are carried over and go on counting, say."""
    tables = {"_forward_hooks", "_forward_pre_hooks"}
    return [name for name in names if tables.isdisjoint(name.split("."))]


def _state(name: str) -> KeepsState:
    return KeepsState(
        f"the model changes {name!r} while it runs, and so computes something else when it is "
        "called again, which an export could not; keep what lasts from call to call in buffers"
    )


# On values.


def compare(trial: Trial, captured: Captured) -> None:
    """Run both on random values, also of other sizes.

    Raises:
        Differs: if they compute something else.
    """
    model = trial.model
    tensors = [*model.parameters(), *model.buffers()]
    leaves = pytree.tree_leaves((trial.args, trial.kwargs))
    if any(t.is_meta for t in (*tensors, *leaves) if isinstance(t, torch.Tensor)):
        captured.notes.append(
            "the program was not compared with the model, which is on the meta device"
        )
        return
    with same_random_state(model, leaves), _quiet_buffers(model) as reset:
        _seed(0)
        example = trial.args, trial.kwargs
        ran = False
        for sizes, filled in itertools.product((False, True), (True, False)):
            if ran is sizes:  # other sizes if these were good; what was given if random values fail
                call = _changed(example, sizes=sizes, filled=filled)
                ran = (call is not None and _compare_once(trial, captured, call, reset)) or ran


def _compare_once(trial: Trial, captured: Captured, call: Any, reset: Callable[[], Any]) -> bool:
    """Run both on one call; whether the model could be run on it."""
    given = placed(captured, pytree.tree_map_only(torch.Tensor, torch.clone, call))
    if given is None:
        return False
    try:
        wanted = _called(trial, call, reset, warm=True)
    except (KeepsState, Differs):
        raise
    except Exception:  # on such inputs; the program need not run, either
        return False
    _seed(1)
    try:
        outcome = execute(captured, given), reset()
    except ArgumentError:
        reset()
        return False
    except Exception as error:
        reset()
        raise Differs(f"the program fails where the model does not: {error}") from None
    found = differing(wanted[0], outcome[0], close)
    found = found or differing(wanted[1], outcome[1], close, "what it writes into buffers")
    if found is None:
        return True
    if differing(wanted, _called(trial, call, reset, warm=False), close) is not None:
        raise Differs("the model does not compute the same twice, from the same random state")
    raise Differs(f"the program differs from the model in {found}")


def _require_no_memory(trial: Trial, name: str) -> None:
    """Run the model on values, alone and after another call.

    Raises:
        KeepsState: if it computes something else then.
    """
    model, example = trial.model, (trial.args, trial.kwargs)
    tensors = [*model.parameters(), *model.buffers(), *pytree.tree_leaves(example)]
    if model.training or any(t.is_meta for t in tensors if isinstance(t, torch.Tensor)):
        return
    with same_random_state(model, example), _quiet_buffers(model) as reset:
        for sizes in (False, True):
            other = _changed(example, sizes=sizes, filled=True)
            try:
                alone = _called(trial, other, reset, warm=False)[0]
            except Exception:  # of any kind: the model takes no such inputs
                continue
            with unchanged(model), answering(True):
                without_hooks(model)
                for call in (example, other):
                    _seed(1)
                    args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, call)
                    result = model(*args, **kwargs)
                    reset()
            if differing(alone, result, close) is not None:
                raise _state(name)


def _seed(number: int) -> None:
    reseed(number)
    random.seed(number)
    np.random.seed(number)


def _called(trial: Trial, call: Any, reset: Callable[[], Any], *, warm: bool) -> tuple[Any, Any]:
    """The results of the model, and what it has written."""
    _seed(1)
    args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, call)
    with unchanged(trial.model) as snapshot, answering(True):
        without_hooks(trial.model)
        before = set(snapshot.touched())
        with gradients_watched() as switched:
            result = trial.model(*args, **kwargs)
        trial.switches_gradients |= bool(switched)
        written = reset()
        left = snapshot.touched(besides=before) if warm else []
        if left:
            _compare_warm(trial, call, result, left)
            reset()
    return result, written


def _compare_warm(trial: Trial, call: Any, first: Any, left: list[str]) -> None:
    """Call the model again, with what its first call left in its attributes.

    Raises:
        KeepsState: if that gives something else.
    """
    _seed(1)
    args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, call)
    warm = Snapshot(trial.model)
    with answering(True):
        second = trial.model(*args, **kwargs)
    changed = _besides_hooks(warm.changed(tensors=False))
    if changed or (not trial.model.training and differing(first, second, close) is not None):
        raise _state((*changed, *left)[0])


@contextmanager
def _quiet_buffers(model: nn.Module) -> Iterator[Callable[[], Any]]:
    """A function that says what was written into the model's tensors, and puts back what was there.

    Parameters are not put back, as code that writes them is rare, and they are large.
    """
    saved = [  # norms bump no versions
        (module, name, tensor, tensor.detach().clone())
        for module in model.modules()
        for name, tensor in module._buffers.items()
        if tensor is not None
    ]
    parameters = [p for p in model.parameters() if not p.is_inference()]
    versions = [p._version for p in parameters]

    def reset() -> Any:
        written: list[torch.Tensor | None] = []
        for module, name, tensor, before in saved:
            now = module._buffers.get(name)
            now = tensor if now is None else now  # which may be another tensor, assigned
            written.append(None if torch.equal(now, before) else now.detach().clone())
            if not torch.equal(tensor, before):
                with torch.no_grad():
                    tensor.copy_(before)
        return written, [p._version != v for p, v in zip(parameters, versions, strict=True)]

    try:
        yield reset
    finally:
        reset()


def _changed(call: Any, *, sizes: bool, filled: bool) -> Any:
    """The same call with other numbers, or on another batch of other sizes."""
    batches = {
        t.shape[0] for t in pytree.tree_leaves(call) if isinstance(t, torch.Tensor) and t.ndim
    }

    def change(tensor: torch.Tensor) -> torch.Tensor:
        if sizes and tensor.ndim and len(batches) == 1:
            tensor = torch.cat([tensor, tensor[:1]]) if len(tensor) < 3 else tensor[:2]
        if sizes and tensor.ndim in (4, 5) and min(tensor.shape[2:]) >= 16:
            for axis in range(2, tensor.ndim):
                tensor = tensor.narrow(axis, 0, tensor.shape[axis] // 2)
        if filled and (tensor.is_floating_point() or tensor.is_complex()):
            return torch.randn_like(tensor)
        return tensor

    made: dict[int, torch.Tensor] = {}  # what is given twice is to be one tensor again
    return pytree.tree_map_only(torch.Tensor, lambda t: made.setdefault(id(t), change(t)), call)
