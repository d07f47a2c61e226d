"""The class of pruned models."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from functools import cache, wraps
from types import FunctionType
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph_module import _forward_from_src

from upscale_opt.errors import MaterializeError
from upscale_opt.ir.base import Document
from upscale_opt.ir.solution import Solution
from upscale_opt.materializing.direct_lookups import with_direct_lookups
from upscale_opt.materializing.marks import MARK, mark_of
from upscale_opt.materializing.names import MAKING, taken
from upscale_opt.materializing.origin import Origin, Stage
from upscale_opt.runtime.indices import Indexed, another_pruning
from upscale_opt.runtime.signature import name_parameters

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
_TREE = ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")


@dataclass
class Making:
    """The way in which a pruned model was made.

    Attributes:
        solution: what it was made by.
        origin: what it was made of, and how.
        earlier: the prunings before that, if it was made of a pruned model.
        named: the original's modules and tensors that its program named.
        renamed: the old names of its modules and tensors, by the new ones, where they differ.
        fixed_mode: the mode that its program was captured in, if it is another in the other.
    """

    solution: Solution | None = None
    origin: Origin | None = None
    earlier: tuple[Stage, ...] = ()
    named: frozenset[str] = frozenset()
    renamed: dict[str, str] = field(default_factory=dict)
    fixed_mode: bool | None = None

    @property
    def solutions(self) -> list[Solution]:
        """Of all prunings, the first one first."""
        last = () if self.solution is None else (self.solution,)
        return [*(stage.solution for stage in self.earlier), *last]

    def __deepcopy__(self, memo: dict[int, Any]) -> Making:
        return replace_fields(self)  # documents are frozen, and a solution may be large


_SHOWN = ("solution", "origin", "earlier")


def making_of(model: object) -> Making:
    """The way in which a model was made; an empty one of those that are not pruned."""
    found = vars(model).get(MAKING) if isinstance(model, PrunedModule) else None
    return found if isinstance(found, Making) else Making()


def remember(pruned: PrunedModule, making: Making) -> None:
    """Say in which way a model was made."""
    vars(pruned)[MAKING] = making


class PrunedModule(fx.GraphModule):
    """A ``GraphModule`` that in copies and on disk keeps what a plain one loses.

    That is its name, mode, forward hooks, the classes of the modules within it, its other
    attributes, and the class of the original model, if it has taken that one's place.

    Attributes:
        solution: what it was made by; unless the original has something called so, as for the
            other two.
        origin: what it was made of, and how.
        earlier: the prunings before that, if it was made of a pruned model.
    """

    solution: Solution | None
    origin: Origin | None
    earlier: tuple[Stage, ...]

    def __getattr__(self, name: str) -> Any:
        """An attribute of the original, or else of how it was made."""
        making = vars(self).get(MAKING) if name in _SHOWN else None
        if making is None or any(name in vars(self)[table] for table in _TREE):
            return super().__getattr__(name)
        return getattr(making, name)

    def recompile(self) -> Any:
        """Compile the graph's code, in which modules are looked up where they are."""
        code = super().recompile()
        fields = getattr(self.graph, "_co_fields", {})
        source = with_direct_lookups(self.code, self)
        setattr(type(self), "forward", _forward_from_src(source, code.globals, fields))  # noqa: B010
        return code

    def train(self, mode: bool = True) -> PrunedModule:
        """Set the mode, and say so if the program does not follow it."""
        fixed = making_of(self).fixed_mode
        if fixed is not None and mode is not fixed:
            was, now = ("train", "eval") if fixed else ("eval", "train")
            warnings.warn(
                f"the code of {type(self).__name__} asks for its mode (as functional dropout "
                f"does), and was pruned as it is in {was} mode; it stays so in {now} mode. "
                f"For a model of {now} mode, trace and prune it in that",
                stacklevel=2,
            )
        super().train(mode)
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        mark = mark_of(making_of(self).solutions)
        if mark is not None:
            destination[prefix + MARK] = torch.tensor(mark, dtype=torch.uint8)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        given = state_dict.pop(prefix + MARK, None)
        known = isinstance(given, torch.Tensor) and not given.is_meta
        if known and given.flatten().tolist() != mark_of(making_of(self).solutions):
            error_msgs.append(another_pruning(prefix + MARK))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse to set what the program of a model pruned in place has as a constant.

        Raises:
            MaterializeError: if the original's ``forward`` reads it.
        """
        original, old = _original_class(type(self)), self.__dict__.get(name)
        fixed = name in self.__dict__ and name != "training" and type(old) in _CONSTANTS
        kind: Any = original  # which mypy takes for nothing hashable
        if fixed and old != value and original and name in read_by_forward(kind):
            raise MaterializeError(
                f"setting {name!r} would change nothing: pruning in place fixed it as {old!r}; set "
                "it before pruning"
            )
        super().__setattr__(name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> PrunedModule:
        copied = super().__deepcopy__(memo)
        assert isinstance(copied, PrunedModule)

        def copied_value(value: Any) -> Any:
            # Documents are frozen, and a solution may be large.
            return value if isinstance(value, Document) else copy.deepcopy(value, memo)

        return _complete(copied, self, copied_value)

    def __copy__(self) -> PrunedModule:
        plain = fx.GraphModule(self, self.graph)
        copied = _kind(_original_class(type(self)))(plain, plain.graph)
        return _complete(
            copied, self, lambda value: copy.copy(value) if isinstance(value, dict) else value
        )

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, arguments = super().__reduce__()[:2]
        return _restore, (rebuild, arguments, type(self).__name__, _original_class(type(self)))


def carry(pruned: PrunedModule, source: nn.Module, name: str) -> None:
    """Take over the mode and the forward hooks of ``source``, and call the class ``name``."""
    _rename(pruned, name)
    pruned.training = source.training
    for table in _HOOKS:
        getattr(pruned, table).update(getattr(source, table))


def _complete(
    made: PrunedModule, source: PrunedModule, copied: Callable[[Any], Any]
) -> PrunedModule:
    """Take over what a plain copy of ``source`` lacks."""
    carry(made, source, type(source).__name__)
    # A GraphModule makes up plain modules between itself and its leaves.
    for table in (*_TREE, "meta"):
        made.__dict__[table] = copied(source.__dict__[table])
    for name in source.__dict__.keys() - made.__dict__.keys():
        made.__dict__[name] = copied(source.__dict__[name])
    return made


def _restore(
    rebuild: Any, arguments: tuple[Any, ...], name: str, original: type[nn.Module] | None
) -> PrunedModule:
    body: dict[str, Any] = arguments[0]
    plain = rebuild(*arguments)
    name_parameters(plain.graph)
    module = _kind(original)(plain, plain.graph)
    _rename(module, name)
    module.training = body["training"]
    for table in (*_TREE, *_HOOKS, "meta"):
        module.__dict__[table] = body[table]
    for attribute in body.keys() - module.__dict__.keys() - {"_graphmodule_cls_name"}:
        module.__dict__[attribute] = body[attribute]
    return module


def replace(model: nn.Module, pruned: PrunedModule) -> None:
    """Turn ``model`` into ``pruned``, in place.

    It stays the same object and an instance of its class, with that one's methods and its own
    attributes and hooks; and so do the modules within it, as far as they are still there. What
    pruning did not look at, because ``forward`` does not use it, stays as it is.

    Args:
        model: the original.
        pruned: its export, which is used up.

    Raises:
        MaterializeError: if it has attributes whose names the export needs.
    """
    refuse_replacing(model, pruned)
    original = _original_class(type(model)) if isinstance(model, PrunedModule) else type(model)
    new = _kind(original)(pruned, pruned.graph)
    _rename(new, type(model).__name__)
    making = making_of(pruned)
    changed = frozenset(name for one in making.solutions for name in one.parameters)
    _adopt(model, new, making.named, changed)
    body = new.__dict__
    tree = {name for table in _TREE for name in body[table]}
    plain = nn.Module().__dict__.keys() - set(_TREE)
    for name in pruned.__dict__.keys() - nn.Module().__dict__.keys():
        body.setdefault(name, pruned.__dict__[name])
    for name, value in model.__dict__.items():
        if name in plain or (name not in body and name not in tree and name != "forward"):
            body[name] = value
    if isinstance(model.__dict__.get("meta"), dict):  # every GraphModule has one, too
        body["meta"] = model.__dict__["meta"]
    object.__setattr__(model, "__class__", type(new))
    object.__setattr__(model, "__dict__", body)


def refuse_replacing(model: nn.Module, pruned: PrunedModule) -> None:
    """Refuse to prune in place a model some of whose attributes would be something else then.

    Raises:
        MaterializeError: naming one of them.
    """
    names = list(making_of(pruned).renamed.values())
    if not isinstance(model, fx.GraphModule):
        names += [name for name in vars(model) if name in taken() - {"meta"}]
    if names:
        raise MaterializeError(
            f"{type(model).__name__} cannot be pruned in place, as pruned models, or Python, need "
            f"the name of its attribute {names[0]!r}: prune a copy (upscale_opt.prune), or call it "
            "something else"
        )


def _adopt(
    old: nn.Module, new: nn.Module, named: frozenset[str], changed: frozenset[str], path: str = ""
) -> None:
    """Put the modules of ``old`` where ``new`` has their successors, and those of no concern.

    Args:
        old: a module of the original that has others.
        new: its successor.
        named: the modules and tensors that the original's program names.
        changed: the parameters of which channels were removed or moved.
        path: the module's name, with a dot behind.
    """
    for name, module in old._modules.items():
        successor = new._modules.get(name)
        if successor is None:
            if module is None or not _is_named(path + name, named):
                new._modules[name] = module
        elif module is not None and module is not successor:
            if type(successor) is nn.Module and isinstance(module, Indexed):
                continue  # traced through: what is left is a place for its indices
            if type(successor) is nn.Module and not _is_torchs(module):
                inside = f"{path}{name}."
                _adopt(module, successor, named, changed, inside)  # a place for others
                for table in _TREE:
                    module.__dict__[table] = successor.__dict__[table]
                if any(parameter.startswith(inside) for parameter in changed):
                    _refuse_calls(module, path + name)
            elif type(successor) is type(module):
                object.__setattr__(module, "__dict__", successor.__dict__)
            else:
                continue
            new._modules[name] = module
    for table in ("_parameters", "_buffers"):
        for name, tensor in old.__dict__[table].items():
            if name not in new.__dict__[table] and path + name not in named:
                new.__dict__[table][name] = tensor
                if name in old._non_persistent_buffers_set:
                    new._non_persistent_buffers_set.add(name)


class _Refusal:
    """A hook of a module of whose code nothing holds any more: channels of its layers moved."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.paused = False

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Refuse the call.

        Raises:
            MaterializeError: unless it is paused.
        """
        if self.__dict__.get("paused"):
            return
        raise MaterializeError(
            f"{self.name!r} was pruned in place as a part of the whole model, which alone knows "
            "where its channels are: call the whole model, or prune a copy (upscale_opt.prune) and "
            "keep the original for its parts"
        )


def _refuse_calls(module: nn.Module, name: str) -> None:
    if not any(isinstance(hook, _Refusal) for hook in module._forward_pre_hooks.values()):
        module.register_forward_pre_hook(_Refusal(name))


@contextmanager
def _only_whole(model: PrunedModule) -> Iterator[None]:
    """While this is open, layers of which channels moved can be called by the whole model alone."""
    if "forward" in model.__dict__:  # it is open already
        yield
        return
    modules = dict(model.named_modules())
    solutions = making_of(model).solutions
    names = {name.rpartition(".")[0] for one in solutions for name in one.parameters} - {""}
    refusals = [_Refusal(name) for name in names if name in modules]
    handles = [modules[one.name].register_forward_pre_hook(one) for one in refusals]

    def forward(*args: Any, **kwargs: Any) -> Any:
        for one in refusals:
            one.paused = True
        try:
            return type(model).forward(model, *args, **kwargs)
        finally:
            for one in refusals:
                one.paused = False

    model.__dict__["forward"] = forward
    try:
        yield
    finally:
        del model.__dict__["forward"]
        for handle in handles:
            handle.remove()


def _methods(original: type[nn.Module]) -> dict[str, Any]:
    """The methods of a class, besides ``forward``, such that they refuse to call layers alone."""

    def refusing(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def guarded(self: PrunedModule, *args: Any, **kwargs: Any) -> Any:
            with _only_whole(self):
                return method(self, *args, **kwargs)

        return guarded

    found: dict[str, Any] = {}
    for cls in original.__mro__[: original.__mro__.index(nn.Module)]:
        for name, value in vars(cls).items():
            own = isinstance(value, FunctionType) and not name.startswith("__")
            if own and not hasattr(PrunedModule, name) and name not in found:
                found[name] = refusing(value)
    return found


_CONSTANTS = (bool, int, float, complex, str, tuple, type(None))


@cache
def read_by_forward(kind: type[nn.Module] | None) -> frozenset[str]:
    """The names that the code of ``forward`` reads, and that of the methods it names."""
    found: set[str] = set()
    left = ["forward"]
    while left:
        method = inspect.unwrap(getattr(kind, left.pop(), None) or len)
        code = getattr(method, "__code__", None)
        names = set() if code is None else {*code.co_names} - found
        found |= names
        left += names
    return frozenset(found)


def _is_named(path: str, named: frozenset[str]) -> bool:
    """Tell whether the program names the module, or something in it, or what it is in."""
    return any(f"{name}.".startswith(f"{path}.") or path.startswith(f"{name}.") for name in named)


def _is_torchs(module: nn.Module) -> bool:
    """Tell whether it is one of PyTorch's layers, which print their sizes though these changed."""
    return type(module).__module__.startswith("torch.nn.") and not isinstance(
        module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    )


class _Barrier(nn.Module):
    """Stands before the original class, so that its ``__init__`` is not run again."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


def _kind(original: type[nn.Module] | None) -> type[PrunedModule]:
    """A class of pruned modules that are instances of ``original``, too, if that is possible."""
    if original is None or issubclass(original, fx.GraphModule):
        return PrunedModule
    try:
        bases = (PrunedModule, _Barrier, original)
        # What a __call__ of its own does is in the program.
        own = {**_methods(original), "_original": original, "__call__": nn.Module.__call__}
        return type(original.__name__, bases, own)
    except TypeError:  # it asks its subclasses for more than bases
        return PrunedModule


def _original_class(kind: type) -> type[nn.Module] | None:
    return getattr(kind, "_original", None)


def _rename(module: PrunedModule, name: str) -> None:
    """Call the class ``name``; by its qualified name, FX knows that it belongs to one module."""
    type(module).__name__ = name
