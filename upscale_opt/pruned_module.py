"""The class of pruned models."""

from __future__ import annotations

import copy
from typing import Any

from torch import fx, nn

from upscale_opt.ir.base import Document
from upscale_opt.ir.solution import Solution
from upscale_opt.origin import Origin

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
_TREE = ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")


class PrunedModule(fx.GraphModule):
    """A ``GraphModule`` that in copies and on disk keeps what a plain one loses.

    That is its name, mode, forward hooks, the classes of the modules within it, its other
    attributes, and the class of the original model, if it has taken that one's place.

    Attributes:
        solution: what it was made by.
        origin: what it was made of, and how.
    """

    solution: Solution | None = None
    origin: Origin | None = None

    def carry(self, source: nn.Module, name: str) -> None:
        """Take over the mode and the forward hooks of ``source``, and call the class ``name``."""
        self.__class__.__name__ = name
        self.training = source.training
        for table in _HOOKS:
            getattr(self, table).update(getattr(source, table))

    def __deepcopy__(self, memo: dict[int, Any]) -> PrunedModule:
        copied = super().__deepcopy__(memo)
        assert isinstance(copied, PrunedModule)
        copied.carry(self, type(self).__name__)
        for table in _TREE:  # a GraphModule makes up plain modules between itself and its leaves
            copied.__dict__[table] = copy.deepcopy(self.__dict__[table], memo)
        for name in self.__dict__.keys() - copied.__dict__.keys():
            value = self.__dict__[name]
            # Documents are frozen, and a solution may be large.
            shared = isinstance(value, Document)
            copied.__dict__[name] = value if shared else copy.deepcopy(value, memo)
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, arguments = super().__reduce__()[:2]
        return _restore, (rebuild, arguments, type(self).__name__, _original_class(type(self)))


def _restore(
    rebuild: Any, arguments: tuple[Any, ...], name: str, original: type[nn.Module] | None
) -> PrunedModule:
    body: dict[str, Any] = arguments[0]
    plain = rebuild(*arguments)
    kind = PrunedModule if original is None else _kind(original)
    module = kind(plain, plain.graph, class_name=name)
    module.training = body["training"]
    for table in (*_TREE, *_HOOKS):
        module.__dict__[table] = body[table]
    for attribute in body.keys() - module.__dict__.keys() - {"_graphmodule_cls_name"}:
        module.__dict__[attribute] = body[attribute]
    return module


def replace(model: nn.Module, pruned: PrunedModule) -> None:
    """Turn ``model`` into ``pruned``, in place.

    It stays the same object and an instance of its class, with that one's methods and its own
    attributes and hooks; and so do the modules within it, as far as they are still there.

    Args:
        model: the original.
        pruned: its export, which is used up.
    """
    original = _original_class(type(model)) if isinstance(model, PrunedModule) else type(model)
    kind = PrunedModule if original is None else _kind(original)
    new = kind(pruned, pruned.graph, class_name=type(model).__name__)
    _adopt(model, new)
    body = new.__dict__
    tree = {name for table in _TREE for name in body[table]}
    plain = nn.Module().__dict__.keys() - set(_TREE)
    for name, value in model.__dict__.items():
        if name in plain or (name not in body and name not in tree and name != "forward"):
            body[name] = value
    for name in pruned.__dict__.keys() - nn.Module().__dict__.keys():
        body.setdefault(name, pruned.__dict__[name])
    body["solution"], body["origin"] = pruned.solution, pruned.origin
    object.__setattr__(model, "__class__", type(new))
    object.__setattr__(model, "__dict__", body)


def _adopt(old: nn.Module, new: nn.Module) -> None:
    """Put the modules of ``old`` where ``new`` has their successors."""
    for name, successor in new._modules.items():
        module = old._modules.get(name)
        if module is None or successor is None or module is successor:
            continue
        if type(successor) is nn.Module and not (module._parameters or module._buffers):
            _adopt(module, successor)  # nothing but a place for others
            for table in _TREE:
                module.__dict__[table] = successor.__dict__[table]
        elif type(successor) is type(module):
            object.__setattr__(module, "__dict__", successor.__dict__)
        else:
            continue
        new._modules[name] = module


class _Barrier(nn.Module):
    """Stands before the original class, so that its ``__init__`` is not run again."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


def _kind(original: type[nn.Module]) -> type[PrunedModule]:
    """A class of pruned modules that are instances of ``original``, too."""
    if issubclass(original, fx.GraphModule):
        return PrunedModule
    return type(original.__name__, (PrunedModule, _Barrier, original), {"_original": original})


def _original_class(kind: type) -> type[nn.Module] | None:
    return getattr(kind, "_original", None)
