"""A pruned model's layers in a model of the original's class, whose own code calls them."""

from __future__ import annotations

import copy
import inspect
import traceback
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain, combinations, islice, zip_longest
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from upscale_opt.errors import MaterializeError, TraceError
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.materializing.names import STAGES
from upscale_opt.materializing.origin import Modes, Origin, Stage, calls_of, modes_of, set_modes
from upscale_opt.materializing.pruned_module import Making, PrunedModule, making_of
from upscale_opt.materializing.rebuild import rebuild, repeat
from upscale_opt.materializing.stages import packed, stages_of
from upscale_opt.materializing.used import kind_of, tensors_of
from upscale_opt.runtime.modules import OURS
from upscale_opt.solver.api import solve
from upscale_opt.tracing.capture import quiet
from upscale_opt.tracing.examples import remake
from upscale_opt.tracing.program import Program
from upscale_opt.tracing.recent import recalled_or_run
from upscale_opt.tracing.unchanged import undisturbed
from upscale_opt.tracing.values import HeadCall
from upscale_opt.tracing.wrappings import computed_by_torch, masked_by_torch

_PLAIN = (bool, int, float, str, tuple, type(None))
_NO_HOLDERS = (type, torch.Tensor, nn.Module, ModuleType, FunctionType, MethodType)
_BARE = frozenset(vars(nn.Module()))
_TRIES = 12
_T = TypeVar("_T")


def put_into(model: nn.Module, pruned: nn.Module) -> dict[str, int]:
    """Give ``model`` the smaller layers of ``pruned``; its own code stays, and calls them.

    That is possible where pruning changed sizes alone, as it does with constraints
    (``method="constrained"``): then no call is added, and every method, argument and exporter of
    the class keeps working. ``model`` is traced with the new layers, and must make the same calls
    as ``pruned``, one by one; otherwise it is left as it was.

    Code that the traced call does not reach (other arguments, methods, the other mode) is not
    looked at; it is right as far as it takes widths from layers, tensors and such attributes.

    Modules of one's own often keep a width as an attribute (``self.c``, ``self.head_dim``), and
    split by it. Where what a module's own code computes with that width, or the heads that it cuts,
    now have another one, and methods other than ``__init__`` read the attribute, it is set to that,
    if the calls are the same then; so are those that the code reads from an object that the module
    holds (``self.config.head_dim``), if all modules that hold it want the same; they are given a
    copy of it then, as other models may hold it, too. Numbers made of a width before, as
    ``self.scaling`` of attention, stay: where code scales by the width that heads have now, the
    calls differ.

    Args:
        model: the original, or another of its class, made with the same arguments. Parameters that
            changed are new ones, of the dtype that they have in ``pruned``, on its own device; all
            other modules and tensors stay the same objects.
        pruned: what pruning made of the original. It is not changed, and shares nothing.

    Returns:
        The attributes that were set, by name: ``{"model.2.c": 8}``.

    Raises:
        MaterializeError: naming the first call that the code does not make.
    """
    if not isinstance(model, nn.Module):
        raise MaterializeError(
            f"cannot give smaller layers to a {type(model).__name__}; give an nn.Module"
        )
    making = making_of(pruned)
    if not isinstance(pruned, PrunedModule) or making.solution is None or making.origin is None:
        raise MaterializeError(
            f"a {type(pruned).__name__} carries no solution; give the model that prune, "
            "materialize or load made"
        )
    if isinstance(model, PrunedModule):
        raise MaterializeError(
            f"this {type(model).__name__} was pruned in place before, and has no longer the code "
            "of its class; give a new instance of the class"
        )
    wrapped = [*masked_by_torch(model), *computed_by_torch(model)]
    if wrapped:
        raise MaterializeError(
            f"{wrapped[0]!r} is computed before every call (by torch.nn.utils.prune, a weight norm "
            "or another parametrization); remove that first, as the pruned model did"
        )
    undo: list[Callable[[], None]] = []
    try:
        before = _repeat(model, making.earlier, undo)
        return before | _put(model, pruned, undo)
    except BaseException:
        _take_back(undo, 0)
        raise


def _repeat(
    model: nn.Module, stages: Sequence[Stage], undo: list[Callable[[], None]]
) -> dict[str, int]:
    """Put into the model what earlier prunings left in the pruned one's original.

    Returns:
        The attributes that were set.

    Raises:
        MaterializeError: if the model is another one, or was pruned in place otherwise.
    """
    count = max((n for n, stage in enumerate(stages, 1) if stage.own_code), default=0)
    done = stages_of(model)
    if done[:count] == stages[:count]:
        return {}
    if done != stages[: len(done)]:
        raise MaterializeError(
            f"this {type(model).__name__} was pruned in place before, and not as the original of "
            "the pruned model was; give a new instance of the class"
        )
    found: dict[str, int] = {}
    source = model
    for stage in stages[len(done) : count]:
        program = _same_program(source, stage.solution, stage.origin)
        source = step = repeat(source, program, stage)
        making = making_of(step)
        making.solution, making.origin = stage.solution, stage.origin
        if stage.own_code:
            found |= _put(model, step, undo)
            source = model
    return found


def _put(model: nn.Module, pruned: PrunedModule, undo: list[Callable[[], None]]) -> dict[str, int]:
    """Give a model smaller layers, and the attributes that go with them.

    Args:
        model: the original, or its like, as it was when it was pruned this time.
        pruned: what was made of it.
        undo: is filled with the way back.
    """
    making = making_of(pruned)
    assert making.solution is not None
    assert making.origin is not None
    widths = _widths(_original(model, making), making.solution)
    _install(model, pruned, undo)
    layers, reason = len(undo), None
    for choice in _choices(model, widths):
        try:
            _set_numbers(model, choice, undo)
            _compare(model, pruned, making.origin.modes)
        except MaterializeError as error:
            reason = reason or error  # that of the first, which says most
            _take_back(undo, layers)
        else:
            stage = Stage(solution=making.solution, origin=making.origin, own_code=True)
            _set(vars(model), STAGES, packed((*making.earlier, stage)), undo)
            return {number.name: number.new for number in choice}
    assert reason is not None
    raise reason


_Widths = Mapping[str, Mapping[int, Set[int]]]
"""By module and old width, the new widths of what its code computes."""


def _original(model: nn.Module, making: Making) -> Program:
    """The program of the model before it gets smaller layers.

    Raises:
        MaterializeError: if it is another model than the pruned one's original.
    """
    assert making.solution is not None
    assert making.origin is not None
    exact = not making.earlier or making.earlier[-1].own_code
    return _same_program(model, making.solution, making.origin, exact)


def _same_program(
    model: nn.Module, solution: Solution, origin: Origin, exact: bool = True
) -> Program:
    """The program of the model, if it is the one that a solution is for.

    Args:
        model: the original or its like, before it gets smaller layers.
        solution: what was made by a pruning.
        origin: of the same.
        exact: the graphs must be the same.

    Raises:
        MaterializeError: if it is another model.
    """
    other = (
        f"this {type(model).__name__} is another model than the original, a "
        f"{origin.model}; give an instance of that class, made with the same arguments"
    )
    try:
        program = _program(model, solution, origin.modes)
    except TraceError as error:
        raise MaterializeError(f"{other} ({error})") from None
    if exact and program.graph.fingerprint != solution.graph_fingerprint:
        raise MaterializeError(other)
    return program


def _program(model: nn.Module, solution: Solution, modes: Modes) -> Program:
    """The program of the class's code, in the modes of the original.

    Raises:
        TraceError: if it does not run.
    """
    own_modes = modes_of(model)
    set_modes(model, modes)
    try:
        args, kwargs = remake(solution.example, *kind_of(model))
        with quiet():
            return recalled_or_run(model, args, kwargs, solution.example, solution.capture)
    finally:
        set_modes(model, own_modes)


def _widths(program: Program, solution: Solution) -> _Widths:
    """The widths that what the code of each module reads and writes had, and has; heads' too."""
    found: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for node in program.captured.graph.nodes:
        stack = [place for place, _ in node.meta.get("nn_module_stack", {}).values()]
        if node.op == "call_module" and stack:
            stack.pop()
        own = found[stack[-1] if stack else ""]
        for name in _tensors(program, (node, *node.all_input_nodes)):
            tensor = program.graph.tensors[name]
            if tensor.axis is not None and name in solution.tensors:
                kept = len(solution.tensors[name]) * tensor.features
                own[tensor.shape[tensor.axis]].add(kept)
        for name, heads in _in_heads(program.heads.get(node)):
            if name in solution.tensors:
                channels = len(program.graph.tensors[name].channels)
                own[channels // heads].add(len(solution.tensors[name]) // heads)
    return found


def _in_heads(call: HeadCall | None) -> Iterator[tuple[str, int]]:
    """The tensors whose channels a call takes and gives head by head, and how many heads."""
    if call is None:
        return
    for operand in call.operands:
        name = operand.tensor if operand.merged is None else operand.merged.tensor
        if name is not None and operand.arrangement is not None:
            yield name, operand.arrangement.heads
    if call.tensor is not None and call.arrangement is not None:
        yield call.tensor, call.arrangement.heads


def _tensors(program: Program, nodes: Iterable[fx.Node]) -> Iterator[str]:
    leaves = pytree.tree_leaves([program.values.get(node) for node in nodes])
    return (leaf for leaf in leaves if isinstance(leaf, str) and leaf in program.graph.tensors)


def _install(model: nn.Module, pruned: PrunedModule, undo: list[Callable[[], None]]) -> None:
    """Set tensors and sizes; ``undo`` is filled with the way back."""
    owners = dict(model.named_modules(remove_duplicate=False))
    made: dict[int, torch.Tensor] = {}
    for name, tensor in tensors_of(pruned).items():
        place, _, leaf = name.rpartition(".")
        owner = owners.get(place)
        old = None if owner is None else {**owner._parameters, **owner._buffers}.get(leaf)
        if owner is None or old is None:
            continue  # the program's own, which _compare looks at
        if id(tensor) not in made:
            made[id(tensor)] = _like(tensor, old)
        table: dict[str, Any] = owner._parameters if leaf in owner._parameters else owner._buffers
        _set(table, leaf, made[id(tensor)], undo)
    for name, module in pruned.named_modules():
        own = owners.get(name)
        if own is None or type(own) is not type(module):
            continue
        for key, value in vars(module).items():
            if key not in _BARE and type(value) in _PLAIN and vars(own).get(key, value) != value:
                _set(own.__dict__, key, value, undo)


_Kind = tuple[type, str, bool]
_Place = tuple[str, bool]


@dataclass(frozen=True)
class _Number:
    """An attribute that may be a width of what a module computes, and now another one.

    Attributes:
        name: from the model on.
        kind: the module's class, the attribute's name in it, and ``sure``: what goes together.
        table: what holds it.
        key: under which name.
        new: the width now.
        sure: nothing that the module computes has the old width still.
        held: the object that modules hold, whose it is; ``None`` if it is the module's own.
    """

    name: str
    kind: _Kind
    table: dict[str, Any]
    key: str
    new: int
    sure: bool
    held: object

    @property
    def place(self) -> _Place:
        """The attribute's name in all layers of a stack, and ``sure``."""
        parts = self.name.split(".")
        return ".".join("*" if part.isdecimal() else part for part in parts), self.sure


def _choices(model: nn.Module, widths: _Widths) -> Iterator[list[_Number]]:
    """The attributes to set: the likely first, at most :data:`_TRIES` times.

    Modules of one class hold the same numbers under the same names, so are alike; or, where a
    width that changed equals one that did not, those at one place in all layers of a stack.
    """
    found = _numbers(model, widths)
    kinds = dict.fromkeys(number.kind for number in found)
    unsure = {n.kind for n in found if not n.sure}
    held = {n.kind for n in found if n.held is not None}
    likely = [kinds.keys() - held - unsure, kinds.keys() - held, set(), set(kinds)]
    by_kind = [[n for n in found if n.kind in chosen] for chosen in [*likely, *_fewer(kinds)]]
    open_places = dict.fromkeys(n.place for n in found if n.held is None and not n.sure)
    own = [n for n in found if n.held is None]
    by_place = [[n for n in own if n.sure or n.place in some] for some in _fewer(open_places)]
    tried: list[list[_Number]] = []
    for chosen in chain(by_kind[: len(likely)], by_place, by_kind[len(likely) :]):
        if chosen not in tried:
            tried.append(chosen)
            yield chosen
        if len(tried) == _TRIES:
            return


def _fewer(all_of: Collection[_T]) -> Iterator[set[_T]]:
    """Some of several things, first most of them; at most :data:`_TRIES` times."""
    sizes = range(len(all_of) - 1, 0, -1)
    return islice((set(some) for n in sizes for some in combinations(all_of, n)), _TRIES)


def _numbers(model: nn.Module, widths: _Widths) -> list[_Number]:
    """The attributes that are widths which changed, each once."""
    found: list[_Number] = []
    shared: dict[tuple[int, str], list[_Number | None]] = defaultdict(list)
    reads = {kind: _read_by(kind) for kind in {type(module) for module in model.modules()}}
    for name, module in model.named_modules():
        read, now = reads[type(module)], widths.get(name, {})
        for key, value in vars(module).items():
            if key not in read or key in _BARE:
                continue
            number = _number(module, f"{name}.{key}", key, vars(module), now)
            if number is not None:
                found.append(number)
            if type(value) in _PLAIN or isinstance(value, _NO_HOLDERS):
                continue
            for inner in getattr(value, "__dict__", {}).keys() & read:
                within = f"{name}.{key}.{inner}"
                one = _number(module, within, inner, vars(value), now, held=value)
                shared[id(value), inner].append(one)
    for numbers in shared.values():
        first = numbers[0]
        if first is not None and {n.new if n else None for n in numbers} == {first.new}:
            found.append(first)
    return found


def _number(
    module: nn.Module,
    name: str,
    key: str,
    table: dict[str, Any],
    now: Mapping[int, Set[int]],
    held: object = None,
) -> _Number | None:
    value = table[key]
    if type(value) is not int:
        return None
    new = now.get(value, frozenset())
    others = new - {value}
    if len(others) != 1:
        return None
    (width,) = others
    sure = value not in new
    kind = type(module), key if held is None else f"held {key}", sure
    return _Number(name.lstrip("."), kind, table, key, width, sure, held)


def _read_by(kind: type) -> frozenset[str]:
    """The names that the methods of a class read, but ``__init__``; within decorators, too."""
    names: set[str] = set()
    known: set[int] = set()
    stack: list[Any] = [
        value
        for name, value in inspect.getmembers(kind)
        if isinstance(value, FunctionType) and name != "__init__" and not _of_torch(value)
    ]
    while stack:
        value = stack.pop()
        if id(value) in known:
            continue
        known.add(id(value))
        if isinstance(value, CodeType):
            names.update(value.co_names)
            stack.extend(value.co_consts)
        elif isinstance(value, FunctionType) and not _of_torch(value):
            stack.append(value.__code__)
            stack.extend(cell.cell_contents for cell in value.__closure__ or () if _filled(cell))
    return frozenset(names)


def _of_torch(function: FunctionType) -> bool:
    return function.__module__.partition(".")[0] == "torch"


def _filled(cell: CellType) -> bool:
    try:
        return isinstance(cell.cell_contents, FunctionType)
    except ValueError:  # of a function that is not defined yet
        return False


def _set_numbers(
    model: nn.Module, numbers: Iterable[_Number], undo: list[Callable[[], None]]
) -> None:
    """Set attributes; those of an object that modules hold in a copy, as others may hold it, too.

    Raises:
        MaterializeError: if the object cannot be copied.
    """
    copies: dict[int, Any] = {}
    for number in numbers:
        table, held = number.table, number.held
        if held is not None:
            if id(held) not in copies:
                copies[id(held)] = _copied(model, held)
                _replace(model, held, copies[id(held)], undo)
            table = vars(copies[id(held)])
        _set(table, number.key, number.new, undo)


def _copied(model: nn.Module, held: object) -> object:
    try:
        copied = copy.copy(held)
    except Exception as error:  # of any kind, as its class may say how
        raise _refusal(model, f"it holds a {type(held).__name__} without a copy: {error}") from None
    if vars(copied) is vars(held):
        raise _refusal(model, f"it holds a {type(held).__name__} that is its own copy")
    return copied


def _replace(
    model: nn.Module, held: object, copied: object, undo: list[Callable[[], None]]
) -> None:
    """Let all modules that hold an object hold a copy instead."""
    for module in model.modules():
        for key, value in list(vars(module).items()):
            if value is held:
                _set(vars(module), key, copied, undo)


def _set(table: dict[str, Any], key: str, value: Any, undo: list[Callable[[], None]]) -> None:
    if key in table:
        old = table[key]
        undo.append(lambda: table.__setitem__(key, old))
    else:
        undo.append(lambda: table.pop(key))
    table[key] = value


def _take_back(undo: list[Callable[[], None]], left: int) -> None:
    """Undo all but the first ``left`` settings, the last one first."""
    while len(undo) > left:
        undo.pop()()


def _like(tensor: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """The values of ``tensor``: in ``old`` if they fit there, else in a new one of its kind."""
    if tensor.device == old.device and _equal(tensor, old):
        return old
    new = tensor.detach().clone().to(old.device)
    return nn.Parameter(new, tensor.requires_grad) if isinstance(old, nn.Parameter) else new


def _compare(model: nn.Module, pruned: PrunedModule, modes: Modes) -> None:
    """See whether the class's code, on the smaller layers, makes the pruned model's calls.

    Raises:
        MaterializeError: naming the first that differs.
    """
    solution = making_of(pruned).solution
    assert solution is not None
    try:
        program = _program(model, solution, modes)
    except TraceError as error:
        reason = _failure(model, solution) or str(error)
        raise _refusal(model, f"with these layers it does not run: {reason}") from None
    own = rebuild(model, program, solve(program.graph, Masks(kept={}), solver="identity"))
    for call, wanted in zip_longest(calls_of(own.graph), calls_of(pruned.graph)):
        if call != wanted:
            reason = f"it makes the call {call or 'none'!r}, the pruned model {wanted or 'none'!r}"
            raise _refusal(model, reason)
    theirs, known = tensors_of(pruned), tensors_of(own)
    for name, tensor in theirs.items():
        if name not in known or not _equal(known[name], tensor):
            raise _refusal(model, f"it computes with another {name!r} than the pruned model")
    mine = dict(own.named_modules())
    for name, module in pruned.named_modules():
        if isinstance(module, OURS) and not _alike(mine.get(name), module):
            raise _refusal(model, f"it takes other channels than the pruned model at {name!r}")


def _failure(model: nn.Module, solution: Solution) -> str:
    """The error of a plain call, which says more than that of a trace; nothing if there is none."""
    args, kwargs = remake(solution.example, *kind_of(model))
    try:
        with undisturbed(model, args, kwargs), torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:  # of any kind, as any code may run there
        frames = traceback.extract_tb(error.__traceback__)
        torchs = str(Path(torch.__file__).parent)
        last = [frame for frame in frames if not frame.filename.startswith(torchs)][-1]
        return f"{(str(error).splitlines() or [''])[0]} (in {last.name}: {last.line})"
    return ""


def _alike(one: nn.Module | None, other: nn.Module) -> bool:
    """Tell whether two modules of ours are of one kind, and have the same indices and settings."""
    if type(one) is not type(other) or one is None:
        return False
    mine, theirs = dict(one.named_buffers()), dict(other.named_buffers())
    settings = [
        {key: value for key, value in vars(m).items() if type(value) in _PLAIN and key not in _BARE}
        for m in (one, other)
    ]
    return (
        settings[0] == settings[1]
        and mine.keys() == theirs.keys()
        and all(_equal(mine[name], theirs[name]) for name in mine)
    )


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether two tensors, on any devices, have the same shape and values, or NaN in both."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.allclose(one.cpu(), other.cpu(), rtol=0.0, atol=0.0, equal_nan=True)


def _refusal(model: nn.Module, reason: str) -> MaterializeError:
    return MaterializeError(
        f"the code of {type(model).__name__} cannot stay as it is: {reason}; prune with "
        'method="constrained", leave these layers whole, or take the pruned model itself, whose '
        "program is its own"
    )
