"""Settings of modules, besides parameters and buffers: class and attributes, to be compared."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import fx, nn

from upscale_opt.ir.base import Record
from upscale_opt.materializing.pruned_module import read_by_forward
from upscale_opt.runtime.modules import OURS
from upscale_opt.tracing.examples import dtype_name


class Settings(Record):
    """The settings that modules of one class have in common, apart from their tensors.

    Attributes:
        kind: the class.
        values: their attributes as text: plain ones as ``repr`` writes them, functions and classes
            by name, tensors by a hash of their values.
        modules: their names.
    """

    kind: str
    values: dict[str, str]
    modules: tuple[str, ...]


def settings_of(pruned: fx.GraphModule) -> tuple[Settings, ...]:
    """The settings of all modules that the model calls, apart from those that pruning made."""
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}
    for name, module in _called(pruned):
        values = tuple(sorted(_plain_attributes(module).items()))
        groups.setdefault((type(module).__name__, values), []).append(name)
    return tuple(
        Settings(kind=kind, values=dict(values), modules=tuple(names))
        for (kind, values), names in groups.items()
    )


def difference(pruned: fx.GraphModule, settings: Iterable[Settings]) -> str | None:
    """The first module that is not set as ``settings`` say, and how; ``None`` if all are.

    Attributes that only one side has are let pass: they come and go with versions of PyTorch.
    """
    own = dict(_called(pruned))
    for group in settings:
        for name in group.modules:
            module = own.pop(name, None)
            if module is None:
                return f"there is no module {name!r} (a {group.kind})"
            if type(module).__name__ != group.kind:
                return f"module {name!r} is a {type(module).__name__} instead of a {group.kind}"
            values = _plain_attributes(module)
            for key in sorted(values.keys() & group.values.keys()):
                if values[key] != group.values[key]:
                    return f"{name}.{key} is {values[key]} instead of {group.values[key]}"
    return next((f"there is a module {name!r}" for name in own), None)


def _called(pruned: fx.GraphModule) -> Iterator[tuple[str, nn.Module]]:
    targets = {str(node.target): None for node in pruned.graph.nodes if node.op == "call_module"}
    for target in targets:
        for name, module in pruned.get_submodule(target).named_modules(prefix=target):
            if not isinstance(module, OURS):
                yield name, module


_SIZES = {
    *("in_channels", "out_channels", "in_features", "out_features"),
    *("num_features", "num_parameters"),
}
"""Attributes that follow from the tensors."""


def _plain_attributes(module: nn.Module) -> dict[str, str]:
    found: dict[str, str] = {}
    theirs = type(module).__module__.partition(".")[0] != "torch"
    kind: Any = type(module)  # which mypy takes for nothing hashable
    read = read_by_forward(kind) if theirs else frozenset()
    read -= vars(nn.Module()).keys()
    for name, value in vars(module).items():
        hidden = name.startswith("_") and (name not in read or value is None)
        if hidden or name in {"training", *_SIZES}:
            continue
        text = _text(value, 0)
        if text is not None:
            found[name] = text
        code = getattr(value, "__code__", None)
        if isinstance(value, FunctionType) and "<" in value.__qualname__ and code is not None:
            # Names do not tell lambdas apart; their code differs from one Python to the next.
            version = ".".join(map(str, sys.version_info[:2]))
            digest = hashlib.sha256(code.co_code).hexdigest()[:16]
            found[f"{name} (code, Python {version})"] = digest
    return found


_DEEPEST = 5


def _text(value: Any, depth: int) -> str | None:
    """A value that makes a difference as text; ``None`` if it is of no known kind."""
    if value is None or type(value) in _PLAIN:
        return repr(value)
    if depth > _DEEPEST:
        return None
    if isinstance(value, torch.Tensor):
        return _tensor_text(value)
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if type(value).__module__ == "numpy" and getattr(value, "dtype", None) is not None:
        return _tensor_text(torch.as_tensor(value)) if value.dtype.kind in "fciub" else None
    if isinstance(value, partial):
        parts = value.func, value.args, value.keywords
        return _joined("partial(", [_text(part, depth + 1) for part in parts], ")")
    if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        return _function_text(value, depth)
    if isinstance(value, MethodType) and not isinstance(value.__self__, nn.Module):
        name = f"{type(value.__self__).__qualname__}.{value.__name__}"
        own = _held(value.__self__, depth + 1)
        return f"{name} of {own}" if own else name
    if isinstance(value, (tuple, list)):
        return _sequence_text(value, depth)
    if isinstance(value, (set, frozenset)):
        texts = [_text(item, depth + 1) for item in value]
        return _joined("{", sorted(text or "" for text in texts), "}") if all(texts) else None
    if isinstance(value, dict):
        texts = [_text(item, depth + 1) for pair in value.items() for item in pair]
        return _joined("{", texts, "}")
    if dataclasses.is_dataclass(value):
        held = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
        text = _text(held, depth + 1)
        return None if text is None else type(value).__qualname__ + text
    inside = _held(value, depth + 1)
    return type(value).__qualname__ + inside if inside else None


def _held(value: Any, depth: int) -> str:
    """The attributes of an object, as far as they are of known kinds."""
    kind = type(value)
    if isinstance(value, (nn.Module, type)) or kind.__module__.partition(".")[0] == "torch":
        return ""
    slots = [getattr(cls, "__slots__", ()) for cls in kind.__mro__]
    names = {name for own in slots for name in ((own,) if isinstance(own, str) else own)}
    names |= set(getattr(value, "__dict__", ()))
    texts = {
        name: _text(getattr(value, name, None), depth)
        for name in names
        if not name.startswith("__")
    }
    known = [f"{name}: {text}" for name, text in sorted(texts.items()) if text is not None]
    return f"({', '.join(known)})" if known else ""


_PLAIN = (bool, int, float, complex, str, bytes, slice, torch.dtype, torch.Size)


def _joined(before: str, texts: Iterable[str | None], after: str) -> str | None:
    known = list(texts)
    given = [text for text in known if text is not None]
    return before + ", ".join(given) + after if len(given) == len(known) else None


def _sequence_text(value: tuple[Any, ...] | list[Any], depth: int) -> str | None:
    """As ``repr`` writes it, if all in it is plain, as it has been in files from the first."""
    texts = [_text(item, depth + 1) for item in value]
    if not isinstance(value, tuple):
        return _joined("[", texts, "]")
    comma = "," if len(texts) == 1 else ""
    return _joined("(", texts, f"{comma})")


def _tensor_text(tensor: torch.Tensor) -> str | None:
    """The shape, dtype and a hash of the values; nothing of a tensor that has none."""
    if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
        return None
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    digest = hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
    return f"tensor {dtype_name(tensor.dtype)} {tuple(tensor.shape)} {digest}"


def _function_text(value: Any, depth: int) -> str:
    """The qualified name; of a function with a closure, or with defaults, what is in these, too."""
    name = f"{getattr(value, '__module__', '')}.{value.__qualname__}"
    if not isinstance(value, FunctionType):
        return name
    cells = [cell.cell_contents for cell in value.__closure__ or ()]
    inside = [_text(held, depth + 1) for held in (*cells, *(value.__defaults__ or ()))]
    constants = () if "<" not in value.__qualname__ else value.__code__.co_consts
    inside += [_text(one, depth + 1) for one in constants]
    held = [text for text in inside if text is not None]
    names = list(value.__code__.co_names) if constants else []
    return f"{name}({', '.join([*names, *held])})" if names or held else name
