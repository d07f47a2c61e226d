"""The class of pruned models."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


class PrunedModule(fx.GraphModule):
    """A ``GraphModule`` that keeps name, mode and forward hooks in copies and on disk."""

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
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, arguments = super().__reduce__()[:2]
        hooks = {table: getattr(self, table) for table in _HOOKS}
        return _restore, (rebuild, arguments, type(self).__name__, self.training, hooks)


def _restore(
    rebuild: Any, arguments: tuple[Any, ...], name: str, training: bool, hooks: dict[str, Any]
) -> PrunedModule:
    plain = rebuild(*arguments)
    module = PrunedModule(plain, plain.graph, class_name=name)
    module.training = training
    for table, entries in hooks.items():
        getattr(module, table).update(entries)
    return module
